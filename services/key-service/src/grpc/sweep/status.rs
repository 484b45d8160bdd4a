//! The sweep's errors as gRPC statuses: one exhaustive match.

use keysweep_proto::error::v1::ErrorReason;
use service_kit::status::{StatusBuilder, internal, invalid_fields, page_error, storage_unavailable};
use tonic::{Code, Status};

use crate::app::sweep::SweepError;
use crate::app::{PERSON_OR_SERVICE, StorageError};

/// The status of an error. What is for the log alone is logged here, once.
pub(super) fn of(error: &SweepError) -> Status {
    let build = |code, reason: ErrorReason| StatusBuilder::new(code, reason.as_str_name(), error.to_string());
    match error {
        SweepError::Invalid(faults) => invalid_fields(faults),
        SweepError::Page(fault) => page_error(*fault),
        SweepError::ActorNotAllowed(actor) => build(Code::PermissionDenied, ErrorReason::ActorNotAllowed)
            .metadata("actor", actor.as_str())
            .metadata("required", PERSON_OR_SERVICE)
            .build(),
        SweepError::PlanNotFound(plan_id) => build(Code::NotFound, ErrorReason::PlanNotFound)
            .metadata("plan_id", plan_id.as_str())
            .resource("keysweep.key.v1.SweepPlan", plan_id)
            .build(),
        SweepError::PlanState { plan_id, state, needed } => build(Code::FailedPrecondition, ErrorReason::PlanState)
            .metadata("plan_id", plan_id.as_str())
            .metadata("state", state.as_str())
            .precondition("PLAN_STATE", plan_id, needed)
            .build(),
        SweepError::LotNotFound { plan_id, agency_id } => build(Code::NotFound, ErrorReason::LotNotFound)
            .metadata("plan_id", plan_id.as_str())
            .metadata("agency_id", agency_id.as_str())
            .resource("keysweep.key.v1.Lot", &format!("{plan_id}/{agency_id}"))
            .build(),
        SweepError::LotState { plan_id, agency_id, state, needed } => {
            build(Code::FailedPrecondition, ErrorReason::LotState)
                .metadata("plan_id", plan_id.as_str())
                .metadata("agency_id", agency_id.as_str())
                .metadata("state", state.as_str())
                .precondition("LOT_STATE", &format!("{plan_id}/{agency_id}"), needed)
                .build()
        }
        SweepError::RequestIdReused => build(Code::AlreadyExists, ErrorReason::RequestIdReused).build(),
        SweepError::CursorAhead { head } => {
            build(Code::OutOfRange, ErrorReason::CursorAhead).metadata("head_sequence", head.to_string()).build()
        }
        SweepError::CursorExpired { first } => {
            build(Code::OutOfRange, ErrorReason::CursorExpired).metadata("first_sequence", first.to_string()).build()
        }
        SweepError::OtherHistory { history_id } => build(Code::FailedPrecondition, ErrorReason::OtherHistory)
            .metadata("history_id", history_id.as_str())
            .precondition("HISTORY", history_id, "the cursor must come from this history")
            .build(),
        SweepError::Storage(StorageError::Unavailable(cause)) => {
            tracing::warn!(cause, "the database cannot be reached");
            storage_unavailable()
        }
        SweepError::Storage(StorageError::Conflict(cause)) => {
            tracing::warn!(cause, "a transaction met another one too often");
            storage_unavailable()
        }
        SweepError::Storage(StorageError::Internal(cause)) => {
            tracing::error!(cause, "the database failed");
            internal()
        }
    }
}

#[cfg(test)]
mod tests {
    use service_kit::page::PageError;
    use service_kit::violations::Violations;
    use tonic_types::StatusExt;

    use super::*;
    use crate::domain::sweep::{LotState, PlanState};

    #[test]
    fn messages_say_what_is_missing_and_who_may() {
        let (plan_id, agency_id) = ("plan_1".to_owned(), "agy_1".to_owned());
        let who = of(&SweepError::ActorNotAllowed("api-key/key_1".into()));
        assert_eq!(who.message(), "api-key/key_1 may not do this: user/<id> or service/<name> may");
        assert_eq!(who.get_error_details().error_info().unwrap().metadata["required"], "user/<id> or service/<name>");
        for (error, message) in [
            (SweepError::PlanNotFound(plan_id.clone()), "there is no plan plan_1"),
            (SweepError::LotNotFound { plan_id, agency_id }, "plan plan_1 has no lot of agency agy_1"),
            (SweepError::RequestIdReused, "the request_id was used within 24 h for a call with other contents"),
        ] {
            assert_eq!(of(&error).message(), message);
        }
    }

    #[test]
    fn every_error_has_its_code_and_reason() {
        let plan_id = || "plan_1".to_owned();
        let agency_id = || "agy_1".to_owned();
        let secret = || "connection to 10.0.0.1 refused".to_owned();
        let table = [
            (SweepError::Invalid(Violations::of("reason", "is required")), Code::InvalidArgument, "INVALID_FIELDS"),
            (PageError::ForeignToken.into(), Code::InvalidArgument, "PAGE_TOKEN_INVALID"),
            (SweepError::ActorNotAllowed("api-key/key_1".into()), Code::PermissionDenied, "ACTOR_NOT_ALLOWED"),
            (SweepError::PlanNotFound(plan_id()), Code::NotFound, "PLAN_NOT_FOUND"),
            (
                SweepError::PlanState { plan_id: plan_id(), state: PlanState::Open, needed: "needed" },
                Code::FailedPrecondition,
                "PLAN_STATE",
            ),
            (SweepError::LotNotFound { plan_id: plan_id(), agency_id: agency_id() }, Code::NotFound, "LOT_NOT_FOUND"),
            (
                SweepError::LotState {
                    plan_id: plan_id(),
                    agency_id: agency_id(),
                    state: LotState::Executed,
                    needed: "needed",
                },
                Code::FailedPrecondition,
                "LOT_STATE",
            ),
            (SweepError::RequestIdReused, Code::AlreadyExists, "REQUEST_ID_REUSED"),
            (SweepError::CursorAhead { head: 7 }, Code::OutOfRange, "CURSOR_AHEAD"),
            (SweepError::CursorExpired { first: 7 }, Code::OutOfRange, "CURSOR_EXPIRED"),
            (SweepError::OtherHistory { history_id: "his_1".into() }, Code::FailedPrecondition, "OTHER_HISTORY"),
            (StorageError::Unavailable(secret()).into(), Code::Unavailable, "STORAGE_UNAVAILABLE"),
            (StorageError::Conflict(secret()).into(), Code::Unavailable, "STORAGE_UNAVAILABLE"),
            (StorageError::Internal(secret()).into(), Code::Internal, "INTERNAL"),
        ];
        for (error, code, reason) in table {
            let status = of(&error);
            assert_eq!(status.code(), code, "{error:?}");
            assert_eq!(status.get_error_details().error_info().unwrap().reason, reason);
            assert!(!status.message().contains("10.0.0.1"));
            let unmet = status.get_error_details().precondition_failure().map(|failure| failure.violations.clone());
            assert_eq!(unmet.is_some(), code == Code::FailedPrecondition);
            assert!(unmet.into_iter().flatten().all(|one| one.description == "needed" || one.r#type == "HISTORY"));
            if code == Code::Unavailable {
                assert!(status.get_error_details().retry_info().is_some());
            }
        }
    }
}
