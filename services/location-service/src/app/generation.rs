//! Explicit generation of keys, the only thing ever asked of key-service.

use chrono::{DateTime, Utc};
use serde_json::json;
use service_kit::violations::Violations;

use super::error::{AppError, Resource};
use super::policy::Action;
use super::ports::{AuditEvent, GeneratedKey, KeyOrder};
use super::{App, Call};

/// Prefix of the request ids that the service makes up for callers who gave none.
const REQUEST_ID: &str = "req_";

/// What key a person asks for.
#[derive(Clone, Debug, Default)]
pub struct GenerateKey {
    /// A name for people.
    pub display_name: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// When it stops verifying.
    pub expires_at: Option<DateTime<Utc>>,
    /// From where it may be used.
    pub allowed_cidrs: Vec<String>,
    /// Makes the call repeatable. Empty: it is not.
    pub request_id: String,
}

impl App {
    /// Generates a key of an agency.
    ///
    /// # Errors
    /// See [`AppError`].
    pub async fn generate_agency_key(
        &self,
        call: &Call,
        agency_id: &str,
        wish: GenerateKey,
    ) -> Result<GeneratedKey, AppError> {
        let agency = self.permitted_agency(call, Action::ActAsAgencyAdmin, agency_id).await?;
        self.generate(call, agency.id, None, wish).await
    }

    /// Generates a key of a location.
    ///
    /// # Errors
    /// See [`AppError`].
    pub async fn generate_location_key(
        &self,
        call: &Call,
        location_id: &str,
        wish: GenerateKey,
    ) -> Result<GeneratedKey, AppError> {
        let location = self.stored_location(location_id, "location_id").await?.location;
        self.permit(
            call,
            Action::ActAsLocationAdmin(&location.id),
            &location.agency_id,
            (Resource::Location, location_id),
        )
        .await?;
        if let Some(deleted_at) = location.deleted_at {
            return Err(AppError::LocationDeleted { location_id: location.id, deleted_at });
        }
        self.generate(call, location.agency_id, Some(location.id), wish).await
    }

    async fn generate(
        &self,
        call: &Call,
        agency_id: String,
        location_id: Option<String>,
        wish: GenerateKey,
    ) -> Result<GeneratedKey, AppError> {
        let now = self.now();
        let mut faults = Violations::default();
        faults.check_request_id("request_id", &wish.request_id);
        faults.into_result()?;
        let order = KeyOrder {
            actor: call.actor(),
            agency_id,
            location_id,
            display_name: wish.display_name,
            scopes: wish.scopes,
            expires_at: wish.expires_at,
            allowed_cidrs: wish.allowed_cidrs,
            // With an id of ours our own retries end with one key.
            request_id: if wish.request_id.is_empty() { self.ids.next(REQUEST_ID, now) } else { wish.request_id },
        };
        let key = self.keys.generate(call, &order).await?;
        self.store.audit(&generation_event(call, &order, &key, now)).await?;
        Ok(key)
    }
}

/// The audit's entry of a generation. A replay names the same key, and so the same entry.
pub(super) fn generation_event(call: &Call, order: &KeyOrder, key: &GeneratedKey, now: DateTime<Utc>) -> AuditEvent {
    AuditEvent {
        id: format!("aud_{}", key.key_id),
        occurred_at: now,
        actor: order.actor.clone(),
        action: "key.generated",
        agency_id: order.agency_id.clone(),
        location_id: order.location_id.clone(),
        call_id: call.call_id.clone(),
        detail: json!({ "key_id": key.key_id, "caller": call.actor().to_string() }),
    }
}
