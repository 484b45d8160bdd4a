//! A database, a clock that is moved by hand, and the use cases over both.

use std::num::NonZeroU32;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use key_service::app::Caller;
use key_service::app::audit::Audit;
use key_service::app::keys::{Generate, Issued, KeyParts, KeySettings, Keys, RevealLimiter};
use key_service::app::sweep::EventSignal;
use key_service::app::upkeep::Upkeep;
use key_service::app::usage::UsageRecorder;
use key_service::domain::audit::AuditEvent;
use key_service::domain::key::{KeySpec, Networks, Owner, Presented, Scopes, Secret, VerifyCode};
use key_service::storage::entities::api_keys;
use key_service::storage::{Migrator, SqlStore};
use sea_orm::{ConnectionTrait, DatabaseConnection, EntityTrait, Statement};
use service_kit::clock::SimulatedClock;
use service_kit::db;
use service_kit::entropy::SeededEntropy;
use service_kit::keyring::KeyRing;
use service_kit::testing::TestDatabase;

pub(crate) const MICRO: TimeDelta = TimeDelta::microseconds(1);
pub(crate) const SLACK: TimeDelta = TimeDelta::hours(1);
pub(crate) const REVEALS: u32 = 3;

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
    pub(crate) usage: Arc<UsageRecorder>,
    pub(crate) keys: Keys,
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
        let db = db::connect(&database.config()).await.unwrap();
        db::migrate::<Migrator>(&db).await.unwrap();
        let store = Arc::new(SqlStore::new(db.clone()));
        let clock = Arc::new(SimulatedClock::new(start()));
        let replica = format!("rep_{}", setting.seed);
        let usage = Arc::new(UsageRecorder::open(store.clone(), clock.clone(), replica, 10_000).await.unwrap());
        let keys = Keys::new(KeyParts {
            store: store.clone(),
            ring: Arc::new(KeyRing::parse(&setting.ring).unwrap()),
            clock: clock.clone(),
            entropy: Arc::new(SeededEntropy::new(setting.seed)),
            usage: usage.clone(),
            reveals: RevealLimiter::new(NonZeroU32::new(REVEALS).unwrap(), clock.clone()),
            events: EventSignal::new(),
            settings: KeySettings { recoverable: setting.recoverable, recording_slack: SLACK },
        });
        let (audit, upkeep) = (Audit::new(store.clone()), Upkeep::new(store.clone()));
        Self { db, clock, store, usage, keys, audit, upkeep }
    }

    pub(crate) async fn generate(&self, request_id: &str) -> Issued {
        self.keys.generate(&admin(), &order(request_id)).await.unwrap()
    }

    pub(crate) async fn code(&self, secret: &str) -> VerifyCode {
        self.keys.verify(&Secret::new(secret), &Presented::default()).await.unwrap().code
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
    Caller { actor: actor.parse().ok(), call_id: "call-1".into() }
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
