//! The use cases, and the ports through which they reach the database, the peers and the mail server.

pub mod acknowledge;
pub mod deliver;
pub mod dispatch;
pub mod error;
pub mod letter;
pub mod ports;
pub mod rebuild;
pub mod signals;
pub mod subscribe;
