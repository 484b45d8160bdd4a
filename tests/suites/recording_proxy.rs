//! A proxy before key-service: it forwards every call that arrives, and remembers it.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use http_body_util::{BodyExt, Full};
use keysweep_proto::key::v1::GenerateApiKeyRequest;
use prost::Message;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::body::Body;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tower::{BoxError, Service, ServiceExt};

/// The only method that location-service may call.
pub(crate) const GENERATE: &str = "/keysweep.key.v1.KeyService/GenerateApiKey";

/// A call that arrived.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// As `/keysweep.key.v1.KeyService/GenerateApiKey`.
    pub(crate) path: String,
    /// Who it was made for.
    pub(crate) actor: String,
    /// Its message, if it was a generation.
    pub(crate) generation: Option<GenerateApiKeyRequest>,
}

/// The proxy; it ends when dropped.
pub(crate) struct RecordingProxy {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    _end: DropGuard,
}

impl RecordingProxy {
    /// Listens on a free port of loopback and forwards to `target`.
    pub(crate) async fn before(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let channel = Endpoint::from_shared(format!("http://{target}")).expect("an endpoint").connect_lazy();
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let forward = Forward { channel, seen: seen.clone() };
        let end = CancellationToken::new();
        let ended = end.clone().cancelled_owned();
        // Before any routing, so that no call escapes, whatever its path.
        let server = Server::builder()
            .layer(tower::layer::layer_fn(move |_: Routes| forward.clone()))
            .add_routes(Routes::default());
        tokio::spawn(server.serve_with_incoming_shutdown(TcpIncoming::from(listener), ended));
        Self { address, seen, _end: end.drop_guard() }
    }

    /// Every call so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[derive(Clone)]
struct Forward {
    channel: Channel,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Service<http::Request<Body>> for Forward {
    type Response = http::Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let Self { channel, seen } = self.clone();
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            let actor = request.headers().get("x-keysweep-actor").and_then(|actor| actor.to_str().ok());
            let actor = actor.unwrap_or_default().to_owned();
            let (parts, body) = request.into_parts();
            // Other methods may stream for as long as they like.
            let (body, generation) = if path == GENERATE {
                let bytes = body.collect().await?.to_bytes();
                // A flag and a length stand before the message.
                let message = GenerateApiKeyRequest::decode(bytes.get(5..).unwrap_or_default())?;
                (Body::new(Full::new(bytes)), Some(message))
            } else {
                (body, None)
            };
            seen.lock().unwrap_or_else(PoisonError::into_inner).push(Seen { path, actor, generation });
            Ok(channel.oneshot(http::Request::from_parts(parts, body)).await?)
        })
    }
}
