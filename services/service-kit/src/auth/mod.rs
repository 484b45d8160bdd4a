//! Trust between services: who is at the other end of a connection, and what it may.
//!
//! Where `auth.mode` is `mtls`, both ends of every connection show a certificate, the caller's identity is its one URI or host
//! name, and the policy says which methods are open to it and for whom it may act. Elsewhere connections are plaintext and
//! every caller is trusted, which is why nothing but loopback is taken unless somebody says `insecure`.

mod credentials;
mod identity;
mod policy;
mod reload;
mod surface;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use url::{Host, Url};

use crate::Deps;
use crate::client::ClientConfig;
use crate::clock::SharedClock;
use crate::config::Faults;
use crate::server::ServerConfig;
use crate::telemetry::metrics::describe_tls;

pub use credentials::CertificateFiles;
pub(crate) use credentials::{ALPN, Credentials};
pub(crate) use identity::{Certificate, NoIdentity};
pub(crate) use policy::{Caller, Policy};
pub use reload::JOB as RELOAD_JOB;
pub(crate) use surface::BUILT_IN;
pub use surface::Surface;

/// How connections are secured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuthMode {
    /// Not at all, and so on loopback alone.
    Plaintext,
    /// Both ends show certificates, and the policy is kept.
    Mtls,
    /// Not by this service: somebody else, such as a mesh, sees to it.
    Insecure,
}

/// Who is trusted, and by what.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthConfig {
    /// How connections are secured.
    pub mode: AuthMode,
    /// PEM file with this service's certificate and those between it and its authority.
    pub certificate_path: PathBuf,
    /// PEM file with its private key.
    pub private_key_path: PathBuf,
    /// PEM file with the authorities whose certificates are believed, of callers and of servers.
    pub ca_path: PathBuf,
    /// TOML file that says who may call what. Empty: the built-in policy.
    pub policy_path: PathBuf,
}

impl AuthConfig {
    /// Notes the faults of the section, and where other sections do not go with it. `peers` are the services that are called,
    /// by their sections.
    pub fn validate(
        &self,
        server: &ServerConfig,
        surface: &Surface,
        peers: &[(&str, &ClientConfig)],
        faults: &mut Faults,
    ) {
        let own_policy = !self.policy_path.as_os_str().is_empty();
        match self.mode {
            AuthMode::Mtls => {
                // No certificate is judged by the time yet.
                if let Err(found) = Credentials::open(self.files(), Arc::new(crate::clock::SystemClock)) {
                    for one in found {
                        faults.push(one.setting, one.fault);
                    }
                }
                if let Err(found) = self.policy(surface) {
                    let of = if own_policy { "auth.policy_path" } else { "the built-in policy" };
                    found.into_iter().for_each(|fault| faults.push(of, fault));
                }
            }
            AuthMode::Plaintext | AuthMode::Insecure => {
                if own_policy {
                    faults.push("auth.policy_path", "is kept only where auth.mode is mtls");
                }
                if self.mode == AuthMode::Plaintext && !is_loopback(server.listen) {
                    let fault =
                        "must be a loopback address unless auth.mode is mtls, or insecure where a mesh does the same";
                    faults.push("server.listen", fault);
                }
            }
        }
        for (section, peer) in peers {
            if let Ok(url) = Url::parse(&peer.endpoint)
                && let Some(fault) = self.fault_of_peer(&url)
            {
                faults.push(format!("{section}.endpoint"), fault);
            }
        }
    }

    fn fault_of_peer(&self, url: &Url) -> Option<&'static str> {
        match (self.mode, url.scheme()) {
            (AuthMode::Mtls, "https") => None,
            (AuthMode::Mtls, _) => Some("must begin with https:// where auth.mode is mtls"),
            (_, "https") => Some("may begin with https:// only where auth.mode is mtls"),
            (AuthMode::Plaintext, _) if !names_loopback(url) => {
                Some("must be on loopback unless auth.mode is mtls, or insecure where a mesh does the same")
            }
            _ => None,
        }
    }

    fn files(&self) -> CertificateFiles {
        CertificateFiles {
            certificate: self.certificate_path.clone(),
            private_key: self.private_key_path.clone(),
            ca: self.ca_path.clone(),
        }
    }

    fn policy(&self, surface: &Surface) -> Result<Policy, Vec<String>> {
        if self.policy_path.as_os_str().is_empty() {
            return Policy::parse(surface.policy, surface);
        }
        match std::fs::read_to_string(&self.policy_path) {
            Ok(text) => Policy::parse(&text, surface),
            Err(error) => Err(vec![format!("{} cannot be read: {error}", self.policy_path.display())]),
        }
    }
}

fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

fn names_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => IpAddr::from(ip).to_canonical().is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// How this process is trusted by others, and others by it.
#[derive(Clone, Debug)]
pub struct Trust(Option<Arc<Mutual>>);

/// Certificates at both ends.
#[derive(Debug)]
pub(crate) struct Mutual {
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) policy: Policy,
}

impl Trust {
    /// Plaintext, every caller being trusted.
    pub fn plaintext() -> Self {
        Self(None)
    }

    /// What the configuration says. Says so in the log where others must see to the safety of connections.
    ///
    /// # Errors
    /// Every fault of the certificates and the policy; a validated configuration has none unless the files changed since.
    pub fn open(config: &AuthConfig, surface: &Surface, clock: &SharedClock) -> anyhow::Result<Self> {
        match config.mode {
            AuthMode::Plaintext => return Ok(Self::plaintext()),
            AuthMode::Insecure => {
                tracing::warn!(
                    "auth.mode is insecure: connections are plaintext and every caller is trusted with every method and actor; \
                     whoever reaches this port can generate and read keys unless a mesh authenticates callers"
                );
                return Ok(Self::plaintext());
            }
            AuthMode::Mtls => {}
        }
        let policy =
            config.policy(surface).map_err(|faults| anyhow::anyhow!("the policy of callers: {}", faults.join("; ")))?;
        let trust = Self::with(config.files(), policy, clock)?;
        tracing::info!(closed = ?trust.closed(surface), "callers show certificates; methods that are closed to all of them are listed");
        Ok(trust)
    }

    /// For a process that calls and is not called.
    ///
    /// # Errors
    /// Every fault of the certificates.
    pub fn of_client(files: CertificateFiles, clock: &SharedClock) -> anyhow::Result<Self> {
        Self::with(files, Policy::default(), clock)
    }

    fn with(files: CertificateFiles, policy: Policy, clock: &SharedClock) -> anyhow::Result<Self> {
        let credentials = Credentials::open(files, clock.clone())
            .map_err(|faults| anyhow::anyhow!("the certificates: {}", reload::in_words(&faults)))?;
        Ok(Self(Some(Arc::new(Mutual { credentials: Arc::new(credentials), policy }))))
    }

    /// Starts the job that takes over renewed certificates, where there are any.
    pub fn keep_current(&self, deps: &Deps, shutdown: CancellationToken) {
        if let Some(mutual) = &self.0 {
            describe_tls();
            let job = Arc::new(reload::ReloadCertificates(mutual.credentials.clone()));
            deps.jobs.spawn(job, deps.clock.clone(), shutdown);
        }
    }

    pub(crate) fn mutual(&self) -> Option<&Arc<Mutual>> {
        self.0.as_ref()
    }

    fn closed(&self, surface: &Surface) -> Vec<String> {
        self.0.as_ref().map(|mutual| mutual.policy.closed(surface)).unwrap_or_default()
    }
}
