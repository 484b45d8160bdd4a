//! Another service, wherever its replicas are: calls go to them in turn.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use tokio::sync::{Mutex, Notify};
use tokio::time::Instant;
use tonic::body::Body;
use tonic::transport::Channel;
use tonic::{Code, Status, TimeoutExpired};

use super::ClientConfig;
use super::connect::{Connector, EndpointError, Target};
use crate::auth::Trust;
use crate::status::deadline_exceeded;

/// How often a name is resolved anew; at once where a replica was lost.
const RESOLVE_EVERY: Duration = Duration::from_secs(10);
const RESOLVE_AT_MOST_EVERY: Duration = Duration::from_millis(200);
/// A replica that could not be reached is asked after all others for so long.
const SHUNNED_FOR: Duration = Duration::from_secs(2);

/// Finds out where a host is.
#[async_trait]
pub trait Resolve: Send + Sync + 'static {
    /// Its addresses.
    ///
    /// # Errors
    /// When they cannot be found out.
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>;
}

/// The resolver of the operating system.
#[derive(Clone, Copy, Debug)]
pub struct SystemResolver;

#[async_trait]
impl Resolve for SystemResolver {
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((host, port)).await?.collect())
    }
}

/// Another service. Each of its addresses is a replica; calls go to those that can be reached, in turn, and a call that
/// never left goes to the next. A call that may have arrived is not repeated.
#[derive(Clone)]
pub struct Peer(Arc<Replicas>);

struct Replicas {
    connector: Connector,
    known: RwLock<Vec<Arc<Replica>>>,
    turn: AtomicUsize,
    /// The addresses should be looked up.
    look: Arc<Notify>,
    /// The addresses have been looked up.
    looked: Notify,
}

struct Replica {
    address: SocketAddr,
    connector: Connector,
    channel: Mutex<Option<Channel>>,
    shunned_until: RwLock<Option<Instant>>,
}

impl Peer {
    /// The service at the endpoint of `config`. Connects when first called.
    ///
    /// # Errors
    /// When the endpoint is none, or not one that `trust` goes with; a validated configuration has none such.
    pub fn new(config: &ClientConfig, trust: &Trust) -> Result<Self, EndpointError> {
        Self::resolved_by(config, trust, SystemResolver)
    }

    /// As [`Peer::new`], with a resolver of one's own.
    ///
    /// # Errors
    /// As [`Peer::new`].
    pub fn resolved_by(config: &ClientConfig, trust: &Trust, resolver: impl Resolve) -> Result<Self, EndpointError> {
        let target = Target::parse(&config.endpoint)?;
        let connector = Connector::new(config, trust, target.clone())?;
        let fixed = target.host.parse::<IpAddr>().ok().map(|ip| SocketAddr::from((ip, target.port)));
        let known = fixed.iter().map(|address| Arc::new(Replica::new(*address, &connector))).collect();
        let replicas = Arc::new(Replicas {
            connector,
            known: RwLock::new(known),
            turn: AtomicUsize::new(0),
            look: Arc::default(),
            looked: Notify::new(),
        });
        if fixed.is_none() {
            tokio::spawn(follow(Arc::downgrade(&replicas), replicas.look.clone(), target, resolver));
        }
        Ok(Self(replicas))
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.known().iter().map(|replica| replica.address)).finish()
    }
}

impl tower::Service<http::Request<Body>> for Peer {
    type Response = http::Response<Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let replicas = self.0.clone();
        Box::pin(async move { replicas.call(request).await })
    }
}

impl Replicas {
    fn known(&self) -> Vec<Arc<Replica>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn call(&self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        let mut unreached = Status::unavailable("no address of the service is known");
        for replica in self.in_turn().await {
            let mut channel = match replica.connected().await {
                Ok(channel) => channel,
                Err(error) => {
                    self.lost(&replica).await;
                    let cause = error.source().map_or_else(|| error.to_string(), ToString::to_string);
                    unreached = Status::unavailable(format!("{} cannot be reached: {cause}", replica.address));
                    continue;
                }
            };
            let answer = match tower::ServiceExt::ready(&mut channel).await {
                Ok(ready) => tower::Service::call(ready, request).await,
                Err(error) => Err(error),
            };
            let answer = answer.map_err(|error| unanswered(&error));
            // A deadline that ran out says nothing of the replica.
            if answer.as_ref().is_err_and(|status| status.code() == Code::Unavailable) {
                self.lost(&replica).await;
            }
            return answer;
        }
        Err(unreached)
    }

    /// All replicas, beginning with the one whose turn it is; last those that could not be reached lately.
    async fn in_turn(&self) -> Vec<Arc<Replica>> {
        // Registered before the look, so that none is missed.
        let looked = self.looked.notified();
        let mut known = self.known();
        if known.is_empty() {
            self.look.notify_one();
            looked.await;
            known = self.known();
        }
        if !known.is_empty() {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) % known.len();
            known.rotate_left(turn);
        }
        let now = Instant::now();
        known.sort_by_key(|replica| replica.is_shunned(now));
        known
    }

    async fn lost(&self, replica: &Replica) {
        *replica.shunned_until.write().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + SHUNNED_FOR);
        *replica.channel.lock().await = None;
        self.look.notify_one();
    }

    /// Takes over what the name resolves to. Calls in flight on a replica that is gone go on.
    fn update(&self, mut addresses: Vec<SocketAddr>) {
        addresses.sort();
        addresses.dedup();
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::take(&mut *known);
        let same = |address: &SocketAddr| before.iter().find(|replica| replica.address == *address).cloned();
        let replica = |address| same(&address).unwrap_or_else(|| Arc::new(Replica::new(address, &self.connector)));
        *known = addresses.into_iter().map(replica).collect();
    }
}

/// Why a call has no answer. However its connection was lost, the call may be worth a retry; tonic tells by the last frame that was
/// seen, so that a server that says goodbye in order passes for broken.
fn unanswered(error: &tonic::transport::Error) -> Status {
    let (mut told, mut cause) = (error.to_string(), error.source());
    while let Some(deeper) = cause {
        if deeper.is::<TimeoutExpired>() {
            return deadline_exceeded();
        }
        (told, cause) = (deeper.to_string(), deeper.source());
    }
    Status::unavailable(format!("the connection was lost: {told}"))
}

impl Replica {
    fn new(address: SocketAddr, connector: &Connector) -> Self {
        Self { address, connector: connector.at(address), channel: Mutex::new(None), shunned_until: RwLock::new(None) }
    }

    fn is_shunned(&self, now: Instant) -> bool {
        self.shunned_until.read().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| now < until)
    }

    /// Its channel, connected by whoever asks first.
    async fn connected(&self) -> Result<Channel, tonic::transport::Error> {
        let mut channel = self.channel.lock().await;
        if let Some(channel) = &*channel {
            return Ok(channel.clone());
        }
        let connected = self.connector.clone().connect().await?;
        Ok(channel.insert(connected).clone())
    }
}

/// Looks the addresses up for as long as anybody calls.
async fn follow(replicas: Weak<Replicas>, look: Arc<Notify>, target: Target, resolver: impl Resolve) {
    loop {
        let found = resolver.resolve(&target.host, target.port).await;
        {
            let Some(replicas) = replicas.upgrade() else { return };
            match found {
                Ok(addresses) if !addresses.is_empty() => replicas.update(addresses),
                // What was known may still be there.
                Ok(_) => tracing::warn!(host = target.host, "the name has no address"),
                Err(error) => tracing::warn!(host = target.host, %error, "the name cannot be resolved"),
            }
            replicas.looked.notify_waiters();
        }
        // Who asks again and again, as nobody answers, is not to flood the resolver.
        let pause = tokio::time::sleep(RESOLVE_AT_MOST_EVERY);
        let (_, ()) = tokio::join!(tokio::time::timeout(RESOLVE_EVERY, look.notified()), pause);
    }
}
