//! Jobs.

pub mod sweeper;
