//! What a gateway asks: the request's headers, where it came from, and what its route requires.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

use keysweep_proto::envoy::config::core::v3::address;
use keysweep_proto::envoy::service::auth::v3::CheckRequest;
use keysweep_proto::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer};
use service_kit::status::invalid_fields;
use service_kit::violations::Violations;
use zeroize::Zeroizing;

use super::answer::Denial;
use crate::domain::key::{Presented, Scopes};

/// The scopes that a route requires, separated by blanks.
const REQUIRED_SCOPES: &str = "required_scopes";
/// The header in which the gateway itself says where a request came from.
const SOURCE_IP_HEADER: &str = "source_ip_header";

/// What is asked of the service.
#[derive(Debug)]
pub(super) struct Question {
    /// What the client sent.
    pub(super) headers: Headers,
    /// What the key is held against.
    pub(super) presented: Presented,
}

/// The headers of the client's request; some hold secrets, so they are wiped when dropped and never printed.
pub(super) struct Headers(Vec<(String, Zeroizing<Vec<u8>>)>);

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Headers(..)")
    }
}

impl Headers {
    /// Envoy sends them joined by name, or each as it came where `encode_raw_headers` is set.
    fn of(http: HttpRequest) -> Self {
        let joined = http.headers.into_iter().map(|(name, value)| (name, value.into_bytes()));
        let raw = http.header_map.into_iter().flat_map(|map| map.headers).map(|header| {
            let value = if header.raw_value.is_empty() { header.value.into_bytes() } else { header.raw_value };
            (header.key, value)
        });
        Self(joined.chain(raw).map(|(name, value)| (name.to_ascii_lowercase(), Zeroizing::new(value))).collect())
    }

    /// Every value under a name in lower case.
    pub(super) fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().filter(move |(own, _)| own == name).map(|(_, value)| value.as_slice())
    }

    /// Every name, in lower case.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }
}

impl Question {
    /// Reads a request whole; what cannot be read is a fault of the gateway's configuration and denied.
    pub(super) fn read(request: CheckRequest) -> Result<Self, Denial> {
        let attributes = request.attributes.unwrap_or_default();
        let mut faults = Violations::default();
        let route = Route::read(attributes.context_extensions, &mut faults);
        let peer = attributes.source.as_ref().and_then(|source| peer_ip(source, &mut faults));
        let http = attributes.request.and_then(|request| request.http);
        if http.is_none() {
            faults.push("attributes.request.http", "is required: only requests of HTTP are authorized");
        }
        match http {
            Some(http) if faults.is_empty() => {
                let headers = Headers::of(http);
                let source_ip = route.source_ip_header.map_or(peer, |name| named_ip(&headers, &name));
                Ok(Self { headers, presented: Presented { required_scopes: route.required_scopes, source_ip } })
            }
            _ => {
                tracing::warn!(%faults, "a gateway asks what cannot be answered, so its requests are denied");
                Err(Denial::failed(&invalid_fields(&faults)))
            }
        }
    }
}

/// What the gateway's configuration says of a route, in its `context_extensions`.
#[derive(Default)]
struct Route {
    required_scopes: Scopes,
    source_ip_header: Option<String>,
}

impl Route {
    /// A misspelt setting must not open a route: an unknown one is a fault.
    fn read(extensions: HashMap<String, String>, faults: &mut Violations) -> Self {
        const FIELD: &str = "attributes.context_extensions";
        let mut route = Self::default();
        for (name, value) in extensions {
            let field = format!("{FIELD}.{name}");
            match name.as_str() {
                REQUIRED_SCOPES => {
                    let scopes = value.split_ascii_whitespace().map(str::to_owned).collect();
                    route.required_scopes = Scopes::parse(scopes, &field, faults);
                }
                SOURCE_IP_HEADER if value.is_empty() => faults.push(field, "must name a header"),
                SOURCE_IP_HEADER => route.source_ip_header = Some(value.to_ascii_lowercase()),
                _ => faults.push(field, format!("is unknown: only {REQUIRED_SCOPES} and {SOURCE_IP_HEADER} are not")),
            }
        }
        route
    }
}

/// Who is connected to the gateway. A Unix socket has no address: the source is then unknown.
fn peer_ip(source: &Peer, faults: &mut Violations) -> Option<IpAddr> {
    let Some(address::Address::SocketAddress(socket)) = source.address.as_ref()?.address.as_ref() else {
        return None;
    };
    // The zone of a link-local address belongs to the gateway's machine.
    let text = socket.address.split('%').next().unwrap_or_default();
    let ip = text.parse().ok();
    if ip.is_none() {
        faults.push("attributes.source.address", "must be an IPv4 or IPv6 address");
    }
    ip
}

/// The address that a header holds; unknown where it does not hold exactly one.
fn named_ip(headers: &Headers, name: &str) -> Option<IpAddr> {
    let mut values = headers.values(name);
    let (value, None) = (values.next()?, values.next()) else { return None };
    std::str::from_utf8(value).ok()?.trim().parse().ok()
}
