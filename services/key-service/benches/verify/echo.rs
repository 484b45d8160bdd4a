//! The references: an echo that does nothing but answer, and one that reads the key's row by a bare prepared SELECT.
//!
//! Both are what tonic generates for a unary method, hand-written for one method: the request is decoded, the response of
//! the same size as that of a valid key is encoded. The server is built with the settings of `service_kit::server`, without its layer.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use keysweep_proto::key::v1::{LocationRef, Owner, VerifyCode, VerifyKeyRequest, VerifyKeyResponse, owner};
use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};
use tokio::net::TcpListener;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::{NamedService, UnaryService};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::seed::{self, Ring};

/// The settings of `service_kit::server` and of the built-in configuration.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_HEADER_BYTES: u32 = 16 * 1024;
const MAX_CONCURRENT_STREAMS: u32 = 1_000;

/// What verification reads of a key, by what finds it.
pub(crate) const SELECT: &str = "SELECT id, agency_id, location_id, scopes, allowed_cidrs, created_at, last_used_at, \
     expires_at, state, revoke_at, deleted_at, secret_hash, revision FROM api_keys WHERE selector = $1";

/// A service under the name and path of `VerifyKey`.
#[derive(Clone)]
pub(crate) struct Echo {
    answer: Arc<VerifyKeyResponse>,
    select: Option<(DatabaseConnection, Arc<Ring>)>,
}

impl Echo {
    /// Answers, and nothing else.
    pub(crate) fn bare() -> Self {
        Self { answer: Arc::new(answer()), select: None }
    }

    /// Reads the row first.
    pub(crate) fn selecting(db: DatabaseConnection, ring: Arc<Ring>) -> Self {
        Self { answer: Arc::new(answer()), select: Some((db, ring)) }
    }

    /// Serves until the process ends.
    pub(crate) async fn serve(self, listener: TcpListener) -> anyhow::Result<()> {
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true)).with_keepalive(Some(KEEPALIVE_INTERVAL));
        tonic::transport::Server::builder()
            .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .http2_max_header_list_size(MAX_HEADER_BYTES)
            .add_service(self)
            .serve_with_incoming(incoming)
            .await?;
        Ok(())
    }

    async fn read(&self, secret: &str) -> Result<(), Status> {
        let Some((db, ring)) = &self.select else { return Ok(()) };
        let (_, selector) = ring.hash(secret);
        let bytes = selector.as_bytes().to_vec();
        let statement = Statement::from_sql_and_values(db.get_database_backend(), SELECT, [bytes.into()]);
        match db.query_one_raw(statement).await {
            Ok(Some(row)) => {
                row.try_get::<String>("", "id").map(drop).map_err(|error| Status::internal(error.to_string()))
            }
            Ok(None) => Err(Status::not_found("no such key was seeded")),
            Err(error) => Err(Status::unavailable(error.to_string())),
        }
    }
}

/// As long as the answer about any seeded key.
fn answer() -> VerifyKeyResponse {
    let owner = seed::owner(0);
    let location = LocationRef { agency_id: owner.agency_id, location_id: owner.location_id.unwrap_or_default() };
    VerifyKeyResponse {
        valid: true,
        code: VerifyCode::Valid.into(),
        key_id: seed::key_id(0),
        owner: Some(Owner { account: Some(owner::Account::Location(location)) }),
        scopes: vec!["read".to_owned(), "write".to_owned()],
        plan_id: String::new(),
        delete_time: None,
    }
}

impl NamedService for Echo {
    const NAME: &'static str = "keysweep.key.v1.KeyService";
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = Method(self.clone());
        Box::pin(async move {
            let codec = ProstCodec::<VerifyKeyResponse, VerifyKeyRequest>::default();
            Ok(tonic::server::Grpc::new(codec).unary(method, request).await)
        })
    }
}

struct Method(Echo);

impl UnaryService<VerifyKeyRequest> for Method {
    type Response = VerifyKeyResponse;
    type Future = Pin<Box<dyn Future<Output = Result<Response<VerifyKeyResponse>, Status>> + Send>>;

    fn call(&mut self, request: Request<VerifyKeyRequest>) -> Self::Future {
        let echo = self.0.clone();
        Box::pin(async move {
            echo.read(&request.get_ref().secret).await?;
            Ok(Response::new((*echo.answer).clone()))
        })
    }
}
