//! Explicit generation of keys, the only thing ever asked of key-service.

use chrono::{DateTime, Utc};
use serde_json::json;
use service_kit::violations::Violations;

use super::error::AppError;
use super::policy::Action;
use super::ports::{AuditEvent, GeneratedKey, KeyOrder};
use super::{App, Call, FAULTS_SHOWN};

/// Prefix of the request ids that the service makes up for callers who gave none.
const REQUEST_ID: &str = "req_";

const DISPLAY_NAME_MAX: usize = 100;
/// Scopes, and networks, of one key.
const ITEMS_MAX: usize = 50;
const SCOPE_MAX: usize = 100;
/// The longest network there is: an IPv6 address with an IPv4 tail, and its prefix's length.
const CIDR_MAX: usize = 49;

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

impl GenerateKey {
    /// Notes what is too much. What is wrong in other ways is for key-service to say, which may not even read so much.
    fn check(&self, faults: &mut Violations) {
        faults.check_request_id("request_id", &self.request_id);
        if self.display_name.chars().count() > DISPLAY_NAME_MAX {
            faults.push("display_name", format!("must be at most {DISPLAY_NAME_MAX} characters"));
        }
        for (field, texts, length) in
            [("scopes", &self.scopes, SCOPE_MAX), ("allowed_cidrs", &self.allowed_cidrs, CIDR_MAX)]
        {
            if texts.len() > ITEMS_MAX {
                faults.push(field, format!("must be at most {ITEMS_MAX}"));
            }
            for (i, _) in texts.iter().enumerate().filter(|(_, text)| text.len() > length).take(FAULTS_SHOWN) {
                faults.push(format!("{field}[{i}]"), format!("must be at most {length} characters"));
            }
        }
    }
}

impl App {
    /// Generates a key of an agency. `faults`: what reading the request has found.
    ///
    /// # Errors
    /// See [`AppError`].
    pub async fn generate_agency_key(
        &self,
        call: &Call,
        agency_id: &str,
        wish: GenerateKey,
        mut faults: Violations,
    ) -> Result<GeneratedKey, AppError> {
        wish.check(&mut faults);
        let agency = self.permitted_agency(call, Action::ActAsAgencyAdmin, agency_id, &mut faults).await?;
        faults.into_result()?;
        self.generate(call, agency.id, None, wish).await
    }

    /// Generates a key of a location. `faults`: what reading the request has found.
    ///
    /// # Errors
    /// See [`AppError`].
    pub async fn generate_location_key(
        &self,
        call: &Call,
        location_id: &str,
        wish: GenerateKey,
        mut faults: Violations,
    ) -> Result<GeneratedKey, AppError> {
        wish.check(&mut faults);
        let action = Action::ActAsLocationAdmin(location_id);
        let location = self.permitted_location(call, action, location_id, &mut faults).await?.location;
        faults.into_result()?;
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
