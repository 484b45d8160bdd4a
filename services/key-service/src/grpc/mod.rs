//! The contract's side: requests are read and checked whole, use cases called, answers and errors put into words.

mod convert;
mod ext_authz;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod import;
mod keys;
mod requests;
mod status;
pub mod sweep;

pub use ext_authz::ExtAuthz;
pub use keys::KeyApi;

use keysweep_proto::envoy::service::auth::v3::authorization_server;
use keysweep_proto::key::v1::{key_service_server, sweep_service_server};
use service_kit::auth::Surface;

/// What this service serves, and to whom unless it is told otherwise.
pub const SURFACE: Surface = Surface {
    descriptors: keysweep_proto::FILE_DESCRIPTOR_SET,
    services: &[
        authorization_server::SERVICE_NAME,
        key_service_server::SERVICE_NAME,
        sweep_service_server::SERVICE_NAME,
    ],
    policy: include_str!("../../policy.default.toml"),
};
