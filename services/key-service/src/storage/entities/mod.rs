//! One entity per table of migration 1; those of the sweep are in its own room.

pub mod api_keys;
pub mod audit_events;
pub mod audit_head;
pub mod keyring_check;
pub mod usage_writers;
