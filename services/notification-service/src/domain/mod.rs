//! The nouns and rules of notices, free of storage and transport.

pub mod banner;
pub mod delivery;
pub mod event;
pub mod ids;
pub mod limits;
pub mod notification;
pub mod plan;
pub mod recipient;
pub mod stage;
pub mod text;
