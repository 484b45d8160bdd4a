//! The gRPC face: parse, call the port, convert.

mod convert;
mod guard;
mod service;
mod status;
mod watch;

pub use service::NotificationApi;

use keysweep_proto::notification::v1::notification_service_server;
use service_kit::auth::Surface;

/// What this service serves, and to whom unless it is told otherwise.
pub const SURFACE: Surface = Surface {
    descriptors: keysweep_proto::FILE_DESCRIPTOR_SET,
    services: &[notification_service_server::SERVICE_NAME],
    policy: include_str!("../../policy.default.toml"),
};
