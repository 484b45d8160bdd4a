//! Connections whose both ends show a certificate.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, StreamExt, future};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::auth::{Caller, Certificate, Mutual, NoIdentity};
use crate::telemetry::metrics::TLS_HANDSHAKES;

/// Two round trips and a signature.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that have not shown a certificate yet, some 20 KiB each; others wait in the queue of the listener.
const MAX_HANDSHAKES: usize = 2_048;

/// A connection whose other end is known.
pub(super) struct TlsIo {
    stream: Box<TlsStream<TcpStream>>,
    peer: TlsPeer,
}

/// Who is at the other end of a connection, and where. Stands in the extensions of each of its requests.
#[derive(Clone, Debug)]
pub(super) struct TlsPeer {
    pub(super) address: SocketAddr,
    pub(super) caller: Caller,
}

/// The connections among `accepted` whose other end is known; a failure of the listener is passed on.
pub(super) fn identified(
    accepted: impl Stream<Item = io::Result<TcpStream>>,
    mutual: Arc<Mutual>,
) -> impl Stream<Item = io::Result<TlsIo>> {
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

async fn handshake(tcp: TcpStream, mutual: Arc<Mutual>) -> Option<TlsIo> {
    let address = tcp.peer_addr().ok()?;
    let (outcome, io) = match identify(tcp, address, &mutual).await {
        Ok(io) => ("accepted", Some(io)),
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
    io
}

async fn identify(tcp: TcpStream, address: SocketAddr, mutual: &Mutual) -> Result<TlsIo, Refusal> {
    // The files may have changed since the last connection.
    let acceptor = TlsAcceptor::from(mutual.credentials.current().server.clone());
    let accepting = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp));
    let stream = Box::new(accepting.await.map_err(|_| Refusal::Late)??);
    let (_, connection) = stream.get_ref();
    let shown = connection.peer_certificates().and_then(<[_]>::first).ok_or(NoIdentity::Unreadable)?;
    let caller = mutual.policy.caller(Certificate::read(shown)?.identity);
    Ok(TlsIo { stream, peer: TlsPeer { address, caller } })
}

impl Connected for TlsIo {
    type ConnectInfo = TlsPeer;

    fn connect_info(&self) -> TlsPeer {
        self.peer.clone()
    }
}

impl AsyncRead for TlsIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for TlsIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
