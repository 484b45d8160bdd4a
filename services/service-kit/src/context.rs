//! What travels with a call beside its message.

use std::fmt;
use std::net::SocketAddr;

use http::HeaderValue;
use tokio::time::Instant;

use crate::actor::Actor;
use crate::ids::CallId;

/// The metadata key of the call's own id, taken from the caller or made here, echoed and logged.
pub const REQUEST_ID_KEY: &str = "x-request-id";
/// The metadata key of the W3C trace context.
pub const TRACEPARENT_KEY: &str = "traceparent";

const MAX_REQUEST_ID_CHARS: usize = 128;

/// The id of a call: its text is made when it is asked for, since most calls end without anybody asking.
#[derive(Clone, Debug, Default)]
pub struct RequestId(Origin);

#[derive(Clone, Debug, Default)]
enum Origin {
    #[default]
    None,
    Caller(HeaderValue),
    Made(CallId),
}

impl RequestId {
    /// An id that a caller sent. `None`: not 1 to 128 visible ASCII characters.
    pub fn of_caller(value: &HeaderValue) -> Option<Self> {
        let chars = value.as_bytes();
        let well_formed = (1..=MAX_REQUEST_ID_CHARS).contains(&chars.len()) && chars.iter().all(u8::is_ascii_graphic);
        well_formed.then(|| Self(Origin::Caller(value.clone())))
    }

    /// An id of our own.
    pub fn made(id: CallId) -> Self {
        Self(Origin::Made(id))
    }

    /// Whether the caller sent it.
    pub fn is_the_callers(&self) -> bool {
        matches!(self.0, Origin::Caller(_))
    }

    /// The id as a header. `None`: there is none.
    pub fn to_header(&self) -> Option<HeaderValue> {
        match &self.0 {
            Origin::None => None,
            Origin::Caller(value) => Some(value.clone()),
            Origin::Made(id) => HeaderValue::try_from(id.to_string()).ok(),
        }
    }
}

impl From<&str> for RequestId {
    /// An id that travelled as text; anything that cannot be one is none.
    fn from(text: &str) -> Self {
        HeaderValue::from_str(text).ok().and_then(|value| Self::of_caller(&value)).unwrap_or_default()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Origin::None => Ok(()),
            Origin::Caller(value) => f.write_str(value.to_str().unwrap_or_default()),
            Origin::Made(id) => id.fmt(f),
        }
    }
}

/// What travels with a call beside its message. The server's layer puts it into the request's extensions.
#[derive(Clone, Debug, Default)]
pub struct RequestContext {
    /// The `x-request-id`, of the caller or made here.
    pub request_id: RequestId,
    /// The W3C `traceparent`, if the caller sent a well-formed one.
    pub traceparent: Option<String>,
    /// Who the call is made for, if the caller said.
    pub actor: Option<Actor>,
    /// When the caller, or this server, gives the call up.
    pub deadline: Option<Instant>,
    /// The service that calls, as its certificate names it; `None`: it showed none.
    pub caller: Option<String>,
    /// Where the call came from.
    pub peer: Option<SocketAddr>,
}

/// The context of a request; empty where the server's layer was not in the way.
pub fn of<T>(request: &tonic::Request<T>) -> RequestContext {
    request.extensions().get::<RequestContext>().cloned().unwrap_or_default()
}

/// Whether `value` has the form `00-<32 hex>-<16 hex>-<2 hex>` with ids that are not all zero.
pub fn is_traceparent(value: &str) -> bool {
    let mut parts = value.split('-');
    let (Some(version), Some(trace), Some(span), Some(flags), None) =
        (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let hex = |part: &str, len: usize| {
        part.len() == len && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let zero = |part: &str| part.bytes().all(|b| b == b'0');
    version == "00" && hex(trace, 32) && !zero(trace) && hex(span, 16) && !zero(span) && hex(flags, 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_visible_ascii_of_a_bounded_length_is_an_id() {
        for good in ["r-1", &"x".repeat(128)] {
            let id = RequestId::from(good);
            assert!(id.is_the_callers());
            assert_eq!((id.to_string().as_str(), id.to_header()), (good, HeaderValue::from_str(good).ok()));
        }
        for bad in ["", "a b", "\u{e4}", "tab\t", &"x".repeat(129)] {
            let id = RequestId::from(bad);
            assert_eq!((id.to_string(), id.to_header()), (String::new(), None), "{bad:?}");
        }
    }

    #[test]
    fn only_well_formed_trace_contexts_are_taken() {
        assert!(is_traceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
        for bad in [
            "",
            "00-0-0-0",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        ] {
            assert!(!is_traceparent(bad), "{bad}");
        }
    }
}
