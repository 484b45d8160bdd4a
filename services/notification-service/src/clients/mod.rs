//! The peers behind the ports: key-service's plans and receipts, location-service's people. Neither needs to be there when
//! this service starts.

mod convert;
mod people;
mod plans;

pub use people::People;
pub use plans::Plans;

use keysweep_proto::error::v1::ErrorReason;
use service_kit::actor::{Actor, METADATA_KEY};
use service_kit::client::pass_trace_on;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::app::ports::PeerError;

/// The name under which this service subscribes and acts.
pub const NAME: &str = "notification-service";

/// A request of this service on its own behalf.
fn request<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let actor = Actor::Service(NAME.to_owned()).to_string();
    if let Ok(value) = MetadataValue::try_from(actor) {
        request.metadata_mut().insert(METADATA_KEY, value);
    }
    pass_trace_on(&mut request);
    request
}

impl From<Status> for PeerError {
    fn from(status: Status) -> Self {
        let text = format!("{:?}: {}", status.code(), status.message());
        let details = status.get_error_details();
        let reason = details.error_info().map_or("", |info| info.reason.as_str());
        if format!("ERROR_REASON_{reason}") == ErrorReason::CursorAhead.as_str_name() {
            return Self::CursorAhead(text);
        }
        match status.code() {
            Code::NotFound => Self::NotFound(text),
            Code::InvalidArgument
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::DataLoss
            | Code::Unauthenticated => Self::Refused(text),
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::Internal
            | Code::Unavailable => Self::Unavailable(text),
        }
    }
}
