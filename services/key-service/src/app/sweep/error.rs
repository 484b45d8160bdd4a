//! What a use case of the sweep can answer instead of its result.

use service_kit::page::PageError;
use service_kit::violations::Violations;
use thiserror::Error;

use super::ports::DeskError;
use crate::app::{PERSON_OR_SERVICE, StorageError};
use crate::domain::sweep::{LotState, PlanState};

/// Why a use case of the sweep did not go through.
#[derive(Debug, Error)]
pub enum SweepError {
    /// Fields of the request are at fault.
    #[error("invalid request: {0}")]
    Invalid(Violations),
    /// The page cannot be had.
    #[error(transparent)]
    Page(#[from] PageError),
    /// An API client may not do this.
    #[error("{0} may not do this: {PERSON_OR_SERVICE} may")]
    ActorNotAllowed(String),
    /// There is no such plan.
    #[error("there is no plan {0}")]
    PlanNotFound(String),
    /// The plan is in a state in which this is not possible.
    #[error("plan {plan_id} is {}", state.as_str())]
    PlanState {
        /// The plan.
        plan_id: String,
        /// Its state.
        state: PlanState,
        /// The state that is needed, in words.
        needed: &'static str,
    },
    /// The plan has no lot of this agency.
    #[error("plan {plan_id} has no lot of agency {agency_id}")]
    LotNotFound {
        /// The plan.
        plan_id: String,
        /// The agency.
        agency_id: String,
    },
    /// The lot is in a state in which this is not possible.
    #[error("the lot of agency {agency_id} in plan {plan_id} is {}", state.as_str())]
    LotState {
        /// The plan.
        plan_id: String,
        /// The agency.
        agency_id: String,
        /// The lot's state.
        state: LotState,
        /// The state that is needed, in words.
        needed: &'static str,
    },
    /// The request id was used within 24 h for other contents.
    #[error("{}", service_kit::idempotency::REUSED)]
    RequestIdReused,
    /// The cursor is ahead of the last event.
    #[error("the cursor is ahead of the last event, {head}")]
    CursorAhead {
        /// The last event's sequence.
        head: i64,
    },
    /// The events after the cursor have been removed.
    #[error("the events after the cursor were removed: the history begins at event {first}")]
    CursorExpired {
        /// The first event that is to be had.
        first: i64,
    },
    /// The cursor belongs to another database.
    #[error("the cursor belongs to another history than {history_id}")]
    OtherHistory {
        /// The history of this database.
        history_id: String,
    },
    /// The database did not do it.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl SweepError {
    /// What a refusal of the desk means for this plan and lot.
    pub(super) fn of_desk(error: DeskError, plan_id: &str, agency_id: &str) -> Self {
        let plan_id = plan_id.to_owned();
        let agency_id = agency_id.to_owned();
        match error {
            DeskError::PlanNotFound => Self::PlanNotFound(plan_id),
            DeskError::PlanState { state, needed } => Self::PlanState { plan_id, state, needed },
            DeskError::LotNotFound => Self::LotNotFound { plan_id, agency_id },
            DeskError::LotState { state, needed } => Self::LotState { plan_id, agency_id, state, needed },
            DeskError::RequestIdReused => Self::RequestIdReused,
            DeskError::Storage(error) => Self::Storage(error),
        }
    }
}
