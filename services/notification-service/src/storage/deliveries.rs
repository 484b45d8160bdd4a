//! The emails and their attempts.

use std::collections::HashMap;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sea_orm::prelude::*;
use sea_orm::{ConnectionTrait, QueryOrder, QuerySelect};
use service_kit::idempotency::{self, Recall, RequestKey};
use service_kit::time::from_micros;

use super::dispatch::restart;
use super::entities::{deliveries, stages};
use super::stages::{StageState, around, key_of_row, lock, stage_of};
use super::{Store, corrupt, limits};
use crate::app::letter::{LetterEntry, LetterFacts};
use crate::app::ports::{ClaimedDelivery, DeliveryFilter, DeliveryStore, RetryError, StageId, StorageError};
use crate::domain::delivery::{Delivery, DeliveryState, ReceiptState, Verdict};
use crate::domain::ids::DeliveryId;
use crate::domain::limits::Deferral;

#[async_trait]
impl DeliveryStore for Store {
    async fn claim(
        &self,
        owner: &str,
        now: DateTime<Utc>,
        lease_until: DateTime<Utc>,
        limit: u64,
    ) -> Result<Vec<ClaimedDelivery>, StorageError> {
        self.claim_deliveries(owner, now, lease_until, limit).await
    }

    async fn record(
        &self,
        owner: &str,
        verdicts: &[(ClaimedDelivery, Verdict)],
        now: DateTime<Utc>,
    ) -> Result<(), StorageError> {
        self.record_verdicts(owner, verdicts, now).await
    }

    async fn letters(&self, ids: &[StageId]) -> Result<HashMap<StageId, LetterFacts>, StorageError> {
        self.letter_facts(ids).await
    }

    async fn short_letters(
        &self,
        letters: &[(StageId, i64)],
    ) -> Result<HashMap<StageId, Vec<LetterEntry>>, StorageError> {
        self.short_letter_entries(letters).await
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
        now: DateTime<Utc>,
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
        Ok((self.with_receipts(&self.db, rows, now).await?, more))
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
    async fn with_receipts(
        &self,
        db: &impl ConnectionTrait,
        rows: Vec<deliveries::Model>,
        now: DateTime<Utc>,
    ) -> Result<Vec<Delivery>, StorageError> {
        let deferral = if self.limits.is_none() { None } else { self.limits.deferral(&limits::read(db).await?, now) };
        let key_of = |row: &deliveries::Model| (row.plan_id.clone(), row.agency_id.clone(), row.stage);
        let found = around(&rows.iter().map(key_of).collect()).all(db).await?;
        let stages: HashMap<_, _> = found.into_iter().map(|stage| (key_of_row(&stage), stage)).collect();
        rows.into_iter()
            .map(|row| {
                let stage = stages.get(&key_of(&row)).ok_or_else(|| corrupt("stage"))?;
                delivery_of(row, stage, deferral, now)
            })
            .collect()
    }

    async fn with_receipt(
        &self,
        db: &impl ConnectionTrait,
        row: deliveries::Model,
        now: DateTime<Utc>,
    ) -> Result<Delivery, Retry> {
        let mut one = self.with_receipts(db, vec![row], now).await?;
        one.pop().ok_or_else(|| Retry::from(corrupt("stage")))
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
            Recall::Replay { .. } => return self.with_receipt(&tx, row, now).await,
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
        let delivery = self.with_receipt(&tx, row, now).await?;
        tx.commit().await?;
        Ok(delivery)
    }
}

fn state_of(code: i16) -> Result<DeliveryState, StorageError> {
    DeliveryState::from_code(code).ok_or_else(|| corrupt("delivery state"))
}

fn receipt_of(stage: &stages::Model) -> Result<ReceiptState, StorageError> {
    Ok(match StageState::from_code(stage.state)? {
        StageState::Waiting | StageState::Dispatched if stage.hold_reason.is_some() => ReceiptState::Undeliverable,
        StageState::Waiting | StageState::Dispatched => ReceiptState::NotDue,
        StageState::Complete => ReceiptState::Owed,
        StageState::Recorded => ReceiptState::Recorded,
        StageState::LotClosed | StageState::Abandoned => ReceiptState::LotClosed,
        StageState::Refused => ReceiptState::Refused,
    })
}

fn delivery_of(
    row: deliveries::Model,
    stage: &stages::Model,
    deferral: Option<Deferral>,
    now: DateTime<Utc>,
) -> Result<Delivery, StorageError> {
    let state = state_of(row.state)?;
    let next_attempt_at = (state == DeliveryState::Pending).then(|| from_micros(row.next_attempt_at));
    // A limit puts off what is due alone.
    let deferral = deferral.filter(|_| next_attempt_at.is_some_and(|at| at <= now));
    Ok(Delivery {
        id: row.delivery_id.into(),
        plan_id: row.plan_id.into(),
        agency_id: row.agency_id.into(),
        stage: stage_of(row.stage)?,
        user_id: row.user_id.into(),
        recipient: row.recipient,
        state,
        attempts: row.attempts,
        last_reply: row.last_reply,
        message_id: row.message_id,
        created_at: from_micros(row.created_at),
        attempted_at: row.attempted_at.map(from_micros),
        in_doubt: row.in_doubt_count,
        next_attempt_at: deferral.map(|deferral| deferral.until).or(next_attempt_at),
        deferral,
        settled_at: row.settled_at.map(from_micros),
        receipt: receipt_of(stage)?,
        receipt_detail: stage.receipt_detail.clone(),
    })
}
