//! Calling other services: channels that notice a dead peer and trust no stranger, and requests that pass on their context.

mod connect;
mod peer;
mod retry;

use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;
use tonic::metadata::MetadataValue;

use crate::actor;
use crate::config::Faults;
use crate::context::{REQUEST_ID_KEY, RequestContext, TRACEPARENT_KEY};
use crate::telemetry::traces;

pub use traces::calling;

pub use connect::{EndpointError, channel, channel_to_self};
pub use peer::{Peer, Resolve, SystemResolver};
pub use retry::retrying;

/// Where another service is.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    /// Such as `http://127.0.0.1:50051`.
    pub endpoint: String,
    /// The longest that connecting may take, milliseconds.
    pub connect_timeout_ms: u64,
    /// The longest that a unary call may take, milliseconds.
    pub request_timeout_ms: u64,
}

impl ClientConfig {
    /// Notes the faults of the section `path`.
    pub fn validate(&self, path: &str, faults: &mut Faults) {
        if connect::Target::parse(&self.endpoint).is_err() {
            faults.push(format!("{path}.endpoint"), "must be a URL such as http://127.0.0.1:50051");
        }
        for (field, value) in
            [("connect_timeout_ms", self.connect_timeout_ms), ("request_timeout_ms", self.request_timeout_ms)]
        {
            if !(1..=600_000).contains(&value) {
                faults.push(format!("{path}.{field}"), "must lie between 1 and 600000");
            }
        }
    }

    /// The longest that a unary call may take.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms)
    }
}

/// A request of this service on its own behalf names the span that it is made in.
pub fn pass_trace_on<T>(request: &mut tonic::Request<T>) {
    if let Some(value) = traces::traceparent(None).and_then(|value| MetadataValue::try_from(value).ok()) {
        request.metadata_mut().insert(TRACEPARENT_KEY, value);
    }
}

/// What a deadline is shortened by as it is passed on, so that the callee gives up first and its answer is still heard.
const SHORTENED_BY: Duration = Duration::from_millis(20);

/// A request that passes on actor, trace and id of the call it serves, with `timeout` or what is left of its deadline.
pub fn with_context<T>(message: T, context: &RequestContext, timeout: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let left = context.deadline.map_or(timeout, |deadline| {
        deadline.saturating_duration_since(Instant::now()).saturating_sub(SHORTENED_BY).min(timeout)
    });
    request.set_timeout(left.max(Duration::from_millis(1)));
    let actor = context.actor.as_ref().map(ToString::to_string);
    let request_id = Some(context.request_id.to_string()).filter(|id| !id.is_empty());
    let pairs = [
        (REQUEST_ID_KEY, request_id),
        (TRACEPARENT_KEY, traces::traceparent(context.traceparent.as_deref())),
        (actor::METADATA_KEY, actor),
    ];
    for (key, value) in pairs {
        // All three were checked when they came in: visible ASCII.
        if let Some(value) = value.and_then(|value| MetadataValue::try_from(value).ok()) {
            request.metadata_mut().insert(key, value);
        }
    }
    request
}
