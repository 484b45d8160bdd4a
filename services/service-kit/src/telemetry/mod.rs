//! Structured logs and Prometheus metrics.

pub mod metrics;

use anyhow::Context;
use serde::Deserialize;
use tracing_subscriber::EnvFilter;

use crate::config::{Faults, Validate};

pub use self::metrics::{Metric, MetricKind, MetricsConfig, serve_metrics};

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

/// Sends the process's logs to standard error. Called once, by `main`.
///
/// # Errors
/// When the process has a logger already.
pub fn init_logging(config: &LogConfig) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.level).context("log.level")?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let done = match config.format.as_str() {
        "json" => builder.json().flatten_event(true).try_init(),
        _ => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
    };
    done.map_err(|e| anyhow::anyhow!("cannot set up logging: {e}"))
}
