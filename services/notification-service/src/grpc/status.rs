//! The one place where errors become statuses.

use keysweep_proto::error::v1::ErrorReason;
use service_kit::status::{StatusBuilder, internal, invalid_fields, page_error, storage_unavailable};
use tonic::{Code, Status};

use crate::app::error::CallError;
use crate::app::ports::StorageError;

impl From<CallError> for Status {
    fn from(error: CallError) -> Self {
        let text = error.to_string();
        let build = |code: Code, reason: ErrorReason| StatusBuilder::new(code, reason.as_str_name(), text);
        match error {
            CallError::Invalid(violations) => invalid_fields(&violations),
            CallError::Page(error) => page_error(error),
            CallError::ActorNotAllowed { actor, required } => {
                build(Code::PermissionDenied, ErrorReason::ActorNotAllowed)
                    .metadata("actor", actor)
                    .metadata("required", required)
                    .build()
            }
            CallError::NotificationNotFound(id) => build(Code::NotFound, ErrorReason::NotificationNotFound)
                .metadata("notification_id", id.as_str())
                .resource("keysweep.notification.v1.Notification", id.as_str())
                .build(),
            CallError::DeliveryNotFound(id) => build(Code::NotFound, ErrorReason::DeliveryNotFound)
                .metadata("delivery_id", id.as_str())
                .resource("keysweep.notification.v1.Delivery", id.as_str())
                .build(),
            CallError::DeliveryState { id, state } => build(Code::FailedPrecondition, ErrorReason::DeliveryState)
                .metadata("delivery_id", id.as_str())
                .metadata("state", state.name())
                .precondition("DELIVERY_STATE", id.as_str(), "only a failed or pending delivery can be retried")
                .build(),
            CallError::RequestIdReused => build(Code::AlreadyExists, ErrorReason::RequestIdReused).build(),
            CallError::Storage(StorageError::Unavailable(cause)) => {
                tracing::warn!(cause, "the database is unavailable");
                storage_unavailable()
            }
            CallError::Storage(StorageError::Internal(cause)) => {
                tracing::error!(cause, "a call failed");
                internal()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::delivery::DeliveryState;
    use service_kit::page::PageError;
    use service_kit::violations::Violations;
    use tonic_types::StatusExt;

    #[test]
    fn each_error_has_its_code_and_reason() {
        let table = [
            (CallError::Invalid(Violations::of("user_id", "is required")), Code::InvalidArgument, "INVALID_FIELDS"),
            (CallError::Page(PageError::NegativeSize), Code::InvalidArgument, "INVALID_FIELDS"),
            (CallError::Page(PageError::ForeignToken), Code::InvalidArgument, "PAGE_TOKEN_INVALID"),
            (
                CallError::ActorNotAllowed { actor: "api-key/1".into(), required: "user/1".into() },
                Code::PermissionDenied,
                "ACTOR_NOT_ALLOWED",
            ),
            (CallError::NotificationNotFound("ntf_1".into()), Code::NotFound, "NOTIFICATION_NOT_FOUND"),
            (CallError::DeliveryNotFound("dlv_1".into()), Code::NotFound, "DELIVERY_NOT_FOUND"),
            (
                CallError::DeliveryState { id: "dlv_1".into(), state: DeliveryState::Accepted },
                Code::FailedPrecondition,
                "DELIVERY_STATE",
            ),
            (CallError::RequestIdReused, Code::AlreadyExists, "REQUEST_ID_REUSED"),
            (CallError::Storage(StorageError::Unavailable("x".into())), Code::Unavailable, "STORAGE_UNAVAILABLE"),
            (CallError::Storage(StorageError::Internal("secret".into())), Code::Internal, "INTERNAL"),
        ];
        for (error, code, reason) in table {
            let status = Status::from(error);
            let details = status.get_error_details();
            assert_eq!((status.code(), details.error_info().map(|i| i.reason.as_str())), (code, Some(reason)));
            assert!(!status.message().contains("secret"));
            assert_eq!(details.retry_info().is_some(), code == Code::Unavailable);
        }
    }

    #[test]
    fn a_refusal_says_who_may_and_what_was_reused() {
        let refused = Status::from(CallError::ActorNotAllowed { actor: "api-key/1".into(), required: "user/1".into() });
        assert_eq!(refused.message(), "api-key/1 may not do this: user/1 may");
        let reused = Status::from(CallError::RequestIdReused);
        assert_eq!(reused.message(), "the request_id was used within 24 h for a call with other contents");
    }
}
