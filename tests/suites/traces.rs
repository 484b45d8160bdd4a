//! Traces, as a collector sees them: one across the services, and nothing lost when a process ends.

use keysweep::clients::made_for;
use keysweep_e2e::account::create_account;
use keysweep_e2e::collector::{Collector, text};
use keysweep_e2e::installation::{Installation, SERVICES};
use keysweep_proto::key::v1 as key;
use keysweep_proto::location::v2 as location;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use service_kit::testing::Kind;
use tonic::Request;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Spans, each with the service that sent it.
type Sent = Vec<(String, Span)>;

/// The spans of a trace: those of calls, and those of statements.
fn trace(collector: &Collector, id: &str) -> (Sent, Sent) {
    let of_trace = collector.spans().into_iter().filter(|(_, span)| hex(&span.trace_id) == id);
    of_trace.partition(|(_, span)| text(&span.attributes, "rpc.method").is_some())
}

/// The one span of this service and kind.
fn one<'a>(spans: &'a [(String, Span)], service: &str, kind: SpanKind) -> &'a Span {
    let found: Vec<_> = spans.iter().filter(|(of, span)| of == service && span.kind() == kind).collect();
    assert_eq!(found.len(), 1, "{kind:?} of {service} in {spans:#?}");
    &found[0].1
}

/// Whether one span lies within the time of another.
fn is_within(inner: &Span, outer: &Span) -> bool {
    outer.start_time_unix_nano <= inner.start_time_unix_nano && inner.end_time_unix_nano <= outer.end_time_unix_nano
}

const SAMPLED: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const HIT: &str = "4bf92f3577b34da6a3ce929d0e0e4737";
const UNSAMPLED: &str = "4bf92f3577b34da6a3ce929d0e0e4738";
const CALLER: &str = "00f067aa0ba902b7";

fn traced<T>(mut request: Request<T>, trace: &str, flags: &str) -> Request<T> {
    let value = format!("00-{trace}-{CALLER}-{flags}").parse().expect("metadata");
    request.metadata_mut().insert("traceparent", value);
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_goes_from_the_caller_through_both_services() {
    let (collector, endpoint) = Collector::start().await;
    let mut installation = Installation::new(Kind::Sqlite);
    for place in 0..2 {
        installation.set(place, "KEYSWEEP_TRACES__OTLP_ENDPOINT", &endpoint);
        // A caller's decision counts, not this.
        installation.set(place, "KEYSWEEP_TRACES__SAMPLE_RATIO", "0");
        installation.set(place, "KEYSWEEP_LOG__LEVEL", "info,service_kit=debug");
    }
    let mut processes = [installation.start(0).await, installation.start(1).await];
    let clients = installation.clients();
    let account = create_account(&clients).await;
    let generate = |trace: &str, flags: &str| {
        let request =
            location::GenerateLocationApiKeyRequest { location_id: account.location_id.clone(), ..Default::default() };
        let request = traced(made_for(&account.admin, request).expect("an actor"), trace, flags);
        let mut locations = clients.locations.clone();
        async move { locations.generate_location_api_key(request).await.expect("a key").into_inner().secret }
    };
    generate(UNSAMPLED, "00").await;
    let secret = generate(SAMPLED, "01").await;
    for _ in 0..2 {
        let request = key::VerifyKeyRequest { secret: secret.clone(), ..Default::default() };
        let answer = clients.keys.clone().verify_key(traced(Request::new(request), HIT, "01")).await;
        assert!(answer.expect("an answer").into_inner().valid);
    }
    // Nothing has been sent yet, unless by chance: the end of a process sends it.
    for process in &mut processes {
        assert!(process.terminate().await.success());
    }

    let (spans, statements) = trace(&collector, SAMPLED);
    let served = one(&spans, "location-service", SpanKind::Server);
    let asked = one(&spans, "location-service", SpanKind::Client);
    let generated = one(&spans, "key-service", SpanKind::Server);
    assert_eq!(spans.len(), 3, "{spans:#?}");
    assert_eq!(hex(&served.parent_span_id), CALLER);
    assert_eq!(asked.parent_span_id, served.span_id);
    assert_eq!(generated.parent_span_id, asked.span_id);
    let (location_method, key_method) =
        ("keysweep.location.v2.LocationService/GenerateLocationApiKey", "keysweep.key.v1.KeyService/GenerateApiKey");
    for (span, method) in [(served, location_method), (asked, key_method), (generated, key_method)] {
        assert_eq!(span.name, method);
        assert_eq!(text(&span.attributes, "rpc.method").as_deref(), Some(method));
        assert_eq!(text(&span.attributes, "rpc.response.status_code").as_deref(), Some("OK"));
    }
    assert!(is_within(generated, asked));
    for (service, name, call) in
        [("location-service", "SELECT locations", served), ("key-service", "INSERT api_keys", generated)]
    {
        let of = |(from, span): &&(String, Span)| from == service && span.name == name;
        let (_, statement) = statements.iter().find(of).unwrap_or_else(|| panic!("no {name} in {statements:#?}"));
        assert_eq!((statement.kind(), &statement.parent_span_id), (SpanKind::Client, &call.span_id));
        assert!(is_within(statement, call), "{statement:?} {call:?}");
        let told =
            ["db.system.name", "db.operation.name", "db.collection.name"].map(|key| text(&statement.attributes, key));
        let (operation, table) = name.split_once(' ').expect("two words");
        assert_eq!(told, ["sqlite", operation, table].map(|told| Some(told.to_owned())));
    }
    let told = format!("{spans:?} {statements:?}");
    assert!(!told.contains(&secret[12..]), "a span holds the secret");

    // The second of these was answered from memory, without waiting for anything.
    let (hits, statements) = trace(&collector, HIT);
    assert_eq!(hits.iter().filter(|(service, _)| service == "key-service").count(), 2);
    let asked: Vec<_> = statements.iter().map(|(_, span)| &span.parent_span_id).collect();
    assert!(asked.iter().all(|parent| *parent == asked[0]), "a hit asks no database: {statements:#?}");
    assert_eq!(trace(&collector, UNSAMPLED), (Vec::new(), Vec::new()), "its caller does not trace it");
    for (place, process) in processes.iter().enumerate() {
        let output = process.output();
        for trace in [SAMPLED, UNSAMPLED] {
            let line = output.lines().find(|line| line.contains("call ended") && line.contains(trace));
            let line = line.unwrap_or_else(|| panic!("no line of {trace} from {}: {output}", SERVICES[place]));
            let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
            assert_eq!(line["trace_id"], trace, "{line}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_begins_a_trace_with_all_that_it_asks_the_database() {
    let (collector, endpoint) = Collector::start().await;
    let mut installation = Installation::new(Kind::Sqlite);
    installation.set(0, "KEYSWEEP_TRACES__OTLP_ENDPOINT", &endpoint);
    installation.set(0, "KEYSWEEP_TRACES__SAMPLE_RATIO", "1");
    let mut process = installation.start(0).await;
    assert!(process.terminate().await.success());

    let spans = collector.spans();
    let (_, job) = spans.iter().find(|(_, span)| span.name == "job.sweeper").expect("the job runs at the start");
    assert!(job.parent_span_id.is_empty() && job.kind() == SpanKind::Internal, "{job:?}");
    let statements: Vec<_> = spans.iter().filter(|(_, span)| span.parent_span_id == job.span_id).collect();
    assert!(statements.iter().any(|(_, span)| span.name.starts_with("SELECT ")), "{statements:#?}");
    for (_, span) in statements {
        assert!(span.trace_id == job.trace_id && is_within(span, job), "{span:?} {job:?}");
    }
}
