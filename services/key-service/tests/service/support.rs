//! A database, a clock that is moved by hand, and the use cases over both.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use key_service::app::Caller;
use key_service::app::StorageError;
use key_service::app::audit::Audit;
use key_service::app::keys::{
    Change, Generate, ImportCandidate, ImportOutcome, ImportTally, Issued, KeyFilter, KeyParts, KeySettings, KeyStore,
    Keys, NewKey, Recall, Record, Request, Retirement, RevealLimiter, UseOutcome,
};
use key_service::app::sweep::EventSignal;
use key_service::app::upkeep::Upkeep;
use key_service::app::verify::{GuessSettings, MemoryBounds, UsageRecorder, Verifier, VerifierParts};
use key_service::domain::audit::{AuditEvent, NewAuditEvent, Origin};
use key_service::domain::key::{
    ApiKey, KeySpec, Networks, Owner, Presented, RawCredential, RawImportRow, RawOwner, RawTime, Scopes, Secret,
    Selector, StoredKey, VerifyCode,
};
use key_service::storage::entities::api_keys;
use key_service::storage::{Migrator, SqlStore};
use sea_orm::{ConnectionTrait, DatabaseConnection, EntityTrait, Statement};
use service_kit::actor::Actor;
use service_kit::clock::SimulatedClock;
use service_kit::db;
use service_kit::entropy::SeededEntropy;
use service_kit::keyring::{KeyRing, Sealed};
use service_kit::testing::TestDatabase;

pub(crate) const MICRO: TimeDelta = TimeDelta::microseconds(1);
pub(crate) const SLACK: TimeDelta = TimeDelta::hours(1);
pub(crate) const REVEALS: u32 = 3;
pub(crate) const GUESSES: u32 = 5;
pub(crate) const BOUNDS: MemoryBounds = MemoryBounds { max_keys: 1_000, max_waiting: 10_000, flush_max_keys: 10_000 };

/// What differs between worlds.
pub(crate) struct Setting {
    pub(crate) recoverable: bool,
    pub(crate) ring: String,
    pub(crate) seed: u64,
}

impl Default for Setting {
    fn default() -> Self {
        Self { recoverable: true, ring: ring_text(1), seed: 1 }
    }
}

pub(crate) struct World {
    pub(crate) db: DatabaseConnection,
    pub(crate) clock: Arc<SimulatedClock>,
    pub(crate) store: Arc<SqlStore>,
    counted: Arc<CountedStore>,
    pub(crate) usage: Arc<UsageRecorder>,
    pub(crate) verifier: Arc<Verifier>,
    pub(crate) keys: Arc<Keys>,
    pub(crate) audit: Audit,
    pub(crate) upkeep: Upkeep,
}

pub(crate) fn ring_text(seed: u64) -> String {
    KeyRing::generate(&SeededEntropy::new(seed)).to_string()
}

pub(crate) fn start() -> DateTime<Utc> {
    DateTime::from_timestamp(1_795_000_000, 0).unwrap()
}

impl World {
    pub(crate) async fn new(database: &TestDatabase) -> Self {
        Self::with(database, Setting::default()).await
    }

    pub(crate) async fn with(database: &TestDatabase, setting: Setting) -> Self {
        Self::over(db::connect(&database.config()).await.unwrap(), setting).await
    }

    /// Another replica, with a record of every statement that it sends to the database.
    pub(crate) async fn watched(database: &TestDatabase) -> (Self, Arc<Mutex<Vec<String>>>) {
        let mut db = db::connect(&database.config()).await.unwrap();
        let statements = Arc::<Mutex<Vec<String>>>::default();
        let record = statements.clone();
        db.set_metric_callback(move |info| record.lock().unwrap().push(info.statement.sql.clone()));
        (Self::over(db, Setting { seed: 2, ..Setting::default() }).await, statements)
    }

    async fn over(db: DatabaseConnection, setting: Setting) -> Self {
        db::migrate::<Migrator>(&db).await.unwrap();
        let store = Arc::new(SqlStore::new(db.clone()));
        let clock = Arc::new(SimulatedClock::new(start()));
        let replica = format!("rep_{}", setting.seed);
        let usage = Arc::new(UsageRecorder::open(store.clone(), clock.clone(), replica, BOUNDS).await.unwrap());
        let ring = Arc::new(KeyRing::parse(&setting.ring).unwrap());
        let events = EventSignal::new();
        let counted = Arc::new(CountedStore { store: store.clone(), finds: AtomicUsize::new(0) });
        let verifier = VerifierParts {
            store: counted.clone(),
            changes: store.clone(),
            ring: ring.clone(),
            clock: clock.clone(),
            usage: usage.clone(),
            events: events.clone(),
            recording_slack: SLACK,
            max_refusals: 100,
            guesses: GuessSettings { per_minute: NonZeroU32::new(GUESSES).unwrap(), max_sources: 10 },
        };
        let verifier = Arc::new(Verifier::open(verifier).await.unwrap());
        let keys = Arc::new(Keys::new(KeyParts {
            store: store.clone(),
            ring,
            clock: clock.clone(),
            entropy: Arc::new(SeededEntropy::new(setting.seed)),
            changes: verifier.changes(),
            reveals: RevealLimiter::new(NonZeroU32::new(REVEALS).unwrap(), clock.clone()),
            events,
            settings: KeySettings { recoverable: setting.recoverable },
        }));
        let (audit, upkeep) = (Audit::new(store.clone()), Upkeep::new(store.clone()));
        Self { db, clock, store, counted, usage, verifier, keys, audit, upkeep }
    }

    pub(crate) async fn generate(&self, request_id: &str) -> Issued {
        self.keys.generate(&admin(), &order(request_id)).await.unwrap()
    }

    pub(crate) async fn code(&self, secret: &str) -> VerifyCode {
        self.verifier.verify(&Secret::new(secret), &Presented::default()).await.unwrap().code
    }

    /// Imports a key with this secret.
    pub(crate) async fn import(&self, secret: &str) {
        let row = RawImportRow {
            owner: RawOwner::Agency("agy_1".into()),
            credential: RawCredential::Secret(Secret::new(secret)),
            created_at: RawTime::At(start() - TimeDelta::days(1)),
            last_used_at: RawTime::Unset,
            external_reference: "old".into(),
            display_name: String::new(),
            scopes: Vec::new(),
        };
        let mut tally = ImportTally::default();
        self.keys.import_chunk(&admin(), vec![row], &mut tally).await.unwrap();
        assert_eq!(tally.imported, 1);
    }

    /// How often a secret was looked up in the database.
    pub(crate) fn look_ups(&self) -> usize {
        self.counted.finds.load(Ordering::SeqCst)
    }

    pub(crate) async fn row(&self, key_id: &str) -> api_keys::Model {
        api_keys::Entity::find_by_id(key_id).one(&self.db).await.unwrap().unwrap()
    }

    pub(crate) async fn count(&self, table: &str) -> i64 {
        let sql = format!("SELECT COUNT(*) AS n FROM {table}");
        let statement = Statement::from_string(self.db.get_database_backend(), sql);
        self.db.query_one_raw(statement).await.unwrap().unwrap().try_get("", "n").unwrap()
    }

    pub(crate) async fn execute(&self, sql: &str) {
        self.db.execute_unprepared(sql).await.unwrap();
    }

    pub(crate) async fn actions(&self, key_id: &str) -> Vec<String> {
        self.events(key_id).await.into_iter().map(|event| event.action).collect()
    }

    /// The detail of a key's only audit event of an action.
    pub(crate) async fn detail(&self, key_id: &str, action: &str) -> serde_json::Value {
        let mut events = self.events(key_id).await.into_iter().filter(|event| event.action == action);
        let (Some(event), None) = (events.next(), events.next()) else { panic!("not one {action}") };
        serde_json::from_str(&event.detail).unwrap()
    }

    async fn events(&self, key_id: &str) -> Vec<AuditEvent> {
        let filter = key_service::app::audit::AuditFilter { key_id: Some(key_id.to_owned()), ..Default::default() };
        let page = service_kit::page::Page { size: 100, cursor: None };
        self.audit.list(&filter, &page).await.unwrap().unwrap().0
    }
}

pub(crate) fn caller(actor: &str) -> Caller {
    Caller {
        actor: actor.parse().ok(),
        call_id: "call-1".into(),
        origin: Origin { caller: None, peer: "192.0.2.7:4711".parse().ok() },
    }
}

pub(crate) fn admin() -> Caller {
    caller("user/usr_1")
}

pub(crate) fn owner() -> Owner {
    Owner { agency_id: "agy_1".into(), location_id: Some("loc_1".into()) }
}

pub(crate) fn order(request_id: &str) -> Generate {
    Generate {
        spec: KeySpec {
            owner: owner(),
            display_name: "front desk".into(),
            scopes: Scopes::from_stored(vec!["read".into(), "write".into()]),
            networks: Networks::default(),
            expires_at: None,
        },
        request_id: request_id.into(),
    }
}

pub(crate) fn text(issued: &Issued) -> String {
    issued.secret.as_ref().unwrap().expose().to_owned()
}

/// The store itself, which counts how often it is asked for a secret.
struct CountedStore {
    store: Arc<SqlStore>,
    finds: AtomicUsize,
}

#[async_trait]
impl KeyStore for CountedStore {
    async fn recall(&self, request: &Request, now: DateTime<Utc>) -> Result<Recall, StorageError> {
        self.store.recall(request, now).await
    }
    async fn insert(&self, new: NewKey, record: Record) -> Result<Change, StorageError> {
        self.store.insert(new, record).await
    }
    async fn get(&self, key_id: &str) -> Result<Option<ApiKey>, StorageError> {
        self.store.get(key_id).await
    }
    async fn sealed_secret(&self, key_id: &str) -> Result<Option<Sealed>, StorageError> {
        self.store.sealed_secret(key_id).await
    }
    async fn list(
        &self,
        filter: &KeyFilter,
        after: Option<&str>,
        limit: u32,
        now: DateTime<Utc>,
    ) -> Result<Vec<ApiKey>, StorageError> {
        self.store.list(filter, after, limit, now).await
    }
    async fn find(&self, selectors: &[Selector]) -> Result<Vec<(Selector, StoredKey)>, StorageError> {
        self.finds.fetch_add(1, Ordering::SeqCst);
        self.store.find(selectors).await
    }
    async fn store_use(&self, key_id: &str, used_at: DateTime<Utc>, actor: &Actor) -> Result<UseOutcome, StorageError> {
        self.store.store_use(key_id, used_at, actor).await
    }
    async fn update(&self, key: &ApiKey, record: Record) -> Result<Change, StorageError> {
        self.store.update(key, record).await
    }
    async fn rotate(&self, retirement: Retirement, successor: NewKey, record: Record) -> Result<Change, StorageError> {
        self.store.rotate(retirement, successor, record).await
    }
    async fn revoke(&self, key_id: &str, revision: i64, record: Record) -> Result<Change, StorageError> {
        self.store.revoke(key_id, revision, record).await
    }
    async fn import(&self, rows: Vec<ImportCandidate>) -> Result<Vec<ImportOutcome>, StorageError> {
        self.store.import(rows).await
    }
    async fn audit(&self, event: NewAuditEvent) -> Result<(), StorageError> {
        self.store.audit(event).await
    }
}
