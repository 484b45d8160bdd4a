//! Calls go to all replicas of a service, also to those that come and go.

mod support;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, LazyLock, Mutex};

use async_trait::async_trait;
use service_kit::auth::{Surface, Trust};
use service_kit::client::{ClientConfig, Peer, Resolve};
use service_kit::server::{GrpcServer, ServerConfig};
use service_kit::testing::wait;
use support::Mirror;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};

static SURFACE: LazyLock<Surface> = LazyLock::new(|| support::surface(""));

/// The addresses of a name, as a test has them.
#[derive(Clone, Default)]
struct Book(Arc<Mutex<Vec<SocketAddr>>>);

impl Book {
    fn write(&self, addresses: &[SocketAddr]) {
        *self.0.lock().expect("lock") = addresses.to_vec();
    }
}

#[async_trait]
impl Resolve for Book {
    async fn resolve(&self, host: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
        let addresses = self.0.lock().expect("lock").clone();
        if addresses.is_empty() { Err(io::Error::other(format!("{host} is not known"))) } else { Ok(addresses) }
    }
}

/// A server that says its own address.
struct Replica {
    address: SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Replica {
    async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let config = ServerConfig {
            listen: address,
            request_timeout_ms: 5_000,
            drain_timeout_ms: 5_000,
            drain_notice_ms: 0,
            max_connections: 100,
            max_concurrent_streams: 100,
            max_calls: 100,
            max_connection_age_ms: 0,
        };
        let shutdown = CancellationToken::new();
        let server = GrpcServer::new(&config, &SURFACE, &Trust::plaintext(), shutdown.clone());
        let task = tokio::spawn(server.add_service(Mirror::named(address.to_string())).serve(listener));
        Self { address, shutdown, task }
    }

    async fn stop(self) -> SocketAddr {
        self.shutdown.cancel();
        self.task.await.expect("no panic").expect("a clean end");
        self.address
    }
}

fn peer(book: &Book) -> Peer {
    let endpoint = "http://replicas.example.com:50051".to_owned();
    let config = ClientConfig { endpoint, connect_timeout_ms: 5_000, request_timeout_ms: 5_000 };
    Peer::resolved_by(&config, &Trust::plaintext(), book.clone()).expect("an endpoint")
}

/// Who answers, or why nobody does.
async fn ask(peer: &Peer) -> Result<String, Status> {
    let mut client = tonic::client::Grpc::new(peer.clone());
    client.ready().await.expect("always");
    let path = http::uri::PathAndQuery::from_static("/test.Mirror/WhoAmI");
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let status = client.unary(Request::new(()), path, codec).await.expect_err("it answers by an error");
    if status.code() == Code::Aborted { Ok(status.message().to_owned()) } else { Err(status) }
}

/// How many of so many calls each replica answers; none may fail.
async fn shares(peer: &Peer, calls: usize) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for _ in 0..calls {
        *shares.entry(ask(peer).await.expect("an answer")).or_default() += 1;
    }
    shares
}

#[tokio::test]
async fn every_replica_has_its_share_and_one_that_is_not_there_costs_no_call() {
    let replicas = [Replica::start().await, Replica::start().await, Replica::start().await];
    let book = Book::default();
    book.write(&replicas.each_ref().map(|replica| replica.address));
    let all = shares(&peer(&book), 30).await;
    assert_eq!(all.values().copied().collect::<Vec<_>>(), [10, 10, 10], "{all:?}");

    let gone = Replica::start().await.stop().await;
    book.write(&[gone, replicas[0].address, replicas[1].address]);
    let rest = shares(&peer(&book), 30).await;
    assert_eq!(rest.values().sum::<usize>(), 30);
    assert!(rest.len() == 2 && rest.values().all(|share| *share >= 10), "{rest:?}");
}

#[tokio::test]
async fn replicas_that_stop_are_left_and_new_ones_found() {
    let (first, second) = (Replica::start().await, Replica::start().await);
    let book = Book::default();
    book.write(&[first.address, second.address]);
    let peer = peer(&book);
    assert_eq!(shares(&peer, 10).await.len(), 2);

    first.stop().await;
    // What is lost with a connection is for the caller to repeat; the connection is not used again.
    let mut lost = 0;
    for _ in 0..20 {
        if let Err(status) = ask(&peer).await {
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
            lost += 1;
        }
    }
    assert!(lost <= 1, "{lost} calls were lost");

    let third = Replica::start().await;
    book.write(&[third.address]);
    second.stop().await;
    wait::until("the new replica", async || {
        let answer = ask(&peer).await.ok()?;
        (answer == third.address.to_string()).then_some(())
    })
    .await;
    assert_eq!(shares(&peer, 10).await.len(), 1);
}

#[tokio::test]
async fn a_name_that_is_not_known_yet_is_unavailable() {
    let book = Book::default();
    let peer = peer(&book);
    assert_eq!(ask(&peer).await.expect_err("nowhere to go").code(), Code::Unavailable);
    let replica = Replica::start().await;
    book.write(&[replica.address]);
    wait::until("the name to be known", async || ask(&peer).await.ok()).await;
}
