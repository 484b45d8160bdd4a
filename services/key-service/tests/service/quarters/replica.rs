//! One process of key-service on a shared database: it can stop storing its uses, stop, and die.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use chrono::TimeDelta;
use key_service::app::figures::FigureKeeper;
use key_service::app::keys::{KeyParts, KeySettings, Keys, RevealLimiter};
use key_service::app::sweep::{EventSignal, Leadership, LocalUses, SweepService, Sweeper, SweeperParts};
use key_service::app::upkeep::Upkeep;
use key_service::app::verify::{GuessSettings, UsageRecorder, Verifier, VerifierParts};
use key_service::domain::sweep::SweepPolicy;
use key_service::storage::SqlStore;
use key_service::storage::sweep::SqlSweepStore;
use sea_orm::DatabaseConnection;
use service_kit::clock::{JumpWatch, SimulatedClock};
use service_kit::entropy::SeededEntropy;
use service_kit::ids::IdGenerator;
use service_kit::keyring::KeyRing;
use tokio_util::sync::CancellationToken;

use crate::support::{BOUNDS, SLACK, ring_text};

/// Stores uses, unless the replica hangs.
struct Flushing {
    usage: Arc<UsageRecorder>,
    hangs: AtomicBool,
}

#[async_trait]
impl LocalUses for Flushing {
    async fn flush(&self) {
        if !self.hangs.load(Ordering::SeqCst) {
            self.usage.flush().await.unwrap();
        }
    }

    fn verified(&self) -> u64 {
        self.usage.verified()
    }
}

pub(super) struct Replica {
    pub(super) keys: Arc<Keys>,
    pub(super) verifier: Arc<Verifier>,
    pub(super) sweeper: Sweeper,
    pub(super) service: SweepService,
    watch: Arc<JumpWatch>,
    flushing: Arc<Flushing>,
    upkeep: Upkeep,
    clock: Arc<SimulatedClock>,
}

impl Replica {
    pub(super) async fn start(
        db: &DatabaseConnection,
        clock: &Arc<SimulatedClock>,
        policy: SweepPolicy,
        seed: u64,
    ) -> Self {
        let store = Arc::new(SqlStore::new(db.clone()));
        let name = format!("rep_{seed}");
        let usage = UsageRecorder::open(store.clone(), clock.clone(), name.clone(), BOUNDS).await.unwrap();
        let usage = Arc::new(usage);
        let ring = Arc::new(KeyRing::parse(&ring_text(1)).unwrap());
        let events = EventSignal::new();
        let verifier = VerifierParts {
            store: store.clone(),
            changes: store.clone(),
            ring: ring.clone(),
            clock: clock.clone(),
            usage: usage.clone(),
            events: events.clone(),
            recording_slack: SLACK,
            max_refusals: 100,
            guesses: GuessSettings { per_minute: NonZeroU32::MAX, max_sources: 10 },
        };
        let verifier = Arc::new(Verifier::open(verifier).await.unwrap());
        let keys = Arc::new(Keys::new(KeyParts {
            store: store.clone(),
            ring,
            clock: clock.clone(),
            entropy: Arc::new(SeededEntropy::new(seed)),
            changes: verifier.changes(),
            reveals: RevealLimiter::new(NonZeroU32::MIN, clock.clone()),
            events: events.clone(),
            settings: KeySettings { recoverable: true },
        }));
        let watch = Arc::new(JumpWatch::new(clock.clone()));
        let sweep = Arc::new(SqlSweepStore::new(db.clone()));
        let flushing = Arc::new(Flushing { usage, hangs: AtomicBool::new(false) });
        let ids = IdGenerator::new(Arc::new(SeededEntropy::new(seed + 1_000)));
        let leadership = Arc::new(Leadership::new(sweep.clone(), clock.clone(), name, policy.lease));
        let service =
            SweepService::new(sweep.clone(), clock.clone(), policy, events.clone(), leadership.clone(), watch.clone());
        let sweeper = Sweeper::new(SweeperParts {
            store: sweep,
            usage: flushing.clone(),
            figures: Arc::new(FigureKeeper::new(store.clone())),
            ids,
            policy,
            signal: events,
            leadership,
            watch: watch.clone(),
            end: CancellationToken::new(),
        });
        let upkeep = Upkeep::new(store);
        Self { keys, verifier, sweeper, service, watch, flushing, upkeep, clock: clock.clone() }
    }

    /// What the jobs of a process do every second.
    pub(super) async fn jobs(&self) {
        use service_kit::clock::Clock;
        self.flushing.flush().await;
        self.verifier.changes().catch_up().await.unwrap();
        self.upkeep.end_overlaps(self.clock.now()).await.unwrap();
        self.watch.ahead();
    }

    /// How far this process takes its clock to be ahead.
    pub(super) fn ahead(&self) -> TimeDelta {
        self.watch.ahead()
    }

    /// From now on its uses are not stored any more, or again.
    pub(super) fn hang(&self, hangs: bool) {
        self.flushing.hangs.store(hangs, Ordering::SeqCst);
    }

    /// Ends as it is told to: another one may sweep, and everything is stored.
    pub(super) async fn stop(self) {
        self.sweeper.resign().await.unwrap();
        self.flushing.usage.close().await.unwrap();
    }
}
