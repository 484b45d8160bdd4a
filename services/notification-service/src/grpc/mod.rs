//! The gRPC face: parse, call the port, convert.

mod convert;
mod guard;
mod service;
mod status;
mod watch;

pub use service::NotificationApi;
