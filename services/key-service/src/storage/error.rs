//! From the database's errors to the port's.

use sea_orm::DbErr;
use service_kit::db;

pub use crate::app::StorageError;

impl From<DbErr> for StorageError {
    fn from(error: DbErr) -> Self {
        if db::is_unavailable(&error) {
            Self::Unavailable(error.to_string())
        } else if db::is_conflict(&error) || db::is_unique_violation(&error) {
            Self::Conflict(error.to_string())
        } else {
            Self::Internal(error.to_string())
        }
    }
}
