//! The certificate that a service shows, and the authorities whose certificates it believes, as their files have them at the time.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use sha2::{Digest, Sha256};
use tokio_rustls::rustls;
use zeroize::Zeroizing;

use super::identity::{self, Certificate};
use crate::clock::SharedClock;

/// 1.2 for peers such as Envoy, which as a client offers nothing newer unless it is told to.
const VERSIONS: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];
/// HTTP/2, as all of gRPC.
pub(crate) const ALPN: &[u8] = b"h2";

/// PEM files.
#[derive(Clone, Debug)]
pub struct CertificateFiles {
    /// The certificate that is shown, then those between it and its authority.
    pub certificate: PathBuf,
    /// Its private key, not encrypted.
    pub private_key: PathBuf,
    /// The authorities whose certificates are believed.
    pub ca: PathBuf,
}

/// Something that is wrong with one of the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileFault {
    /// The setting that names the file.
    pub(crate) setting: &'static str,
    /// What is wrong with it.
    pub(crate) fault: String,
}

pub(super) const CERTIFICATE: &str = "auth.certificate_path";
pub(super) const PRIVATE_KEY: &str = "auth.private_key_path";
pub(super) const CA: &str = "auth.ca_path";

/// What the files held when they were last read and right. Those who connect take the current one for each connection.
#[derive(Debug)]
pub(crate) struct Credentials {
    files: CertificateFiles,
    clock: SharedClock,
    current: RwLock<Arc<Loaded>>,
}

/// Everything that follows from one state of the files.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// For connections from others.
    pub(crate) server: Arc<ServerConfig>,
    /// For connections to others.
    pub(crate) client: Arc<ClientConfig>,
    /// What the own certificate says.
    pub(crate) own: Certificate,
    /// When the first of the authorities ends, seconds since 1970.
    pub(crate) ca_not_after: i64,
    digest: [u8; 32],
}

impl Credentials {
    /// Reads the files.
    pub(crate) fn open(files: CertificateFiles, clock: SharedClock) -> Result<Self, Vec<FileFault>> {
        let loaded = Contents::read(&files)?.load(&files, &clock)?;
        Ok(Self { files, clock, current: RwLock::new(Arc::new(loaded)) })
    }

    /// What the files held last.
    pub(crate) fn current(&self) -> Arc<Loaded> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the files again; true if they hold something else than before. What is wrong leaves the old in force.
    pub(crate) fn refresh(&self) -> Result<bool, Vec<FileFault>> {
        let contents = Contents::read(&self.files)?;
        if contents.digest() == self.current().digest {
            return Ok(false);
        }
        let loaded = contents.load(&self.files, &self.clock)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
        Ok(true)
    }
}

/// What stands in the files.
struct Contents {
    certificate: Vec<u8>,
    private_key: Zeroizing<Vec<u8>>,
    ca: Vec<u8>,
}

impl Contents {
    fn read(files: &CertificateFiles) -> Result<Self, Vec<FileFault>> {
        let mut faults = Vec::new();
        let mut read = |setting, path: &Path| {
            if path.as_os_str().is_empty() {
                faults.push(FileFault { setting, fault: "must be set where auth.mode is mtls".to_owned() });
                return Vec::new();
            }
            std::fs::read(path).unwrap_or_else(|error| {
                faults.push(FileFault { setting, fault: format!("{} cannot be read: {error}", path.display()) });
                Vec::new()
            })
        };
        let contents = Self {
            certificate: read(CERTIFICATE, &files.certificate),
            private_key: Zeroizing::new(read(PRIVATE_KEY, &files.private_key)),
            ca: read(CA, &files.ca),
        };
        if faults.is_empty() { Ok(contents) } else { Err(faults) }
    }

    fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for part in [self.certificate.as_slice(), self.private_key.as_slice(), self.ca.as_slice()] {
            hash.update(part.len().to_le_bytes());
            hash.update(part);
        }
        hash.finalize().into()
    }

    fn load(&self, files: &CertificateFiles, clock: &SharedClock) -> Result<Loaded, Vec<FileFault>> {
        let mut faults = Vec::new();
        let chain = certificates(CERTIFICATE, &files.certificate, &self.certificate, &mut faults);
        let own = chain.first().and_then(|leaf| {
            let read = Certificate::read(leaf);
            read.map_err(|error| faults.push(fault(CERTIFICATE, &files.certificate, error))).ok()
        });
        let key = PrivateKeyDer::from_pem_slice(&self.private_key);
        let key = key.map_err(|error| faults.push(fault(PRIVATE_KEY, &files.private_key, error))).ok();
        let (mut roots, mut ca_not_after) = (RootCertStore::empty(), i64::MAX);
        for authority in certificates(CA, &files.ca, &self.ca, &mut faults) {
            ca_not_after = ca_not_after.min(identity::not_after(&authority).unwrap_or(i64::MAX));
            if let Err(error) = roots.add(authority) {
                faults.push(fault(CA, &files.ca, error));
            }
        }
        let (Some(own), Some(key), true) = (own, key, faults.is_empty()) else { return Err(faults) };
        let (server, client) = configs(chain, key, roots, clock)
            .map_err(|error| vec![fault(CERTIFICATE, &files.certificate, format!("with its key: {error}"))])?;
        Ok(Loaded { server: Arc::new(server), client: Arc::new(client), own, ca_not_after, digest: self.digest() })
    }
}

fn fault(setting: &'static str, path: &Path, error: impl std::fmt::Display) -> FileFault {
    FileFault { setting, fault: format!("{} cannot be used: {error}", path.display()) }
}

fn certificates(
    setting: &'static str,
    path: &Path,
    pem: &[u8],
    faults: &mut Vec<FileFault>,
) -> Vec<CertificateDer<'static>> {
    match CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>() {
        Ok(found) if found.is_empty() => faults.push(fault(setting, path, "it holds no certificate")),
        Ok(found) => return found,
        Err(error) => faults.push(fault(setting, path, error)),
    }
    Vec::new()
}

/// Sessions are not resumed: a certificate is looked at for each connection, also one that has ended since.
fn configs(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: RootCertStore,
    clock: &SharedClock,
) -> anyhow::Result<(ServerConfig, ClientConfig)> {
    let provider = Arc::new(ring::default_provider());
    let time = Arc::new(ClockTime(clock.clone()));
    let roots = Arc::new(roots);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build()?;
    let mut server = ServerConfig::builder_with_details(provider.clone(), time.clone())
        .with_protocol_versions(VERSIONS)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.clone(), key.clone_key())?;
    server.alpn_protocols = vec![ALPN.to_vec()];
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    let mut client = ClientConfig::builder_with_details(provider, time)
        .with_protocol_versions(VERSIONS)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    client.alpn_protocols = vec![ALPN.to_vec()];
    client.resumption = Resumption::disabled();
    Ok((server, client))
}

/// Certificates begin and end by the clock that is passed.
#[derive(Debug)]
struct ClockTime(SharedClock);

impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = self.0.now().timestamp().try_into().ok()?;
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds)))
    }
}
