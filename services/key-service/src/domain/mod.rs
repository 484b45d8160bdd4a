//! The rules of keys and sweeps as pure values and functions: no clock, no database, no network.

pub mod audit;
pub mod key;
pub mod sweep;
