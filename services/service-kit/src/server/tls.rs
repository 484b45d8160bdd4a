//! Connections whose both ends show a certificate.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, future};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::connections::{Opened, Who};
use crate::auth::{Certificate, Mutual, NoIdentity};
use crate::telemetry::metrics::TLS_HANDSHAKES;

/// Two round trips and a signature.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that have not shown a certificate yet, some 20 KiB each; others wait in the queue of the listener.
pub(super) const MAX_HANDSHAKES: usize = 2_048;

/// A connection whose other end is known.
type Known = Opened<Box<TlsStream<TcpStream>>>;

/// The connections among `accepted` whose other end is known; a failure of the listener is passed on.
pub(super) fn identified(
    accepted: impl Stream<Item = io::Result<TcpStream>>,
    mutual: Arc<Mutual>,
) -> impl Stream<Item = io::Result<Known>> {
    accepted
        .map(move |tcp| {
            let mutual = mutual.clone();
            async move {
                match tcp {
                    // In a task of its own, since it is a millisecond of computing; it ends by its timeout at the latest.
                    Ok(tcp) => tokio::spawn(handshake(tcp, mutual)).await.ok().flatten().map(Ok),
                    Err(error) => Some(Err(error)),
                }
            }
        })
        .buffer_unordered(MAX_HANDSHAKES)
        .filter_map(future::ready)
}

/// Why a connection was closed.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("no handshake within {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Late,
    #[error("{0}")]
    Handshake(#[from] io::Error),
    #[error("{0}")]
    Unidentified(#[from] NoIdentity),
}

async fn handshake(tcp: TcpStream, mutual: Arc<Mutual>) -> Option<Known> {
    let address = tcp.peer_addr().ok()?;
    let (outcome, known) = match identify(tcp, address, &mutual).await {
        Ok(known) => ("accepted", Some(known)),
        Err(refusal) => {
            tracing::info!(%address, %refusal, "a connection was refused");
            let outcome = match refusal {
                Refusal::Late => "late",
                Refusal::Handshake(_) => "failed",
                Refusal::Unidentified(_) => "unidentified",
            };
            (outcome, None)
        }
    };
    metrics::counter!(TLS_HANDSHAKES.name, "outcome" => outcome).increment(1);
    known
}

async fn identify(tcp: TcpStream, address: SocketAddr, mutual: &Mutual) -> Result<Known, Refusal> {
    // The files may have changed since the last connection.
    let acceptor = TlsAcceptor::from(mutual.credentials.current().server.clone());
    let accepting = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp));
    let stream = Box::new(accepting.await.map_err(|_| Refusal::Late)??);
    let (_, connection) = stream.get_ref();
    let shown = connection.peer_certificates().and_then(<[_]>::first).ok_or(NoIdentity::Unreadable)?;
    let caller = mutual.policy.caller(Certificate::read(shown)?.identity);
    Ok(Opened { io: stream, address: Some(address), who: Who::Known(caller) })
}
