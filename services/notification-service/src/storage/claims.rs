//! Which emails are due, and whose they are for a while.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::prelude::*;
use sea_orm::sea_query::{ExprTrait, LockBehavior, LockType};
use sea_orm::{Condition, DatabaseTransaction, QueryOrder, QuerySelect};
use service_kit::time::{from_micros, to_micros};

use super::entities::{deliveries, lots};
use super::stages::{lock_all, settle_all, stage_of};
use super::{Store, corrupt, limits};
use crate::app::ports::{ClaimedDelivery, StageId, StorageError};
use crate::domain::delivery::DeliveryState;
use crate::domain::limits::Grant;
use crate::domain::plan::LotState;

/// Waits, and its time has come.
pub(super) fn is_due(now: DateTime<Utc>) -> Condition {
    Condition::all()
        .add(deliveries::Column::State.eq(DeliveryState::Pending.code()))
        .add(deliveries::Column::NextAttemptAt.lte(to_micros(now)))
}

/// Was left behind in an attempt that ended without a word.
fn is_abandoned(now: DateTime<Utc>) -> Condition {
    Condition::all()
        .add(deliveries::Column::State.eq(DeliveryState::Sending.code()))
        .add(deliveries::Column::LeaseUntil.lte(to_micros(now)))
}

impl Store {
    pub(super) async fn claim_deliveries(
        &self,
        owner: &str,
        now: DateTime<Utc>,
        lease_until: DateTime<Utc>,
        limit: u64,
    ) -> Result<Vec<ClaimedDelivery>, StorageError> {
        if !self.anything_to_claim(now).await? {
            return Ok(Vec::new());
        }
        let tx = self.begin_on_queue().await?;
        let mut book = if self.limits.is_none() { None } else { Some(limits::lock(&tx).await?) };
        let most = book.map_or(limit, |mut book| self.limits.grant(&mut book, limit, now).count);
        let rows = pick(&tx, now, most).await?;
        let (alive, pointless) = sort(&tx, rows).await?;
        let count = alive.len() as u64;
        let grant = match &mut book {
            Some(book) => self.limits.grant(book, count, now),
            None => Grant { count, wait: TimeDelta::zero(), gap: TimeDelta::zero() },
        };
        if grant.count > 0 {
            take(&tx, &alive, owner, now, lease_until).await?;
        }
        if let Some(book) = &book {
            limits::write(&tx, book).await?;
        }
        tx.commit().await?;
        self.cancel(pointless, now).await?;
        let claimed = alive.into_iter().zip(0..);
        claimed.map(|(row, n)| claimed_of(row, grant.wait + grant.gap * n, lease_until)).collect()
    }

    /// Mostly there is nothing to claim: that is found out without taking the write lock, by one look into an index each.
    async fn anything_to_claim(&self, now: DateTime<Utc>) -> Result<bool, DbErr> {
        let one = |condition: Condition| {
            let found =
                deliveries::Entity::find().select_only().column(deliveries::Column::DeliveryId).filter(condition);
            found.order_by_asc(deliveries::Column::NextAttemptAt).into_tuple::<String>().one(&self.db)
        };
        Ok(one(is_due(now)).await?.is_some() || one(is_abandoned(now)).await?.is_some())
    }

    /// Cancels emails that have nothing left to tell.
    async fn cancel(&self, rows: Vec<deliveries::Model>, now: DateTime<Utc>) -> Result<(), StorageError> {
        if rows.is_empty() {
            return Ok(());
        }
        let mut by_stage: BTreeMap<(String, String, i16), Vec<String>> = BTreeMap::new();
        for row in rows {
            by_stage.entry((row.plan_id, row.agency_id, row.stage)).or_default().push(row.delivery_id);
        }
        let tx = self.begin().await?;
        let keys: BTreeSet<_> = by_stage.keys().cloned().collect();
        let stages = lock_all(&tx, &keys).await?;
        deliveries::Entity::update_many()
            .col_expr(deliveries::Column::State, Expr::value(DeliveryState::Cancelled.code()))
            .col_expr(deliveries::Column::SettledAt, Expr::value(to_micros(now)))
            .col_expr(deliveries::Column::LeaseOwner, Expr::value(None::<String>))
            .col_expr(deliveries::Column::LeaseUntil, Expr::value(None::<i64>))
            .filter(deliveries::Column::DeliveryId.is_in(by_stage.into_values().flatten()))
            .filter(Condition::any().add(is_due(now)).add(is_abandoned(now)))
            .exec(&tx)
            .await?;
        settle_all(&tx, stages, now).await?;
        tx.commit().await?;
        Ok(())
    }
}

/// Up to `limit` emails that nobody else is about to take: those left behind first, then by turns.
async fn pick(
    tx: &DatabaseTransaction,
    now: DateTime<Utc>,
    limit: u64,
) -> Result<Vec<deliveries::Model>, StorageError> {
    if limit == 0 {
        return Ok(Vec::new());
    }
    let free = |condition: Condition, limit: u64| {
        deliveries::Entity::find()
            .filter(condition)
            .order_by_asc(deliveries::Column::Turn)
            .order_by_asc(deliveries::Column::NextAttemptAt)
            .limit(limit)
            // SQLite has no such lock and needs none: this transaction is its only writer.
            .lock_with_behavior(LockType::Update, LockBehavior::SkipLocked)
    };
    let mut rows = free(is_abandoned(now), limit).all(tx).await?;
    let rest = limit - rows.len() as u64;
    if rest > 0 {
        rows.extend(free(is_due(now), rest).all(tx).await?);
    }
    Ok(rows)
}

/// The emails to send, and those whose lot is closed or empty by now.
async fn sort(
    tx: &DatabaseTransaction,
    rows: Vec<deliveries::Model>,
) -> Result<(Vec<deliveries::Model>, Vec<deliveries::Model>), StorageError> {
    if rows.is_empty() {
        return Ok((Vec::new(), Vec::new()));
    }
    let plans: BTreeSet<&str> = rows.iter().map(|row| row.plan_id.as_str()).collect();
    let agencies: BTreeSet<&str> = rows.iter().map(|row| row.agency_id.as_str()).collect();
    let found = lots::Entity::find()
        .filter(lots::Column::PlanId.is_in(plans))
        .filter(lots::Column::AgencyId.is_in(agencies))
        .all(tx)
        .await?;
    let mut tellable = HashMap::with_capacity(found.len());
    for lot in found {
        let live = LotState::from_code(lot.state).ok_or_else(|| corrupt("lot state"))?.is_live();
        tellable.insert((lot.plan_id, lot.agency_id), live && lot.live_count > 0);
    }
    let (mut alive, mut pointless) = (Vec::with_capacity(rows.len()), Vec::new());
    for row in rows {
        let lot = (row.plan_id.clone(), row.agency_id.clone());
        match tellable.get(&lot) {
            Some(true) => alive.push(row),
            // No lot: the projection was rebuilt from a history that does not know it.
            Some(false) | None => pointless.push(row),
        }
    }
    Ok((alive, pointless))
}

async fn take(
    tx: &DatabaseTransaction,
    rows: &[deliveries::Model],
    owner: &str,
    now: DateTime<Utc>,
    lease_until: DateTime<Utc>,
) -> Result<(), StorageError> {
    let ids = rows.iter().map(|row| row.delivery_id.as_str());
    // Whoever left it behind may have sent it.
    let doubted = deliveries::Column::State.eq(DeliveryState::Sending.code());
    let doubt = Expr::case(doubted, 1).finally(0);
    let taken = deliveries::Entity::update_many()
        .col_expr(deliveries::Column::State, Expr::value(DeliveryState::Sending.code()))
        .col_expr(deliveries::Column::Attempts, Expr::col(deliveries::Column::Attempts).add(1))
        .col_expr(deliveries::Column::InDoubtCount, Expr::col(deliveries::Column::InDoubtCount).add(doubt))
        .col_expr(deliveries::Column::AttemptedAt, Expr::value(to_micros(now)))
        .col_expr(deliveries::Column::LeaseOwner, Expr::value(owner))
        .col_expr(deliveries::Column::LeaseUntil, Expr::value(to_micros(lease_until)))
        .filter(deliveries::Column::DeliveryId.is_in(ids))
        .filter(Condition::any().add(is_due(now)).add(is_abandoned(now)))
        .exec(tx)
        .await?;
    if taken.rows_affected != rows.len() as u64 {
        return Err(StorageError::Internal("emails were taken by somebody else in spite of their locks".to_owned()));
    }
    Ok(())
}

fn claimed_of(
    row: deliveries::Model,
    wait: TimeDelta,
    lease_until: DateTime<Utc>,
) -> Result<ClaimedDelivery, StorageError> {
    Ok(ClaimedDelivery {
        id: row.delivery_id.into(),
        stage: StageId { plan_id: row.plan_id.into(), agency_id: row.agency_id.into(), stage: stage_of(row.stage)? },
        user_id: row.user_id.into(),
        recipient: row.recipient,
        name: row.name,
        message_id: row.message_id,
        attempt: row.attempts + 1,
        deferred_since: row.deferred_since_at.map(from_micros),
        wait,
        lease_until,
        created_at: from_micros(row.created_at),
    })
}
