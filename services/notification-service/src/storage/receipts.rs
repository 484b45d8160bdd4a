//! The receipts that key-service is owed.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sea_orm::prelude::*;
use sea_orm::{ActiveValue::Set, Condition, DatabaseTransaction, QueryOrder, QuerySelect};
use service_kit::time::{from_micros, to_micros};

use super::entities::{deliveries, lots, plans, stages};
use super::projection::lock_head;
use super::stages::{StageState, id_of, lock, waiting};
use super::{Store, corrupt};
use crate::app::ports::{Owed, OwedReceipt, ReceiptAnswer, ReceiptStore, StageId, StageNews, StorageError};
use crate::domain::delivery::DeliveryState;
use crate::domain::plan::{HoldReason, LotState};

fn owed() -> Condition {
    Condition::any().add(stages::Column::State.eq(StageState::Complete.code())).add(stages::Column::ReportOwed.eq(true))
}

#[async_trait]
impl ReceiptStore for Store {
    async fn owed(&self, limit: u64) -> Result<Vec<OwedReceipt>, StorageError> {
        let rows = stages::Entity::find()
            .filter(owed())
            .order_by_asc(stages::Column::DueAt)
            .limit(limit)
            .all(&self.db)
            .await?;
        rows.iter()
            .map(|row| {
                let news = if row.state == StageState::Complete.code() {
                    StageNews::Delivered {
                        delivered_at: from_micros(row.delivered_at.ok_or_else(|| corrupt("time of delivery"))?),
                        in_app: row.in_app_count,
                        emails: row.emails_accepted,
                    }
                } else {
                    let reason = row.hold_reason.and_then(HoldReason::from_code);
                    StageNews::Undeliverable(reason.ok_or_else(|| corrupt("hold reason"))?)
                };
                Ok(OwedReceipt { id: id_of(row)?, news })
            })
            .collect()
    }

    async fn record(
        &self,
        mut answers: Vec<(OwedReceipt, ReceiptAnswer)>,
        head_sequence: i64,
        now: DateTime<Utc>,
    ) -> Result<(), StorageError> {
        let tx = self.begin().await?;
        // Against events that move the lot at the same time: its next stage must not miss them.
        lock_head(&tx).await?;
        answers.sort_by(|a, b| a.0.id.cmp(&b.0.id));
        for (receipt, answer) in answers {
            let Some(row) = lock(&tx, &receipt.id).await? else { return Err(corrupt("stage")) };
            match receipt.news {
                StageNews::Delivered { .. } => delivered(&tx, &receipt.id, row, answer, head_sequence, now).await?,
                StageNews::Undeliverable(reason) => undeliverable(&tx, row, reason, answer).await?,
            }
        }
        tx.commit().await?;
        Ok(())
    }

    async fn count(&self) -> Result<Owed, StorageError> {
        let receipts_owed = stages::Entity::find().filter(owed()).count(&self.db).await?;
        let receipts_refused =
            stages::Entity::find().filter(stages::Column::State.eq(StageState::Refused.code())).count(&self.db).await?;
        let unsettled = [DeliveryState::Pending.code(), DeliveryState::Sending.code()];
        let deliveries_unsettled =
            deliveries::Entity::find().filter(deliveries::Column::State.is_in(unsettled)).count(&self.db).await?;
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        Ok(Owed {
            receipts_owed: number(receipts_owed),
            receipts_refused: number(receipts_refused),
            deliveries_unsettled: number(deliveries_unsettled),
        })
    }
}

async fn delivered(
    tx: &DatabaseTransaction,
    id: &StageId,
    row: stages::Model,
    answer: ReceiptAnswer,
    head_sequence: i64,
    now: DateTime<Utc>,
) -> Result<(), StorageError> {
    if row.state != StageState::Complete.code() {
        // Another replica was faster.
        return Ok(());
    }
    let mut change: stages::ActiveModel = row.into();
    change.acknowledged_at = Set(Some(to_micros(now)));
    match answer {
        ReceiptAnswer::Recorded => {
            change.state = Set(StageState::Recorded.code());
            open_next(tx, id, head_sequence).await?;
        }
        ReceiptAnswer::LotClosed => change.state = Set(StageState::LotClosed.code()),
        ReceiptAnswer::Refused(detail) => {
            change.state = Set(StageState::Refused.code());
            change.receipt_detail = Set(detail);
        }
    }
    change.update(tx).await?;
    Ok(())
}

/// The next stage of the lot waits for its time, and until the events that the receipt brought about are applied.
async fn open_next(tx: &DatabaseTransaction, id: &StageId, head_sequence: i64) -> Result<(), StorageError> {
    let Some(next) = id.stage.next() else { return Ok(()) };
    let lot_id = (id.plan_id.as_str().to_owned(), id.agency_id.as_str().to_owned());
    let lot = lots::Entity::find_by_id(lot_id).one(tx).await?.ok_or_else(|| corrupt("lot"))?;
    if !LotState::from_code(lot.state).ok_or_else(|| corrupt("lot state"))?.is_live() {
        return Ok(());
    }
    let plan = plans::Entity::find_by_id(id.plan_id.as_str()).one(tx).await?.ok_or_else(|| corrupt("plan"))?;
    let rows = [waiting(next, &lot, &plan, head_sequence)];
    stages::Entity::insert_many(rows).on_conflict_do_nothing().exec_without_returning(tx).await?;
    Ok(())
}

async fn undeliverable(
    tx: &DatabaseTransaction,
    row: stages::Model,
    reason: HoldReason,
    answer: ReceiptAnswer,
) -> Result<(), StorageError> {
    if row.hold_reason != Some(reason.code()) {
        // Somebody was found meanwhile.
        return Ok(());
    }
    let waits = row.state == StageState::Waiting.code();
    let mut change: stages::ActiveModel = row.into();
    change.report_owed = Set(false);
    match answer {
        ReceiptAnswer::Recorded => {}
        ReceiptAnswer::LotClosed if waits => change.state = Set(StageState::Abandoned.code()),
        ReceiptAnswer::LotClosed => {}
        ReceiptAnswer::Refused(detail) => change.receipt_detail = Set(detail),
    }
    change.update(tx).await?;
    Ok(())
}
