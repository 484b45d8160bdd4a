use std::collections::BTreeSet;
use std::time::Duration;

use keysweep_proto::envoy::config::core::v3::{Address, HeaderMap, HeaderValue, Pipe, SocketAddress, address};
use keysweep_proto::envoy::service::auth::v3::AttributeContext;
use keysweep_proto::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer, Request as HttpPart};
use keysweep_proto::envoy::service::auth::v3::check_response::HttpResponse;
use keysweep_proto::envoy::service::auth::v3::{CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse};
use proptest::prelude::*;
use service_kit::status::{StatusBuilder, storage_unavailable};
use tonic::{Code, Status};

use super::answer::{Denial, verified};
use super::credential;
use super::question::Question;
use crate::app::verify::{Verification, VerifiedKey};
use crate::domain::key::{Owner, Scopes, VerifyCode};

fn asked(headers: &[(&str, &str)], extensions: &[(&str, &str)], peer: Option<Address>) -> CheckRequest {
    let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    let http = HttpRequest { headers: map(headers), ..Default::default() };
    let attributes = AttributeContext {
        source: Some(Peer { address: peer, ..Default::default() }),
        request: Some(HttpPart { time: None, http: Some(http) }),
        context_extensions: map(extensions),
        ..Default::default()
    };
    CheckRequest { attributes: Some(attributes) }
}

/// As `encode_raw_headers` sends them: nothing is joined, and values are bytes.
fn asked_raw(headers: &[(&str, &[u8])]) -> CheckRequest {
    let headers = headers.iter().map(|(name, value)| HeaderValue {
        key: (*name).into(),
        raw_value: value.to_vec(),
        ..Default::default()
    });
    let mut request = asked(&[], &[], None);
    let http = request.attributes.as_mut().and_then(|a| a.request.as_mut()).and_then(|r| r.http.as_mut()).unwrap();
    http.header_map = Some(HeaderMap { headers: headers.collect() });
    request
}

fn ip(address: &str) -> Option<Address> {
    let socket = SocketAddress { address: address.to_owned(), ..Default::default() };
    Some(Address { address: Some(address::Address::SocketAddress(socket)) })
}

fn denied(response: CheckResponse) -> (Code, DeniedHttpResponse) {
    let status = response.status.expect("a status");
    match response.http_response {
        Some(HttpResponse::DeniedResponse(denied)) => (Code::from_i32(status.code), denied),
        other => panic!("{other:?} does not deny"),
    }
}

fn header<'a>(denied: &'a DeniedHttpResponse, name: &str) -> Option<&'a str> {
    let all = denied.headers.iter().filter_map(|option| option.header.as_ref());
    all.filter(|header| header.key == name).map(|header| header.value.as_str()).next()
}

fn body(denied: &DeniedHttpResponse) -> serde_json::Value {
    serde_json::from_str(&denied.body).expect("a body of JSON")
}

/// The key in a request, or the code and the status of HTTP that it is denied with.
fn taken(request: CheckRequest) -> Result<String, (String, i32)> {
    let key = Question::read(request).and_then(|question| credential::take(&question.headers));
    key.map(|secret| secret.expose().to_owned()).map_err(|denial| {
        let (_, denied) = denied(denial.into_response());
        let code = body(&denied)["code"].as_str().unwrap_or_default().to_owned();
        (code, denied.status.map_or(0, |status| status.code))
    })
}

#[test]
fn one_key_is_taken_from_either_header() {
    for headers in [
        &[("authorization", "Bearer k1")][..],
        &[("authorization", "bearer  k1 ")],
        &[("Authorization", "BEARER k1")],
        &[("x-api-key", "k1")],
        &[("x-api-key", "\tk1 ")],
        &[("authorization", "Bearer k1"), ("x-api-key", "k1")],
        &[("cookie", "k2"), ("x-api-key", "k1"), ("proxy-authorization", "Bearer k3")],
    ] {
        assert_eq!(taken(asked(headers, &[], None)), Ok("k1".into()), "{headers:?}");
        let raw: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        assert_eq!(taken(asked_raw(&raw)), Ok("k1".into()), "{headers:?}");
    }
}

#[test]
fn no_key_is_missing_and_anything_but_one_is_malformed() {
    let missing = || Err(("MISSING".to_owned(), 401));
    let malformed = || Err(("MALFORMED".to_owned(), 401));
    assert_eq!(taken(asked(&[], &[], None)), missing());
    assert_eq!(taken(asked(&[("cookie", "key=k1")], &[], None)), missing());
    for headers in [
        &[("authorization", "Bearer k1"), ("x-api-key", "k2")][..],
        &[("authorization", "Bearer k1"), ("x-api-key", "")],
        &[("authorization", "Bearer k1,Bearer k2")],
        &[("authorization", "Bearer k1, Bearer k1")],
        &[("x-api-key", "k1,k1")],
        &[("x-api-key", "k1,")],
        &[("authorization", "Basic azE6azI="), ("x-api-key", "k1")],
        &[("authorization", "Basic azE6azI=")],
        &[("authorization", "Bearer")],
        &[("authorization", "Bearerk1")],
        &[("authorization", "k1")],
        &[("authorization", "")],
        &[("x-api-key", "k1"), ("X-Api-Key", "k1")],
    ] {
        assert_eq!(taken(asked(headers, &[], None)), malformed(), "{headers:?}");
    }
    for headers in [
        &[("x-api-key", &b"k1"[..]), ("x-api-key", b"k1")][..],
        &[("authorization", b"Bearer k1"), ("authorization", b"Bearer k2")],
        &[("x-api-key", b"k\xff")],
    ] {
        assert_eq!(taken(asked_raw(headers)), malformed(), "{headers:?}");
    }
    // What looks like nothing is for the verification to call malformed.
    assert_eq!(taken(asked(&[("x-api-key", "")], &[], None)), Ok(String::new()));
    assert_eq!(taken(asked(&[("authorization", "Bearer ")], &[], None)), malformed());
}

#[test]
fn a_route_requires_scopes_and_a_source_is_known_or_not() {
    let read = |headers: &[(&str, &str)], extensions: &[(&str, &str)], peer: Option<Address>| {
        let presented = Question::read(asked(headers, extensions, peer)).map(|question| question.presented);
        presented.map(|p| (p.required_scopes.as_slice().join(" "), p.source_ip.map(|ip| ip.to_string())))
    };
    let pipe = Address { address: Some(address::Address::Pipe(Pipe { path: "/run/x".into(), mode: 0 })) };
    let header = [("source_ip_header", "X-Client")];
    for (headers, extensions, peer, scopes, source) in [
        (&[][..], &[][..], None, "", None),
        (&[], &[], ip("192.0.2.1"), "", Some("192.0.2.1")),
        (&[], &[], ip("::ffff:192.0.2.1"), "", Some("::ffff:192.0.2.1")),
        (&[], &[], ip("fe80::1%eth0"), "", Some("fe80::1")),
        (&[], &[], Some(pipe), "", None),
        (&[], &[("required_scopes", "write  read\twrite ")], None, "read write", None),
        (&[], &[("required_scopes", "")], None, "", None),
        // Where a header is named, it alone says where the request came from.
        (&[("x-client", "198.51.100.7")], &header, ip("192.0.2.1"), "", Some("198.51.100.7")),
        (&[("x-client", "2001:db8::1")], &header, None, "", Some("2001:db8::1")),
        (&[], &header, ip("192.0.2.1"), "", None),
        (&[("x-client", "198.51.100.7, 192.0.2.1")], &header, ip("192.0.2.1"), "", None),
        (&[("x-client", "198.51.100.7"), ("X-Client", "198.51.100.7")], &header, ip("192.0.2.1"), "", None),
        (&[("x-client", "unknown")], &header, ip("192.0.2.1"), "", None),
        (&[("x-client", "198.51.100.7")], &[], ip("192.0.2.1"), "", Some("192.0.2.1")),
    ] {
        let read = read(headers, extensions, peer).expect("it reads");
        assert_eq!(read, (scopes.to_owned(), source.map(str::to_owned)), "{headers:?} {extensions:?}");
    }
}

#[test]
fn a_gateway_that_is_set_up_wrongly_admits_nobody_and_tells_clients_nothing() {
    let key = [("x-api-key", "k1")];
    let no_http = |request: Option<HttpPart>| CheckRequest {
        attributes: Some(AttributeContext { request, ..Default::default() }),
    };
    let many = (0..51).map(|n| format!("s{n}")).collect::<Vec<_>>().join(" ");
    for request in [
        CheckRequest::default(),
        no_http(None),
        no_http(Some(HttpPart::default())),
        asked(&key, &[("required_scope", "write")], None),
        asked(&key, &[("required_scopes", "schreiben-für-alle")], None),
        asked(&key, &[("required_scopes", &many)], None),
        asked(&key, &[("source_ip_header", "")], None),
        asked(&key, &[], ip("")),
        asked(&key, &[], ip("db.example")),
    ] {
        let denial = Question::read(request).expect_err("it must not be read");
        let (code, denied) = denied(denial.into_response());
        assert_eq!((code, denied.status.map(|status| status.code)), (Code::Internal, Some(500)));
        assert_eq!(body(&denied)["code"], "INTERNAL");
        assert!(!denied.body.contains("attributes"), "{}", denied.body);
    }
}

fn allowed(key: VerifiedKey, headers: &[(&str, &str)]) -> OkHttpResponse {
    let question = Question::read(asked(headers, &[], None)).expect("it reads");
    let verification = Verification { code: VerifyCode::Valid, key: Some(key), deleted_at: None };
    let response = verified(verification, &question.headers).expect("it admits");
    assert_eq!(response.status.map(|status| status.code), Some(0));
    match response.http_response {
        Some(HttpResponse::OkResponse(ok)) => ok,
        other => panic!("{other:?} does not admit"),
    }
}

fn key(location_id: Option<&str>, scopes: &[&str]) -> VerifiedKey {
    VerifiedKey {
        key_id: "key_1".into(),
        owner: Owner { agency_id: "agy_1".into(), location_id: location_id.map(str::to_owned) },
        scopes: Scopes::from_stored(scopes.iter().map(|scope| (*scope).to_owned()).collect()),
        plan_id: None,
    }
}

#[test]
fn who_is_admitted_is_named_and_nothing_that_the_client_claimed_stays() {
    let forged = [("x-keysweep-actor", "user/root"), ("X-Keysweep-Location-Id", "loc_2"), ("x-keysweep-plan", "1")];
    let every = ["authorization", "x-api-key", "x-keysweep-location-id", "x-keysweep-plan", "x-keysweep-scopes"];
    for (key, set, removed) in [
        (key(None, &[]), &[][..], &every[..]),
        (
            key(Some("loc_1"), &["write", "read"]),
            &[("x-keysweep-location-id", "loc_1"), ("x-keysweep-scopes", "read write")],
            &["authorization", "x-api-key", "x-keysweep-plan"],
        ),
    ] {
        let ok = allowed(key, &forged);
        let base =
            [("x-keysweep-actor", "api-key/key_1"), ("x-keysweep-key-id", "key_1"), ("x-keysweep-agency-id", "agy_1")];
        let told = ok.headers.iter().filter_map(|option| option.header.as_ref());
        let told: BTreeSet<_> = told.map(|header| (header.key.as_str(), header.value.as_str())).collect();
        assert_eq!(told, base.iter().chain(set).copied().collect());
        assert!(ok.headers.iter().all(|option| option.append_action == 2), "each overwrites");
        assert_eq!(ok.headers_to_remove, removed);
    }
}

#[test]
fn whatever_fails_is_denied_in_the_terms_of_http() {
    let retry =
        || StatusBuilder::new(Code::ResourceExhausted, "THROTTLED", "slower").retry_after(Duration::from_millis(1_200));
    for (status, http, code, retry_after) in [
        (storage_unavailable(), 503, "STORAGE_UNAVAILABLE", Some("1")),
        (retry().build(), 429, "THROTTLED", Some("2")),
        (Status::deadline_exceeded("late"), 503, "INTERNAL", None),
    ] {
        let (_, denied) = denied(Denial::failed(&status).into_response());
        assert_eq!(denied.status.as_ref().map(|status| status.code), Some(http));
        assert_eq!((body(&denied)["code"].as_str(), header(&denied, "retry-after")), (Some(code), retry_after));
    }
    for number in 0..=16 {
        let (code, denied) = denied(Denial::failed(&Status::new(Code::from_i32(number), "hunter2")).into_response());
        let http = denied.status.as_ref().map_or(0, |status| status.code);
        assert!(code != Code::Ok && [429, 500, 503].contains(&http), "{number} becomes {code:?} {http}");
        assert!(http != 500 || !denied.body.contains("hunter2"), "{}", denied.body);
        assert_eq!(header(&denied, "content-type"), Some("application/json"));
    }
}

proptest! {
    /// Only VALID with its key is admitted, whatever else the request holds.
    #[test]
    fn nothing_else_is_admitted(
        code in prop::sample::select(vec![
            VerifyCode::Valid, VerifyCode::NotFound, VerifyCode::Malformed, VerifyCode::Revoked, VerifyCode::Expired,
            VerifyCode::DeletedBySweep, VerifyCode::InsufficientScope, VerifyCode::IpNotAllowed,
        ]),
        with_key in any::<bool>(),
        headers in prop::collection::hash_map("[a-zA-Z-]{1,20}", ".*", 0..5),
    ) {
        let pairs: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let question = Question::read(asked(&pairs, &[], None)).expect("it reads");
        let verification = Verification { code, key: with_key.then(|| key(None, &[])), deleted_at: None };
        let response = verified(verification, &question.headers).unwrap_or_else(Denial::into_response);
        let admitted = response.status.as_ref().map(|status| status.code) == Some(0);
        prop_assert_eq!(admitted, code == VerifyCode::Valid && with_key);
        prop_assert_eq!(admitted, matches!(response.http_response, Some(HttpResponse::OkResponse(_))));
    }
}

#[test]
fn secrets_are_not_printed() {
    let question = Question::read(asked(&[("x-api-key", "hunter2")], &[], None)).expect("it reads");
    assert!(!format!("{question:?}").contains("hunter2"));
}
