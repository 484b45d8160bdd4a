//! The use cases of key-service and the ports they need, without any word of gRPC or SQL.

pub mod audit;
mod caller;
mod error;
pub mod figures;
pub mod keys;
mod limiter;
pub mod sweep;
pub mod upkeep;
pub mod verify;

pub use caller::Caller;
pub(crate) use caller::PERSON_OR_SERVICE;
pub use error::{KeyError, StorageError};
