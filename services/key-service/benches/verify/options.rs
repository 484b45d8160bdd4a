//! What a run measures, and how long.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

/// `VerifyKey` beside a bare tonic echo, side by side in one run
#[derive(Parser, Clone, Debug)]
pub(crate) struct Options {
    /// Keys in each database
    #[arg(long, default_value_t = 1_000_000)]
    pub(crate) keys: u64,
    /// Paired slices of each measurement
    #[arg(long, default_value_t = 9)]
    pub(crate) rounds: usize,
    /// Milliseconds that a slice is measured for
    #[arg(long, default_value_t = 1_000)]
    pub(crate) slice_ms: u64,
    /// Milliseconds of load before each slice, so that flushes are under way when it begins
    #[arg(long, default_value_t = 500)]
    pub(crate) lead_ms: u64,
    /// Calls in flight
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64, 256])]
    pub(crate) in_flight: Vec<usize>,
    /// Connections that they share
    #[arg(long, default_value_t = 4)]
    pub(crate) connections: usize,
    /// Only these cases, such as hit,recording; see the list at the top of main.rs
    #[arg(long, value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// Only this database: sqlite or postgres
    #[arg(long)]
    pub(crate) database: Option<String>,
    /// A setting of key-service, such as KEYSWEEP_DATABASE__MAX_CONNECTIONS=20
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub(crate) settings: Vec<String>,
    /// Few keys and short slices: shows in seconds that everything runs, and measures nothing
    #[arg(long)]
    pub(crate) quick: bool,
    /// Where the plot is written
    #[arg(long, value_name = "FILE")]
    pub(crate) plot: Option<PathBuf>,
    /// Serve, as the process that is measured; the bench starts it itself
    #[arg(long, hide = true)]
    pub(crate) serve: bool,
    /// What cargo passes to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    /// The options of the command line, `--quick` applied.
    pub(crate) fn read() -> Self {
        let mut options = Self::parse();
        if options.quick {
            options.keys = options.keys.min(4_000);
            options.rounds = 1;
            options.slice_ms = 60;
            options.lead_ms = 20;
            options.in_flight = vec![1, 16];
        }
        options
    }

    pub(crate) fn slice(&self) -> Duration {
        Duration::from_millis(self.slice_ms)
    }

    pub(crate) fn lead(&self) -> Duration {
        Duration::from_millis(self.lead_ms)
    }

    /// A backend of PostgreSQL tells its counters ten seconds after its last query at the latest.
    pub(crate) fn counters_are_late_by(&self) -> Duration {
        Duration::from_secs(if self.quick { 0 } else { 11 })
    }

    /// How long uses that are still to be stored are waited for after a slice: those that take longer weigh on the
    /// reference as well. See the case `sustained` for how much.
    pub(crate) fn settle(&self) -> Duration {
        if self.quick { Duration::from_millis(20) } else { Duration::from_secs(2) }
    }

    /// How long they are waited for where all of them count.
    pub(crate) fn settle_wholly(&self) -> Duration {
        if self.quick { Duration::from_millis(20) } else { Duration::from_secs(60) }
    }

    /// Whether a case was asked for.
    pub(crate) fn wants(&self, case: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == case)
    }

    /// Whether a database was asked for.
    pub(crate) fn wants_database(&self, name: &str) -> bool {
        self.database.as_deref().is_none_or(|only| only == name)
    }

    /// The settings of `--set`.
    pub(crate) fn overrides(&self) -> anyhow::Result<Vec<(String, String)>> {
        self.settings
            .iter()
            .map(|text| {
                let (name, value) =
                    text.split_once('=').ok_or_else(|| anyhow::anyhow!("--set takes NAME=VALUE, not {text}"))?;
                Ok((name.to_owned(), value.to_owned()))
            })
            .collect()
    }
}
