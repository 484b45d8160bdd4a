//! What travels with a call beside its message.

use std::net::SocketAddr;

use tokio::time::Instant;

use crate::actor::Actor;

/// The metadata key of the call's own id, taken from the caller or made here, echoed and logged.
pub const REQUEST_ID_KEY: &str = "x-request-id";
/// The metadata key of the W3C trace context.
pub const TRACEPARENT_KEY: &str = "traceparent";

/// What travels with a call beside its message. The server's layer puts it into the request's extensions.
#[derive(Clone, Debug, Default)]
pub struct RequestContext {
    /// The `x-request-id`, of the caller or made here.
    pub request_id: String,
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
    use super::is_traceparent;

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
