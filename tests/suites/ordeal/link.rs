//! The network between two services.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What the network does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weather {
    /// Passes everything on.
    Fair,
    /// Takes everything and passes nothing on: connections stay open and silent.
    Silent,
    /// Closes every connection.
    Cut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    weather: Weather,
    target: SocketAddr,
}

/// A way from one process to whichever of another service's processes it is led to.
pub(crate) struct Link {
    pub(crate) address: SocketAddr,
    state: watch::Sender<State>,
}

impl Link {
    pub(crate) async fn to(target: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (state, seen) = watch::channel(State { weather: Weather::Fair, target });
        tokio::spawn(accept(listener, seen));
        Ok(Self { address, state })
    }

    pub(crate) fn weather(&self) -> Weather {
        self.state.borrow().weather
    }

    pub(crate) fn set(&self, weather: Weather) {
        self.state.send_modify(|state| state.weather = weather);
    }

    /// Leads to another process from now on; open connections end.
    pub(crate) fn lead_to(&self, target: SocketAddr) {
        self.state.send_if_modified(|state| std::mem::replace(&mut state.target, target) != target);
    }
}

/// Ends with the link.
async fn accept(listener: TcpListener, mut seen: watch::Receiver<State>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            gone = seen.changed() => if gone.is_err() { return } else { continue },
        };
        let Ok((client, _)) = accepted else { continue };
        let seen = seen.clone();
        tokio::spawn(async move {
            let target = seen.borrow().target;
            if seen.borrow().weather == Weather::Cut {
                return;
            }
            let Ok(server) = TcpStream::connect(target).await else { return };
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
            let up = pump(from_client, to_server, seen.clone(), target);
            let down = pump(from_server, to_client, seen, target);
            // The end of either direction ends the connection.
            tokio::select! { () = up => {}, () = down => {} }
        });
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut seen: watch::Receiver<State>, target: SocketAddr) {
    let ends = move |state: &State| state.weather == Weather::Cut || state.target != target;
    let mut buffer = vec![0; 16 * 1_024];
    loop {
        let mut changes = seen.clone();
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            _ = changes.wait_for(ends) => return,
        };
        let Ok(length @ 1..) = read else { return };
        let passes = |state: &State| ends(state) || state.weather == Weather::Fair;
        let end = seen.wait_for(passes).await.map_or(true, |state| ends(&state));
        if end || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
