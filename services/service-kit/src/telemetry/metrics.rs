//! Prometheus metrics: what a service shows is a table of its own, so that each metric is described and documented once.

use std::net::SocketAddr;

use anyhow::Context;
use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use serde::Deserialize;

use crate::config::{Faults, Validate};

/// Where to show metrics.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsConfig {
    /// Address and port of the HTTP listener. Empty: none.
    pub listen: String,
}

impl Validate for MetricsConfig {
    fn validate(&self, faults: &mut Faults) {
        if !self.listen.is_empty() && self.listen.parse::<SocketAddr>().is_err() {
            faults.push("metrics.listen", "must be empty or an address with a port, such as 127.0.0.1:9091");
        }
    }
}

/// How a metric goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MetricKind {
    /// Only up, from 0 at the start of the process.
    Counter,
    /// Up and down.
    Gauge,
    /// How many observations lie at or below each of these bounds.
    Histogram(&'static [f64]),
}

/// One metric of a service.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name, with the unit last.
    pub name: &'static str,
    /// How it goes.
    pub kind: MetricKind,
    /// The label that tells its series apart, with all its values where they are few and known.
    pub label: Option<(&'static str, &'static [&'static str])>,
    /// What it says, for people.
    pub help: &'static str,
}

impl Metric {
    /// A counter. It stands at 0 from the start, so that its first increase is seen as one.
    pub const fn counter(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: MetricKind::Counter, label: None, help }
    }

    /// A gauge. It appears once its value is known.
    pub const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: MetricKind::Gauge, label: None, help }
    }

    /// A histogram with these bounds.
    pub const fn histogram(name: &'static str, bounds: &'static [f64], help: &'static str) -> Self {
        Self { name, kind: MetricKind::Histogram(bounds), label: None, help }
    }

    /// The same, one series for each value of a label. A counter's series stand at 0 from the start.
    #[must_use]
    pub const fn by(self, label: &'static str, values: &'static [&'static str]) -> Self {
        Self { label: Some((label, values)), ..self }
    }

    fn describe(&self) {
        match self.kind {
            MetricKind::Counter => {
                describe_counter!(self.name, Unit::Count, self.help);
                match self.label {
                    None => metrics::counter!(self.name).increment(0),
                    Some((label, values)) => {
                        for value in values {
                            metrics::counter!(self.name, label => *value).increment(0);
                        }
                    }
                }
            }
            MetricKind::Gauge => describe_gauge!(self.name, self.help),
            MetricKind::Histogram(_) => describe_histogram!(self.name, self.help),
        }
    }
}

/// The bounds of a call's duration, seconds: those that OpenTelemetry advises for RPC, and finer ones below, since most calls are
/// answered from memory.
const CALL_SECONDS: [f64; 17] =
    [0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// OpenTelemetry's `rpc.server.call.duration`, with its attributes as labels.
pub(crate) const SERVER_CALLS: Metric = Metric::histogram(
    "rpc_server_call_duration_seconds",
    &CALL_SECONDS,
    "Seconds from the arrival of a gRPC call to its answer, or to the head of a stream's, by method and status code; rpc_method is _OTHER for methods that do not exist",
);

/// What jobs do.
pub(crate) const JOB_ACTIVATIONS: Metric = Metric::counter(
    "keysweep_job_activations_total",
    "Activations of background jobs, by job and outcome: work, idle (nothing was due) or error",
)
.by("job", &[]);

/// What is refused because there is too much of it.
pub(crate) const LOAD_SHED: Metric = Metric::counter(
    "keysweep_load_shed_total",
    "Calls refused at once because server.max_calls were in progress, and connections refused or kept for health alone because there were server.max_connections, by limit: calls or connections",
)
.by("limit", &["calls", "connections"]);

/// How connections over TLS begin.
pub(crate) const TLS_HANDSHAKES: Metric =
    Metric::counter("keysweep_tls_handshakes_total", "Connections over TLS, by how their handshakes went")
        .by("outcome", &["accepted", "failed", "late", "unidentified"]);

/// How long certificates last.
pub(crate) const CERTIFICATE_EXPIRY: Metric = Metric::gauge(
    "keysweep_certificate_expiry_timestamp_seconds",
    "Unix time at which what is in force ends, by file: certificate, or the first to end of ca",
)
.by("file", &["certificate", "ca"]);

/// Whether the certificate files can be used.
pub(crate) const CERTIFICATE_FILES_UNUSABLE: Metric = Metric::gauge(
    "keysweep_certificate_files_unusable",
    "1 while the certificate files cannot be used and older ones stay in force, else 0",
);

/// Describes what is shown besides where calls come over TLS.
pub(crate) fn describe_tls() {
    for metric in [TLS_HANDSHAKES, CERTIFICATE_EXPIRY, CERTIFICATE_FILES_UNUSABLE] {
        metric.describe();
    }
}

/// What every service shows.
pub const COMMON: [Metric; 3] = [SERVER_CALLS, JOB_ACTIVATIONS, LOAD_SHED];

/// Serves the process's metrics over HTTP: [`COMMON`] and these. Called once, by `main`, in the runtime.
///
/// # Errors
/// When the address cannot be listened on.
pub fn serve_metrics<'a>(config: &MetricsConfig, shown: impl IntoIterator<Item = &'a Metric>) -> anyhow::Result<()> {
    if config.listen.is_empty() {
        return Ok(());
    }
    let address: SocketAddr = config.listen.parse().context("metrics.listen")?;
    let shown: Vec<&Metric> = COMMON.iter().chain(shown).collect();
    let mut exporter = PrometheusBuilder::new().with_http_listener(address);
    for metric in &shown {
        if let MetricKind::Histogram(bounds) = metric.kind {
            exporter = exporter
                .set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), bounds)
                .with_context(|| format!("the bounds of {}", metric.name))?;
        }
    }
    exporter.install().with_context(|| format!("cannot show metrics on {address}"))?;
    for metric in shown {
        metric.describe();
    }
    Ok(())
}
