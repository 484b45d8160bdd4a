//! Refusals on the wire: the one place where a use case's error becomes a status.

use std::time::Duration;

use chrono::SecondsFormat;
use keysweep_proto::error::v1::ErrorReason;
use service_kit::status::{self as kit, StatusBuilder};
use tonic::{Code, Status};

use crate::app::error::{AppError, Resource};

/// Other writers are done within moments.
const CONTENDED_RETRY: Duration = Duration::from_millis(100);

/// The status of a refusal. A fault of ours is logged here, and told to nobody else.
pub(super) fn of(error: AppError) -> Status {
    let message = error.to_string();
    let build = |code: Code, reason: ErrorReason| StatusBuilder::new(code, reason.as_str_name(), message.clone());
    match error {
        AppError::Invalid(violations) => kit::invalid_fields(&violations),
        AppError::Page(error) => kit::page_error(error),
        AppError::ActorRequired => build(Code::Unauthenticated, ErrorReason::ActorRequired).build(),
        AppError::ActorNotAllowed { actor, required } => build(Code::PermissionDenied, ErrorReason::ActorNotAllowed)
            .metadata("actor", actor)
            .metadata("required", required)
            .build(),
        AppError::NotFound { kind, id } => {
            let reason = match kind {
                Resource::Agency => ErrorReason::AgencyNotFound,
                Resource::Location => ErrorReason::LocationNotFound,
                Resource::User => ErrorReason::UserNotFound,
            };
            build(Code::NotFound, reason).resource(type_name(kind), &shown(&id)).build()
        }
        AppError::EtagMismatch { kind, id } => {
            build(Code::Aborted, ErrorReason::EtagMismatch).resource(type_name(kind), &id).build()
        }
        AppError::RequestIdReused => build(Code::AlreadyExists, ErrorReason::RequestIdReused).build(),
        AppError::EmailTaken => build(Code::AlreadyExists, ErrorReason::EmailTaken).build(),
        AppError::LocationDeleted { location_id, deleted_at } => {
            build(Code::FailedPrecondition, ErrorReason::LocationDeleted)
                .precondition(
                    "STATE",
                    &location_id,
                    "the location must not be deleted, or not for 30 days to be undeleted",
                )
                .metadata("location_id", location_id)
                .metadata("delete_time", deleted_at.to_rfc3339_opts(SecondsFormat::AutoSi, true))
                .build()
        }
        AppError::LegacyUsersDisabled { agency_id } => {
            build(Code::FailedPrecondition, ErrorReason::LegacyUsersApiDisabled)
                .precondition("ENHANCED_ACCOUNT_SECURITY", &agency_id, "use keysweep.location.v2.UserService")
                .build()
        }
        AppError::RiskNotAcknowledged { agency_id } => {
            build(Code::FailedPrecondition, ErrorReason::RiskNotAcknowledged)
                .precondition("ACKNOWLEDGE_RISK", &agency_id, "acknowledge_risk must be true")
                .build()
        }
        AppError::KeyServiceUnavailable { retry_after } => {
            build(Code::Unavailable, ErrorReason::KeyServiceUnavailable).retry_after(retry_after).build()
        }
        AppError::StorageUnavailable(cause) => {
            tracing::warn!(cause, "the database cannot be reached");
            kit::storage_unavailable()
        }
        AppError::Contended => {
            StatusBuilder::new(Code::Unavailable, ErrorReason::StorageUnavailable.as_str_name(), message)
                .retry_after(CONTENDED_RETRY)
                .build()
        }
        AppError::Internal(cause) => {
            tracing::error!(cause, "internal error");
            kit::internal()
        }
    }
}

fn type_name(kind: Resource) -> &'static str {
    match kind {
        Resource::Agency => "keysweep.location.v2.Agency",
        Resource::Location => "keysweep.location.v2.Location",
        Resource::User => "keysweep.location.v2.User",
    }
}

/// An id as the caller sent it, cut to what an error can carry.
fn shown(id: &str) -> String {
    id.chars().filter(char::is_ascii_graphic).take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use service_kit::page::PageError;
    use service_kit::violations::Violations;
    use tonic_types::StatusExt;

    #[test]
    fn every_refusal_has_its_code_and_reason() {
        let missing = |kind| AppError::NotFound { kind, id: "x".into() };
        let table = [
            (AppError::Invalid(Violations::of("name", "is required")), Code::InvalidArgument, "INVALID_FIELDS"),
            (AppError::Page(PageError::NegativeSize), Code::InvalidArgument, "INVALID_FIELDS"),
            (AppError::Page(PageError::ForeignToken), Code::InvalidArgument, "PAGE_TOKEN_INVALID"),
            (AppError::ActorRequired, Code::Unauthenticated, "ACTOR_REQUIRED"),
            (
                AppError::ActorNotAllowed { actor: "api-key/k".into(), required: "service" },
                Code::PermissionDenied,
                "ACTOR_NOT_ALLOWED",
            ),
            (missing(Resource::Agency), Code::NotFound, "AGENCY_NOT_FOUND"),
            (missing(Resource::Location), Code::NotFound, "LOCATION_NOT_FOUND"),
            (missing(Resource::User), Code::NotFound, "USER_NOT_FOUND"),
            (AppError::EtagMismatch { kind: Resource::User, id: "x".into() }, Code::Aborted, "ETAG_MISMATCH"),
            (AppError::RequestIdReused, Code::AlreadyExists, "REQUEST_ID_REUSED"),
            (AppError::EmailTaken, Code::AlreadyExists, "EMAIL_TAKEN"),
            (
                AppError::LocationDeleted { location_id: "x".into(), deleted_at: chrono::DateTime::UNIX_EPOCH },
                Code::FailedPrecondition,
                "LOCATION_DELETED",
            ),
            (
                AppError::LegacyUsersDisabled { agency_id: "x".into() },
                Code::FailedPrecondition,
                "LEGACY_USERS_API_DISABLED",
            ),
            (
                AppError::RiskNotAcknowledged { agency_id: "x".into() },
                Code::FailedPrecondition,
                "RISK_NOT_ACKNOWLEDGED",
            ),
            (
                AppError::KeyServiceUnavailable { retry_after: Duration::from_secs(2) },
                Code::Unavailable,
                "KEY_SERVICE_UNAVAILABLE",
            ),
            (AppError::StorageUnavailable("secret cause".into()), Code::Unavailable, "STORAGE_UNAVAILABLE"),
            (AppError::Contended, Code::Unavailable, "STORAGE_UNAVAILABLE"),
            (AppError::Internal("secret cause".into()), Code::Internal, "INTERNAL"),
        ];
        for (error, code, reason) in table {
            let label = format!("{error:?}");
            let status = of(error);
            let details = status.get_error_details();
            let info = details.error_info().expect("error info");
            assert_eq!(
                (status.code(), info.reason.as_str(), info.domain.as_str()),
                (code, reason, "keysweep"),
                "{label}"
            );
            assert_eq!(details.retry_info().is_some(), code == Code::Unavailable, "{label}");
            assert_eq!(details.bad_request().is_some(), code == Code::InvalidArgument, "{label}");
            assert_eq!(details.precondition_failure().is_some(), code == Code::FailedPrecondition, "{label}");
            assert!(!status.message().contains("secret cause"), "{label}");
        }
    }

    #[test]
    fn a_refusal_says_who_may_and_what_was_reused() {
        let refused = of(AppError::ActorNotAllowed { actor: "api-key/k".into(), required: "an agency admin" });
        assert_eq!(refused.message(), "api-key/k may not do this: an agency admin may");
        let reused = of(AppError::RequestIdReused);
        assert_eq!(reused.message(), "the request_id was used within 24 h for a call with other contents");
    }
}
