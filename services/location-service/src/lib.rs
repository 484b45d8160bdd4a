//! The system of record of a platform's accounts: who its agencies, their locations and their people are, and how each
//! agency's account is secured.
//!
//! Its nouns: an [agency](domain::resources::Agency) owns [locations](domain::resources::Location) and has
//! [users](domain::user::User); an agency's [choice](domain::security::Choice) about Enhanced Account Security.
//!
//! It guarantees that a key comes into being only because a logged-in admin asked for it, or opted their agency out of
//! Enhanced Account Security; that no response but a generation's carries one, save a location's of an opted-out agency;
//! that turning the setting on destroys every stored copy in the same transaction; that a mutation repeated under its
//! `request_id` within 24 h happens once; and that everything but generation works while key-service is down.
//!
//! It does *not* keep, verify, reveal, rotate or revoke keys (key-service does), send anything to anybody, or log
//! people in: who a call is made for is what a caller says that may name somebody.

pub mod app;
pub mod clients;
pub mod commands;
pub mod config;
pub mod domain;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod grpc;
mod jobs;
pub mod storage;

use std::sync::Arc;

use anyhow::Context;
use service_kit::auth::{Surface, Trust};
use service_kit::keyring::KeyRing;
use service_kit::server::GrpcServer;
use service_kit::telemetry::Metric;
use service_kit::{Deps, cli, db};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use config::Config;
pub use storage::Migrator;

/// Serves until `shutdown`, then drains.
///
/// # Errors
/// When the certificates, the database, the keyring or the listener cannot be used.
pub async fn run(config: Config, deps: Deps, listener: TcpListener, shutdown: CancellationToken) -> anyhow::Result<()> {
    let trust = Trust::open(&config.auth, &grpc::SURFACE, &deps.clock)?;
    let database = db::connect(&config.database).await?;
    db::prepare::<Migrator>(&database, &config.database, &deps.clock, &shutdown).await?;
    let store = storage::DatabaseStore::new(database.clone());
    let may_create = store.needs_no_keyring().await.context("the database cannot be read; is it migrated?")?;
    let ring = KeyRing::load(&config.keyring, config.database.sqlite_path().as_deref(), may_create, &*deps.entropy)?;
    store.check_keyring(&ring).await?;

    let keys = clients::KeyServiceClient::new(&config.key_service, &trust).context("key_service.endpoint")?;
    let store: Arc<dyn app::ports::Store> = Arc::new(store);
    // Jobs end with the server, also where it ends by a fault.
    let jobs_end = shutdown.child_token();
    deps.jobs.spawn(Arc::new(jobs::ForgetRequests::new(store.clone())), deps.clock.clone(), jobs_end.clone());
    trust.keep_current(&deps, jobs_end.clone());
    let app = app::App::new(store, Arc::new(keys), ring, deps.clock.clone(), deps.entropy.clone());
    let server = GrpcServer::new(&config.server, &grpc::SURFACE, &trust, shutdown);
    let served = grpc::register(server, app).serve(listener).await;
    jobs_end.cancel();
    deps.jobs.join().await;
    let closed = database.close().await.context("the database does not close");
    served.and(closed)
}

/// The service, for the commands of its binary.
#[derive(Debug)]
pub struct LocationService;

impl cli::Service for LocationService {
    const NAME: &'static str = "location-service";
    const DEFAULTS: &'static str = config::DEFAULTS;
    type Config = Config;
    type Migrator = Migrator;
    const METRICS: &'static [Metric] = &[];
    const SURFACE: &'static Surface = &grpc::SURFACE;

    async fn run(config: Config, deps: Deps, listener: TcpListener, shutdown: CancellationToken) -> anyhow::Result<()> {
        run(config, deps, listener, shutdown).await
    }
}
