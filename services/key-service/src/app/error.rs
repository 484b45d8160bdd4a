//! What can go wrong behind a port.

/// Why a port could not do its work.
#[derive(Debug, thiserror::Error)]
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
