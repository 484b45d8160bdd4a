//! Putting the parts together, and taking them down in the right order.

use std::sync::Arc;

use anyhow::Context;
use futures::future::try_join_all;
use sea_orm::DatabaseConnection;
use service_kit::Deps;
use service_kit::auth::{Surface, Trust};
use service_kit::cli::Service;
use service_kit::clock::JumpWatch;
use service_kit::db;
use service_kit::ids::IdGenerator;
use service_kit::jobs::Reconciler;
use service_kit::keyring::KeyRing;
use service_kit::notify::listen;
use service_kit::server::GrpcServer;
use service_kit::telemetry::Metric;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::app::audit::Audit;
use crate::app::figures::FigureKeeper;
use crate::app::keys::{KeyParts, Keys, RevealLimiter};
use crate::app::sweep::{EventSignal, Leadership, SweepService, Sweeper, SweeperParts};
use crate::app::upkeep::Upkeep;
use crate::app::verify::{UsageRecorder, Verifier, VerifierParts};
use crate::config::{Config, DEFAULTS};
use crate::grpc::sweep::SweepGrpc;
use crate::grpc::{ExtAuthz, KeyApi, SURFACE};
use crate::jobs::sweeper::SweeperJob;
use crate::jobs::{CountFigures, EndOverlaps, FlushUses, FollowChanges, ForgetRequests};
use crate::metrics::METRICS;
use crate::storage::changes::KEY_CHANGES;
use crate::storage::sweep::SqlSweepStore;
use crate::storage::sweep::outbox::SWEEP_EVENTS;
use crate::storage::{Migrator, SqlStore, keyring_check};

/// Kind of the ids that replicas report their uses under.
const REPLICA_PREFIX: &str = "rep_";

/// The service as the binary's commands know it.
#[derive(Debug)]
pub struct KeyService;

impl Service for KeyService {
    const NAME: &'static str = "key-service";
    const DEFAULTS: &'static str = DEFAULTS;
    type Config = Config;
    type Migrator = Migrator;
    const METRICS: &'static [Metric] = METRICS;
    const SURFACE: &'static Surface = &SURFACE;

    async fn run(config: Config, deps: Deps, listener: TcpListener, shutdown: CancellationToken) -> anyhow::Result<()> {
        run(config, deps, listener, shutdown).await
    }
}

/// Runs the service until `shutdown`: connects, migrates if so configured, checks the key ring, serves, then drains,
/// ends the jobs and stores the last uses.
///
/// # Errors
/// When the certificates, the database, the key ring or the listener cannot be used, or the last uses cannot be stored.
pub async fn run(config: Config, deps: Deps, listener: TcpListener, shutdown: CancellationToken) -> anyhow::Result<()> {
    let trust = Trust::open(&config.auth, &SURFACE, &deps.clock)?;
    let db = db::connect(&config.database).await?;
    db::prepare::<Migrator>(&db, &config.database, &deps.clock, &shutdown).await?;
    let ring = key_ring(&config, &deps, &db).await?;
    // The jobs outlive the last call, so that what it left in memory is stored.
    let jobs_end = CancellationToken::new();
    let parts = Parts::build(&config, &deps, &db, ring, &jobs_end).await?;
    let listening = parts.spawn_jobs(&config, &deps, &jobs_end);
    trust.keep_current(&deps, jobs_end.clone());

    let server = GrpcServer::new(&config.server, &SURFACE, &trust, shutdown);
    let streams = server.streams();
    let server = server.add_service(ExtAuthz::server(parts.verifier.clone()));
    let server = KeyApi::new(parts.keys, parts.verifier, parts.audit).register(server);
    let served = SweepGrpc::new(parts.sweep, streams)
        .register(server)
        .long_call("/keysweep.key.v1.KeyService/ImportApiKeys")
        .frequent_call("/keysweep.key.v1.KeyService/VerifyKey")
        .frequent_call("/envoy.service.auth.v3.Authorization/Check")
        .serve(listener)
        .await;

    jobs_end.cancel();
    deps.jobs.join().await;
    // They end with the jobs, and have nothing to lose.
    let _ended: Result<Vec<()>, _> = try_join_all(listening).await;
    if let Err(error) = parts.sweeper.resign().await {
        tracing::warn!(%error, "the sweeper's lease could not be given back: others wait until it has run out");
    }
    let closed = parts.usage.close().await.context("cannot store the last uses");
    // Closing lets SQLite fold its log into the database file.
    let disconnected = db.close().await.context("cannot close the database");
    served.and(closed).and(disconnected)
}

/// The use cases, put together.
struct Parts {
    keys: Arc<Keys>,
    verifier: Arc<Verifier>,
    audit: Arc<Audit>,
    upkeep: Arc<Upkeep>,
    figures: Arc<FigureKeeper>,
    usage: Arc<UsageRecorder>,
    sweep: SweepService,
    sweeper: Arc<Sweeper>,
}

impl Parts {
    async fn build(
        config: &Config,
        deps: &Deps,
        db: &DatabaseConnection,
        ring: KeyRing,
        end: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let store = Arc::new(SqlStore::new(db.clone()));
        let sweep_store = Arc::new(SqlSweepStore::new(db.clone()));
        let ids = IdGenerator::new(deps.entropy.clone());
        let replica = ids.next(REPLICA_PREFIX, deps.clock.now());
        let bounds = config.memory_bounds();
        let recorder = UsageRecorder::open(store.clone(), deps.clock.clone(), replica.clone(), bounds);
        let usage = Arc::new(recorder.await.context("cannot begin to record uses")?);
        let events = EventSignal::new();
        let policy = config.sweep_policy()?;
        let ring = Arc::new(ring);
        let verifier = Verifier::open(VerifierParts {
            store: store.clone(),
            changes: store.clone(),
            ring: ring.clone(),
            clock: deps.clock.clone(),
            usage: usage.clone(),
            events: events.clone(),
            recording_slack: config.recording_slack(),
            max_refusals: config.verification.memory_max_refusals,
            guesses: config.guess_settings(),
        });
        let verifier = Arc::new(verifier.await.context("cannot begin to verify")?);
        let keys = Arc::new(Keys::new(KeyParts {
            store: store.clone(),
            ring,
            clock: deps.clock.clone(),
            entropy: deps.entropy.clone(),
            changes: verifier.changes(),
            reveals: RevealLimiter::new(config.reveal.per_minute, deps.clock.clone()),
            events: events.clone(),
            settings: config.key_settings(),
        }));
        let watch = Arc::new(JumpWatch::new(deps.clock.clone()));
        let leadership = Leadership::new(sweep_store.clone(), deps.clock.clone(), replica, policy.lease);
        let leadership = Arc::new(leadership);
        let sweep = SweepService::new(
            sweep_store.clone(),
            deps.clock.clone(),
            policy,
            events.clone(),
            leadership.clone(),
            watch.clone(),
        );
        let figures = Arc::new(FigureKeeper::new(store.clone()));
        let sweeper = Arc::new(Sweeper::new(SweeperParts {
            store: sweep_store,
            usage: usage.clone(),
            figures: figures.clone(),
            ids,
            policy,
            signal: events,
            leadership,
            watch,
            end: end.clone(),
        }));
        let (audit, upkeep) = (Arc::new(Audit::new(store.clone())), Arc::new(Upkeep::new(store)));
        Ok(Self { keys, verifier, audit, upkeep, figures, usage, sweep, sweeper })
    }

    /// Starts the jobs and, on PostgreSQL, the listening for what other replicas change.
    fn spawn_jobs(&self, config: &Config, deps: &Deps, end: &CancellationToken) -> [JoinHandle<()>; 2] {
        let spawn = |job: Arc<dyn Reconciler>| deps.jobs.spawn(job, deps.clock.clone(), end.clone());
        spawn(Arc::new(FlushUses::new(self.usage.clone())));
        spawn(Arc::new(EndOverlaps::new(self.upkeep.clone())));
        spawn(Arc::new(ForgetRequests::new(self.upkeep.clone(), self.keys.clone(), self.verifier.clone())));
        spawn(Arc::new(SweeperJob::new(self.sweeper.clone())));
        spawn(Arc::new(CountFigures::new(self.figures.clone())));
        let following = spawn(Arc::new(FollowChanges::new(self.verifier.changes())));
        let (events, database, stop) = (self.sweep.signal().clone(), config.database.clone(), end.clone());
        let changes = async move { listen(&database, KEY_CHANGES, stop, || following.signal()).await };
        let (database, stop) = (config.database.clone(), end.clone());
        let news = async move { listen(&database, SWEEP_EVENTS, stop, || events.bump()).await };
        [tokio::spawn(changes), tokio::spawn(news)]
    }
}

/// The key ring, made anew only where no key depends on an older one, and proven to be the one of this database.
async fn key_ring(config: &Config, deps: &Deps, db: &DatabaseConnection) -> anyhow::Result<KeyRing> {
    let sqlite = config.database.sqlite_path();
    let unused = keyring_check::is_unused(db).await.context("cannot read the database")?;
    let ring = KeyRing::load(&config.keyring, sqlite.as_deref(), unused, &*deps.entropy)?;
    keyring_check::check(db, &ring).await?;
    Ok(ring)
}
