//! Replicas that share a name, each on an address of loopback of its own, and everybody with a certificate: as behind a headless Service.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use service_kit::Deps;
use service_kit::auth::{CertificateFiles, Trust};
use service_kit::client::{ClientConfig, Peer, Resolve, channel_to_self};
use service_kit::testing::certificates::{Authority, Wish};
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::process::Process;

/// The name.
const HOST: &str = "replicas.keysweep.test";

/// One authority, and the addresses of the name.
#[derive(Debug)]
pub struct SharedName {
    folder: TempDir,
    authority: Authority,
    replicas: u8,
}

impl SharedName {
    /// Of so many replicas of each service.
    ///
    /// # Panics
    /// When its files cannot be written.
    pub fn new(replicas: u8) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let name = Self { folder, authority: Authority::new(), replicas };
        let mut hosts = std::fs::File::create(name.hosts()).expect("a file");
        writeln!(hosts, "127.0.0.1 localhost").expect("a line");
        for replica in 0..replicas {
            writeln!(hosts, "{} {HOST}", Self::address(replica)).expect("a line");
        }
        name
    }

    /// Where a replica listens.
    pub fn address(replica: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, 0, 0, replica + 1)
    }

    fn hosts(&self) -> PathBuf {
        self.folder.path().join("hosts")
    }

    /// Starts a binary where the system knows the name, as nobody else does. Only root may.
    pub fn start(&self, name: &str, arguments: &[&str], settings: &[(&str, String)], log: &Path) -> Process {
        let hosts = self.hosts().display().to_string();
        let becomes = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
        let wrapper = ["unshare", "--mount", "--", "/bin/sh", "-c", becomes, &hosts];
        Process::start_by(&wrapper, name, arguments, settings, log)
    }

    /// Where all replicas are that listen on this port.
    pub fn endpoint(port: u16) -> String {
        format!("https://{HOST}:{port}")
    }

    /// The certificate of a service or a caller, such as `gateway`, issued when first asked for.
    fn certificate(&self, holder: &str) -> CertificateFiles {
        let folder = self.folder.path().join(holder);
        if !folder.exists() {
            let wish = Wish { names: vec![HOST.to_owned(), format!("spiffe://keysweep/{holder}")], ..Wish::of("") };
            return self.authority.issue(&folder, &wish);
        }
        let [certificate, private_key, ca] = ["tls.crt", "tls.key", "ca.crt"].map(|name| folder.join(name));
        CertificateFiles { certificate, private_key, ca }
    }

    /// What a service is told of its trust in others.
    pub fn settings(&self, service: &str) -> [(&'static str, String); 4] {
        let CertificateFiles { certificate, private_key, ca } = self.certificate(service);
        [
            ("KEYSWEEP_AUTH__MODE", "mtls".to_owned()),
            ("KEYSWEEP_AUTH__CERTIFICATE_PATH", certificate.display().to_string()),
            ("KEYSWEEP_AUTH__PRIVATE_KEY_PATH", private_key.display().to_string()),
            ("KEYSWEEP_AUTH__CA_PATH", ca.display().to_string()),
        ]
    }

    fn trust(&self, holder: &str) -> Trust {
        Trust::of_client(self.certificate(holder), &Deps::system().clock).expect("trust")
    }

    /// To one replica, with the certificate of `holder`.
    ///
    /// # Panics
    /// Never: the endpoint and the certificate are our own.
    pub fn channel(&self, holder: &str, replica: u8, port: u16) -> Channel {
        let config = config(format!("https://{}:{port}", Self::address(replica)));
        channel_to_self(&config, &self.trust(holder)).expect("an endpoint")
    }

    /// To all replicas, with the certificate of `holder`, as the services call each other.
    ///
    /// # Panics
    /// Never: the endpoint is our own.
    pub fn peer(&self, holder: &str, port: u16) -> Peer {
        let addresses = (0..self.replicas).map(|replica| SocketAddr::from((Self::address(replica), port))).collect();
        Peer::resolved_by(&config(Self::endpoint(port)), &self.trust(holder), Addresses(addresses))
            .expect("an endpoint")
    }
}

fn config(endpoint: String) -> ClientConfig {
    ClientConfig { endpoint, connect_timeout_ms: 5_000, request_timeout_ms: 30_000 }
}

/// What the name resolves to. The system's resolver reads the file of this machine, which does not have it.
struct Addresses(Vec<SocketAddr>);

#[tonic::async_trait]
impl Resolve for Addresses {
    async fn resolve(&self, _: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(self.0.clone())
    }
}
