//! What can go wrong: behind a port, and in a use case of keys.

use std::time::Duration;

use service_kit::keyring::KeyRingError;
use service_kit::violations::Violations;

/// Why a port could not do its work.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StorageError {
    /// The database does not answer; the same call may succeed later.
    #[error("the database cannot be reached: {0}")]
    Unavailable(String),
    /// Another transaction was in the way; the same call may succeed at once.
    #[error("the database refused a concurrent change: {0}")]
    Conflict(String),
    /// The database answered what it should not, or keysweep asked what it should not.
    #[error("the database failed: {0}")]
    Internal(String),
}

/// Why a use case of keys did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Fields of the request are at fault.
    #[error("invalid fields: {0}")]
    Invalid(Violations),
    /// The `request_id` was used within 24 h for other contents.
    #[error("{}", service_kit::idempotency::REUSED)]
    RequestIdReused,
    /// The method acts for a person, and the call names none.
    #[error("the method acts for a logged-in person, and the call names no actor")]
    ActorRequired,
    /// The actor is of a kind that may not do this.
    #[error("{actor} may not do this: {required} may")]
    ActorNotAllowed {
        /// Who asked.
        actor: String,
        /// Who may.
        required: &'static str,
    },
    /// There is no such key.
    #[error("there is no key {key_id}")]
    NotFound {
        /// The key asked for.
        key_id: String,
    },
    /// The key has ended.
    #[error("the key {key_id} is {state}")]
    NotActive {
        /// The key.
        key_id: String,
        /// How it ended.
        state: &'static str,
    },
    /// Only the key's hash is kept.
    #[error("only the hash of the key {key_id} is kept")]
    NotRecoverable {
        /// The key.
        key_id: String,
    },
    /// The key was rotated before.
    #[error("the key {key_id} was rotated into {successor_key_id}")]
    AlreadyRotated {
        /// The key.
        key_id: String,
        /// The key to rotate instead.
        successor_key_id: String,
    },
    /// The actor has revealed too many secrets.
    #[error("too many secrets were revealed for this actor")]
    RevealRateLimited {
        /// When the next may be.
        retry_after: Duration,
    },
    /// The source has presented too many bad secrets, and this is another.
    #[error("too many bad secrets were presented from this source")]
    GuessesThrottled {
        /// When a bad secret is answered again.
        retry_after: Duration,
    },
    /// The key changed since its `etag` was read.
    #[error("the key {key_id} changed since its etag was read")]
    EtagMismatch {
        /// The key.
        key_id: String,
    },
    /// A port failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A fault of keysweep or of its key ring.
    #[error("internal fault: {0}")]
    Internal(String),
}

impl From<KeyRingError> for KeyError {
    fn from(error: KeyRingError) -> Self {
        Self::Internal(error.to_string())
    }
}
