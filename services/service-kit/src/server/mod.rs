//! The gRPC server of every service: health, reflection, limits, and a drain in the right order.

mod admission;
mod connections;
mod dispatch;
mod layer;
mod methods;
mod tls;

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::time::Duration;

use anyhow::Context;
use futures::StreamExt;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use self::connections::Opened;
pub use self::dispatch::GrpcService;
use self::dispatch::Services;
use crate::auth::{BUILT_IN, Surface, Trust};
use crate::config::{Faults, Validate};
use crate::entropy::{Entropy, OsEntropy};

/// Where and how a service listens.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// Address and port.
    pub listen: SocketAddr,
    /// The longest a unary call may take, milliseconds; a caller's shorter deadline wins.
    pub request_timeout_ms: u64,
    /// How long calls in flight may go on after a stop was asked for, milliseconds.
    pub drain_timeout_ms: u64,
    /// How long health says NOT_SERVING before the server stops taking calls, milliseconds.
    pub drain_notice_ms: u64,
    /// The most connections at once.
    pub max_connections: u32,
    /// The most calls in flight on one connection.
    pub max_concurrent_streams: u32,
    /// The most calls in progress on all connections, open streams included.
    pub max_calls: u32,
    /// After how long a connection takes no further calls, so that clients connect anew, milliseconds. 0: never.
    pub max_connection_age_ms: u64,
}

impl Validate for ServerConfig {
    fn validate(&self, faults: &mut Faults) {
        for (path, value, max) in [
            ("server.request_timeout_ms", self.request_timeout_ms, 3_600_000),
            ("server.drain_timeout_ms", self.drain_timeout_ms, 600_000),
        ] {
            if !(1..=max).contains(&value) {
                faults.push(path, format!("must lie between 1 and {max}"));
            }
        }
        if self.drain_notice_ms > 60_000 {
            faults.push("server.drain_notice_ms", "must be at most 60000");
        }
        for (path, value) in [
            ("server.max_connections", self.max_connections),
            ("server.max_concurrent_streams", self.max_concurrent_streams),
            ("server.max_calls", self.max_calls),
        ] {
            if !(1..=MOST).contains(&value) {
                faults.push(path, format!("must lie between 1 and {MOST}"));
            }
        }
        if self.max_connection_age_ms != 0 && !CONNECTION_AGES_MS.contains(&self.max_connection_age_ms) {
            let (least, most) = (CONNECTION_AGES_MS.start(), CONNECTION_AGES_MS.end());
            faults.push("server.max_connection_age_ms", format!("must be 0 or lie between {least} and {most}"));
        }
    }
}

/// A peer that answers no ping for this long is gone: its streams and memory are freed.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Shorter, and connecting would cost more than calling.
const CONNECTION_AGES_MS: RangeInclusive<u64> = 1_000..=86_400_000;
/// Real metadata takes a few hundred bytes.
const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// Calls that a client took back before the server looked at them: more wait for no honest client, and the connection is closed.
const MAX_PENDING_RESETS: usize = 20;
/// Streams of a connection that the server reset for what the client did wrong, before it closes the connection. tonic would set
/// no bound.
const MAX_ERROR_RESETS: usize = 1_024;
/// Of connections, streams and calls, more than any machine bears.
const MOST: u32 = 1_000_000;

/// A server that takes calls; done when it has stopped.
type Serving = Pin<Box<dyn Future<Output = Result<(), tonic::transport::Error>> + Send>>;

/// A gRPC server about to serve.
#[derive(Debug)]
pub struct GrpcServer {
    config: ServerConfig,
    surface: &'static Surface,
    trust: Trust,
    services: Services,
    long_calls: Vec<&'static str>,
    frequent_calls: Vec<&'static str>,
    shutdown: CancellationToken,
    streams: CancellationToken,
}

impl GrpcServer {
    /// A server without services yet: those of `surface` must be added. `trust` says who may call them; `shutdown` starts the
    /// drain.
    pub fn new(config: &ServerConfig, surface: &'static Surface, trust: &Trust, shutdown: CancellationToken) -> Self {
        Self {
            config: config.clone(),
            surface,
            trust: trust.clone(),
            services: Services::default(),
            long_calls: Vec::new(),
            frequent_calls: Vec::new(),
            shutdown,
            streams: CancellationToken::new(),
        }
    }

    /// Adds a service; health knows it by its name.
    #[must_use]
    pub fn add_service(mut self, service: impl GrpcService) -> Self {
        self.services.add(service);
        self
    }

    /// Lets `service` answer one method of a service that is added too: another instance of it, with bounds of its own.
    #[must_use]
    pub fn add_method(mut self, method: &str, service: impl GrpcService) -> Self {
        self.services.add_method(method, service);
        self
    }

    /// Exempts the method at `path`, such as `/package.Service/Method`, from the server's limit: a client stream takes as
    /// long as its client has something to send. The caller's own deadline still holds.
    #[must_use]
    pub fn long_call(mut self, path: &'static str) -> Self {
        self.long_calls.push(path);
        self
    }

    /// Says that the method at `path` is called so often, and costs so little, that its successes are told no `x-request-id` but
    /// the caller's own.
    #[must_use]
    pub fn frequent_call(mut self, path: &'static str) -> Self {
        self.frequent_calls.push(path);
        self
    }

    /// Cancelled when server streams must end, each with a resume point and `status::draining()`.
    pub fn streams(&self) -> CancellationToken {
        self.streams.clone()
    }

    /// Serves until `shutdown`, then drains: health says NOT_SERVING, streams end, calls in flight finish, all within
    /// the configured times.
    ///
    /// # Errors
    /// When the listener fails, the descriptors are malformed, or the services are not those of the surface.
    pub async fn serve(mut self, listener: TcpListener) -> anyhow::Result<()> {
        let address = listener.local_addr().context("the listener has no address")?;
        let names: Vec<_> = self.services.names().collect();
        anyhow::ensure!(
            names.iter().all(|name| self.surface.services.contains(name)) && names.len() == self.surface.services.len(),
            "{names:?} are served where {:?} are announced",
            self.surface.services
        );
        let (health, health_service) = tonic_health::server::health_reporter();
        let routes = self.reflection(&names)?.add_service(health_service);
        set_all(&health, &names, ServingStatus::Serving).await;

        let stop = CancellationToken::new();
        let mut serving = self.accept(listener, routes, stop.clone())?;
        tracing::info!(%address, services = ?names, "serving");
        tokio::select! {
            ended = &mut serving => return ended.context("the server ended"),
            () = self.shutdown.cancelled() => {}
        }

        tracing::info!(%address, "draining");
        set_all(&health, &names, ServingStatus::NotServing).await;
        let notice = tokio::time::sleep(Duration::from_millis(self.config.drain_notice_ms));
        tokio::select! {
            ended = &mut serving => return ended.context("the server ended"),
            () = notice => {}
        }
        self.streams.cancel();
        stop.cancel();
        match tokio::time::timeout(Duration::from_millis(self.config.drain_timeout_ms), serving).await {
            Ok(ended) => ended.context("the server ended")?,
            // An idle connection that ignores GOAWAY may stay for ever; nothing of ours is in flight on it.
            Err(_) => {
                tracing::warn!(%address, "connections were still open at the end of the drain")
            }
        }
        tracing::info!(%address, "stopped");
        Ok(())
    }

    /// Takes calls until `stop`, over connections as `trust` has them.
    fn accept(&mut self, listener: TcpListener, routes: Routes, stop: CancellationToken) -> anyhow::Result<Serving> {
        let descriptors: Vec<_> = BUILT_IN.into_iter().chain([self.surface.descriptors]).collect();
        let methods = methods::Methods::of(&descriptors).context("the descriptors of the methods")?;
        let mut builder = tonic::transport::Server::builder();
        if let Some(age) = self.connection_age() {
            builder = builder.max_connection_age(age);
        }
        let router = builder
            .max_concurrent_streams(self.config.max_concurrent_streams)
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .http2_max_header_list_size(MAX_HEADER_BYTES)
            .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
            .http2_max_local_error_reset_streams(Some(MAX_ERROR_RESETS))
            .layer(layer::ContextLayer::new(
                (Duration::from_millis(self.config.request_timeout_ms), self.config.max_calls as usize),
                (std::mem::take(&mut self.long_calls), std::mem::take(&mut self.frequent_calls)),
                methods,
                std::mem::take(&mut self.services),
            ))
            .add_routes(routes);
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true)).with_keepalive(Some(KEEPALIVE_INTERVAL));
        let (incoming, stopped) = (connections::patient(incoming), stop.cancelled_owned());
        let most = self.config.max_connections as usize;
        Ok(match self.trust.mutual() {
            None => {
                let opened = incoming.map(|accepted| accepted.map(Opened::by_anybody));
                let incoming = connections::bounded(opened, connections::fitting(most, 0));
                Box::pin(router.serve_with_incoming_shutdown(incoming, stopped))
            }
            Some(mutual) => {
                let opened = tls::identified(incoming, mutual.clone());
                let incoming = connections::bounded(opened, connections::fitting(most, tls::MAX_HANDSHAKES));
                Box::pin(router.serve_with_incoming_shutdown(incoming, stopped))
            }
        })
    }

    /// When a connection is old. Up to a tenth later than configured, by another amount in each process, so that clients do not come back
    /// to all replicas at once. Calls that are in flight then, streams too, go on.
    fn connection_age(&self) -> Option<Duration> {
        let configured = self.config.max_connection_age_ms;
        let mut random = [0; 8];
        OsEntropy.fill(&mut random);
        let later = u64::from_le_bytes(random) % (configured / 10 + 1);
        (configured > 0).then(|| Duration::from_millis(configured + later))
    }

    fn reflection(&self, names: &[&'static str]) -> anyhow::Result<Routes> {
        let builder = || {
            let mut builder = tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(self.surface.descriptors)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                .with_service_name("grpc.health.v1.Health")
                .with_service_name("grpc.reflection.v1.ServerReflection")
                .with_service_name("grpc.reflection.v1alpha.ServerReflection");
            for name in names {
                builder = builder.with_service_name(*name);
            }
            builder
        };
        let v1 = builder()
            .register_encoded_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET)
            .build_v1();
        let v1alpha = builder()
            .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
            .build_v1alpha();
        let (v1, v1alpha) = (v1.context("reflection")?, v1alpha.context("reflection")?);
        Ok(Routes::new(v1).add_service(v1alpha))
    }
}

async fn set_all(health: &HealthReporter, names: &[&'static str], status: ServingStatus) {
    for name in names.iter().copied().chain([""]) {
        health.set_service_status(name, status).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use std::task::{Context as TaskContext, Poll};
    use tonic::body::Body;
    use tonic::codegen::BoxFuture;
    use tonic::server::NamedService;
    use tonic::transport::{Channel, Endpoint};
    use tonic::{Code, Status};
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_check_response::ServingStatus as Answer;
    use tonic_health::pb::health_client::HealthClient;
    use tonic_types::StatusExt;
    use tower::Service;

    /// A service that never answers.
    #[derive(Clone)]
    struct Silent;

    impl NamedService for Silent {
        const NAME: &'static str = "test.Silent";
    }

    impl Service<http::Request<Body>> for Silent {
        type Response = http::Response<Body>;
        type Error = Infallible;
        type Future = BoxFuture<http::Response<Body>, Infallible>;

        fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: http::Request<Body>) -> Self::Future {
            Box::pin(std::future::pending())
        }
    }

    const CALL: &str = "/test.Silent/Call";
    const SURFACE: Surface =
        Surface { descriptors: tonic_health::pb::FILE_DESCRIPTOR_SET, services: &["test.Silent"], policy: "" };

    struct Server {
        address: SocketAddr,
        channel: Channel,
        shutdown: CancellationToken,
        task: tokio::task::JoinHandle<anyhow::Result<()>>,
    }

    async fn start(drain_notice_ms: u64) -> Server {
        start_with(|config| config.drain_notice_ms = drain_notice_ms, false).await
    }

    async fn start_with(change: impl FnOnce(&mut ServerConfig), frequent: bool) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut config = ServerConfig {
            listen: listener.local_addr().expect("an address"),
            request_timeout_ms: 100,
            drain_timeout_ms: 5_000,
            drain_notice_ms: 0,
            max_connections: 100,
            max_concurrent_streams: 100,
            max_calls: 100,
            max_connection_age_ms: 0,
        };
        change(&mut config);
        let shutdown = CancellationToken::new();
        let server = GrpcServer::new(&config, &SURFACE, &Trust::plaintext(), shutdown.clone()).add_service(Silent);
        let server = if frequent { server.frequent_call(CALL) } else { server };
        let task = tokio::spawn(server.serve(listener));
        Server { address: config.listen, channel: connect(config.listen), shutdown, task }
    }

    /// A connection of its own.
    fn connect(address: SocketAddr) -> Channel {
        Endpoint::from_shared(format!("http://{address}")).expect("an endpoint").connect_lazy()
    }

    /// Calls [`Silent`].
    async fn call(channel: &Channel) -> Status {
        let mut client = tonic::client::Grpc::new(channel.clone());
        client.ready().await.expect("ready");
        let path = http::uri::PathAndQuery::from_static(CALL);
        let codec = tonic_prost::ProstCodec::default();
        let mut request = tonic::Request::new(ask(""));
        request.metadata_mut().insert("x-request-id", "r-1".parse().expect("ascii"));
        client.unary::<_, HealthCheckRequest, _>(request, path, codec).await.expect_err("it never answers")
    }

    fn reason(status: &Status) -> String {
        status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
    }

    fn ask(service: &str) -> HealthCheckRequest {
        HealthCheckRequest { service: service.to_owned() }
    }

    #[tokio::test]
    async fn health_turns_before_the_server_stops() {
        let server = start(60_000).await;
        let mut health = HealthClient::new(server.channel);
        for service in ["", "test.Silent"] {
            assert_eq!(health.check(ask(service)).await.expect("an answer").get_ref().status(), Answer::Serving);
        }
        let mut changes = health.watch(ask("")).await.expect("a watch").into_inner();
        assert_eq!(changes.message().await.expect("first").expect("first").status(), Answer::Serving);
        server.shutdown.cancel();
        assert_eq!(changes.message().await.expect("second").expect("second").status(), Answer::NotServing);
        assert!(!server.task.is_finished(), "it stops only after its notice");
        server.task.abort();
    }

    #[tokio::test]
    async fn the_server_ends_when_asked() {
        let server = start(0).await;
        HealthClient::new(server.channel).check(ask("")).await.expect("an answer");
        server.shutdown.cancel();
        server.task.await.expect("no panic").expect("no error");
    }

    #[tokio::test]
    async fn a_call_past_its_time_is_answered_deadline_exceeded() {
        let server = start(0).await;
        let status = call(&server.channel).await;
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert_eq!(reason(&status), "DEADLINE_EXCEEDED");
        assert_eq!(status.metadata().get("x-request-id").and_then(|id| id.to_str().ok()), Some("r-1"));
        server.shutdown.cancel();
    }
    #[tokio::test]
    async fn a_call_too_many_is_refused_at_once_and_health_is_answered() {
        for frequent in [false, true] {
            let change = |config: &mut ServerConfig| (config.max_calls, config.request_timeout_ms) = (1, 60_000);
            let server = start_with(change, frequent).await;
            let (one, another) = (Box::pin(call(&server.channel)), Box::pin(call(&server.channel)));
            let (refused, in_progress) = futures::future::select(one, another).await.factor_first();
            assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "OVERLOADED"));
            assert!(refused.get_error_details().retry_info().is_some());
            HealthClient::new(server.channel.clone()).check(ask("")).await.expect("an answer");
            // Its place is free once its caller has given up.
            drop(in_progress);
            while tokio::time::timeout(Duration::from_millis(100), call(&server.channel)).await.is_ok() {}
            server.shutdown.cancel();
        }
    }

    #[tokio::test]
    async fn on_a_connection_too_many_nothing_but_health_is_answered() {
        let server = start_with(|config| config.max_connections = 1, false).await;
        HealthClient::new(server.channel.clone()).check(ask("")).await.expect("an answer");
        let surplus = connect(server.address);
        let refused = call(&surplus).await;
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "OVERLOADED"));
        HealthClient::new(surplus).check(ask("")).await.expect("an answer");
        assert_eq!(call(&server.channel).await.code(), Code::DeadlineExceeded, "it is let in");
        server.shutdown.cancel();
    }
}
