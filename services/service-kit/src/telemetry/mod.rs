//! Structured logs, Prometheus metrics, and traces.

pub mod metrics;
pub(crate) mod traces;

use anyhow::Context;
use serde::Deserialize;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::{Faults, Validate};

pub use self::metrics::{Metric, MetricKind, MetricsConfig, serve_metrics};
pub use traces::TracesConfig;

/// How to log.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// A filter such as `info` or `info,key_service=debug`.
    pub level: String,
    /// `json` for machines, `text` for people.
    pub format: String,
}

impl Validate for LogConfig {
    fn validate(&self, faults: &mut Faults) {
        if EnvFilter::try_new(&self.level).is_err() {
            faults.push("log.level", "is no valid filter; try info");
        }
        if !["json", "text"].contains(&self.format.as_str()) {
            faults.push("log.format", "must be json or text");
        }
    }
}

/// Sends the process's logs to standard error. Called once, by a command.
///
/// # Errors
/// When the process has a logger already.
pub fn init_logging(config: &LogConfig) -> anyhow::Result<()> {
    set_up(tracing_subscriber::registry().with(filter(config)?).with(lines(config)))
}

/// As [`init_logging`], and sends the traces of `service` to whoever collects them. Called once, by a server, in the runtime.
///
/// # Errors
/// When the process has a logger already.
pub fn init(log: &LogConfig, traces: &TracesConfig, service: &'static str) -> anyhow::Result<()> {
    match traces::exporting(traces, service)? {
        None => init_logging(log),
        Some(spans) => set_up(tracing_subscriber::registry().with(lines(log).with_filter(filter(log)?)).with(spans)),
    }
}

/// Sends the spans that have not been sent yet. Called once, at the end of a server.
pub async fn flush() {
    if let Err(error) = tokio::task::spawn_blocking(traces::flush).await {
        tracing::warn!(%error, "the last spans could not be handed to the collector");
    }
}

fn filter(config: &LogConfig) -> anyhow::Result<EnvFilter> {
    EnvFilter::try_new(&config.level).context("log.level")
}

/// What writes the log's lines.
fn lines<S>(config: &LogConfig) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'span> LookupSpan<'span>,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match config.format.as_str() {
        "json" => lines.json().flatten_event(true).boxed(),
        _ => lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).boxed(),
    }
}

fn set_up(subscriber: impl SubscriberInitExt) -> anyhow::Result<()> {
    subscriber.try_init().map_err(|e| anyhow::anyhow!("cannot set up logging: {e}"))
}
