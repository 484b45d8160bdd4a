//! Settings. `config.default.toml` documents each.

use std::num::NonZeroU32;
use std::ops::RangeInclusive;

use chrono::TimeDelta;
use secrecy::ExposeSecret;
use serde::Deserialize;
use service_kit::auth::AuthConfig;
use service_kit::cli::CommonConfig;
use service_kit::config::{Faults, Validate, load_from};
use service_kit::db::DatabaseConfig;
use service_kit::keyring::KeyRingConfig;
use service_kit::server::ServerConfig;
use service_kit::telemetry::{LogConfig, MetricsConfig, TracesConfig};

use crate::app::keys::KeySettings;
use crate::app::verify::{GuessSettings, MemoryBounds};
use crate::domain::sweep::{Breaker, Cadence, SweepPolicy};
use crate::grpc::SURFACE;

/// The built-in settings, naming every one.
pub const DEFAULTS: &str = include_str!("../config.default.toml");

/// Longer, and a key could be planned while a use of it waits in memory.
const MAX_SLACK_MS: u64 = 86_400_000;

/// Shorter, and a slow moment would change who sweeps.
const MIN_LEASE_MS: u64 = 3_000;
/// Longer, and the sweep would miss its hours after a crash.
const MAX_LEASE_MS: u64 = 600_000;

/// A quarter and a month at least: whoever follows the sweep may be away for that long.
const RETENTION_DAYS: RangeInclusive<u32> = 120..=36_500;

/// All settings of key-service.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where it listens.
    pub server: ServerConfig,
    /// Whom it trusts.
    pub auth: AuthConfig,
    /// Where its data is.
    pub database: DatabaseConfig,
    /// Where its peppers and master keys are.
    pub keyring: KeyRingConfig,
    /// What is kept of keys.
    pub keys: KeysConfig,
    /// How often secrets are shown.
    pub reveal: RevealConfig,
    /// How secrets are verified.
    pub verification: VerificationConfig,
    /// How uses are recorded.
    pub usage: UsageConfig,
    /// How the sweep goes.
    pub sweep: SweepConfig,
    /// How it logs.
    pub log: LogConfig,
    /// Where it shows metrics.
    pub metrics: MetricsConfig,
    /// Where its traces go.
    pub traces: TracesConfig,
}

/// What is kept of keys.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeysConfig {
    /// Whether secrets are kept sealed.
    pub recoverable: bool,
}

/// How often secrets are shown.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevealConfig {
    /// Secrets that one actor is shown a minute.
    pub per_minute: NonZeroU32,
}

/// How secrets are verified.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerificationConfig {
    /// Keys kept in memory.
    pub memory_max_keys: usize,
    /// Secrets of no key or of an ended one kept in memory.
    pub memory_max_refusals: usize,
    /// Secrets not in memory that one source may present a minute before it is slowed.
    pub guesses_per_minute: NonZeroU32,
    /// Sources that are remembered.
    pub guesses_max_sources: usize,
}

/// How uses are recorded.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsageConfig {
    /// A use waits in memory only while the stored one is younger than this.
    pub recording_slack_ms: u64,
    /// Keys whose uses wait in memory.
    pub buffer_max_keys: usize,
    /// Keys whose uses are stored a second.
    pub flush_max_keys: usize,
}

/// How the sweep goes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SweepConfig {
    /// Day of the first month of each quarter.
    pub day: u32,
    /// Hour of that day, UTC.
    pub hour: u32,
    /// Hours before its mark in which the notices of a stage go out.
    pub stage_window_hours: u32,
    /// Percent of all active keys above which a plan waits for an operator.
    pub breaker_max_percent: u32,
    /// Keys above which it does.
    pub breaker_max_keys: u64,
    /// Keys deleted by one transaction.
    pub delete_batch: u32,
    /// How long the replica that sweeps keeps others from it, milliseconds.
    pub lease_ms: u64,
    /// Days that events of ended plans are kept at least; 0: for ever.
    pub event_retention_days: u32,
}

impl Config {
    /// The built-in settings, for a service inside another process: neither file nor environment is read.
    ///
    /// # Errors
    /// When the built-in settings are not valid.
    pub fn built_in() -> Result<Self, Faults> {
        load_from(DEFAULTS, None, std::iter::empty())
    }

    /// What the use cases of keys go by.
    pub(crate) fn key_settings(&self) -> KeySettings {
        KeySettings { recoverable: self.keys.recoverable }
    }

    /// How much verification keeps in memory.
    pub(crate) fn memory_bounds(&self) -> MemoryBounds {
        MemoryBounds {
            max_keys: self.verification.memory_max_keys,
            max_waiting: self.usage.buffer_max_keys,
            flush_max_keys: self.usage.flush_max_keys,
        }
    }

    /// How guessing is slowed.
    pub(crate) fn guess_settings(&self) -> GuessSettings {
        GuessSettings {
            per_minute: self.verification.guesses_per_minute,
            max_sources: self.verification.guesses_max_sources,
        }
    }

    /// What the sweep goes by.
    pub(crate) fn sweep_policy(&self) -> anyhow::Result<SweepPolicy> {
        Ok(SweepPolicy {
            cadence: Cadence::new(self.sweep.day, self.sweep.hour)?,
            stage_window: TimeDelta::hours(self.sweep.stage_window_hours.into()),
            breaker: Breaker { max_percent: self.sweep.breaker_max_percent, max_keys: self.sweep.breaker_max_keys },
            recording_slack: self.recording_slack(),
            delete_batch: self.sweep.delete_batch,
            event_retention: (self.sweep.event_retention_days > 0)
                .then(|| TimeDelta::days(self.sweep.event_retention_days.into())),
            lease: TimeDelta::milliseconds(self.sweep.lease_ms.min(MAX_LEASE_MS).cast_signed()),
        })
    }

    pub(crate) fn recording_slack(&self) -> TimeDelta {
        TimeDelta::milliseconds(self.usage.recording_slack_ms.min(MAX_SLACK_MS).cast_signed())
    }
}

impl CommonConfig for Config {
    fn server(&self) -> &ServerConfig {
        &self.server
    }

    fn auth(&self) -> &AuthConfig {
        &self.auth
    }

    fn database(&self) -> &DatabaseConfig {
        &self.database
    }

    fn log(&self) -> &LogConfig {
        &self.log
    }

    fn metrics(&self) -> &MetricsConfig {
        &self.metrics
    }

    fn traces(&self) -> &TracesConfig {
        &self.traces
    }
}

impl Validate for Config {
    fn validate(&self, faults: &mut Faults) {
        self.server.validate(faults);
        self.auth.validate(&self.server, &SURFACE, &[], faults);
        self.database.validate(faults);
        self.log.validate(faults);
        self.metrics.validate(faults);
        self.traces.validate(faults);
        let given = !self.keyring.keyring.expose_secret().is_empty() || !self.keyring.path.is_empty();
        if !given && self.database.sqlite_path().is_none() {
            faults.push("keyring.path", "must be set, or keyring.keyring, since no SQLite file lies beside it");
        }
        if self.usage.recording_slack_ms > MAX_SLACK_MS {
            faults.push("usage.recording_slack_ms", format!("must be at most {MAX_SLACK_MS}"));
        }
        for (path, value, max) in [
            ("verification.memory_max_keys", self.verification.memory_max_keys, 100_000_000),
            ("verification.memory_max_refusals", self.verification.memory_max_refusals, 10_000_000),
            ("verification.guesses_max_sources", self.verification.guesses_max_sources, 10_000_000),
            ("usage.buffer_max_keys", self.usage.buffer_max_keys, 10_000_000),
            ("usage.flush_max_keys", self.usage.flush_max_keys, 1_000_000),
        ] {
            if !(1..=max).contains(&value) {
                faults.push(path, format!("must lie between 1 and {max}"));
            }
        }
        self.sweep.validate(faults);
    }
}

impl Validate for SweepConfig {
    fn validate(&self, faults: &mut Faults) {
        for (path, value, range) in [
            ("sweep.day", self.day, 1..=28),
            ("sweep.hour", self.hour, 0..=23),
            ("sweep.stage_window_hours", self.stage_window_hours, 1..=48),
            ("sweep.breaker_max_percent", self.breaker_max_percent, 0..=100),
            ("sweep.delete_batch", self.delete_batch, 1..=10_000),
        ] {
            if !range.contains(&value) {
                faults.push(path, format!("must lie between {} and {}", range.start(), range.end()));
            }
        }
        if self.event_retention_days != 0 && !RETENTION_DAYS.contains(&self.event_retention_days) {
            let (least, most) = (RETENTION_DAYS.start(), RETENTION_DAYS.end());
            faults.push("sweep.event_retention_days", format!("must be 0 or lie between {least} and {most}"));
        }
        if !(MIN_LEASE_MS..=MAX_LEASE_MS).contains(&self.lease_ms) {
            faults.push("sweep.lease_ms", format!("must lie between {MIN_LEASE_MS} and {MAX_LEASE_MS}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(pairs: &[(&str, &str)]) -> Result<Config, Faults> {
        load_from(DEFAULTS, None, pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    #[test]
    fn the_built_in_settings_are_valid() {
        let config = Config::built_in().unwrap();
        assert_eq!(config.sweep_policy().unwrap(), SweepPolicy::default());
        assert_eq!(config.reveal.per_minute.get(), 30);
    }

    #[test]
    fn every_fault_is_listed() {
        let text = load(&[
            ("KEYSWEEP_DATABASE__URL", "postgres://localhost/keys"),
            ("KEYSWEEP_USAGE__RECORDING_SLACK_MS", "86400001"),
            ("KEYSWEEP_USAGE__BUFFER_MAX_KEYS", "0"),
            ("KEYSWEEP_USAGE__FLUSH_MAX_KEYS", "0"),
            ("KEYSWEEP_VERIFICATION__MEMORY_MAX_KEYS", "100000001"),
            ("KEYSWEEP_VERIFICATION__GUESSES_MAX_SOURCES", "0"),
            ("KEYSWEEP_REVEAL__PER_MINUTE", "0"),
            ("KEYSWEEP_SWEEP__DAY", "29"),
            ("KEYSWEEP_SWEEP__HOUR", "24"),
            ("KEYSWEEP_SWEEP__DELETE_BATCH", "0"),
            ("KEYSWEEP_SWEEP__LEASE_MS", "2999"),
            ("KEYSWEEP_SWEEP__EVENT_RETENTION_DAYS", "119"),
            ("KEYSWEEP_TRACES__OTLP_ENDPOINT", "collector:4317"),
            ("KEYSWEEP_TRACES__SAMPLE_RATIO", "1.5"),
        ])
        .unwrap_err()
        .to_string();
        for setting in [
            "keyring.path",
            "usage.recording_slack_ms",
            "usage.buffer_max_keys",
            "usage.flush_max_keys",
            "verification.memory_max_keys",
            "verification.guesses_max_sources",
            "reveal.per_minute",
            "sweep.day",
            "sweep.hour",
            "sweep.delete_batch",
            "sweep.lease_ms",
            "sweep.event_retention_days",
            "traces.otlp_endpoint",
            "traces.sample_ratio",
        ] {
            assert!(text.contains(setting), "{setting} is not in: {text}");
        }
    }
}
