//! What a gateway is told: admitted as whom, or denied with what.

use std::time::Duration;

use chrono::SecondsFormat;
use keysweep_proto::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use keysweep_proto::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use keysweep_proto::envoy::service::auth::v3::check_response::HttpResponse;
use keysweep_proto::envoy::service::auth::v3::{CheckResponse, DeniedHttpResponse, OkHttpResponse};
use keysweep_proto::envoy::r#type::v3::{HttpStatus, StatusCode};
use service_kit::actor::{self, Actor};
use service_kit::status::internal;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::credential::{API_KEY, AUTHORIZATION};
use super::question::Headers;
use crate::app::verify::{Verification, VerifiedKey};
use crate::domain::key::VerifyCode;
use crate::grpc::convert::code_to_proto;

/// What keysweep alone may say of a request: whatever a client sends under these names is taken away.
const OWN_HEADERS: &str = "x-keysweep-";
const AGENCY_ID: &str = "x-keysweep-agency-id";
const LOCATION_ID: &str = "x-keysweep-location-id";
const KEY_ID: &str = "x-keysweep-key-id";
const SCOPES: &str = "x-keysweep-scopes";

/// The challenges of RFC 6750.
const NO_KEY: &str = "Bearer realm=\"keysweep\"";
const BAD_KEY: &str = "Bearer realm=\"keysweep\", error=\"invalid_token\"";
const TOO_LITTLE: &str = "Bearer realm=\"keysweep\", error=\"insufficient_scope\"";

/// How the client is refused, in the terms of HTTP and of gRPC.
#[derive(Debug, Clone, Copy)]
enum Refusal {
    /// No key, or one that does not verify.
    Unauthenticated(&'static str),
    /// A key that does not suffice for this request; the challenge, if another key may do.
    Forbidden(Option<&'static str>),
    /// Too many bad keys from there.
    Throttled,
    /// Nobody can tell at the moment.
    Unavailable,
    /// A fault of keysweep, or of the gateway's configuration.
    Faulty,
}

/// All that a client learns of faults which are not its own.
const NOT_YOURS: &str =
    "the request cannot be authorized, and the fault is not yours; the log of keysweep has the cause";

/// A request that must not go through, and what its sender is told.
#[derive(Debug)]
pub(super) struct Denial {
    refusal: Refusal,
    code: String,
    message: String,
    delete_time: Option<String>,
    retry_after: Option<Duration>,
}

/// The answer about a key: admitted only when it is valid, and as the key that it is.
pub(super) fn verified(verification: Verification, headers: &Headers) -> Result<CheckResponse, Denial> {
    let Verification { code, key, deleted_at } = verification;
    let (refusal, message) = match code {
        VerifyCode::Valid => {
            return key.map(|key| admit(&key, headers)).ok_or_else(|| Denial::failed(&internal()));
        }
        VerifyCode::NotFound => (Refusal::Unauthenticated(BAD_KEY), "no key has this secret"),
        VerifyCode::Malformed => (Refusal::Unauthenticated(BAD_KEY), "no key can have this secret"),
        VerifyCode::Revoked => (Refusal::Unauthenticated(BAD_KEY), "the key was revoked"),
        VerifyCode::Expired => (Refusal::Unauthenticated(BAD_KEY), "the key has expired"),
        VerifyCode::DeletedBySweep => {
            (Refusal::Unauthenticated(BAD_KEY), "the key was deleted because it had not been used for long")
        }
        VerifyCode::InsufficientScope => {
            (Refusal::Forbidden(Some(TOO_LITTLE)), "the key lacks a scope that is required here")
        }
        VerifyCode::IpNotAllowed => (Refusal::Forbidden(None), "the key may not be used from this address"),
    };
    // The very names that VerifyKey answers.
    let code = code_to_proto(code).as_str_name().trim_start_matches("VERIFY_CODE_");
    let delete_time = deleted_at.map(|at| at.to_rfc3339_opts(SecondsFormat::AutoSi, true));
    Err(Denial { delete_time, ..Denial::new(refusal, code, message) })
}

/// The one place that admits.
fn admit(key: &VerifiedKey, headers: &Headers) -> CheckResponse {
    let mut set = vec![
        header(actor::METADATA_KEY, Actor::ApiKey(key.key_id.clone()).to_string()),
        header(KEY_ID, key.key_id.clone()),
        header(AGENCY_ID, key.owner.agency_id.clone()),
    ];
    set.extend(key.owner.location_id.clone().map(|location_id| header(LOCATION_ID, location_id)));
    if !key.scopes.as_slice().is_empty() {
        set.push(header(SCOPES, key.scopes.as_slice().join(" ")));
    }
    let is_set = |name: &str| set.iter().filter_map(|option| option.header.as_ref()).any(|own| own.key == name);
    // The gateway may hide headers from us, so the known ones are named whether they were seen or not.
    let strangers = headers.names().filter(|name| name.starts_with(OWN_HEADERS));
    let mut remove: Vec<_> = [LOCATION_ID, SCOPES].into_iter().chain(strangers).filter(|name| !is_set(name)).collect();
    remove.extend([AUTHORIZATION, API_KEY]);
    remove.sort_unstable();
    remove.dedup();
    let headers_to_remove = remove.into_iter().map(str::to_owned).collect();
    respond(
        Code::Ok,
        String::new(),
        HttpResponse::OkResponse(OkHttpResponse { headers: set, headers_to_remove, ..Default::default() }),
    )
}

impl Denial {
    fn new(refusal: Refusal, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { refusal, code: code.into(), message: message.into(), delete_time: None, retry_after: None }
    }

    /// No key was presented.
    pub(super) fn missing() -> Self {
        let message = "a key is required: send authorization: Bearer <key>, or x-api-key: <key>";
        Self::new(Refusal::Unauthenticated(NO_KEY), "MISSING", message)
    }

    /// What was presented cannot be told to be one key.
    pub(super) fn malformed(message: &'static str) -> Self {
        Self::new(Refusal::Unauthenticated(BAD_KEY), "MALFORMED", message)
    }

    /// The verification failed with what `VerifyKey` would answer.
    pub(super) fn failed(status: &Status) -> Self {
        let refusal = match status.code() {
            Code::ResourceExhausted => Refusal::Throttled,
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Refusal::Unavailable,
            Code::Ok
            | Code::Unknown
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Internal
            | Code::DataLoss
            | Code::Unauthenticated => Refusal::Faulty,
        };
        let details = status.get_error_details();
        let reason = details.error_info().map_or("INTERNAL", |info| info.reason.as_str());
        let retry_after = details.retry_info().and_then(|retry| retry.retry_delay);
        Self { retry_after, ..Self::new(refusal, reason, status.message()) }
    }

    /// The answer that denies.
    pub(super) fn into_response(self) -> CheckResponse {
        let (code, status, challenge) = match self.refusal {
            Refusal::Unauthenticated(challenge) => (Code::Unauthenticated, StatusCode::Unauthorized, Some(challenge)),
            Refusal::Forbidden(challenge) => (Code::PermissionDenied, StatusCode::Forbidden, challenge),
            Refusal::Throttled => (Code::ResourceExhausted, StatusCode::TooManyRequests, None),
            Refusal::Unavailable => (Code::Unavailable, StatusCode::ServiceUnavailable, None),
            Refusal::Faulty => (Code::Internal, StatusCode::InternalServerError, None),
        };
        let (reason, told) = match self.refusal {
            Refusal::Faulty => ("INTERNAL", NOT_YOURS),
            _ => (self.code.as_str(), self.message.as_str()),
        };
        let mut body = serde_json::json!({ "code": reason, "message": told });
        if let Some(delete_time) = self.delete_time {
            body["delete_time"] = delete_time.into();
        }
        let mut headers =
            vec![header("content-type", "application/json".to_owned()), header("cache-control", "no-store".to_owned())];
        headers.extend(challenge.map(|challenge| header("www-authenticate", challenge.to_owned())));
        // Whole seconds are all that the header knows: never earlier than was said.
        let seconds = self.retry_after.map(|delay| delay.as_secs() + u64::from(delay.subsec_nanos() > 0));
        headers.extend(seconds.map(|seconds| header("retry-after", seconds.max(1).to_string())));
        let status = Some(HttpStatus { code: status.into() });
        let denied = DeniedHttpResponse { status, headers, body: body.to_string() };
        respond(code, self.message, HttpResponse::DeniedResponse(denied))
    }
}

fn respond(code: Code, message: String, http_response: HttpResponse) -> CheckResponse {
    let status = Some(tonic_types::Status { code: code.into(), message, details: Vec::new() });
    CheckResponse { status, http_response: Some(http_response), dynamic_metadata: None }
}

/// A header in place of every one of its name.
fn header(name: &str, value: String) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue { key: name.to_owned(), value, ..Default::default() }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..Default::default()
    }
}
