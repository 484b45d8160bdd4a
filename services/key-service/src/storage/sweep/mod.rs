//! The sweep in the database: plans made, entries rescued, lots deleted, each as one transaction.
//!
//! Rows are locked in the order lease, plan, lot, `api_keys`, `sweep_entries`, `audit_head`, `sweep_head`. The last is taken by
//! the last statements of a transaction, so that events stand in the order of their commitment, without gaps.

mod closing;
mod codes;
mod deletion;
mod desk;
pub mod entities;
mod feed;
mod figures;
mod gate;
mod journal;
mod lease;
mod notices;
pub mod outbox;
mod planning;
mod reads;
mod rescue;
mod retention;
mod sql;
mod store;
#[cfg(test)]
pub(crate) mod tests;

pub(super) use figures::{newest_lots_by_state, plans_by_state};
pub use rescue::rescue;
pub(super) use sql::without_parallel_workers;
pub use store::SqlSweepStore;
