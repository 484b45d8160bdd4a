//! Building gRPC statuses with the rich details that every error of keysweep carries.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::actor::Actor;
use crate::page::PageError;
use crate::violations::Violations;

/// The `domain` of every `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "keysweep";

/// Builds one status. `ErrorInfo` is always there; the other details where they are set.
#[derive(Debug)]
pub struct StatusBuilder {
    code: Code,
    message: String,
    reason: String,
    metadata: std::collections::HashMap<String, String>,
    details: ErrorDetails,
}

impl StatusBuilder {
    /// A status with an `ErrorInfo`. `reason` is a value of the documented enum; its prefix `ERROR_REASON_` is cut off.
    /// `message` is lower case, without a full stop.
    pub fn new(code: Code, reason: &str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            reason: reason.strip_prefix("ERROR_REASON_").unwrap_or(reason).to_owned(),
            metadata: std::collections::HashMap::new(),
            details: ErrorDetails::new(),
        }
    }

    /// Adds a fact to the `ErrorInfo`.
    pub fn metadata(mut self, key: &str, value: impl Into<String>) -> Self {
        self.metadata.insert(key.to_owned(), value.into());
        self
    }

    /// Adds a `BadRequest` with every field at fault.
    pub fn violations(mut self, violations: &Violations) -> Self {
        for one in violations.iter() {
            self.details.add_bad_request_violation(&one.field, &one.description);
        }
        self
    }

    /// Adds a `RetryInfo`: the call is worth repeating after `delay`.
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.details.set_retry_info(Some(delay));
        self
    }

    /// Adds a `ResourceInfo`: which resource the error is about.
    pub fn resource(mut self, kind: &str, name: &str) -> Self {
        self.details.set_resource_info(kind, name, "", "");
        self
    }

    /// Adds a `PreconditionFailure`: what must change before the call can succeed.
    pub fn precondition(mut self, kind: &str, subject: &str, description: &str) -> Self {
        self.details.add_precondition_failure_violation(kind, subject, description);
        self
    }

    /// The status.
    pub fn build(mut self) -> Status {
        self.details.set_error_info(self.reason, DOMAIN, self.metadata);
        Status::with_error_details(self.code, self.message, self.details)
    }
}

/// An error travels in headers, of which clients take 16 KiB unless told otherwise: more, and they see a broken connection.
/// Details grow by a third on the way, being base64, and the message by its blanks, which take three bytes each.
const DETAILS_BYTES: usize = 7_500;
const MESSAGE_BYTES: usize = 2_000;
/// The longest method of ours has half as many.
const MAX_METHOD_CHARS: usize = 150;

/// INVALID_ARGUMENT that names every field at fault, in the message too, for those who see nothing else. Of a great many
/// faults it names the first.
pub fn invalid_fields(violations: &Violations) -> Status {
    let told = violations.fitting(MESSAGE_BYTES);
    let left = violations.len() - told.len();
    let more = if left > 0 { format!("; and {left} more") } else { String::new() };
    StatusBuilder::new(Code::InvalidArgument, "INVALID_FIELDS", format!("invalid request: {told}{more}"))
        .violations(&violations.fitting(DETAILS_BYTES))
        .build()
}

/// INTERNAL in one fixed sentence: the cause is for the log, not for the caller.
pub fn internal() -> Status {
    StatusBuilder::new(
        Code::Internal,
        "INTERNAL",
        "internal error; the log has its cause under the x-request-id of this answer",
    )
    .build()
}

/// UNAVAILABLE because the database does not answer; worth a retry.
pub fn storage_unavailable() -> Status {
    StatusBuilder::new(Code::Unavailable, "STORAGE_UNAVAILABLE", "the database cannot be reached")
        .retry_after(Duration::from_secs(1))
        .build()
}

/// UNAVAILABLE because the server is about to stop; streams end with it.
pub fn draining() -> Status {
    StatusBuilder::new(Code::Unavailable, "DRAINING", "the server is draining")
        .retry_after(Duration::from_secs(1))
        .build()
}

/// UNAVAILABLE because the process has more to do than it may: nothing was done, and another replica may have room.
pub fn overloaded() -> Status {
    StatusBuilder::new(Code::Unavailable, "OVERLOADED", "the server has too many calls in progress")
        .retry_after(Duration::from_secs(1))
        .build()
}

/// DEADLINE_EXCEEDED, of the caller's deadline or the server's limit.
pub fn deadline_exceeded() -> Status {
    StatusBuilder::new(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", "the call took longer than its deadline").build()
}

/// PERMISSION_DENIED: the policy does not open the method at `path` to the caller of this identity.
pub fn caller_not_allowed(identity: &str, path: &str) -> Status {
    // A path comes from outside, and the status travels in headers.
    let method: String = path.chars().filter(char::is_ascii_graphic).skip(1).take(MAX_METHOD_CHARS).collect();
    StatusBuilder::new(Code::PermissionDenied, "CALLER_NOT_ALLOWED", format!("{identity} may not call {method}"))
        .metadata("caller", identity)
        .metadata("method", method)
        .build()
}

/// PERMISSION_DENIED: the policy does not let the caller of this identity act for `actor`.
pub fn caller_may_not_name_actor(identity: &str, actor: &Actor) -> Status {
    let message = format!("{identity} may not act for {actor}");
    StatusBuilder::new(Code::PermissionDenied, "CALLER_MAY_NOT_NAME_ACTOR", message)
        .metadata("caller", identity)
        .metadata("actor", actor.to_string())
        .build()
}

/// INVALID_ARGUMENT for a page that cannot be had.
pub fn page_error(error: PageError) -> Status {
    match error {
        PageError::NegativeSize => invalid_fields(&Violations::of("page_size", error.to_string())),
        PageError::ForeignToken => {
            let violations = Violations::of("page_token", error.to_string());
            StatusBuilder::new(Code::InvalidArgument, "PAGE_TOKEN_INVALID", format!("invalid request: {violations}"))
                .violations(&violations)
                .build()
        }
    }
}

/// INVALID_ARGUMENT for a message that is no protobuf of its type. `cause` says where it breaks off.
pub fn undecodable(cause: &str) -> Status {
    StatusBuilder::new(Code::InvalidArgument, "INVALID_FIELDS", format!("the message cannot be decoded: {cause}"))
        .build()
}

/// INVALID_ARGUMENT for a message that weighs more than the server reads. `cause` says how much of how much.
pub fn too_large(cause: &str) -> Status {
    StatusBuilder::new(Code::InvalidArgument, "INVALID_FIELDS", format!("the message is too large: {cause}")).build()
}

/// The code's name as gRPC's specification writes it.
pub(crate) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_great_many_faults_fit_into_the_headers_of_an_answer() {
        let mut faults = Violations::default();
        for i in 0..100_000 {
            faults.push(format!("scopes[{i}]"), "must be 1 to 100 visible ASCII characters");
        }
        let status = invalid_fields(&faults);
        let named = status.get_error_details().bad_request().map(|bad| bad.field_violations.len()).unwrap_or_default();
        assert!(named >= 100, "{named}");
        assert!(status.message().ends_with(" more"), "{}", status.message());
        let answer = status.into_http::<tonic::body::Body>();
        let bytes: usize = answer.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
        assert!(bytes < 15 * 1_024, "{bytes}");
    }

    #[test]
    fn a_status_carries_its_reason_and_every_field() {
        let mut faults = Violations::default();
        faults.push("name", "is required");
        faults.push("email", "is no email address");
        let status = invalid_fields(&faults);
        let details = status.get_error_details();
        let info = details.error_info().expect("error info");
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("INVALID_FIELDS", "keysweep"));
        assert_eq!(details.bad_request().expect("bad request").field_violations.len(), 2);
        assert!(status.message().contains("email: is no email address"));
    }
}
