//! The database behind the ports of `app`: entities, migrations and the statements of each transaction.
//!
//! Entities never leave this room. Rows are locked in one order everywhere, so that no two transactions wait for each
//! other: lot, `api_keys`, `sweep_entries`, `audit_head`, `sweep_head`.

pub mod audit;
pub mod entities;
mod error;
mod migrator;
pub mod sweep;

pub use error::StorageError;
pub use migrator::Migrator;
