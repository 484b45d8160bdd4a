//! Traces, as a collector sees them: one across the services, and nothing lost when a process ends.

use std::sync::{Arc, Mutex, PoisonError};

use keysweep::clients::made_for;
use keysweep_e2e::account::create_account;
use keysweep_e2e::installation::{Installation, SERVICES};
use keysweep_proto::key::v1 as key;
use keysweep_proto::location::v2 as location;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use service_kit::testing::Kind;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// Keeps what it is sent, with the name of the service that sent it.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<(String, Span)>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for resource in request.into_inner().resource_spans {
            let service = text(&resource.resource.expect("a resource").attributes, "service.name");
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            kept.extend(spans.map(|span| (service.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// A collector, and its address.
    async fn start() -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let collector = Self::default();
        let service = TraceServiceServer::new(collector.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        (collector, endpoint)
    }

    /// The spans of a trace: service, kind, name.
    fn trace(&self, id: &str) -> Vec<(String, Span)> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().filter(|(_, span)| hex(&span.trace_id) == id).cloned().collect()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    let value = attributes.iter().find(|one| one.key == key).and_then(|one| one.value.as_ref()?.value.as_ref());
    match value {
        Some(Value::StringValue(text)) => text.clone(),
        other => panic!("{key} is {other:?}"),
    }
}

/// The one span of this service and kind.
fn one<'a>(spans: &'a [(String, Span)], service: &str, kind: SpanKind) -> &'a Span {
    let found: Vec<_> = spans.iter().filter(|(of, span)| of == service && span.kind() == kind).collect();
    assert_eq!(found.len(), 1, "{kind:?} of {service} in {spans:#?}");
    &found[0].1
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

    let spans = collector.trace(SAMPLED);
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
        assert_eq!(text(&span.attributes, "rpc.method"), method);
        assert_eq!(text(&span.attributes, "rpc.response.status_code"), "OK");
    }
    let inside = asked.start_time_unix_nano..=asked.end_time_unix_nano;
    assert!(inside.contains(&generated.start_time_unix_nano) && inside.contains(&generated.end_time_unix_nano));
    let told = format!("{spans:?}");
    assert!(!told.contains(&secret[12..]), "a span holds the secret");

    // The second of these was answered from memory, without waiting for anything.
    assert_eq!(collector.trace(HIT).iter().filter(|(service, _)| service == "key-service").count(), 2);
    assert!(collector.trace(UNSAMPLED).is_empty(), "its caller does not trace it");
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
