//! The dispatch of notices.

use std::collections::{BTreeSet, HashMap};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sea_orm::prelude::*;
use sea_orm::sea_query::ExprTrait;
use sea_orm::{ActiveValue::Set, Condition, DatabaseTransaction, DbBackend, DbErr, QueryOrder, QuerySelect};
use service_kit::time::{from_micros, to_micros};

use super::announce::live_counts;
use super::collect::{Collected, Known, PAGE, People, due, forget_collected, lease_is_over, scope};
use super::entities::{deliveries, entries, lots, notice_scopes, plans, stage_recipients, stages};
use super::outbox::{Addressee, News, Told, notify, queue};
use super::projection::{lock_head, write_notifications};
use super::stages::{Key, LOOK_AGAIN, StageState, due_at, id_of, is, key_of, key_of_row, lock_all};
use super::{Store, corrupt};
use crate::app::ports::{DispatchStore, Published, StageId, StorageError};
use crate::domain::delivery::DeliveryState;
use crate::domain::ids::LocationId;
use crate::domain::notification::Kind;
use crate::domain::plan::{HoldReason, LotState};
use crate::domain::recipient::RecipientChunk;

#[async_trait]
impl DispatchStore for Store {
    async fn claim_due(
        &self,
        owner: &str,
        now: DateTime<Utc>,
        lease_until: DateTime<Utc>,
        limit: u64,
    ) -> Result<Vec<StageId>, StorageError> {
        // Mostly there is nothing to claim: that is found out without taking SQLite's one write lock.
        let sqlite = self.db.get_database_backend() == DbBackend::Sqlite;
        if sqlite && due(&self.db, now, 1, false).await?.is_empty() {
            return Ok(Vec::new());
        }
        let tx = self.begin_on_queue().await?;
        let mut claimed = Vec::new();
        for row in due(&tx, now, limit, true).await? {
            let id = id_of(&row)?;
            let taken = stages::Entity::update_many()
                .col_expr(stages::Column::LeaseOwner, Expr::value(owner))
                .col_expr(stages::Column::LeaseUntil, Expr::value(to_micros(lease_until)))
                .col_expr(stages::Column::Collections, Expr::col(stages::Column::Collections).add(1))
                .filter(is(&id))
                .filter(stages::Column::State.eq(row.state))
                .filter(lease_is_over(now))
                .exec(&tx)
                .await?;
            if taken.rows_affected == 1 {
                // What an earlier attempt collected may be out of date.
                if row.collections > 0 && row.state == StageState::Waiting.code() {
                    forget_collected(&tx, &id).await?;
                }
                claimed.push(id);
            }
        }
        tx.commit().await?;
        Ok(claimed)
    }

    async fn live_locations(
        &self,
        id: &StageId,
        after: Option<&LocationId>,
        limit: u64,
    ) -> Result<Vec<LocationId>, StorageError> {
        let found: Vec<String> = entries::Entity::find()
            .select_only()
            .column(entries::Column::LocationId)
            .distinct()
            .filter(entries::Column::PlanId.eq(id.plan_id.as_str()))
            .filter(entries::Column::AgencyId.eq(id.agency_id.as_str()))
            .filter(entries::Column::LeftSequence.is_null())
            .filter(entries::Column::LocationId.gt(after.map_or("", LocationId::as_str)))
            .order_by_asc(entries::Column::LocationId)
            .limit(limit)
            .into_tuple()
            .all(&self.db)
            .await?;
        Ok(found.into_iter().map(LocationId::from).collect())
    }

    async fn collect(&self, owner: &str, parts: Vec<(StageId, RecipientChunk)>) -> Result<Vec<StageId>, StorageError> {
        let tx = self.begin().await?;
        let keys: BTreeSet<Key> = parts.iter().map(|(id, _)| key_of(id)).collect();
        let rows: HashMap<Key, stages::Model> =
            lock_all(&tx, &keys).await?.into_iter().map(|row| (key_of_row(&row), row)).collect();
        let (mut ours, mut collected) = (Vec::with_capacity(parts.len()), Collected::default());
        for (id, chunk) in parts {
            // Where another replica collects anew, what this one has heard may be out of date.
            let row = rows.get(&key_of(&id)).filter(|row| row.lease_owner.as_deref() == Some(owner));
            if let Some(row) = row {
                collected.add(&id, row.state == StageState::Waiting.code(), chunk);
                ours.push(id);
            }
        }
        collected.write(&tx).await?;
        tx.commit().await?;
        Ok(ours)
    }

    async fn publish(&self, ids: &[StageId], owner: &str, now: DateTime<Utc>) -> Result<Vec<Published>, StorageError> {
        let tx = self.begin().await?;
        let head = lock_head(&tx).await?;
        let keys: BTreeSet<Key> = ids.iter().map(key_of).collect();
        let mut rows: HashMap<Key, stages::Model> =
            lock_all(&tx, &keys).await?.into_iter().map(|row| (key_of_row(&row), row)).collect();
        rows.retain(|_, row| row.lease_owner.as_deref() == Some(owner));
        let mut known = Known::of(&tx, &rows.keys().cloned().collect()).await?;
        let mut notifications = head.notification_sequence;
        let mut published = Vec::with_capacity(ids.len());
        for id in ids {
            let Some(row) = rows.remove(&key_of(id)) else {
                published.push(Published::NotDue);
                continue;
            };
            let Some((lot, plan)) = known.lot_and_plan(&row) else { return Err(corrupt("lot")) };
            let people = known.people.remove(&key_of(id)).unwrap_or_default();
            let applied = head.applied_sequence;
            let mut dispatch = Dispatch { store: self, tx: &tx, id, row, lot, now, applied, notifications };
            published.push(match dispatch.standing(&plan)? {
                Standing::Over => dispatch.set_aside(StageState::Abandoned, None).await?,
                Standing::Later(due_at) => dispatch.set_aside(StageState::Waiting, Some(due_at)).await?,
                Standing::Due => dispatch.publish(people).await?,
                Standing::Anew => dispatch.look_again().await?,
            });
            notifications = dispatch.notifications;
        }
        write_notifications(&tx, notifications).await?;
        tx.commit().await?;
        Ok(published)
    }

    async fn release(&self, id: &StageId, owner: &str) -> Result<(), StorageError> {
        stages::Entity::update_many()
            .col_expr(stages::Column::LeaseOwner, Expr::value(None::<String>))
            .col_expr(stages::Column::LeaseUntil, Expr::value(None::<i64>))
            .filter(is(id))
            .filter(stages::Column::LeaseOwner.eq(owner))
            .exec(&self.db)
            .await?;
        Ok(())
    }
}

/// What a claimed stage turns out to need, now that the projection stands still.
enum Standing {
    /// Nothing any more: its lot is closed or empty.
    Over,
    /// Nothing yet: its lot moved, or an operator holds it.
    Later(DateTime<Utc>),
    /// Its notices.
    Due,
    /// It is dispatched, but every address was refused: perhaps there is a new admin or address.
    Anew,
}

/// One transaction that dispatches.
struct Dispatch<'a> {
    store: &'a Store,
    tx: &'a DatabaseTransaction,
    id: &'a StageId,
    row: stages::Model,
    lot: lots::Model,
    now: DateTime<Utc>,
    applied: i64,
    notifications: i64,
}

impl Dispatch<'_> {
    fn standing(&self, plan: &plans::Model) -> Result<Standing, StorageError> {
        let state = LotState::from_code(self.lot.state).ok_or_else(|| corrupt("lot state"))?;
        let held_by_operator = self.lot.hold_reason == Some(HoldReason::Operator.code());
        let due_at = due_at(self.id.stage, &self.lot, plan);
        Ok(match StageState::from_code(self.row.state)? {
            StageState::Waiting if !state.is_live() || self.lot.live_count == 0 => Standing::Over,
            StageState::Waiting if due_at > self.now => Standing::Later(due_at),
            StageState::Waiting | StageState::Dispatched if held_by_operator => {
                Standing::Later(from_micros(self.row.due_at))
            }
            StageState::Waiting => Standing::Due,
            StageState::Dispatched => Standing::Anew,
            StageState::Complete
            | StageState::Recorded
            | StageState::LotClosed
            | StageState::Refused
            | StageState::Abandoned => Standing::Later(from_micros(self.row.due_at)),
        })
    }

    async fn set_aside(&mut self, state: StageState, due_at: Option<DateTime<Utc>>) -> Result<Published, StorageError> {
        let mut change: stages::ActiveModel = self.row.clone().into();
        // Only a stage that waits changes its state here.
        if self.row.state == StageState::Waiting.code() {
            change.state = Set(state.code());
        }
        if let Some(due_at) = due_at {
            change.due_at = Set(to_micros(due_at));
        }
        self.write(change).await?;
        Ok(Published::NotDue)
    }

    /// Writes the stage's row and ends the lease.
    async fn write(&self, mut change: stages::ActiveModel) -> Result<(), DbErr> {
        change.lease_owner = Set(None);
        change.lease_until = Set(None);
        change.update(self.tx).await?;
        Ok(())
    }

    async fn publish(&mut self, people: People) -> Result<Published, StorageError> {
        if people.admins == 0 {
            return self.nobody(HoldReason::NoAgencyAdmin).await;
        }
        let (mut in_app, mut emails) = (0, 0);
        if let Some(all) = people.all {
            (in_app, emails) = self.tell(all, &people.live, 0).await?;
        } else {
            let mut after = String::new();
            loop {
                let page = stage_recipients::Entity::find()
                    .filter(self.collected())
                    .filter(stage_recipients::Column::UserId.gt(after))
                    .order_by_asc(stage_recipients::Column::UserId)
                    .limit(PAGE)
                    .all(self.tx)
                    .await?;
                let Some(last) = page.last() else { break };
                after = last.user_id.clone();
                let local: Vec<&str> =
                    page.iter().filter(|one| !one.agency_admin).map(|one| one.user_id.as_str()).collect();
                let live = live_counts(self.tx, &self.lot, self.id.stage.code(), &local).await?;
                let (told, mailed) = self.tell(page, &live, emails).await?;
                in_app += told;
                emails += mailed;
            }
        }
        let mut change: stages::ActiveModel = self.row.clone().into();
        change.state = Set(if self.id.stage.by_email() { StageState::Dispatched } else { StageState::Complete }.code());
        change.as_of_sequence = Set(Some(self.applied));
        change.announced_delete_at = Set(Some(self.lot.delete_at));
        change.dispatched_at = Set(Some(to_micros(self.now)));
        change.delivered_at = Set((!self.id.stage.by_email()).then(|| to_micros(self.now)));
        change.key_count = Set(self.lot.live_count);
        change.in_app_count = Set(i64::try_from(in_app).unwrap_or(i64::MAX));
        change.hold_reason = Set(None);
        change.report_owed = Set(false);
        self.write(change).await?;
        Ok(Published::Dispatched { in_app, emails })
    }

    fn collected(&self) -> Condition {
        Condition::all()
            .add(stage_recipients::Column::PlanId.eq(self.id.plan_id.as_str()))
            .add(stage_recipients::Column::AgencyId.eq(self.id.agency_id.as_str()))
            .add(stage_recipients::Column::Stage.eq(self.id.stage.code()))
    }

    /// Notifies some of the people, of whom those of locations have so many keys still to be deleted, and queues the emails of the agency admins among them.
    async fn tell(
        &mut self,
        people: Vec<stage_recipients::Model>,
        live: &HashMap<String, i64>,
        mailed_before: u64,
    ) -> Result<(u64, u64), StorageError> {
        let (mut told, mut mailed) = (Vec::new(), Vec::new());
        for one in people {
            let key_count =
                if one.agency_admin { self.lot.live_count } else { live.get(&one.user_id).copied().unwrap_or(0) };
            if key_count == 0 {
                continue;
            }
            told.push(Told {
                user_id: one.user_id.clone(),
                whole_lot: one.agency_admin,
                scope_stage: self.id.stage,
                key_count,
            });
            if one.agency_admin && self.id.stage.by_email() {
                mailed.push(addressee(one));
            }
        }
        self.send(told, mailed, mailed_before, self.applied).await
    }

    async fn send(
        &mut self,
        told: Vec<Told>,
        mailed: Vec<Addressee>,
        mailed_before: u64,
        as_of_sequence: i64,
    ) -> Result<(u64, u64), StorageError> {
        let news = News {
            lot: &self.lot,
            kind: Kind::Notice(self.id.stage),
            subject: self.id.stage.name(),
            key_id: "",
            as_of_sequence,
            reason: "",
            now: self.now,
        };
        let in_app = notify(self.tx, &self.store.ids, &news, told, &mut self.notifications).await?;
        let turn = i64::try_from(mailed_before).unwrap_or(i64::MAX);
        let emails = queue(self.tx, &self.store.ids, &self.store.mail_domain, self.id, mailed, turn, self.now).await?;
        Ok((in_app, emails))
    }

    /// Notes that there is nobody to tell. key-service hears of it when that is new, or when it let the lot go in between.
    async fn nobody(&mut self, reason: HoldReason) -> Result<Published, StorageError> {
        let released = self.lot.state == LotState::Open.code() && !self.row.report_owed;
        let news = self.row.hold_reason != Some(reason.code()) || released;
        let mut change: stages::ActiveModel = self.row.clone().into();
        change.hold_reason = Set(Some(reason.code()));
        change.due_at = Set(to_micros(self.now + LOOK_AGAIN));
        if news {
            change.report_owed = Set(true);
        }
        self.write(change).await?;
        Ok(Published::Undeliverable { reason, news })
    }

    /// Every address was refused: mails admins who are new, or whose address is.
    async fn look_again(&mut self) -> Result<Published, StorageError> {
        let admins = stage_recipients::Entity::find()
            .filter(self.collected())
            .filter(stage_recipients::Column::AgencyAdmin.eq(true))
            .all(self.tx)
            .await?;
        let mine = deliveries::Entity::find()
            .filter(deliveries::Column::PlanId.eq(self.id.plan_id.as_str()))
            .filter(deliveries::Column::AgencyId.eq(self.id.agency_id.as_str()))
            .filter(deliveries::Column::Stage.eq(self.id.stage.code()))
            .all(self.tx)
            .await?;
        let (mut told, mut mailed, mut readdressed) = (Vec::new(), Vec::new(), 0);
        for admin in admins {
            match mine.iter().find(|delivery| delivery.user_id == admin.user_id) {
                None => {
                    let key_count = self.row.key_count;
                    told.push(Told {
                        user_id: admin.user_id.clone(),
                        whole_lot: true,
                        scope_stage: self.id.stage,
                        key_count,
                    });
                    mailed.push(addressee(admin));
                }
                Some(failed) if failed.state == DeliveryState::Failed.code() && failed.recipient != admin.email => {
                    let mut again: deliveries::ActiveModel = failed.clone().into();
                    again.recipient = Set(admin.email);
                    restart(&mut again, self.now);
                    again.update(self.tx).await?;
                    readdressed += 1;
                }
                Some(_) => {}
            }
        }
        if mailed.is_empty() && readdressed == 0 {
            return self.nobody(HoldReason::AllAddressesRefused).await;
        }
        let scopes: Vec<_> = told.iter().map(|one| scope(self.id, String::new(), one.user_id.clone())).collect();
        notice_scopes::Entity::insert_many(scopes).on_conflict_do_nothing().exec_without_returning(self.tx).await?;
        let (in_app, emails) = {
            let as_of = self.row.as_of_sequence.unwrap_or(self.applied);
            self.send(told, mailed, mine.len() as u64, as_of).await?
        };
        let mut change: stages::ActiveModel = self.row.clone().into();
        change.due_at = Set(to_micros(self.now + LOOK_AGAIN));
        change.in_app_count = Set(self.row.in_app_count + i64::try_from(in_app).unwrap_or(0));
        self.write(change).await?;
        Ok(Published::Dispatched { in_app, emails: emails + readdressed })
    }
}

/// Sets a delivery back to its beginning.
pub(super) fn restart(delivery: &mut deliveries::ActiveModel, now: DateTime<Utc>) {
    delivery.state = Set(DeliveryState::Pending.code());
    delivery.attempts = Set(0);
    delivery.next_attempt_at = Set(to_micros(now));
    delivery.deferred_since_at = Set(None);
    delivery.settled_at = Set(None);
    delivery.lease_owner = Set(None);
    delivery.lease_until = Set(None);
}

fn addressee(one: stage_recipients::Model) -> Addressee {
    let name = format!("{} {}", one.first_name, one.last_name).trim().to_owned();
    Addressee { user_id: one.user_id, recipient: one.email, name }
}
