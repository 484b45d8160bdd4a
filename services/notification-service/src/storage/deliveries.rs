//! The emails and their attempts.

use std::collections::BTreeMap;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sea_orm::prelude::*;
use sea_orm::{Condition, ConnectionTrait, DatabaseTransaction, QueryOrder, QuerySelect};
use service_kit::idempotency::{self, Recall, RequestKey};
use service_kit::time::{from_micros, to_micros};

use super::dispatch::restart;
use super::entities::{deliveries, lots, stages};
use super::stages::{StageState, is, lock, settle, stage_of};
use super::{Store, corrupt};
use crate::app::letter::{LetterEntry, LetterFacts};
use crate::app::ports::{ClaimedDelivery, DeliveryFilter, DeliveryStore, RetryError, StageId, StorageError};
use crate::domain::delivery::{Delivery, DeliveryState, ReceiptState, Verdict};
use crate::domain::ids::DeliveryId;
use crate::domain::plan::LotState;
use crate::domain::text::shortened;

/// A server's last answer is kept up to this length.
const REPLY_CHARS: usize = 1_000;

#[async_trait]
impl DeliveryStore for Store {
    async fn claim(
        &self,
        owner: &str,
        now: DateTime<Utc>,
        lease_until: DateTime<Utc>,
        limit: u64,
    ) -> Result<Vec<ClaimedDelivery>, StorageError> {
        // Mostly there is nothing to claim: that is found out without taking the write lock.
        let due = deliveries::Entity::find()
            .filter(due(now))
            .order_by_asc(deliveries::Column::NextAttemptAt)
            .limit(limit)
            .all(&self.db)
            .await?;
        if due.is_empty() {
            return Ok(Vec::new());
        }
        let (mut claimed, mut pointless) = (Vec::new(), BTreeMap::<(String, String, i16), Vec<String>>::new());
        let tx = self.begin().await?;
        for row in due {
            let lot = lots::Entity::find_by_id((row.plan_id.clone(), row.agency_id.clone()))
                .one(&tx)
                .await?
                .ok_or_else(|| corrupt("lot"))?;
            let state = LotState::from_code(lot.state).ok_or_else(|| corrupt("lot state"))?;
            if !state.is_live() || lot.live_count == 0 {
                pointless.entry((row.plan_id, row.agency_id, row.stage)).or_default().push(row.delivery_id);
            } else if take(&tx, &row, owner, now, lease_until).await? {
                claimed.push(claimed_of(row)?);
            }
        }
        tx.commit().await?;
        for ((plan_id, agency_id, stage), ids) in pointless {
            let id = StageId { plan_id: plan_id.into(), agency_id: agency_id.into(), stage: stage_of(stage)? };
            self.cancel(&id, ids, now).await?;
        }
        Ok(claimed)
    }

    async fn record(
        &self,
        owner: &str,
        verdicts: Vec<(ClaimedDelivery, Verdict)>,
        now: DateTime<Utc>,
    ) -> Result<(), StorageError> {
        let mut by_stage: BTreeMap<(String, String, i16), Vec<(ClaimedDelivery, Verdict)>> = BTreeMap::new();
        for one in verdicts {
            let id = &one.0.stage;
            by_stage
                .entry((id.plan_id.as_str().to_owned(), id.agency_id.as_str().to_owned(), id.stage.code()))
                .or_default()
                .push(one);
        }
        let tx = self.begin().await?;
        for group in by_stage.into_values() {
            let Some((first, _)) = group.first() else { continue };
            let Some(stage) = lock(&tx, &first.stage).await? else { return Err(corrupt("stage")) };
            for (delivery, verdict) in group {
                record_one(&tx, owner, &delivery, verdict, now).await?;
            }
            settle(&tx, stage, now).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    async fn letter(&self, id: &StageId) -> Result<Option<LetterFacts>, StorageError> {
        self.letter_facts(id).await
    }

    async fn letter_entries(
        &self,
        id: &StageId,
        as_of: i64,
        after: Option<&LetterEntry>,
        limit: u64,
    ) -> Result<Vec<LetterEntry>, StorageError> {
        self.letter_page(id, as_of, after, limit).await
    }

    async fn list(
        &self,
        filter: &DeliveryFilter,
        after: Option<&str>,
        limit: u32,
    ) -> Result<(Vec<Delivery>, bool), StorageError> {
        let mut query =
            deliveries::Entity::find().order_by_asc(deliveries::Column::DeliveryId).limit(u64::from(limit) + 1);
        if let Some(plan_id) = &filter.plan_id {
            query = query.filter(deliveries::Column::PlanId.eq(plan_id.as_str()));
        }
        if let Some(agency_id) = &filter.agency_id {
            query = query.filter(deliveries::Column::AgencyId.eq(agency_id.as_str()));
        }
        if let Some(state) = filter.state {
            query = query.filter(deliveries::Column::State.eq(state.code()));
        }
        if let Some(after) = after {
            query = query.filter(deliveries::Column::DeliveryId.gt(after));
        }
        let mut rows = query.all(&self.db).await?;
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let mut listed = Vec::with_capacity(rows.len());
        for row in rows {
            listed.push(with_receipt(&self.db, row).await?);
        }
        Ok((listed, more))
    }

    async fn retry(&self, id: &DeliveryId, request_id: &str, now: DateTime<Utc>) -> Result<Delivery, RetryError> {
        match self.try_retry(id, request_id, now).await {
            // The other of two equal calls was faster: its result is this one's too.
            Err(Retry::Db(error)) if service_kit::db::is_unique_violation(&error) => {
                self.try_retry(id, request_id, now).await.map_err(Retry::into_port)
            }
            other => other.map_err(Retry::into_port),
        }
    }
}

enum Retry {
    Port(RetryError),
    Db(DbErr),
}

impl From<DbErr> for Retry {
    fn from(error: DbErr) -> Self {
        Self::Db(error)
    }
}

impl From<StorageError> for Retry {
    fn from(error: StorageError) -> Self {
        Self::Port(RetryError::Storage(error))
    }
}

impl Retry {
    fn into_port(self) -> RetryError {
        match self {
            Self::Port(error) => error,
            Self::Db(error) => RetryError::Storage(error.into()),
        }
    }
}

impl Store {
    async fn cancel(&self, id: &StageId, delivery_ids: Vec<String>, now: DateTime<Utc>) -> Result<(), StorageError> {
        let tx = self.begin().await?;
        let Some(stage) = lock(&tx, id).await? else { return Err(corrupt("stage")) };
        deliveries::Entity::update_many()
            .col_expr(deliveries::Column::State, Expr::value(DeliveryState::Cancelled.code()))
            .col_expr(deliveries::Column::SettledAt, Expr::value(to_micros(now)))
            .col_expr(deliveries::Column::LeaseOwner, Expr::value(None::<String>))
            .col_expr(deliveries::Column::LeaseUntil, Expr::value(None::<i64>))
            .filter(deliveries::Column::DeliveryId.is_in(delivery_ids))
            .filter(due(now))
            .exec(&tx)
            .await?;
        settle(&tx, stage, now).await?;
        tx.commit().await?;
        Ok(())
    }

    async fn try_retry(&self, id: &DeliveryId, request_id: &str, now: DateTime<Utc>) -> Result<Delivery, Retry> {
        let tx = self.begin().await?;
        let key = RequestKey {
            method: "RetryDelivery",
            scope: String::new(),
            request_id: request_id.to_owned(),
            fingerprint: idempotency::fingerprint(&[id.as_str().as_bytes()]),
        };
        let known = if request_id.is_empty() { Recall::New } else { idempotency::recall(&tx, &key, now).await? };
        let find = || deliveries::Entity::find_by_id(id.as_str());
        let Some(row) = find().one(&tx).await? else { return Err(Retry::Port(RetryError::NotFound)) };
        match known {
            Recall::Reused => return Err(Retry::Port(RetryError::Reused)),
            Recall::Replay { .. } => return Ok(with_receipt(&tx, row).await?),
            Recall::New => {}
        }
        // The stage before the delivery, as everywhere; then the delivery again, as it is under the lock.
        let stage =
            StageId { plan_id: row.plan_id.into(), agency_id: row.agency_id.into(), stage: stage_of(row.stage)? };
        lock(&tx, &stage).await?;
        let Some(row) = find().lock_exclusive().one(&tx).await? else { return Err(Retry::Port(RetryError::NotFound)) };
        let state = state_of(row.state)?;
        if !matches!(state, DeliveryState::Failed | DeliveryState::Pending) {
            return Err(Retry::Port(RetryError::State(state)));
        }
        let mut again: deliveries::ActiveModel = row.into();
        restart(&mut again, now);
        let row = again.update(&tx).await?;
        if !request_id.is_empty() {
            idempotency::record(&tx, &key, id.as_str(), None, now).await?;
        }
        let delivery = with_receipt(&tx, row).await?;
        tx.commit().await?;
        Ok(delivery)
    }
}

/// Waits and its time has come, or was left behind in an attempt that ended without a word.
fn due(now: DateTime<Utc>) -> Condition {
    let now = to_micros(now);
    Condition::any()
        .add(
            Condition::all()
                .add(deliveries::Column::State.eq(DeliveryState::Pending.code()))
                .add(deliveries::Column::NextAttemptAt.lte(now)),
        )
        .add(
            Condition::all()
                .add(deliveries::Column::State.eq(DeliveryState::Sending.code()))
                .add(deliveries::Column::LeaseUntil.lte(now)),
        )
}

async fn take(
    tx: &DatabaseTransaction,
    row: &deliveries::Model,
    owner: &str,
    now: DateTime<Utc>,
    lease_until: DateTime<Utc>,
) -> Result<bool, DbErr> {
    let taken = deliveries::Entity::update_many()
        .col_expr(deliveries::Column::State, Expr::value(DeliveryState::Sending.code()))
        .col_expr(deliveries::Column::Attempts, Expr::value(row.attempts + 1))
        .col_expr(deliveries::Column::AttemptedAt, Expr::value(to_micros(now)))
        .col_expr(deliveries::Column::LeaseOwner, Expr::value(owner))
        .col_expr(deliveries::Column::LeaseUntil, Expr::value(to_micros(lease_until)))
        .filter(deliveries::Column::DeliveryId.eq(&row.delivery_id))
        .filter(deliveries::Column::Attempts.eq(row.attempts))
        .filter(due(now))
        .exec(tx)
        .await?;
    Ok(taken.rows_affected == 1)
}

fn claimed_of(row: deliveries::Model) -> Result<ClaimedDelivery, StorageError> {
    Ok(ClaimedDelivery {
        id: row.delivery_id.into(),
        stage: StageId { plan_id: row.plan_id.into(), agency_id: row.agency_id.into(), stage: stage_of(row.stage)? },
        user_id: row.user_id.into(),
        recipient: row.recipient,
        name: row.name,
        message_id: row.message_id,
        attempt: row.attempts + 1,
        deferred_since: row.deferred_since_at.map(from_micros),
        created_at: from_micros(row.created_at),
    })
}

async fn record_one(
    tx: &DatabaseTransaction,
    owner: &str,
    delivery: &ClaimedDelivery,
    verdict: Verdict,
    now: DateTime<Utc>,
) -> Result<(), DbErr> {
    let settled = Some(to_micros(now));
    let (state, reply, settled_at, next_attempt_at, deferred_since) = match verdict {
        Verdict::Accepted { reply } => (DeliveryState::Accepted, reply, settled, None, None),
        Verdict::Failed { reply } => (DeliveryState::Failed, reply, settled, None, delivery.deferred_since),
        Verdict::Retry { at, deferred_since, reply } => {
            (DeliveryState::Pending, reply, None, Some(to_micros(at)), deferred_since)
        }
    };
    let mut update = deliveries::Entity::update_many()
        .col_expr(deliveries::Column::State, Expr::value(state.code()))
        .col_expr(deliveries::Column::LastReply, Expr::value(shortened(&reply, REPLY_CHARS)))
        .col_expr(deliveries::Column::SettledAt, Expr::value(settled_at))
        .col_expr(deliveries::Column::DeferredSinceAt, Expr::value(deferred_since.map(to_micros)))
        .col_expr(deliveries::Column::LeaseOwner, Expr::value(None::<String>))
        .col_expr(deliveries::Column::LeaseUntil, Expr::value(None::<i64>))
        .filter(deliveries::Column::DeliveryId.eq(delivery.id.as_str()))
        .filter(deliveries::Column::State.eq(DeliveryState::Sending.code()))
        .filter(deliveries::Column::LeaseOwner.eq(owner))
        .filter(deliveries::Column::Attempts.eq(delivery.attempt));
    if let Some(at) = next_attempt_at {
        update = update.col_expr(deliveries::Column::NextAttemptAt, Expr::value(at));
    }
    if update.exec(tx).await?.rows_affected == 0 {
        tracing::warn!(delivery_id = %delivery.id, attempt = delivery.attempt, "an attempt outlived its lease; its outcome is not recorded");
    }
    Ok(())
}

fn state_of(code: i16) -> Result<DeliveryState, StorageError> {
    DeliveryState::from_code(code).ok_or_else(|| corrupt("delivery state"))
}

async fn with_receipt(db: &impl ConnectionTrait, row: deliveries::Model) -> Result<Delivery, StorageError> {
    let id = StageId { plan_id: row.plan_id.into(), agency_id: row.agency_id.into(), stage: stage_of(row.stage)? };
    let stage = stages::Entity::find().filter(is(&id)).one(db).await?.ok_or_else(|| corrupt("stage"))?;
    let receipt = match StageState::from_code(stage.state)? {
        StageState::Waiting | StageState::Dispatched if stage.hold_reason.is_some() => ReceiptState::Undeliverable,
        StageState::Waiting | StageState::Dispatched => ReceiptState::NotDue,
        StageState::Complete => ReceiptState::Owed,
        StageState::Recorded => ReceiptState::Recorded,
        StageState::LotClosed | StageState::Abandoned => ReceiptState::LotClosed,
        StageState::Refused => ReceiptState::Refused,
    };
    let state = state_of(row.state)?;
    Ok(Delivery {
        id: row.delivery_id.into(),
        plan_id: id.plan_id,
        agency_id: id.agency_id,
        stage: id.stage,
        user_id: row.user_id.into(),
        recipient: row.recipient,
        state,
        attempts: row.attempts,
        last_reply: row.last_reply,
        message_id: row.message_id,
        created_at: from_micros(row.created_at),
        attempted_at: row.attempted_at.map(from_micros),
        next_attempt_at: (state == DeliveryState::Pending).then(|| from_micros(row.next_attempt_at)),
        settled_at: row.settled_at.map(from_micros),
        receipt,
        receipt_detail: stage.receipt_detail,
    })
}
