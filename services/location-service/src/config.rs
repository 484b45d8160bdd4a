//! The settings of the service; `config.default.toml` documents each.

use serde::Deserialize;
use service_kit::auth::AuthConfig;
use service_kit::cli::CommonConfig;
use service_kit::client::ClientConfig;
use service_kit::config::{Faults, Validate};
use service_kit::db::DatabaseConfig;
use service_kit::keyring::KeyRingConfig;
use service_kit::server::ServerConfig;
use service_kit::telemetry::{LogConfig, MetricsConfig, TracesConfig};

use crate::grpc::SURFACE;

/// The built-in configuration, naming every setting.
pub const DEFAULTS: &str = include_str!("../config.default.toml");

/// The settings of the service.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where and how it listens.
    pub server: ServerConfig,
    /// Whom it trusts.
    pub auth: AuthConfig,
    /// Where its data is.
    pub database: DatabaseConfig,
    /// Where the secrets are that it seals keys under.
    pub keyring: KeyRingConfig,
    /// Where key-service is.
    pub key_service: ClientConfig,
    /// How it logs.
    pub log: LogConfig,
    /// Where it shows metrics.
    pub metrics: MetricsConfig,
    /// Where its traces go.
    pub traces: TracesConfig,
}

impl Validate for Config {
    fn validate(&self, faults: &mut Faults) {
        self.server.validate(faults);
        self.auth.validate(&self.server, &SURFACE, &[("key_service", &self.key_service)], faults);
        self.database.validate(faults);
        self.key_service.validate("key_service", faults);
        self.log.validate(faults);
        self.metrics.validate(faults);
        self.traces.validate(faults);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        let config: Config =
            service_kit::config::load_from(DEFAULTS, None, std::iter::empty()).expect("valid defaults");
        assert_eq!(config.server.listen.port(), 50052);
    }
}
