//! A real key-service that is to be attacked, and connections to it.

use std::path::Path;
use std::sync::Arc;

use keysweep::clients::{Clients, made_for};
use keysweep_e2e::process::{Process, free_port};
use keysweep_e2e::replica::ADMIN;
use keysweep_e2e::wait;
use keysweep_proto::key::v1 as key;
use service_kit::Deps;
use service_kit::auth::{CertificateFiles, Trust};
use service_kit::client::{ClientConfig, channel};
use service_kit::testing::certificates::{Authority, Wish};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig as TlsConfig, RootCertStore};
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::wire::Wire;

/// Who the attacker is, where callers show certificates: one who is let in, with rights of its own.
pub(crate) const ATTACKER: &str = "gateway";
/// Calls do not take longer.
pub(crate) const CALL_SECONDS: u64 = 5;
/// Connections that it takes.
pub(crate) const CONNECTIONS: usize = 500;

/// A variable of its environment.
type Setting = (&'static str, String);

/// A key-service on SQLite with one key.
pub(crate) struct Site {
    folder: TempDir,
    /// Of its callers, where they show certificates.
    pub(crate) authority: Option<Authority>,
    port: u16,
    /// The service.
    pub(crate) process: Process,
    /// The key.
    pub(crate) key_id: String,
    /// Its secret.
    pub(crate) secret: String,
}

impl Site {
    /// Starts it and makes its key.
    pub(crate) async fn start(with_certificates: bool) -> Self {
        let start = |settings: &[Setting], log: &Path| Process::start("key-service", &["serve"], settings, log);
        Self::start_by(with_certificates, start).await
    }

    /// The same in plaintext, with so many open files at most.
    pub(crate) async fn start_with_files(files: u32) -> Self {
        let limit = format!("ulimit -n {files} && exec \"$@\"");
        let wrapper = ["/bin/sh", "-c", &limit, "sh"];
        let start =
            |settings: &[Setting], log: &Path| Process::start_by(&wrapper, "key-service", &["serve"], settings, log);
        Self::start_by(false, start).await
    }

    async fn start_by(with_certificates: bool, start: impl Fn(&[Setting], &Path) -> Process) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (port, at) = (free_port(), |name: &str| folder.path().join(name));
        let authority = with_certificates.then(Authority::new);
        let mut settings = vec![
            ("KEYSWEEP_SERVER__LISTEN", format!("127.0.0.1:{port}")),
            ("KEYSWEEP_SERVER__REQUEST_TIMEOUT_MS", (CALL_SECONDS * 1_000).to_string()),
            ("KEYSWEEP_SERVER__MAX_CONNECTIONS", CONNECTIONS.to_string()),
            ("KEYSWEEP_REVEAL__PER_MINUTE", "1000000".to_owned()),
            ("KEYSWEEP_DATABASE__URL", format!("sqlite:{}", at("key.sqlite").display())),
            ("KEYSWEEP_METRICS__LISTEN", String::new()),
        ];
        if let Some(authority) = &authority {
            let files = authority.issue(&at("server"), &Wish::of("spiffe://keysweep/key-service"));
            let text = |path: &Path| path.display().to_string();
            settings.extend([
                ("KEYSWEEP_AUTH__MODE", "mtls".to_owned()),
                ("KEYSWEEP_AUTH__CERTIFICATE_PATH", text(&files.certificate)),
                ("KEYSWEEP_AUTH__PRIVATE_KEY_PATH", text(&files.private_key)),
                ("KEYSWEEP_AUTH__CA_PATH", text(&files.ca)),
            ]);
        }
        let process = start(&settings, &at("key-service.log"));
        let mut site = Self { folder, authority, port, process, key_id: String::new(), secret: String::new() };
        wait::until("the service to serve", async || site.is_serving().await.then_some(())).await;
        let request = key::GenerateApiKeyRequest { owner: Some(agency()), ..Default::default() };
        let mut keys = site.clients("location-service").keys;
        let made =
            keys.generate_api_key(made_for(ADMIN, request).expect("an actor")).await.expect("a key").into_inner();
        (site.key_id, site.secret) = (made.api_key.expect("metadata").key_id, made.secret);
        site
    }

    /// A channel of its own for this caller.
    pub(crate) fn channel(&self, caller: &str) -> Channel {
        let (scheme, trust) = match &self.authority {
            None => ("http", Trust::plaintext()),
            Some(_) => ("https", Trust::of_client(self.certificate(caller), &Deps::system().clock).expect("trust")),
        };
        let endpoint = format!("{scheme}://localhost:{}", self.port);
        channel(&ClientConfig { endpoint, connect_timeout_ms: 30_000, request_timeout_ms: 30_000 }, &trust)
            .expect("an endpoint")
    }

    /// Clients of this caller, on a connection of their own.
    pub(crate) fn clients(&self, caller: &str) -> Clients {
        let channel = self.channel(caller);
        Clients::over(channel.clone(), channel.clone(), channel)
    }

    /// Whether it says so on a new connection.
    pub(crate) async fn is_serving(&self) -> bool {
        let asked = HealthClient::new(self.channel("gateway")).check(HealthCheckRequest::default()).await;
        asked.is_ok_and(|answer| answer.get_ref().status() == ServingStatus::Serving)
    }

    /// A connection on which nothing was said yet, also no TLS.
    pub(crate) async fn tcp(&self) -> TcpStream {
        let tcp = TcpStream::connect(("127.0.0.1", self.port)).await.expect("a connection");
        tcp.set_nodelay(true).expect("an option");
        tcp
    }

    /// A connection of the attacker, ready for HTTP/2.
    pub(crate) async fn connect(&self) -> Wire {
        self.connect_as(ATTACKER).await
    }

    /// The same of this caller.
    pub(crate) async fn connect_as(&self, caller: &str) -> Wire {
        match &self.authority {
            None => Box::new(self.tcp().await),
            Some(_) => {
                let shown = self.certificate(caller);
                Box::new(self.show(Some(&shown)).await.expect("the caller is let in"))
            }
        }
    }

    /// A connection over TLS that shows this certificate, or none.
    pub(crate) async fn show(
        &self,
        shown: Option<&CertificateFiles>,
    ) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let config = tls(&self.folder.path().join("server/ca.crt"), shown);
        let name = ServerName::try_from("localhost").expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, self.tcp().await).await
    }

    /// The certificate of a caller.
    fn certificate(&self, caller: &str) -> CertificateFiles {
        let folder = self.folder.path().join(caller);
        let files = CertificateFiles {
            certificate: folder.join("tls.crt"),
            private_key: folder.join("tls.key"),
            ca: folder.join("ca.crt"),
        };
        match &self.authority {
            Some(authority) if !folder.exists() => {
                authority.issue(&folder, &Wish::of(&format!("spiffe://keysweep/{caller}")))
            }
            _ => files,
        }
    }

    /// Where a certificate may be put.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Who owns its keys.
pub(crate) fn agency() -> key::Owner {
    key::Owner { account: Some(key::owner::Account::AgencyId("agy_1".to_owned())) }
}

fn tls(ca: &Path, shown: Option<&CertificateFiles>) -> TlsConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).expect("an authority")).expect("an authority");
    let provider = Arc::new(ring::default_provider());
    let builder = TlsConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    let builder = builder.with_root_certificates(roots);
    let mut config = match shown {
        None => builder.with_no_client_auth(),
        Some(files) => {
            let chain = CertificateDer::pem_file_iter(&files.certificate).expect("a certificate");
            let chain = chain.collect::<Result<Vec<_>, _>>().expect("a certificate");
            let key = PrivateKeyDer::from_pem_file(&files.private_key).expect("a key");
            builder.with_client_auth_cert(chain, key).expect("a certificate and its key")
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    config
}
