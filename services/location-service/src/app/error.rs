//! Everything a use case can refuse, and why.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use service_kit::idempotency;
use service_kit::page::PageError;
use service_kit::violations::Violations;

use super::ports::{KeyServiceError, StoreError};

/// A kind of resource, as errors name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// A customer of the platform.
    Agency,
    /// A sub-account.
    Location,
    /// A person.
    User,
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Agency => "agency",
            Self::Location => "location",
            Self::User => "user",
        })
    }
}

/// Why a use case did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// Fields of the request are at fault.
    #[error("invalid request: {0}")]
    Invalid(Violations),
    /// The page cannot be had.
    #[error(transparent)]
    Page(PageError),
    /// The method acts for a person, and none is named.
    #[error("the call must be made for a logged-in user")]
    ActorRequired,
    /// The actor is of a kind or role that may not do this.
    #[error("{actor} may not do this: {required} may")]
    ActorNotAllowed {
        /// Who asked.
        actor: String,
        /// Who may.
        required: &'static str,
    },
    /// There is none, or the actor may not see it.
    #[error("there is no such {kind}")]
    NotFound {
        /// What was looked for.
        kind: Resource,
        /// By which id.
        id: String,
    },
    /// The resource has changed since it was read.
    #[error("the {kind} has changed since its etag was read")]
    EtagMismatch {
        /// What was to change.
        kind: Resource,
        /// Its id.
        id: String,
    },
    /// The request id stands for other contents.
    #[error("{}", idempotency::REUSED)]
    RequestIdReused,
    /// Another user of the agency has the address.
    #[error("another user of the agency has this email address")]
    EmailTaken,
    /// The location is deleted.
    #[error("the location is deleted")]
    LocationDeleted {
        /// Which.
        location_id: String,
        /// Since when.
        deleted_at: DateTime<Utc>,
    },
    /// The legacy user API does not write for this agency.
    #[error("enhanced account security is on for the agency: the legacy user API does not write")]
    LegacyUsersDisabled {
        /// Which.
        agency_id: String,
    },
    /// An opt-out without acknowledgement.
    #[error("switching enhanced account security off needs acknowledge_risk")]
    RiskNotAcknowledged {
        /// Whose.
        agency_id: String,
    },
    /// key-service cannot be reached in time.
    #[error("key-service cannot be reached; repeat the call under the same request_id")]
    KeyServiceUnavailable {
        /// When a retry is worth it.
        retry_after: Duration,
    },
    /// The database does not answer.
    #[error("the database cannot be reached: {0}")]
    StorageUnavailable(String),
    /// Other writers were faster each time.
    #[error("other writers were faster each time")]
    Contended,
    /// A fault of ours, for the log alone.
    #[error("{0}")]
    Internal(String),
}

impl AppError {
    /// There is none, or the actor may not see it.
    pub(super) fn not_found(kind: Resource, id: &str) -> Self {
        Self::NotFound { kind, id: id.to_owned() }
    }
}

impl From<StoreError> for AppError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(cause) => Self::StorageUnavailable(cause),
            StoreError::Conflict => Self::Contended,
            StoreError::Internal(cause) => Self::Internal(cause),
        }
    }
}

impl From<KeyServiceError> for AppError {
    fn from(error: KeyServiceError) -> Self {
        match error {
            KeyServiceError::Unavailable { retry_after } => Self::KeyServiceUnavailable { retry_after },
            KeyServiceError::Invalid(violations) => Self::Invalid(violations),
            KeyServiceError::RequestIdReused => Self::RequestIdReused,
            KeyServiceError::Unexpected(cause) => Self::Internal(cause),
        }
    }
}

impl From<PageError> for AppError {
    fn from(error: PageError) -> Self {
        Self::Page(error)
    }
}

impl From<Violations> for AppError {
    fn from(violations: Violations) -> Self {
        Self::Invalid(violations)
    }
}
