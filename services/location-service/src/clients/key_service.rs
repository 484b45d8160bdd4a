//! The one call to key-service: generation.

use std::time::Duration;

use async_trait::async_trait;
use keysweep_proto::error::v1::ErrorReason;
use keysweep_proto::key::v1::key_service_client::KeyServiceClient as Client;
use keysweep_proto::key::v1::{GenerateApiKeyRequest, GenerateApiKeyResponse, LocationRef, Owner, owner};
use secrecy::SecretString;
use service_kit::auth::Trust;
use service_kit::client::{self, ClientConfig, EndpointError, Peer};
use service_kit::context::RequestContext;
use service_kit::time::{from_proto, to_proto};
use service_kit::violations::Violations;
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::app::Call;
use crate::app::ports::{GeneratedKey, KeyGenerator, KeyOrder, KeyServiceError};

/// What is kept back of the caller's deadline, so that it hears why the call failed.
const KEPT_BACK: Duration = Duration::from_millis(100);
/// When a caller's retry is worth it: a restart of key-service takes about this long.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// key-service, connected to when first asked: it may be down while everything else works.
#[derive(Clone, Debug)]
pub struct KeyServiceClient {
    client: Client<Peer>,
    timeout: Duration,
}

impl KeyServiceClient {
    /// A client that connects when first used.
    ///
    /// # Errors
    /// When the endpoint is no URL, or not one that `trust` goes with; a validated configuration has none such.
    pub fn new(config: &ClientConfig, trust: &Trust) -> Result<Self, EndpointError> {
        Ok(Self { client: Client::new(Peer::new(config, trust)?), timeout: config.request_timeout() })
    }

    /// How long all attempts together may take.
    fn budget(&self, call: &Call) -> Duration {
        let left =
            call.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()).saturating_sub(KEPT_BACK));
        left.map_or(self.timeout, |left| left.min(self.timeout))
    }
}

#[async_trait]
impl KeyGenerator for KeyServiceClient {
    async fn generate(&self, call: &Call, order: &KeyOrder) -> Result<GeneratedKey, KeyServiceError> {
        let context = RequestContext {
            request_id: call.call_id.as_str().into(),
            traceparent: call.traceparent.clone(),
            actor: Some(order.actor.clone()),
            deadline: call.deadline,
            caller: None,
            peer: None,
        };
        let attempt = |left| {
            let mut key_service = self.client.clone();
            let request = client::with_context(request_of(order), &context, left);
            async move { key_service.generate_api_key(request).await }
        };
        // The order names its request, so an attempt whose answer was lost is repeated without a second key.
        match client::retrying("keysweep.key.v1.KeyService/GenerateApiKey", self.budget(call), attempt).await {
            Ok(response) => key_of(response.into_inner()),
            Err(status) => Err(error_of(&status)),
        }
    }
}

fn request_of(order: &KeyOrder) -> GenerateApiKeyRequest {
    let account = match &order.location_id {
        None => owner::Account::AgencyId(order.agency_id.clone()),
        Some(location_id) => owner::Account::Location(LocationRef {
            agency_id: order.agency_id.clone(),
            location_id: location_id.clone(),
        }),
    };
    GenerateApiKeyRequest {
        owner: Some(Owner { account: Some(account) }),
        display_name: order.display_name.clone(),
        scopes: order.scopes.clone(),
        expire_time: order.expires_at.map(to_proto),
        allowed_cidrs: order.allowed_cidrs.clone(),
        request_id: order.request_id.clone(),
    }
}

fn key_of(response: GenerateApiKeyResponse) -> Result<GeneratedKey, KeyServiceError> {
    let secret = SecretString::from(response.secret);
    let broken =
        |what: &str| KeyServiceError::Unexpected(format!("key-service generated a key and answered without {what}"));
    let key = response.api_key.ok_or_else(|| broken("its metadata"))?;
    if key.key_id.is_empty() || secrecy::ExposeSecret::expose_secret(&secret).is_empty() {
        return Err(broken("its id or secret"));
    }
    Ok(GeneratedKey {
        created_at: key.create_time.as_ref().and_then(from_proto).ok_or_else(|| broken("its time of creation"))?,
        expires_at: key.expire_time.as_ref().and_then(from_proto),
        key_id: key.key_id,
        display_name: key.display_name,
        display_prefix: key.display_prefix,
        scopes: key.scopes,
        secret,
    })
}

fn error_of(status: &Status) -> KeyServiceError {
    let details = status.get_error_details();
    let reason = details.error_info().map_or("", |info| info.reason.as_str());
    let unexpected = || {
        KeyServiceError::Unexpected(format!(
            "key-service answered {:?} ({reason}): {}",
            status.code(),
            status.message()
        ))
    };
    match status.code() {
        Code::InvalidArgument => {
            let mut violations = Violations::default();
            for one in details.bad_request().into_iter().flat_map(|bad| &bad.field_violations) {
                violations.push(&one.field, &one.description);
            }
            if violations.is_empty() { unexpected() } else { KeyServiceError::Invalid(violations) }
        }
        Code::AlreadyExists
            if ErrorReason::from_str_name(&format!("ERROR_REASON_{reason}")) == Some(ErrorReason::RequestIdReused) =>
        {
            KeyServiceError::RequestIdReused
        }
        // A broken connection comes as UNKNOWN or CANCELLED, without a reason of ours.
        Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted | Code::Unknown | Code::Cancelled => {
            let retry_after = details.retry_info().and_then(|info| info.retry_delay).unwrap_or(RETRY_AFTER);
            KeyServiceError::Unavailable { retry_after }
        }
        _ => unexpected(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use service_kit::status::StatusBuilder;

    #[test]
    fn answers_of_key_service_are_told_apart() {
        let faults = Violations::of("scopes[0]", "must be visible ASCII");
        let invalid = service_kit::status::invalid_fields(&faults);
        assert!(matches!(error_of(&invalid), KeyServiceError::Invalid(passed) if passed == faults));
        let reused = StatusBuilder::new(Code::AlreadyExists, "ERROR_REASON_REQUEST_ID_REUSED", "reused").build();
        assert!(matches!(error_of(&reused), KeyServiceError::RequestIdReused));
        for code in [Code::Unavailable, Code::DeadlineExceeded, Code::ResourceExhausted, Code::Unknown, Code::Cancelled]
        {
            assert!(matches!(error_of(&Status::new(code, "")), KeyServiceError::Unavailable { .. }), "{code:?}");
        }
        for code in [
            Code::Internal,
            Code::PermissionDenied,
            Code::Unauthenticated,
            Code::NotFound,
            Code::AlreadyExists,
            Code::InvalidArgument,
            Code::Unimplemented,
        ] {
            assert!(matches!(error_of(&Status::new(code, "")), KeyServiceError::Unexpected(_)), "{code:?}");
        }
        let slow = StatusBuilder::new(Code::Unavailable, "DRAINING", "").retry_after(Duration::from_secs(7)).build();
        assert!(
            matches!(error_of(&slow), KeyServiceError::Unavailable { retry_after } if retry_after == Duration::from_secs(7))
        );
    }
}
