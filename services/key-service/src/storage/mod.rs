//! The database behind the ports of `app`: entities, migrations and the statements of each transaction.
//!
//! Entities never leave this room. Rows are locked in one order everywhere, so that no two transactions wait for each
//! other: lot, `api_keys`, `sweep_entries`, `audit_head`, `sweep_head`.

pub mod audit;
pub mod changes;
pub mod entities;
mod error;
mod figures;
mod import;
pub mod keyring_check;
mod keys;
mod migrator;
mod requests;
mod rows;
pub mod sealed;
pub mod sweep;
mod upkeep;
mod usage;

pub use error::StorageError;
pub use keys::SqlStore;
pub use migrator::Migrator;
