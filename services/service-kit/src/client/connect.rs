//! Connections to other services: they notice a dead peer, and trust no stranger.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_util::either::Either;
use tonic::transport::{Channel, Endpoint};
use url::Url;

use super::ClientConfig;
use crate::auth::{ALPN, Credentials, Trust};

/// Without pings, a peer that vanished silently is never noticed.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// An endpoint that is no URL, or not one that the trust between services goes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// It cannot be read.
    #[error("must be a URL such as http://127.0.0.1:50051")]
    Malformed,
    /// There is no certificate to show.
    #[error("https:// needs a certificate, a private key and an authority")]
    NoCertificate,
    /// A certificate would be shown to nobody.
    #[error("with a certificate it must begin with https://")]
    Plaintext,
}

/// Where to connect to, and who must be there.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) host: String,
    pub(super) port: u16,
    /// Who must be there, as the certificate has it.
    name: ServerName<'static>,
    secure: bool,
    /// Where the host is, if that is known already.
    address: Option<SocketAddr>,
}

impl Target {
    pub(super) fn parse(endpoint: &str) -> Result<Self, EndpointError> {
        let malformed = |_| EndpointError::Malformed;
        let url = Url::parse(endpoint).map_err(malformed)?;
        let secure = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return Err(EndpointError::Malformed),
        };
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            return Err(EndpointError::Malformed);
        };
        // An IPv6 address stands in brackets in a URL alone.
        let host = host.trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host.clone()).map_err(|_| EndpointError::Malformed)?;
        Ok(Self { host, port, name, secure, address: None })
    }

    fn uri(&self, scheme: &str) -> Result<Uri, EndpointError> {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        format!("{scheme}://{host}:{}", self.port).parse().map_err(|_| EndpointError::Malformed)
    }
}

/// A channel that connects when first used, and anew whenever the connection was lost; it shows the certificate that `trust`
/// has at that time.
///
/// # Errors
/// When the endpoint is none, or not one that `trust` goes with; a validated configuration has none such.
pub fn channel(config: &ClientConfig, trust: &Trust) -> Result<Channel, EndpointError> {
    Ok(Connector::new(config, trust, Target::parse(&config.endpoint)?)?.connect_lazily())
}

/// As [`channel`], to another process of this service: whoever is there must show a certificate for a host of the own one.
///
/// # Errors
/// As [`channel`], and when the own certificate names no host.
pub fn channel_to_self(config: &ClientConfig, trust: &Trust) -> anyhow::Result<Channel> {
    let mut target = Target::parse(&config.endpoint)?;
    if let Some(mutual) = trust.mutual() {
        let own = mutual.credentials.current();
        let host = own.own.hosts.iter().find(|host| !host.contains('*'));
        let host = host.ok_or_else(|| anyhow::anyhow!("the certificate names no host"))?;
        target.name = ServerName::try_from(host.clone())?;
    }
    Ok(Connector::new(config, trust, target)?.connect_lazily())
}

/// Makes connections to one target.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    endpoint: Endpoint,
    /// What is shown, if anything is.
    credentials: Option<Arc<Credentials>>,
    target: Target,
}

impl Connector {
    pub(super) fn new(config: &ClientConfig, trust: &Trust, target: Target) -> Result<Self, EndpointError> {
        let credentials = match (trust.mutual(), target.secure) {
            (None, true) => return Err(EndpointError::NoCertificate),
            (Some(_), false) => return Err(EndpointError::Plaintext),
            (mutual, _) => mutual.map(|mutual| mutual.credentials.clone()),
        };
        // tonic is to take what `open` opens as it is, TLS or not, so it is shown a scheme that asks for nothing.
        let endpoint = Endpoint::from(target.uri("http")?)
            .origin(target.uri(if target.secure { "https" } else { "http" })?)
            .connect_timeout(Duration::from_millis(config.connect_timeout_ms))
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        Ok(Self { endpoint, credentials, target })
    }

    /// The same, to this address of the host.
    pub(super) fn at(&self, address: SocketAddr) -> Self {
        let mut at = self.clone();
        at.target.address = Some(address);
        at
    }

    /// A channel that connects when first used.
    fn connect_lazily(self) -> Channel {
        let endpoint = self.endpoint.clone();
        endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| self.clone().open()))
    }

    /// A channel that is connected.
    pub(super) async fn connect(self) -> Result<Channel, tonic::transport::Error> {
        let endpoint = self.endpoint.clone();
        endpoint.connect_with_connector(tower::service_fn(move |_: Uri| Box::pin(self.clone().open()))).await
    }

    /// Opens a connection and shows the certificate that the files hold at this time.
    async fn open(self) -> io::Result<TokioIo<Either<TcpStream, TlsStream<TcpStream>>>> {
        let Target { host, port, name, address, .. } = self.target;
        let tcp = match address {
            Some(address) => TcpStream::connect(address).await?,
            None => TcpStream::connect((host.as_str(), port)).await?,
        };
        tcp.set_nodelay(true)?;
        let Some(credentials) = self.credentials else { return Ok(TokioIo::new(Either::Left(tcp))) };
        let tls = TlsConnector::from(credentials.current().client.clone()).connect(name, tcp).await?;
        if tls.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(io::Error::other("the server does not speak HTTP/2"));
        }
        Ok(TokioIo::new(Either::Right(tls)))
    }
}
