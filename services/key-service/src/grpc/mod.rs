//! Room.

pub mod sweep;
