//! The use cases of key-service and the ports they need, without any word of gRPC or SQL.

mod error;
pub mod sweep;

pub use error::StorageError;
