//! The sweep on real databases: a house with a clock that the test moves.

mod deleting;
mod desk;
mod gate;
mod leading;
mod notices;
mod planning;
mod rescuing;
mod retaining;

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::sea_query::Expr;
use sea_orm::{
    ActiveValue::Set, ColumnTrait, DatabaseConnection, EntityTrait, PaginatorTrait, QueryFilter, QueryOrder,
};
use service_kit::actor::Actor;
use service_kit::clock::{Clock, JumpWatch, SimulatedClock};
use service_kit::db::{begin_write, connect, migrate};
use service_kit::entropy::SeededEntropy;
use service_kit::ids::IdGenerator;
use service_kit::testing::TestDatabase;
use service_kit::time::{from_micros, to_micros};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::SqlSweepStore;
use super::codes::Coded;
use super::entities::{entries, events, lease, lots};
use crate::app::figures::FigureKeeper;
use crate::app::sweep::{
    EventSignal, Leadership, Lease, LocalUses, LotView, NoticeReply, NoticeResult, OperatorCall, PlanView, SweepDesk,
    SweepReads, SweepService, SweepTick, Sweeper, SweeperParts,
};
use crate::domain::audit::Origin;
use crate::domain::sweep::{
    Breaker, EntryState, EventPayload, HoldReason, LotCounts, LotState, Notice, NoticeKind, Passage, RescueCause,
    Stage, SweepPolicy,
};
use crate::storage::entities::{api_keys, audit_events, usage_writers};
use crate::storage::{Migrator, SqlStore, StorageError, sweep};

pub(crate) const TICK: TimeDelta = TimeDelta::microseconds(1);

/// The deletion instant of the tests' quarter.
pub(crate) fn d() -> DateTime<Utc> {
    from_micros(1_798_761_600_000_000)
}

/// When its plan is due.
pub(crate) fn plan_time() -> DateTime<Utc> {
    d() - TimeDelta::days(15) - TimeDelta::hours(6)
}

/// The cutoff of its plan.
pub(crate) fn idle() -> DateTime<Utc> {
    d() - TimeDelta::days(90)
}

/// A process that verifies nothing.
struct NoUses;

#[async_trait]
impl LocalUses for NoUses {
    async fn flush(&self) {}

    fn verified(&self) -> u64 {
        0
    }
}

/// The sweep over one database.
pub(crate) struct House {
    pub(crate) db: DatabaseConnection,
    pub(crate) store: SqlSweepStore,
    pub(crate) clock: Arc<SimulatedClock>,
    pub(crate) sweeper: Arc<Sweeper>,
    pub(crate) service: SweepService,
    policy: SweepPolicy,
    _database: TestDatabase,
}

impl House {
    pub(crate) async fn new(database: TestDatabase) -> Self {
        Self::with(database, SweepPolicy::default()).await
    }

    pub(crate) async fn with(database: TestDatabase, policy: SweepPolicy) -> Self {
        let db = connect(&database.config()).await.expect("connects");
        migrate::<Migrator>(&db).await.expect("migrates");
        let clock = Arc::new(SimulatedClock::new(plan_time()));
        let store = SqlSweepStore::new(db.clone());
        let parts = parts((&db, &store), policy, clock.clone(), "rep_me", 7);
        let (signal, leadership, watch) = (parts.signal.clone(), parts.leadership.clone(), parts.watch.clone());
        let service = SweepService::new(Arc::new(store.clone()), clock.clone(), policy, signal, leadership, watch);
        let sweeper = Arc::new(Sweeper::new(parts));
        Self { db, store, clock, sweeper, service, policy, _database: database }
    }

    /// Another replica's sweeper on the same database, by the same clock.
    pub(crate) fn another_sweeper(&self) -> Sweeper {
        self.another_sweeper_by(self.clock.clone())
    }

    /// Another replica's sweeper on the same database, by a clock of its own.
    pub(crate) fn another_sweeper_by(&self, clock: Arc<dyn Clock>) -> Sweeper {
        Sweeper::new(self.parts(clock, "rep_other", 8))
    }

    /// What another replica's sweeper is made of.
    fn parts(&self, clock: Arc<dyn Clock>, replica_id: &str, seed: u64) -> SweeperParts {
        parts((&self.db, &self.store), self.policy, clock, replica_id, seed)
    }

    /// The lease as its holder knows it, whoever that is.
    pub(crate) async fn lease(&self) -> Lease {
        let row = lease::Entity::find_by_id(1_i16).one(&self.db).await.expect("query").expect("lease");
        Lease { owner: row.owner, token: row.token, lasts: TimeDelta::seconds(15) }
    }

    /// Removes the oldest events, as retention does while a stream is behind.
    pub(crate) async fn lose_events_through(&self, sequence: i64) {
        let gone = events::Entity::delete_many().filter(events::Column::Sequence.lte(sequence));
        gone.exec(&self.db).await.expect("they go");
    }

    /// A key of `agy_1`'s location `loc_1`, created long ago.
    pub(crate) async fn key(&self, id: &str, last_used_at: Option<DateTime<Utc>>) {
        self.key_of(id, "agy_1", Some("loc_1"), last_used_at).await;
    }

    pub(crate) async fn key_of(
        &self,
        id: &str,
        agency: &str,
        location: Option<&str>,
        last_used_at: Option<DateTime<Utc>>,
    ) {
        let row = key_row(id, agency, location, idle() - TimeDelta::days(400), last_used_at);
        self.insert(vec![row]).await;
    }

    pub(crate) async fn insert(&self, rows: Vec<api_keys::ActiveModel>) {
        for chunk in rows.chunks(500) {
            api_keys::Entity::insert_many(chunk.to_vec()).exec_without_returning(&self.db).await.expect("keys");
        }
    }

    /// Changes a key behind the sweep's back.
    pub(crate) async fn set(&self, id: &str, column: api_keys::Column, value: impl Into<sea_orm::Value>) {
        let value: sea_orm::Value = value.into();
        let update =
            api_keys::Entity::update_many().col_expr(column, Expr::value(value)).filter(api_keys::Column::Id.eq(id));
        assert_eq!(update.exec(&self.db).await.expect("update").rows_affected, 1);
    }

    /// A use as VerifyKey stores it: refused once the key is deleted.
    pub(crate) async fn use_key(&self, id: &str) -> Result<Option<Option<String>>, StorageError> {
        let now = self.clock.now();
        let tx = begin_write(&self.db).await?;
        let stored = api_keys::Entity::update_many()
            .col_expr(api_keys::Column::LastUsedAt, Expr::value(to_micros(now)))
            .filter(api_keys::Column::Id.eq(id))
            .filter(api_keys::Column::State.eq(1))
            .exec(&tx)
            .await?;
        if stored.rows_affected == 0 {
            return Ok(None);
        }
        let actor = Actor::ApiKey(id.to_owned());
        let plan = sweep::rescue(&tx, id, RescueCause::Used, now, &actor).await?;
        tx.commit().await?;
        Ok(Some(plan))
    }

    pub(crate) async fn key_state(&self, id: &str) -> i16 {
        self.key_row(id).await.state
    }

    pub(crate) async fn key_row(&self, id: &str) -> api_keys::Model {
        api_keys::Entity::find_by_id(id).one(&self.db).await.expect("query").expect("key")
    }

    /// Moves the clock and lets the sweeper do what is due.
    pub(crate) async fn tick_at(&self, at: DateTime<Utc>) -> SweepTick {
        self.clock.advance_to(at);
        self.sweeper.tick(self.clock.now()).await.expect("tick")
    }

    /// The only plan.
    pub(crate) async fn plan(&self) -> PlanView {
        let page = service_kit::page::Page { size: 2, cursor: None };
        let mut plans = self.store.plans(crate::app::sweep::PlanFilter::default(), &page).await.expect("plans");
        assert_eq!(plans.len(), 1);
        plans.pop().expect("plan")
    }

    pub(crate) async fn lot(&self, agency: &str) -> LotView {
        let plan_id = self.plan().await.plan.plan_id;
        let filter = crate::app::sweep::LotFilter { plan_id, state: None };
        let page = service_kit::page::Page { size: 100, cursor: None };
        let (lots, _) = self.service.lots(&filter, &page).await.expect("lots");
        lots.into_iter().find(|view| view.lot.agency_id == agency).expect("lot")
    }

    pub(crate) async fn entry(&self, key_id: &str) -> entries::Model {
        entries::Entity::find()
            .filter(entries::Column::KeyId.eq(key_id))
            .one(&self.db)
            .await
            .expect("query")
            .expect("entry")
    }

    pub(crate) async fn entry_state(&self, key_id: &str) -> i16 {
        self.entry(key_id).await.state
    }

    /// The notices of a stage, delivered at an instant and reported then.
    pub(crate) async fn deliver(&self, agency: &str, stage: Stage, at: DateTime<Utc>) -> NoticeResult {
        let kind = NoticeKind::Delivered { at, in_app_count: 1, emails_accepted: 1 };
        self.report(agency, stage, kind, at).await
    }

    pub(crate) async fn undeliverable(
        &self,
        agency: &str,
        stage: Stage,
        why: HoldReason,
        at: DateTime<Utc>,
    ) -> NoticeResult {
        self.report(agency, stage, NoticeKind::Undeliverable(why), at).await
    }

    async fn report(&self, agency: &str, stage: Stage, kind: NoticeKind, at: DateTime<Utc>) -> NoticeResult {
        if at > self.clock.now() {
            self.clock.advance_to(at);
        }
        let notice = Notice { plan_id: self.plan().await.plan.plan_id, agency_id: agency.to_owned(), stage, kind };
        let now = self.clock.now();
        let passage = Passage { sent_at: Some(now), arrived_at: now };
        self.store.record_notices(&[notice], &passage).await.expect("recorded").pop().expect("one")
    }

    /// All notices of a lot on their marks, up to and with a stage.
    pub(crate) async fn deliver_through(&self, agency: &str, last: Stage) {
        for stage in Stage::ALL.into_iter().filter(|stage| *stage <= last) {
            let at = self.lot(agency).await.lot.delete_at - stage.lead();
            assert_eq!(self.deliver(agency, stage, at).await.reply, NoticeReply::Recorded);
        }
    }

    /// Every event; fails unless their sequences are without gaps.
    pub(crate) async fn events(&self) -> Vec<EventPayload> {
        let rows = events::Entity::find().order_by_asc(events::Column::Sequence).all(&self.db).await.expect("events");
        for (place, row) in rows.iter().enumerate() {
            assert_eq!(row.sequence, i64::try_from(place).expect("small") + 1, "a gap in the history");
        }
        rows.into_iter().map(|row| super::codes::event(row).expect("readable").payload).collect()
    }

    /// The names of all events.
    pub(crate) async fn event_names(&self) -> Vec<String> {
        let name = |event: &EventPayload| match serde_json::to_value(event).expect("json") {
            serde_json::Value::Object(map) => map.keys().next().cloned().unwrap_or_default(),
            other => other.to_string(),
        };
        self.events().await.iter().map(name).collect()
    }

    /// The actions of all audit events.
    pub(crate) async fn audited(&self) -> Vec<String> {
        let rows = audit_events::Entity::find()
            .order_by_asc(audit_events::Column::Sequence)
            .all(&self.db)
            .await
            .expect("audit");
        rows.into_iter().map(|row| row.action).collect()
    }

    /// Reason and detail of each audit event of an action.
    pub(crate) async fn facts(&self, action: &str) -> Vec<(String, serde_json::Value)> {
        let rows = audit_events::Entity::find()
            .filter(audit_events::Column::Action.eq(action))
            .order_by_asc(audit_events::Column::Sequence)
            .all(&self.db)
            .await
            .expect("audit");
        rows.into_iter().map(|row| (row.reason, serde_json::from_str(&row.detail).expect("json"))).collect()
    }

    pub(crate) async fn lot_row(&self, agency: &str) -> lots::Model {
        lots::Entity::find().filter(lots::Column::AgencyId.eq(agency)).one(&self.db).await.expect("query").expect("lot")
    }

    pub(crate) async fn entry_count(&self) -> u64 {
        entries::Entity::find().count(&self.db).await.expect("count")
    }

    /// A row of `usage_writers`.
    pub(crate) async fn writer(&self, replica: &str, flushed_through: DateTime<Utc>) {
        let row = usage_writers::ActiveModel {
            replica_id: Set(replica.to_owned()),
            started_at: Set(0),
            flushed_through_at: Set(to_micros(flushed_through)),
            closed_at: Set(None),
        };
        usage_writers::Entity::insert(row).exec_without_returning(&self.db).await.expect("writer");
    }
}

fn parts(
    (db, store): (&DatabaseConnection, &SqlSweepStore),
    policy: SweepPolicy,
    clock: Arc<dyn Clock>,
    replica_id: &str,
    seed: u64,
) -> SweeperParts {
    let store = Arc::new(store.clone());
    let leadership = Leadership::new(store.clone(), clock.clone(), replica_id.to_owned(), policy.lease);
    SweeperParts {
        store,
        usage: Arc::new(NoUses),
        figures: Arc::new(FigureKeeper::new(Arc::new(SqlStore::new(db.clone())))),
        ids: IdGenerator::new(Arc::new(SeededEntropy::new(seed))),
        policy,
        signal: EventSignal::new(),
        leadership: Arc::new(leadership),
        watch: Arc::new(JumpWatch::new(clock)),
        end: CancellationToken::new(),
    }
}

/// A row of `api_keys`.
pub(crate) fn key_row(
    id: &str,
    agency: &str,
    location: Option<&str>,
    created_at: DateTime<Utc>,
    last_used_at: Option<DateTime<Utc>>,
) -> api_keys::ActiveModel {
    api_keys::ActiveModel {
        id: Set(id.to_owned()),
        agency_id: Set(agency.to_owned()),
        location_id: Set(location.map(ToOwned::to_owned)),
        display_name: Set(format!("name of {id}")),
        display_prefix: Set("ksw_loc_abcd".to_owned()),
        scopes: Set("[]".to_owned()),
        allowed_cidrs: Set("[]".to_owned()),
        created_at: Set(to_micros(created_at)),
        last_used_at: Set(last_used_at.map(to_micros)),
        expires_at: Set(None),
        state: Set(1),
        revoke_at: Set(None),
        deleted_at: Set(None),
        selector: Set(Sha256::digest(id.as_bytes())[..16].to_vec()),
        secret_hash: Set(Some(vec![1; 32])),
        pepper_version: Set(Some(1)),
        sealed_secret: Set(Some(vec![2; 40])),
        master_version: Set(Some(1)),
        successor_id: Set(None),
        external_reference: Set(None),
        import_fingerprint: Set(None),
        revision: Set(1),
    }
}

/// A policy whose breaker never trips and whose batches are small.
pub(crate) fn small_batches(delete_batch: u32) -> SweepPolicy {
    SweepPolicy { delete_batch, ..SweepPolicy::default() }
}

pub(crate) fn operator(reason: &str) -> OperatorCall {
    OperatorCall {
        actor: Some(Actor::User("usr_op".into())),
        reason: reason.to_owned(),
        request_id: String::new(),
        call_id: "call-1".to_owned(),
        origin: Origin::default(),
    }
}

pub(crate) fn tight_breaker() -> SweepPolicy {
    SweepPolicy { breaker: Breaker { max_percent: 25, max_keys: 2 }, ..SweepPolicy::default() }
}

pub(crate) const PLANNED: i16 = 1;
pub(crate) const RESCUED: i16 = 2;
pub(crate) const DELETED: i16 = 3;
pub(crate) const SPARED: i16 = 4;

/// What a lot or plan counts.
pub(crate) fn counted(planned: i64, rescued: i64, deleted: i64, spared: i64) -> LotCounts {
    LotCounts { planned, rescued, deleted, spared }
}

#[test]
fn the_states_of_the_tests_are_those_of_the_database() {
    assert_eq!(EntryState::ALL.map(Coded::code), [PLANNED, RESCUED, DELETED, SPARED]);
    assert_eq!(LotState::Open.code(), 1);
    assert_eq!(d().to_rfc3339(), "2027-01-01T00:00:00+00:00");
}
