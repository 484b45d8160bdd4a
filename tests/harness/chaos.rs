//! A proxy before PostgreSQL that can be told to fail as networks do.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What the proxy does with what it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Passes it on.
    Whole,
    /// Passes everything on but what PostgreSQL says to those who listen: notifications are lost, and nobody is told.
    Deaf,
    /// Takes everything and passes nothing on, as a black hole does: connections stay open and silent.
    Silent,
    /// Closes every connection at once.
    Cut,
}

/// The name and the Unix socket of the database of a URL, as [`service_kit::testing::TestDatabase`] has it.
pub(crate) fn place_of(url: &str) -> (String, PathBuf) {
    let (place, folder) = url.split_once("?host=").expect("a database on a Unix socket");
    let database = place.rsplit('/').next().expect("its name").to_owned();
    (database, PathBuf::from(folder.replace("%2F", "/")).join(".s.PGSQL.5432"))
}

/// A proxy on a port of loopback before a throwaway PostgreSQL; gone when dropped.
#[derive(Debug)]
pub struct ChaosProxy {
    address: SocketAddr,
    database: String,
    network: watch::Sender<Network>,
    accepting: JoinHandle<()>,
}

impl ChaosProxy {
    /// Listens before the database of this URL, as [`service_kit::testing::TestDatabase`] has it.
    ///
    /// # Panics
    /// When the URL names no database on a Unix socket, or there is no port.
    pub async fn before(url: &str) -> Self {
        let (database, socket) = place_of(url);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (network, seen) = watch::channel(Network::Whole);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (socket, seen) = (socket.clone(), seen.clone());
                tokio::spawn(async move {
                    let Ok(server) = UnixStream::connect(socket).await else { return };
                    let (from_client, to_client) = client.into_split();
                    let (from_server, to_server) = server.into_split();
                    let listens = Arc::<AtomicBool>::default();
                    let up = pump(from_client, to_server, seen.clone(), Direction::Up, listens.clone());
                    let down = pump(from_server, to_client, seen, Direction::Down, listens);
                    // The end of either direction ends the connection.
                    tokio::select! { () = up => {}, () = down => {} }
                });
            }
        });
        Self { address, database, network, accepting }
    }

    /// The URL of the database behind the proxy.
    pub fn url(&self) -> String {
        format!("postgres://postgres@{}/{}", self.address, self.database)
    }

    /// What happens from now on, to open connections as well.
    pub fn set(&self, network: Network) {
        self.network.send_replace(network);
    }
}

impl Drop for ChaosProxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.set(Network::Cut);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut network: watch::Receiver<Network>,
    direction: Direction,
    listens: Arc<AtomicBool>,
) {
    let mut buffer = vec![0; 16 * 1_024];
    loop {
        let mut cuts = network.clone();
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            _ = cuts.wait_for(|network| *network == Network::Cut) => return,
        };
        let Ok(length @ 1..) = read else { return };
        let bytes = &buffer[..length];
        if direction == Direction::Up && bytes.windows(7).any(|word| word == b"LISTEN ") {
            listens.store(true, Ordering::SeqCst);
        }
        let passes = |network: &Network| match network {
            Network::Whole | Network::Cut => true,
            Network::Deaf => direction == Direction::Up || !listens.load(Ordering::SeqCst),
            Network::Silent => false,
        };
        let cut = match network.wait_for(passes).await {
            Ok(network) => *network == Network::Cut,
            Err(_) => true,
        };
        if cut || to.write_all(bytes).await.is_err() {
            return;
        }
    }
}
