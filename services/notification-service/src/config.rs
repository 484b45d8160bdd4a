//! The service's settings.

use std::path::PathBuf;
use std::time::Duration;

use lettre::message::Mailbox;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use service_kit::auth::AuthConfig;
use service_kit::cli::CommonConfig;
use service_kit::client::ClientConfig;
use service_kit::config::{Faults, Validate};
use service_kit::db::DatabaseConfig;
use service_kit::server::ServerConfig;
use service_kit::telemetry::{LogConfig, MetricsConfig, TracesConfig};

use crate::domain::limits::SendLimits;
use crate::email::{SmtpOptions, Tls};
use crate::grpc::SURFACE;

/// The built-in settings, every one with its meaning.
pub const DEFAULTS: &str = include_str!("../config.default.toml");

/// All settings.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where it listens.
    pub server: ServerConfig,
    /// Whom it trusts.
    pub auth: AuthConfig,
    /// Where its data is.
    pub database: DatabaseConfig,
    /// How it logs.
    pub log: LogConfig,
    /// Where it shows metrics.
    pub metrics: MetricsConfig,
    /// Where its traces go.
    pub traces: TracesConfig,
    /// Where key-service is.
    pub key_service: ClientConfig,
    /// Where location-service is.
    pub location_service: ClientConfig,
    /// What mail looks like and how fast it goes.
    pub mail: MailConfig,
    /// The mail server.
    pub smtp: SmtpConfig,
    /// Where mail goes without a mail server.
    pub maildir: MaildirConfig,
}

/// What mail looks like and how fast it goes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MailConfig {
    /// The sender, such as `keysweep <keysweep@example.com>`.
    pub from: String,
    /// What stands behind the `@` of every `Message-ID`. Empty: the domain of `from`.
    pub message_id_domain: String,
    /// At most this many messages a second, over all replicas. 0: no limit.
    pub max_per_second: u32,
    /// At most this many messages a UTC day, over all replicas. 0: no limit.
    pub max_per_day: u32,
    /// Messages sent at once, and so connections to the mail server.
    pub connections: u32,
}

/// The mail server.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SmtpConfig {
    /// Its name or address. Empty: there is none.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// `none`, `starttls` or `tls`.
    pub tls: String,
    /// Empty: mail is sent without logging in.
    pub username: String,
    /// The password of `username`.
    pub password: SecretString,
    /// The longest that one attempt may take, milliseconds.
    pub timeout_ms: u64,
}

/// Where mail goes without a mail server.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaildirConfig {
    /// The folder.
    pub path: PathBuf,
}

impl MailConfig {
    /// The sender.
    ///
    /// # Errors
    /// When it is no address.
    pub fn sender(&self) -> Result<Mailbox, lettre::address::AddressError> {
        self.from.parse()
    }

    /// The send limits.
    pub fn limits(&self) -> SendLimits {
        SendLimits { per_second: self.max_per_second, per_day: self.max_per_day }
    }

    /// The domain of every `Message-ID`.
    pub fn domain(&self) -> String {
        match self.sender() {
            Ok(sender) if self.message_id_domain.is_empty() => sender.email.domain().to_owned(),
            _ => self.message_id_domain.clone(),
        }
    }
}

impl SmtpConfig {
    fn tls(&self) -> Option<Tls> {
        match self.tls.as_str() {
            "none" => Some(Tls::None),
            "starttls" => Some(Tls::StartTls),
            "tls" => Some(Tls::Implicit),
            _ => None,
        }
    }

    /// The mail server, if one is configured.
    pub fn options(&self, sender: &Mailbox) -> Option<SmtpOptions> {
        let tls = self.tls().filter(|_| !self.host.is_empty())?;
        Some(SmtpOptions {
            host: self.host.clone(),
            port: self.port,
            tls,
            credentials: (!self.username.is_empty())
                .then(|| (self.username.clone(), self.password.expose_secret().to_owned())),
            from: sender.email.clone(),
            timeout: Duration::from_millis(self.timeout_ms),
        })
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
        let peers = [("key_service", &self.key_service), ("location_service", &self.location_service)];
        self.auth.validate(&self.server, &SURFACE, &peers, faults);
        self.database.validate(faults);
        self.log.validate(faults);
        self.metrics.validate(faults);
        self.traces.validate(faults);
        self.key_service.validate("key_service", faults);
        self.location_service.validate("location_service", faults);
        self.mail.validate(faults);
        self.smtp.validate(faults);
        if self.smtp.host.is_empty() && self.maildir.path.as_os_str().is_empty() {
            faults.push("maildir.path", "must name a folder where smtp.host is empty");
        }
    }
}

impl Validate for MailConfig {
    fn validate(&self, faults: &mut Faults) {
        if self.sender().is_err() {
            faults.push("mail.from", "must be an address such as keysweep <keysweep@example.com>");
        }
        let domain = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
        if !self.message_id_domain.chars().all(domain) {
            faults.push("mail.message_id_domain", "must be empty or a domain name");
        }
        if !(1..=64).contains(&self.connections) {
            faults.push("mail.connections", "must lie between 1 and 64");
        }
    }
}

impl Validate for SmtpConfig {
    fn validate(&self, faults: &mut Faults) {
        if self.tls().is_none() {
            faults.push("smtp.tls", "must be none, starttls or tls");
        }
        if self.port == 0 {
            faults.push("smtp.port", "must lie between 1 and 65535");
        }
        if !(1_000..=300_000).contains(&self.timeout_ms) {
            faults.push("smtp.timeout_ms", "must lie between 1000 and 300000");
        }
        if self.username.is_empty() != self.password.expose_secret().is_empty() {
            faults.push("smtp.password", "must be set exactly when smtp.username is");
        }
        if self.tls() == Some(Tls::None) && !self.username.is_empty() {
            faults.push("smtp.tls", "must not be none where a password is sent");
        }
    }
}
