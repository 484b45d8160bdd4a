//! Why a call is answered with an error.

use service_kit::page::PageError;
use service_kit::violations::Violations;

use super::ports::{MarkError, RetryError, StorageError};
use crate::domain::delivery::DeliveryState;
use crate::domain::ids::{DeliveryId, NotificationId};

/// Every error that a call can be answered with.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Fields are at fault, all of them named.
    #[error("invalid request: {0}")]
    Invalid(Violations),
    /// The page cannot be had.
    #[error(transparent)]
    Page(#[from] PageError),
    /// The actor may not do this.
    #[error("{actor} may not do this: {required} may")]
    ActorNotAllowed {
        /// Who asked.
        actor: String,
        /// Who may.
        required: String,
    },
    /// There is no such notification in the inbox.
    #[error("there is no notification {0} in this inbox")]
    NotificationNotFound(NotificationId),
    /// There is no such delivery.
    #[error("there is no delivery {0}")]
    DeliveryNotFound(DeliveryId),
    /// The delivery is not in a state in which it can be retried.
    #[error("the delivery is {}", state.name())]
    DeliveryState {
        /// The delivery.
        id: DeliveryId,
        /// Its state.
        state: DeliveryState,
    },
    /// The request id was used for something else.
    #[error("{}", service_kit::idempotency::REUSED)]
    RequestIdReused,
    /// The database.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl From<Violations> for CallError {
    fn from(violations: Violations) -> Self {
        Self::Invalid(violations)
    }
}

impl From<MarkError> for CallError {
    fn from(error: MarkError) -> Self {
        match error {
            MarkError::NotFound(id) => Self::NotificationNotFound(id),
            MarkError::Reused => Self::RequestIdReused,
            MarkError::Storage(error) => Self::Storage(error),
        }
    }
}

impl CallError {
    /// Why a delivery was not retried.
    pub fn of_retry(error: RetryError, id: DeliveryId) -> Self {
        match error {
            RetryError::NotFound => Self::DeliveryNotFound(id),
            RetryError::State(state) => Self::DeliveryState { id, state },
            RetryError::Reused => Self::RequestIdReused,
            RetryError::Storage(error) => Self::Storage(error),
        }
    }
}
