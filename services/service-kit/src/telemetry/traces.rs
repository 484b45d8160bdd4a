//! Traces: spans of the calls that are served and made, of jobs, and of the statements that both give to the database, sent over OTLP.
//! Off unless somebody is named who collects them, and then no span is made for them.

use std::future::Future;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Context as _;
use opentelemetry::trace::{
    Span as _, SpanContext, SpanId, SpanKind, Status as SpanStatus, TraceContextExt, TraceFlags, TraceId, TraceState,
    Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use serde::Deserialize;
use tonic::{Code, Status};
use tracing::level_filters::LevelFilter;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

use crate::config::{Faults, Validate};
use crate::context::{RequestId, is_traceparent};
use crate::status::code_name;

/// Where traces go.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TracesConfig {
    /// The collector's OTLP address over gRPC, such as `http://127.0.0.1:4317`. Empty: nothing is traced.
    pub otlp_endpoint: String,
    /// The share of traces begun here that are kept, 0 to 1. A caller's own decision wins.
    pub sample_ratio: f64,
}

impl Validate for TracesConfig {
    fn validate(&self, faults: &mut Faults) {
        let collector = url::Url::parse(&self.otlp_endpoint);
        if !self.otlp_endpoint.is_empty() && !collector.is_ok_and(|url| url.scheme() == "http" && url.has_host()) {
            faults.push("traces.otlp_endpoint", "must be empty or a URL such as http://127.0.0.1:4317");
        }
        if !(0.0..=1.0).contains(&self.sample_ratio) {
            faults.push("traces.sample_ratio", "must lie between 0 and 1");
        }
    }
}

/// The spans of this target are exported, no others: they hold no more than is written here.
const TARGET: &str = "keysweep::call";
/// The name of the instrumentation.
const TRACER: &str = "keysweep";
/// The longest that the last spans may take on their way out.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// One for the process, as the log is.
static PROVIDER: OnceLock<SdkTracerProvider> = OnceLock::new();

/// Whether calls are traced.
pub(crate) fn enabled() -> bool {
    PROVIDER.get().is_some()
}

/// What hands spans to the collector, as a part of the process's subscriber. `None`: nothing is traced.
///
/// # Errors
/// When the address is none; a validated configuration has none such.
pub(super) fn exporting<S>(
    config: &TracesConfig,
    service: &'static str,
) -> anyhow::Result<Option<impl Layer<S> + use<S>>>
where
    S: tracing::Subscriber + for<'span> LookupSpan<'span>,
{
    if config.otlp_endpoint.is_empty() {
        return Ok(None);
    }
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(&config.otlp_endpoint)
        .build()
        .context("traces.otlp_endpoint")?;
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sample_ratio))))
        .with_resource(Resource::builder().with_service_name(service).with_attribute(version).build())
        .build();
    let tracer = PROVIDER.get_or_init(|| provider).tracer(TRACER);
    let spans = tracing_opentelemetry::layer().with_tracer(tracer).with_location(false).with_threads(false);
    // With fixed targets everything else costs what it costs without traces.
    Ok(Some(spans.with_filter(Targets::new().with_target(TARGET, LevelFilter::ERROR))))
}

/// Sends what has not been sent yet; to be called at the end of the process. Blocks.
pub(crate) fn flush() {
    if let Some(Err(error)) = PROVIDER.get().map(|provider| provider.shutdown_with_timeout(FLUSH_TIMEOUT)) {
        tracing::warn!(%error, "the last spans could not be handed to the collector");
    }
}

/// The span of a call that is served: what is logged within it carries the ids. A part of the caller's trace, if that has one.
pub(crate) fn serving(method: &str, request_id: &RequestId, traceparent: Option<&str>) -> Span {
    // At the level of errors, so that an error's line carries the call's ids whatever else is logged.
    if !enabled() {
        let trace_id = traceparent.and_then(trace_id);
        return tracing::error_span!(target: TARGET, "grpc", path = method, %request_id, trace_id);
    }
    let trace_id = tracing::field::Empty;
    let span = tracing::error_span!(
        target: TARGET, "grpc", path = method, %request_id, trace_id, otel.name = method, otel.kind = "server"
    );
    if let Some(parent) = traceparent.and_then(remote_context) {
        // It has only just been made, so this cannot come too late.
        let _: Result<(), _> = span.set_parent(parent);
    }
    name(&span, method);
    let context = span.context();
    span.record("trace_id", context.span().span_context().trace_id().to_string());
    span
}

/// Makes a call in a span of its own, which `call`'s request names as its parent where it is made by [`crate::client`].
///
/// # Errors
/// As the call has them.
pub async fn calling<T, F>(method: &str, call: impl FnOnce() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<T, Status>>,
{
    if !enabled() {
        return call().await;
    }
    let span = tracing::error_span!(target: TARGET, "call", otel.name = method, otel.kind = "client");
    name(&span, method);
    let answer = span.in_scope(call).instrument(span.clone()).await;
    ended(&span, answer.as_ref().map_or_else(Status::code, |_| Code::Ok));
    answer
}

/// Runs a job in a span of its own, the root of a trace: the calls and statements that it makes are a part of it.
///
/// # Errors
/// As the job has them.
pub(crate) async fn job<T>(name: &str, run: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    if !enabled() {
        return run.await;
    }
    let otel_name = format!("job.{name}");
    let trace_id = tracing::field::Empty;
    let span = tracing::error_span!(target: TARGET, parent: None, "job", trace_id, otel.name = otel_name);
    span.record("trace_id", span.context().span().span_context().trace_id().to_string());
    let done = run.instrument(span.clone()).await;
    if done.is_err() {
        span.set_status(SpanStatus::error(""));
    }
    done
}

/// Tells of a statement that the database has just done, as a part of the call or the job that is traced at this time, if any is. Of
/// the statement itself only the verb and the table are told.
pub(crate) fn statement(system: &'static str, sql: &str, elapsed: Duration, failed: bool) {
    let context = Span::current().context();
    let (Some(provider), true) = (PROVIDER.get(), context.span().span_context().is_sampled()) else { return };
    let (operation, table) = summary(sql);
    let mut told =
        vec![KeyValue::new("db.system.name", system), KeyValue::new("db.operation.name", operation.to_owned())];
    told.extend(table.map(|table| KeyValue::new("db.collection.name", table.to_owned())));
    if failed {
        told.push(KeyValue::new("error.type", "_OTHER"));
    }
    let tracer = provider.tracer(TRACER);
    let ended_at = opentelemetry::time::now();
    let mut span = tracer
        .span_builder(table.map_or_else(|| operation.to_owned(), |table| format!("{operation} {table}")))
        .with_kind(SpanKind::Client)
        .with_start_time(ended_at.checked_sub(elapsed).unwrap_or(ended_at))
        .with_attributes(told)
        .start_with_context(&tracer, &context);
    if failed {
        span.set_status(SpanStatus::error(""));
    }
    span.end_with_timestamp(ended_at);
}

/// The verb of a statement, and the first table that it names.
fn summary(sql: &str) -> (&str, Option<&str>) {
    let operation = sql.split_whitespace().next().unwrap_or_default();
    let mut words = sql.split_whitespace();
    let table = words.by_ref().find(|word| ["FROM", "INTO", "UPDATE"].contains(word)).and_then(|_| words.next());
    let table = table.filter(|word| !word.starts_with('('));
    let foreign = |letter: char| !letter.is_alphanumeric() && letter != '_';
    (operation, table.and_then(|word| word.trim_start_matches(foreign).split(foreign).next()))
}

/// A call's span learns how the call ended.
pub(crate) fn ended(span: &Span, code: Code) {
    span.set_attribute("rpc.response.status_code", code_name(code));
    // The faults of a server; what a caller did wrong is none.
    if matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    ) {
        span.set_attribute("error.type", code_name(code));
        span.set_status(SpanStatus::error(""));
    }
}

/// The `traceparent` that a call made now is to carry: that of the span it is made in, else `callers`.
pub(crate) fn traceparent(callers: Option<&str>) -> Option<String> {
    let own = enabled().then(|| of_span(&Span::current())).flatten();
    own.or_else(|| callers.map(str::to_owned))
}

/// The `traceparent` of a span.
pub(crate) fn of_span(span: &Span) -> Option<String> {
    let context = span.context();
    let span = context.span().span_context().clone();
    let flags = span.trace_flags().to_u8();
    span.is_valid().then(|| format!("00-{}-{}-{flags:02x}", span.trace_id(), span.span_id()))
}

/// What OpenTelemetry asks of every span of RPC.
fn name(span: &Span, method: &str) {
    span.set_attribute("rpc.system.name", "grpc");
    span.set_attribute("rpc.method", method.to_owned());
}

/// The trace's id, of a well-formed `traceparent`.
pub(crate) fn trace_id(traceparent: &str) -> Option<&str> {
    is_traceparent(traceparent).then(|| traceparent.get(3..35)).flatten()
}

/// The caller's span, of a well-formed `traceparent`.
fn remote_context(traceparent: &str) -> Option<Context> {
    let trace = TraceId::from_hex(trace_id(traceparent)?).ok()?;
    let span = SpanId::from_hex(traceparent.get(36..52)?).ok()?;
    let flags = u8::from_str_radix(traceparent.get(53..55)?, 16).ok()?;
    let caller = SpanContext::new(trace, span, TraceFlags::new(flags), true, TraceState::default());
    Some(Context::new().with_remote_span_context(caller))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_summed_up_by_its_verb_and_its_table() {
        for (sql, told) in [
            (r#"SELECT "api_keys"."id" FROM "api_keys" WHERE "id" = $1"#, ("SELECT", Some("api_keys"))),
            ("INSERT INTO audit_events(sequence) VALUES (7)", ("INSERT", Some("audit_events"))),
            (r#"UPDATE "sweep_lots" SET "state" = $1"#, ("UPDATE", Some("sweep_lots"))),
            ("DELETE FROM `api_keys` WHERE 1", ("DELETE", Some("api_keys"))),
            ("SELECT pg_notify($1, '')", ("SELECT", None)),
            ("SELECT n FROM (SELECT 1)", ("SELECT", None)),
            ("", ("", None)),
        ] {
            assert_eq!(summary(sql), told, "{sql}");
        }
    }
}
