//! The services on the wire: parse, call the use case, convert.

mod agencies;
mod convert;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod legacy_users;
mod locations;
mod status;
mod users;

use std::sync::Arc;

use keysweep_proto::location::{v1, v2};
use service_kit::auth::Surface;
use service_kit::context;
use service_kit::page;
use service_kit::server::GrpcServer;
use service_kit::violations::Violations;
use tonic::Request;

use crate::app::listing::Asked;
use crate::app::{App, Call};

/// What one request may weigh. No valid one comes near it; so large, a text that is too long is refused by the name of its field.
const MAX_REQUEST_BYTES: usize = 16 * 1024 * 1024;

/// What this service serves, and to whom unless it is told otherwise.
pub const SURFACE: Surface = Surface {
    descriptors: keysweep_proto::FILE_DESCRIPTOR_SET,
    services: &[
        v2::agency_service_server::SERVICE_NAME,
        v2::location_service_server::SERVICE_NAME,
        v2::user_service_server::SERVICE_NAME,
        v1::user_service_server::SERVICE_NAME,
    ],
    policy: include_str!("../../policy.default.toml"),
};

/// The use cases on the wire.
#[derive(Clone)]
struct Handler {
    app: Arc<App>,
}

/// Adds every service of the location packages to a server.
pub fn register(server: GrpcServer, app: App) -> GrpcServer {
    let handler = Handler { app: Arc::new(app) };
    server
        .add_service(
            v2::agency_service_server::AgencyServiceServer::new(handler.clone())
                .max_decoding_message_size(MAX_REQUEST_BYTES),
        )
        .add_service(
            v2::location_service_server::LocationServiceServer::new(handler.clone())
                .max_decoding_message_size(MAX_REQUEST_BYTES),
        )
        .add_service(
            v2::user_service_server::UserServiceServer::new(handler.clone())
                .max_decoding_message_size(MAX_REQUEST_BYTES),
        )
        .add_service(
            v1::user_service_server::UserServiceServer::new(handler).max_decoding_message_size(MAX_REQUEST_BYTES),
        )
}

/// Takes a request apart.
fn open<T>(request: Request<T>) -> (Call, T) {
    let context = context::of(&request);
    let call = Call {
        actor: context.actor,
        call_id: context.request_id.to_string(),
        traceparent: context.traceparent,
        deadline: context.deadline,
    };
    (call, request.into_inner())
}

/// Which page is asked for; `filter` names the list and everything that filters it, `faults` are those of its fields.
fn asked(size: i32, token: &str, filter: &str, faults: Violations) -> Asked {
    Asked { page: page::decode(size, token, filter), faults }
}

/// The token of the next page. Empty: there is none.
fn next_token(next: Option<String>, filter: &str) -> String {
    next.map(|cursor| page::encode(&cursor, filter)).unwrap_or_default()
}

fn paths(mask: Option<prost_types::FieldMask>) -> Vec<String> {
    mask.map(|mask| mask.paths).unwrap_or_default()
}
