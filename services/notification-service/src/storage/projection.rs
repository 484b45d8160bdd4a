//! Applies events: what stands in `plans`, `lots` and `entries` follows from them alone.

use std::collections::BTreeMap;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sea_orm::prelude::*;
use sea_orm::{ActiveValue::Set, ConnectionTrait, DatabaseTransaction, QueryOrder, QuerySelect, Statement};
use service_kit::ids::IdGenerator;
use service_kit::rows::{Column, Rows};
use service_kit::time::to_micros;

use super::announce::{self, Announcement};
use super::entities::{entries, heads, lots, plans, stages};
use super::stages::{StageState, due_at, waiting};
use super::{Store, corrupt};
use crate::app::ports::{ApplyError, Cursor, ProjectionStore, StorageError};
use crate::domain::event::{Payload, SweepEvent};
use crate::domain::ids::{AgencyId, KeyId, PlanId};
use crate::domain::notification::Kind;
use crate::domain::plan::{Entry, HoldReason, LotState, PlanState, RescueCause};
use crate::domain::stage::Stage;

/// Rows in one INSERT: 12 values each stay far below SQLite's 32,766.
const ROWS: usize = 1_000;

/// The head's only row.
const HEAD: i16 = 1;

/// The head's row, locked: whoever writes notices or applies events goes one after the other.
pub(super) async fn lock_head(tx: &DatabaseTransaction) -> Result<heads::Model, StorageError> {
    heads::Entity::find_by_id(HEAD).lock_exclusive().one(tx).await?.ok_or_else(|| corrupt("head"))
}

#[async_trait]
impl ProjectionStore for Store {
    async fn cursor(&self) -> Result<Cursor, StorageError> {
        let head = heads::Entity::find_by_id(HEAD).one(&self.db).await?.ok_or_else(|| corrupt("head"))?;
        Ok(Cursor { sequence: head.applied_sequence, mark: head.applied_event })
    }

    async fn apply(&self, events: Vec<SweepEvent>, now: DateTime<Utc>) -> Result<i64, ApplyError> {
        let tx = self.begin().await.map_err(StorageError::from)?;
        let head = lock_head(&tx).await?;
        let cursor = Cursor { sequence: head.applied_sequence, mark: head.applied_event };
        let mut replay = Replay { cursor, notifications: head.notification_sequence, now, muted: false };
        replay.apply(&tx, &self.ids, events).await?;
        replay.write(&tx).await?;
        tx.commit().await.map_err(StorageError::from)?;
        Ok(replay.cursor.sequence)
    }
}

/// Events applied one after the other.
pub(super) struct Replay {
    pub(super) cursor: Cursor,
    /// The sequence of the last notification.
    pub(super) notifications: i64,
    pub(super) now: DateTime<Utc>,
    /// Whether what the events announce was announced before.
    pub(super) muted: bool,
}

impl Replay {
    /// Applies events in their order, within a transaction that has locked the head.
    pub(super) async fn apply(
        &mut self,
        tx: &DatabaseTransaction,
        ids: &IdGenerator,
        events: Vec<SweepEvent>,
    ) -> Result<(), ApplyError> {
        let mut change = Change { tx, ids, notifications: self.notifications, now: self.now, muted: self.muted };
        for event in events {
            let applied = self.cursor.sequence;
            if event.sequence <= applied {
                // Applied before a reconnect, or by another replica.
                continue;
            }
            // An old history may begin with a later plan: what came before had ended, and is gone.
            let begins = applied == 0 && matches!(event.payload, Payload::PlanPublished { .. });
            if event.sequence != applied + 1 && !begins {
                return Err(ApplyError::Gap { expected: applied + 1, sequence: event.sequence });
            }
            self.cursor = Cursor { sequence: event.sequence, mark: event.mark() };
            change.apply(event).await?;
        }
        self.notifications = change.notifications;
        Ok(())
    }

    /// Writes the head.
    pub(super) async fn write(&self, tx: &DatabaseTransaction) -> Result<(), StorageError> {
        let row = heads::ActiveModel {
            id: Set(HEAD),
            applied_sequence: Set(self.cursor.sequence),
            applied_event: Set(self.cursor.mark.clone()),
            notification_sequence: Set(self.notifications),
        };
        row.update(tx).await?;
        Ok(())
    }
}

/// Writes the sequence of the last notification.
pub(super) async fn write_notifications(tx: &DatabaseTransaction, notifications: i64) -> Result<(), StorageError> {
    heads::Entity::update_many()
        .col_expr(heads::Column::NotificationSequence, Expr::value(notifications))
        .filter(heads::Column::Id.eq(HEAD))
        .exec(tx)
        .await?;
    Ok(())
}

/// One transaction's events.
struct Change<'a> {
    tx: &'a DatabaseTransaction,
    ids: &'a IdGenerator,
    notifications: i64,
    now: DateTime<Utc>,
    muted: bool,
}

impl Change<'_> {
    async fn apply(&mut self, event: SweepEvent) -> Result<(), ApplyError> {
        let SweepEvent { sequence, happened_at, plan_id, payload } = event;
        let at = Position { sequence, plan_id };
        match payload {
            Payload::PlanPublished { delete_at, idle_since_at, last_delete_at, stage_window } => {
                let row = plans::ActiveModel {
                    plan_id: Set(at.plan_id.clone().into()),
                    state: Set(PlanState::Open.code()),
                    state_reason: Set(String::new()),
                    delete_at: Set(to_micros(delete_at)),
                    idle_since_at: Set(to_micros(idle_since_at)),
                    last_delete_at: Set(to_micros(last_delete_at)),
                    stage_window_ms: Set(stage_window.num_milliseconds()),
                    published_at: Set(to_micros(happened_at)),
                    sealed_sequence: Set(None),
                    closed_sequence: Set(None),
                    entry_count: Set(0),
                    lot_count: Set(0),
                };
                plans::Entity::insert(row).exec_without_returning(self.tx).await.map_err(StorageError::from)?;
            }
            Payload::PlanEntries(entries) => self.add_entries(&at, entries).await?,
            Payload::PlanSealed { entry_count, lot_count } => self.seal(&at, entry_count, lot_count).await?,
            Payload::EntryRescued { agency_id, key_id, cause, rescued_at } => {
                self.rescue(&at, &agency_id, &key_id, cause, rescued_at).await?
            }
            Payload::LotRescheduled { agency_id, delete_at } => self.reschedule(&at, &agency_id, delete_at).await?,
            Payload::LotHeld { agency_id, hold_reason, reason } => {
                self.hold(&at, &agency_id, hold_reason, reason).await?
            }
            Payload::LotReleased { agency_id } => self.release(&at, &agency_id).await?,
            Payload::LotExecuted { agency_id, deleted_count, executed_at: _ } => {
                self.execute(&at, &agency_id, deleted_count).await?
            }
            Payload::LotDeferred { agency_id, reason } => {
                let lot = self.lot(&at, &agency_id).await?;
                self.close_lot(&at, lot, LotState::Deferred, &reason, Some(Kind::Kept)).await?;
            }
            Payload::PlanCompleted => {
                self.close_plan(&at, PlanState::Completed, String::new()).await?;
            }
            Payload::PlanCancelled { reason } => self.cancel(&at, reason).await?,
        }
        Ok(())
    }

    async fn plan(&self, at: &Position) -> Result<plans::Model, ApplyError> {
        let found = plans::Entity::find_by_id(at.plan_id.as_str()).one(self.tx).await.map_err(StorageError::from)?;
        found.ok_or_else(|| at.unfit("its plan was never published"))
    }

    async fn lot(&self, at: &Position, agency_id: &AgencyId) -> Result<lots::Model, ApplyError> {
        let id = (at.plan_id.as_str().to_owned(), agency_id.as_str().to_owned());
        let found = lots::Entity::find_by_id(id).one(self.tx).await.map_err(StorageError::from)?;
        found.ok_or_else(|| at.unfit("its plan has no lot of this agency"))
    }

    async fn add_entries(&self, at: &Position, chunk: Vec<Entry>) -> Result<(), ApplyError> {
        let plan = self.plan(at).await?;
        if plan.sealed_sequence.is_some() {
            return Err(at.unfit("its plan is sealed"));
        }
        let mut counts: BTreeMap<AgencyId, i64> = BTreeMap::new();
        for entry in &chunk {
            *counts.entry(entry.owner.agency_id.clone()).or_default() += 1;
        }
        let backend = self.tx.get_database_backend();
        let mut chunk = chunk;
        while !chunk.is_empty() {
            let rest = chunk.split_off(chunk.len().min(ROWS));
            let (relation, rows) = entry_rows(chunk).relation(backend, 2);
            let sql = format!(
                "INSERT INTO entries (plan_id, agency_id, key_id, location_id, display_name, display_prefix, created_at, last_used_at, idle_days) \
                 SELECT CAST($1 AS TEXT), t.agency_id, t.key_id, t.location_id, t.display_name, t.display_prefix, t.created_at, t.last_used_at, t.idle_days \
                 FROM {relation}"
            );
            let values = [vec![plan.plan_id.as_str().into()], rows].concat();
            let insert = Statement::from_sql_and_values(backend, sql, values);
            self.tx.execute_raw(insert).await.map_err(StorageError::from)?;
            chunk = rest;
        }
        let (agencies, counts) = counts.into_iter().map(|(agency_id, count)| (String::from(agency_id), count)).unzip();
        let rows = Rows::new("t").column("agency_id", Column::Text(agencies)).column("number", Column::BigInt(counts));
        let (relation, rows) = rows.relation(backend, 4);
        // SQLite tells the conflict of an INSERT from the join of its SELECT by the WHERE between them.
        let sql = format!(
            "INSERT INTO lots (plan_id, agency_id, state, state_reason, delete_at, entry_count, live_count) \
             SELECT CAST($1 AS TEXT), t.agency_id, CAST($2 AS SMALLINT), '', CAST($3 AS BIGINT), t.number, t.number FROM {relation} WHERE true \
             ON CONFLICT (plan_id, agency_id) DO UPDATE SET entry_count = lots.entry_count + excluded.entry_count, \
             live_count = lots.live_count + excluded.live_count"
        );
        let head = vec![plan.plan_id.as_str().into(), LotState::Open.code().into(), plan.delete_at.into()];
        let grown = Statement::from_sql_and_values(backend, sql, [head, rows].concat());
        self.tx.execute_raw(grown).await.map_err(StorageError::from)?;
        Ok(())
    }

    /// From here on the plan's lots count: their first notices may go out.
    async fn seal(&self, at: &Position, entry_count: i64, lot_count: i64) -> Result<(), ApplyError> {
        let plan = self.plan(at).await?;
        let mut sealed: plans::ActiveModel = plan.clone().into();
        sealed.sealed_sequence = Set(Some(at.sequence));
        sealed.entry_count = Set(entry_count);
        sealed.lot_count = Set(lot_count);
        sealed.update(self.tx).await.map_err(StorageError::from)?;
        let (mut lot_total, mut entry_total) = (0, 0);
        let mut after = String::new();
        loop {
            let page = self.lots_after(at, &after).await?;
            let Some(last) = page.last() else { break };
            after.clone_from(&last.agency_id);
            lot_total += page.len() as i64;
            entry_total += page.iter().map(|lot| lot.entry_count).sum::<i64>();
            let rows = page.iter().map(|lot| waiting(Stage::D15, lot, &plan, at.sequence));
            stages::Entity::insert_many(rows)
                .on_conflict_do_nothing()
                .exec_without_returning(self.tx)
                .await
                .map_err(StorageError::from)?;
        }
        if (lot_total, entry_total) != (lot_count, entry_count) {
            return Err(at.unfit(&format!(
                "it counts {entry_count} entries in {lot_count} lots, of which {entry_total} in {lot_total} came"
            )));
        }
        Ok(())
    }

    async fn lots_after(&self, at: &Position, after: &str) -> Result<Vec<lots::Model>, StorageError> {
        let page = lots::Entity::find()
            .filter(lots::Column::PlanId.eq(at.plan_id.as_str()))
            .filter(lots::Column::AgencyId.gt(after))
            .order_by_asc(lots::Column::AgencyId)
            .limit(ROWS as u64);
        Ok(page.all(self.tx).await?)
    }

    async fn rescue(
        &mut self,
        at: &Position,
        agency_id: &AgencyId,
        key_id: &KeyId,
        cause: RescueCause,
        rescued_at: DateTime<Utc>,
    ) -> Result<(), ApplyError> {
        let id = (at.plan_id.as_str().to_owned(), agency_id.as_str().to_owned(), key_id.as_str().to_owned());
        let found = entries::Entity::find_by_id(id).one(self.tx).await.map_err(StorageError::from)?;
        let entry = found.ok_or_else(|| at.unfit("its plan does not list this key"))?;
        if entry.left_sequence.is_some() {
            return Ok(());
        }
        let location_id = entry.location_id.clone();
        let mut left: entries::ActiveModel = entry.into();
        left.left_at = Set(Some(to_micros(rescued_at)));
        left.left_sequence = Set(Some(at.sequence));
        left.left_cause = Set(Some(cause.code()));
        left.update(self.tx).await.map_err(StorageError::from)?;
        let lot = self.lot(at, agency_id).await?;
        let mut fewer: lots::ActiveModel = lot.clone().into();
        fewer.live_count = Set(lot.live_count - 1);
        fewer.update(self.tx).await.map_err(StorageError::from)?;
        if cause == RescueCause::Used {
            let rescued = announce::Rescued { key_id: key_id.as_str(), location_id: &location_id };
            self.announce(at, &lot, Kind::Rescued, Some(rescued), "").await?;
        }
        Ok(())
    }

    async fn reschedule(
        &mut self,
        at: &Position,
        agency_id: &AgencyId,
        delete_at: DateTime<Utc>,
    ) -> Result<(), ApplyError> {
        let lot = self.lot(at, agency_id).await?;
        // A deletion never moves earlier.
        if to_micros(delete_at) <= lot.delete_at {
            return Ok(());
        }
        let mut later: lots::ActiveModel = lot.into();
        later.delete_at = Set(to_micros(delete_at));
        let lot = later.update(self.tx).await.map_err(StorageError::from)?;
        self.put_off_stages(at, &lot).await?;
        self.announce(at, &lot, Kind::Rescheduled, None, "").await?;
        Ok(())
    }

    /// Sets the time of the lot's waiting stage by its current deletion instant.
    async fn put_off_stages(&self, at: &Position, lot: &lots::Model) -> Result<(), ApplyError> {
        let plan = self.plan(at).await?;
        for stage in Stage::ALL {
            stages::Entity::update_many()
                .col_expr(stages::Column::DueAt, Expr::value(to_micros(due_at(stage, lot, &plan))))
                .filter(stages::Column::PlanId.eq(&lot.plan_id))
                .filter(stages::Column::AgencyId.eq(&lot.agency_id))
                .filter(stages::Column::Stage.eq(stage.code()))
                .filter(stages::Column::State.eq(StageState::Waiting.code()))
                .exec(self.tx)
                .await
                .map_err(StorageError::from)?;
        }
        Ok(())
    }

    async fn hold(
        &self,
        at: &Position,
        agency_id: &AgencyId,
        hold_reason: HoldReason,
        reason: String,
    ) -> Result<(), ApplyError> {
        let lot = self.lot(at, agency_id).await?;
        let mut held: lots::ActiveModel = lot.into();
        held.state = Set(LotState::Held.code());
        held.hold_reason = Set(Some(hold_reason.code()));
        held.state_reason = Set(reason);
        held.update(self.tx).await.map_err(StorageError::from)?;
        Ok(())
    }

    async fn release(&self, at: &Position, agency_id: &AgencyId) -> Result<(), ApplyError> {
        let lot = self.lot(at, agency_id).await?;
        let mut open: lots::ActiveModel = lot.into();
        open.state = Set(LotState::Open.code());
        open.hold_reason = Set(None);
        open.state_reason = Set(String::new());
        let lot = open.update(self.tx).await.map_err(StorageError::from)?;
        self.put_off_stages(at, &lot).await
    }

    async fn execute(&mut self, at: &Position, agency_id: &AgencyId, deleted_count: i64) -> Result<(), ApplyError> {
        let lot = self.lot(at, agency_id).await?;
        // Where key-service, in doubt, let keys live that no event told of, we cannot say which: better silence than a wrong list.
        let told = (deleted_count == lot.live_count && deleted_count > 0).then_some(Kind::Deleted);
        self.close_lot(at, lot, LotState::Executed, "", told).await
    }

    async fn close_lot(
        &mut self,
        at: &Position,
        lot: lots::Model,
        state: LotState,
        reason: &str,
        told: Option<Kind>,
    ) -> Result<(), ApplyError> {
        let mut closed: lots::ActiveModel = lot.into();
        closed.state = Set(state.code());
        closed.hold_reason = Set(None);
        closed.state_reason = Set(reason.to_owned());
        closed.closed_sequence = Set(Some(at.sequence));
        let lot = closed.update(self.tx).await.map_err(StorageError::from)?;
        stages::Entity::update_many()
            .col_expr(stages::Column::State, Expr::value(StageState::Abandoned.code()))
            .col_expr(stages::Column::ReportOwed, Expr::value(false))
            .filter(stages::Column::PlanId.eq(&lot.plan_id))
            .filter(stages::Column::AgencyId.eq(&lot.agency_id))
            .filter(stages::Column::State.eq(StageState::Waiting.code()))
            .exec(self.tx)
            .await
            .map_err(StorageError::from)?;
        if let Some(kind) = told {
            self.announce(at, &lot, kind, None, reason).await?;
        }
        Ok(())
    }

    async fn close_plan(&self, at: &Position, state: PlanState, reason: String) -> Result<(), ApplyError> {
        let plan = self.plan(at).await?;
        let mut closed: plans::ActiveModel = plan.into();
        closed.state = Set(state.code());
        closed.state_reason = Set(reason);
        closed.closed_sequence = Set(Some(at.sequence));
        closed.update(self.tx).await.map_err(StorageError::from)?;
        Ok(())
    }

    async fn cancel(&mut self, at: &Position, reason: String) -> Result<(), ApplyError> {
        self.close_plan(at, PlanState::Cancelled, reason.clone()).await?;
        let mut after = String::new();
        loop {
            let page = self.lots_after(at, &after).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after.clone_from(&last.agency_id);
            for lot in page {
                if LotState::from_code(lot.state).ok_or_else(|| corrupt("lot state"))?.is_live() {
                    self.close_lot(at, lot, LotState::Cancelled, &reason, Some(Kind::Kept)).await?;
                }
            }
        }
    }

    async fn announce(
        &mut self,
        at: &Position,
        lot: &lots::Model,
        kind: Kind,
        rescued: Option<announce::Rescued<'_>>,
        reason: &str,
    ) -> Result<(), StorageError> {
        if self.muted {
            return Ok(());
        }
        let news = Announcement { lot, kind, rescued, reason, sequence: at.sequence, now: self.now };
        self.notifications = announce::announce(self.tx, self.ids, &news, self.notifications).await?;
        Ok(())
    }
}

/// Where in the history an event stands.
struct Position {
    sequence: i64,
    plan_id: PlanId,
}

impl Position {
    fn unfit(&self, reason: &str) -> ApplyError {
        ApplyError::Unfit { sequence: self.sequence, reason: reason.to_owned() }
    }
}

/// Entries as the columns of their table.
fn entry_rows(chunk: Vec<Entry>) -> Rows {
    fn all<T>(chunk: &[Entry], of: impl Fn(&Entry) -> T) -> Vec<T> {
        chunk.iter().map(of).collect()
    }
    Rows::new("t")
        .column("agency_id", Column::Text(all(&chunk, |entry| entry.owner.agency_id.as_str().to_owned())))
        .column("key_id", Column::Text(all(&chunk, |entry| entry.key_id.as_str().to_owned())))
        .column(
            "location_id",
            Column::Text(all(&chunk, |entry| {
                entry.owner.location_id.as_ref().map_or(String::new(), |id| id.as_str().to_owned())
            })),
        )
        .column("created_at", Column::BigInt(all(&chunk, |entry| to_micros(entry.created_at))))
        .column("last_used_at", Column::MaybeBigInt(all(&chunk, |entry| entry.last_used_at.map(to_micros))))
        .column("idle_days", Column::BigInt(all(&chunk, |entry| i64::from(entry.idle_days))))
        .column("display_name", Column::Text(all(&chunk, |entry| entry.display_name.clone())))
        .column("display_prefix", Column::Text(all(&chunk, |entry| entry.display_prefix.clone())))
}
