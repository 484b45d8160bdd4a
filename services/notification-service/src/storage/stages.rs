//! The rows of `stages`: how far each notice of each lot is.

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::prelude::*;
use sea_orm::{ActiveValue::Set, Condition, DatabaseTransaction, DbErr, QuerySelect};
use service_kit::time::{from_micros, to_micros};

use super::corrupt;
use super::entities::{deliveries, lots, plans, stages};
use crate::app::ports::{StageId, StorageError};
use crate::domain::delivery::DeliveryState;
use crate::domain::plan::HoldReason;
use crate::domain::stage::Stage;

/// How far a stage is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StageState {
    /// Not dispatched; looked at when `due_at` has come.
    Waiting,
    /// In the inboxes; emails are not all settled.
    Dispatched,
    /// Out; the receipt is owed.
    Complete,
    /// key-service has recorded the receipt.
    Recorded,
    /// The lot was closed before the receipt.
    LotClosed,
    /// key-service refused the receipt.
    Refused,
    /// Nothing is owed any more: the lot closed or emptied before the notices were out.
    Abandoned,
}

impl StageState {
    const ALL: [Self; 7] = [
        Self::Waiting,
        Self::Dispatched,
        Self::Complete,
        Self::Recorded,
        Self::LotClosed,
        Self::Refused,
        Self::Abandoned,
    ];

    pub(super) fn code(self) -> i16 {
        match self {
            Self::Waiting => 1,
            Self::Dispatched => 2,
            Self::Complete => 3,
            Self::Recorded => 4,
            Self::LotClosed => 5,
            Self::Refused => 6,
            Self::Abandoned => 7,
        }
    }

    pub(super) fn from_code(code: i16) -> Result<Self, StorageError> {
        Self::ALL.into_iter().find(|state| state.code() == code).ok_or_else(|| corrupt("stage state"))
    }
}

/// How long to wait before looking again for somebody to tell. Short beside a stage's window, long beside a call.
pub(super) const LOOK_AGAIN: TimeDelta = TimeDelta::minutes(5);

pub(super) fn stage_of(code: i16) -> Result<Stage, StorageError> {
    Stage::from_code(code).ok_or_else(|| corrupt("stage"))
}

pub(super) fn id_of(row: &stages::Model) -> Result<StageId, StorageError> {
    Ok(StageId {
        plan_id: row.plan_id.clone().into(),
        agency_id: row.agency_id.clone().into(),
        stage: stage_of(row.stage)?,
    })
}

pub(super) fn is(id: &StageId) -> Condition {
    Condition::all()
        .add(stages::Column::PlanId.eq(id.plan_id.as_str()))
        .add(stages::Column::AgencyId.eq(id.agency_id.as_str()))
        .add(stages::Column::Stage.eq(id.stage.code()))
}

/// A stage's row, locked for this transaction.
pub(super) async fn lock(tx: &DatabaseTransaction, id: &StageId) -> Result<Option<stages::Model>, DbErr> {
    stages::Entity::find().filter(is(id)).lock_exclusive().one(tx).await
}

pub(super) fn due_at(stage: Stage, lot: &lots::Model, plan: &plans::Model) -> DateTime<Utc> {
    stage.due_at(from_micros(lot.delete_at), TimeDelta::milliseconds(plan.stage_window_ms))
}

/// A stage that waits for its time.
pub(super) fn waiting(stage: Stage, lot: &lots::Model, plan: &plans::Model, wait_sequence: i64) -> stages::ActiveModel {
    stages::ActiveModel {
        plan_id: Set(lot.plan_id.clone()),
        agency_id: Set(lot.agency_id.clone()),
        stage: Set(stage.code()),
        state: Set(StageState::Waiting.code()),
        due_at: Set(to_micros(due_at(stage, lot, plan))),
        wait_sequence: Set(wait_sequence),
        lease_owner: Set(None),
        lease_until: Set(None),
        collections: Set(0),
        agency_name: Set(String::new()),
        agency_time_zone: Set(String::new()),
        as_of_sequence: Set(None),
        announced_delete_at: Set(None),
        dispatched_at: Set(None),
        delivered_at: Set(None),
        key_count: Set(0),
        in_app_count: Set(0),
        emails_accepted: Set(0),
        hold_reason: Set(None),
        report_owed: Set(false),
        receipt_detail: Set(String::new()),
        acknowledged_at: Set(None),
    }
}

/// Completes a dispatched stage once its last email is settled, or notes that nobody could be told.
pub(super) async fn settle(
    tx: &DatabaseTransaction,
    row: stages::Model,
    now: DateTime<Utc>,
) -> Result<(), StorageError> {
    if row.state != StageState::Dispatched.code() {
        return Ok(());
    }
    let counts: Vec<(i16, i64, Option<i64>)> = deliveries::Entity::find()
        .select_only()
        .column(deliveries::Column::State)
        .column_as(deliveries::Column::DeliveryId.count(), "count")
        .column_as(deliveries::Column::SettledAt.max(), "last")
        .filter(deliveries::Column::PlanId.eq(&row.plan_id))
        .filter(deliveries::Column::AgencyId.eq(&row.agency_id))
        .filter(deliveries::Column::Stage.eq(row.stage))
        .group_by(deliveries::Column::State)
        .into_tuple()
        .all(tx)
        .await?;
    let of = |state: DeliveryState| counts.iter().find(|c| c.0 == state.code());
    if of(DeliveryState::Pending).or(of(DeliveryState::Sending)).is_some() {
        return Ok(());
    }
    let (known, dispatched_at) = (row.hold_reason, row.dispatched_at);
    let mut change: stages::ActiveModel = row.into();
    if let Some((_, count, last)) = of(DeliveryState::Accepted) {
        change.state = Set(StageState::Complete.code());
        change.delivered_at = Set((*last).max(dispatched_at));
        change.emails_accepted = Set(*count);
        change.hold_reason = Set(None);
        change.report_owed = Set(false);
    } else if of(DeliveryState::Failed).is_some() {
        let reason = HoldReason::AllAddressesRefused.code();
        change.hold_reason = Set(Some(reason));
        change.due_at = Set(to_micros(now + LOOK_AGAIN));
        if known != Some(reason) {
            change.report_owed = Set(true);
        }
    } else {
        change.state = Set(StageState::Abandoned.code());
        change.report_owed = Set(false);
    }
    change.update(tx).await?;
    Ok(())
}
