//! How many connections there may be, and how soon each must begin. hyper bounds neither: one that never says anything would
//! stay for as long as its other end does.

use std::io::{self, ErrorKind, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::{Stream, StreamExt, future};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tonic::transport::server::Connected;

use crate::auth::Caller;
use crate::telemetry::metrics::LOAD_SHED;

/// HTTP/2 begins with a preface of so many bytes. Clients send it with what they say first; once it is here, pings tell whether
/// there is still anybody.
const PREFACE_BYTES: usize = 24;
const PREFACE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections beyond the most that there may be, for so long each: health is answered on them, and every other call told to come
/// again. What comes beyond these is closed.
const SURPLUS: usize = 32;
const SURPLUS_LIFE: Duration = Duration::from_secs(5);
/// Without it, a process without a free file would ask for the next connection again and again.
const PAUSE: Duration = Duration::from_millis(500);
/// Files besides connections: databases, their logs, metrics, certificates.
const OTHER_FILES: usize = 256;

/// Who is at the other end of a connection, and where. Stands in the extensions of each of its requests.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) address: Option<SocketAddr>,
    pub(super) who: Who,
    /// One connection too many: only health is answered.
    pub(super) surplus: bool,
}

/// Who calls.
#[derive(Clone, Debug)]
pub(super) enum Who {
    /// Anybody: the connection is plaintext, and every caller trusted.
    Anybody,
    /// Who showed a certificate.
    Known(Caller),
}

/// A connection that was opened.
pub(super) struct Opened<IO> {
    pub(super) io: IO,
    pub(super) address: Option<SocketAddr>,
    pub(super) who: Who,
}

impl Opened<TcpStream> {
    /// A plaintext one.
    pub(super) fn by_anybody(io: TcpStream) -> Self {
        Self { address: io.peer_addr().ok(), who: Who::Anybody, io }
    }
}

/// As many of the `wanted` connections as the system lets this process have files for, besides `handshakes`; its limit is raised
/// as far as it may be.
pub(super) fn fitting(wanted: usize, handshakes: usize) -> usize {
    let others = SURPLUS + OTHER_FILES + handshakes;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return wanted };
    let needed = u64::try_from(wanted.saturating_add(others)).unwrap_or(u64::MAX);
    let raised = needed.min(hard);
    let limit = if soft < raised && setrlimit(Resource::RLIMIT_NOFILE, raised, hard).is_ok() { raised } else { soft };
    let fitting = usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(others).clamp(1, wanted);
    if fitting < wanted {
        tracing::warn!(
            fitting,
            open_files = limit,
            "server.max_connections is more than the limit of open files has room for"
        );
    }
    fitting
}

/// The same connections; after a failure that will not pass by itself, the next is asked for later.
pub(super) fn patient<IO>(accepted: impl Stream<Item = io::Result<IO>>) -> impl Stream<Item = io::Result<IO>> {
    accepted.then(async |accepted| {
        if let Err(error) = &accepted
            && !matches!(
                error.kind(),
                ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted
            )
        {
            tracing::warn!(%error, "no connection can be taken");
            sleep(PAUSE).await;
        }
        accepted
    })
}

/// At most `most` of these connections at once, and some more for health alone.
pub(super) fn bounded<IO>(
    opened: impl Stream<Item = io::Result<Opened<IO>>>,
    most: usize,
) -> impl Stream<Item = io::Result<Guarded<IO>>> {
    let [places, surplus] = [most, SURPLUS].map(|places| Arc::new(Semaphore::new(places)));
    opened.filter_map(move |opened| {
        let guard = |opened| {
            let place = places.clone().try_acquire_owned().map(|place| (place, false));
            let place = place.or_else(|_| surplus.clone().try_acquire_owned().map(|place| (place, true))).ok();
            if place.as_ref().is_none_or(|(_, surplus)| *surplus) {
                metrics::counter!(LOAD_SHED.name, "limit" => "connections").increment(1);
            }
            place.map(|(place, surplus)| Guarded::new(opened, place, surplus))
        };
        future::ready(opened.map(guard).transpose())
    })
}

/// A connection that must begin in time, and holds a place until it ends.
pub(super) struct Guarded<IO> {
    io: IO,
    /// What is missing of the preface.
    missing: usize,
    /// When it ends, unless the preface is here by then; a surplus one ends anyhow.
    end: Option<Pin<Box<Sleep>>>,
    peer: Peer,
    _place: OwnedSemaphorePermit,
}

impl<IO> Guarded<IO> {
    fn new(opened: Opened<IO>, place: OwnedSemaphorePermit, surplus: bool) -> Self {
        let end = sleep(if surplus { SURPLUS_LIFE } else { PREFACE_TIMEOUT });
        let Opened { io, address, who } = opened;
        let peer = Peer { address, who, surplus };
        Self { io, missing: PREFACE_BYTES, end: Some(Box::pin(end)), peer, _place: place }
    }
}

impl<IO> Connected for Guarded<IO> {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Guarded<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(end) = &mut this.end else { return Pin::new(&mut this.io).poll_read(cx, buffer) };
        if end.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(ErrorKind::TimedOut.into()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buffer))?;
        this.missing = this.missing.saturating_sub(buffer.filled().len() - before);
        if this.missing == 0 && !this.peer.surplus {
            this.end = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Guarded<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::Instant;

    use super::*;

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    /// Both ends of a connection; a surplus one?
    fn connection(surplus: bool) -> (DuplexStream, Guarded<DuplexStream>) {
        let (client, io) = duplex(1_024);
        let place = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("a place");
        (client, Guarded::new(Opened { io, address: None, who: Who::Anybody }, place, surplus))
    }

    #[tokio::test(start_paused = true)]
    async fn a_preface_must_be_there_in_time_however_it_trickles() {
        let (mut client, mut server) = connection(false);
        let trickle = async {
            for byte in PREFACE {
                sleep(PREFACE_TIMEOUT / 10).await;
                client.write_all(&[*byte]).await.expect("a byte");
            }
        };
        let begun = Instant::now();
        let mut heard = Vec::new();
        let (_, read) = tokio::join!(trickle, server.read_to_end(&mut heard));
        assert_eq!(read.expect_err("it is late").kind(), ErrorKind::TimedOut);
        assert_eq!(heard.len(), 9);
        assert!(begun.elapsed() >= PREFACE_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_has_begun_may_be_silent_unless_it_is_one_too_many() {
        for surplus in [false, true] {
            let (mut client, mut server) = connection(surplus);
            client.write_all(PREFACE).await.expect("a preface");
            let mut preface = [0; PREFACE_BYTES];
            server.read_exact(&mut preface).await.expect("in time");
            let next = tokio::time::timeout(PREFACE_TIMEOUT * 100, server.read_u8()).await;
            assert_eq!(next.is_ok_and(|read| read.is_err()), surplus);
        }
    }
}
