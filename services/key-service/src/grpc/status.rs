//! From what went wrong to what the caller is told.

use keysweep_proto::error::v1::ErrorReason;
use service_kit::status::{StatusBuilder, internal, invalid_fields, storage_unavailable};
use tonic::{Code, Status};

use crate::app::{KeyError, StorageError};

const KEY: &str = "keysweep.key.v1.ApiKey";

/// The status of a failed use case of keys. The cause of an internal one is logged here, once.
pub(super) fn key_status(error: KeyError) -> Status {
    let message = error.to_string();
    let new = |code, reason: ErrorReason| StatusBuilder::new(code, reason.as_str_name(), message.as_str());
    match error {
        KeyError::Invalid(faults) => invalid_fields(&faults),
        KeyError::RequestIdReused => new(Code::AlreadyExists, ErrorReason::RequestIdReused).build(),
        KeyError::ActorRequired => new(Code::Unauthenticated, ErrorReason::ActorRequired).build(),
        KeyError::ActorNotAllowed { actor, required } => new(Code::PermissionDenied, ErrorReason::ActorNotAllowed)
            .metadata("actor", actor)
            .metadata("required", required)
            .build(),
        KeyError::NotFound { key_id } => {
            new(Code::NotFound, ErrorReason::KeyNotFound).metadata("key_id", &key_id).resource(KEY, &key_id).build()
        }
        KeyError::NotActive { key_id, state } => new(Code::FailedPrecondition, ErrorReason::KeyNotActive)
            .metadata("key_id", &key_id)
            .metadata("state", state)
            .precondition("STATE", &key_id, "the key must be ACTIVE")
            .build(),
        KeyError::NotRecoverable { key_id } => new(Code::FailedPrecondition, ErrorReason::KeyNotRecoverable)
            .metadata("key_id", &key_id)
            .precondition("RECOVERABLE", &key_id, "the key's sealed secret must be kept")
            .build(),
        KeyError::AlreadyRotated { key_id, successor_key_id } => {
            new(Code::FailedPrecondition, ErrorReason::KeyAlreadyRotated)
                .metadata("key_id", &key_id)
                .metadata("successor_key_id", successor_key_id)
                .precondition("ROTATED", &key_id, "the key must not have been rotated")
                .build()
        }
        KeyError::RevealRateLimited { retry_after } => {
            new(Code::ResourceExhausted, ErrorReason::RevealRateLimited).retry_after(retry_after).build()
        }
        KeyError::GuessesThrottled { retry_after } => {
            new(Code::ResourceExhausted, ErrorReason::GuessesThrottled).retry_after(retry_after).build()
        }
        KeyError::EtagMismatch { key_id } => {
            new(Code::Aborted, ErrorReason::EtagMismatch).metadata("key_id", key_id).build()
        }
        KeyError::Storage(error) => storage_status(&error),
        KeyError::Internal(cause) => {
            tracing::error!(cause, "a use case of keys failed");
            internal()
        }
    }
}

/// The status of a failed port.
pub(super) fn storage_status(error: &StorageError) -> Status {
    match error {
        StorageError::Unavailable(cause) => {
            tracing::warn!(cause, "the database cannot be reached");
            storage_unavailable()
        }
        // Tried again already, more than once: worth it later, not now.
        StorageError::Conflict(cause) => {
            tracing::warn!(cause, "concurrent changes kept meeting");
            storage_unavailable()
        }
        StorageError::Internal(cause) => {
            tracing::error!(cause, "the database failed");
            internal()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use service_kit::violations::Violations;
    use tonic_types::StatusExt;

    use super::*;

    #[test]
    fn messages_are_those_of_the_sweep() {
        let reused = key_status(KeyError::RequestIdReused);
        assert_eq!(reused.message(), "the request_id was used within 24 h for a call with other contents");
        let missing = key_status(KeyError::NotFound { key_id: "key_1".into() });
        assert_eq!(missing.message(), "there is no key key_1");
    }

    #[test]
    fn every_error_has_its_code_reason_and_facts() {
        let key_id = || "key_1".to_owned();
        let cases = [
            (KeyError::Invalid(Violations::of("f", "d")), Code::InvalidArgument, "INVALID_FIELDS", vec![]),
            (KeyError::RequestIdReused, Code::AlreadyExists, "REQUEST_ID_REUSED", vec![]),
            (KeyError::ActorRequired, Code::Unauthenticated, "ACTOR_REQUIRED", vec![]),
            (
                KeyError::ActorNotAllowed { actor: "api-key/key_1".into(), required: "user/<id>" },
                Code::PermissionDenied,
                "ACTOR_NOT_ALLOWED",
                vec!["actor", "required"],
            ),
            (KeyError::NotFound { key_id: key_id() }, Code::NotFound, "KEY_NOT_FOUND", vec!["key_id"]),
            (
                KeyError::NotActive { key_id: key_id(), state: "REVOKED" },
                Code::FailedPrecondition,
                "KEY_NOT_ACTIVE",
                vec!["key_id", "state"],
            ),
            (
                KeyError::NotRecoverable { key_id: key_id() },
                Code::FailedPrecondition,
                "KEY_NOT_RECOVERABLE",
                vec!["key_id"],
            ),
            (
                KeyError::AlreadyRotated { key_id: key_id(), successor_key_id: "key_2".into() },
                Code::FailedPrecondition,
                "KEY_ALREADY_ROTATED",
                vec!["key_id", "successor_key_id"],
            ),
            (
                KeyError::RevealRateLimited { retry_after: Duration::from_secs(2) },
                Code::ResourceExhausted,
                "REVEAL_RATE_LIMITED",
                vec![],
            ),
            (
                KeyError::GuessesThrottled { retry_after: Duration::from_secs(2) },
                Code::ResourceExhausted,
                "GUESSES_THROTTLED",
                vec![],
            ),
            (KeyError::EtagMismatch { key_id: key_id() }, Code::Aborted, "ETAG_MISMATCH", vec!["key_id"]),
            (StorageError::Unavailable("x".into()).into(), Code::Unavailable, "STORAGE_UNAVAILABLE", vec![]),
            (StorageError::Conflict("x".into()).into(), Code::Unavailable, "STORAGE_UNAVAILABLE", vec![]),
            (StorageError::Internal("hunter2".into()).into(), Code::Internal, "INTERNAL", vec![]),
            (KeyError::Internal("hunter2".into()), Code::Internal, "INTERNAL", vec![]),
        ];
        for (error, code, reason, facts) in cases {
            let retryable = matches!(code, Code::Unavailable | Code::ResourceExhausted);
            let status = key_status(error);
            let details = status.get_error_details();
            let info = details.error_info().unwrap();
            let mut names: Vec<_> = info.metadata.keys().map(String::as_str).collect();
            names.sort_unstable();
            assert_eq!((status.code(), info.reason.as_str(), names), (code, reason, facts));
            assert_eq!(details.retry_info().is_some(), retryable, "{reason}");
            assert!(!status.message().contains("hunter2"));
        }
    }
}
