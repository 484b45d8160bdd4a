//! The rows of `stages`: how far each notice of each lot is.

use std::collections::{BTreeSet, HashMap};

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::prelude::*;
use sea_orm::sea_query::{ExprTrait, Query, SimpleExpr};
use sea_orm::{ActiveValue::Set, Condition, DatabaseTransaction, DbErr, QueryOrder, QuerySelect, Select};
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
    pub(super) const ALL: [Self; 7] = [
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

    /// The name, as in metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Dispatched => "dispatched",
            Self::Complete => "complete",
            Self::Recorded => "recorded",
            Self::LotClosed => "lot_closed",
            Self::Refused => "refused",
            Self::Abandoned => "abandoned",
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

/// A stage's primary key.
pub(super) type Key = (String, String, i16);

pub(super) fn key_of(id: &StageId) -> Key {
    (id.plan_id.as_str().to_owned(), id.agency_id.as_str().to_owned(), id.stage.code())
}

pub(super) fn key_of_row(row: &stages::Model) -> Key {
    (row.plan_id.clone(), row.agency_id.clone(), row.stage)
}

/// The rows of these stages, perhaps with others of the same plans and agencies.
pub(super) fn around(keys: &BTreeSet<Key>) -> Select<stages::Entity> {
    let plans: BTreeSet<&str> = keys.iter().map(|key| key.0.as_str()).collect();
    let agencies: BTreeSet<&str> = keys.iter().map(|key| key.1.as_str()).collect();
    stages::Entity::find()
        .filter(stages::Column::PlanId.is_in(plans))
        .filter(stages::Column::AgencyId.is_in(agencies))
        .filter(stages::Column::Stage.is_in(keys.iter().map(|key| key.2).collect::<BTreeSet<_>>()))
}

/// The rows of these stages, locked for this transaction in the order of their keys.
pub(super) async fn lock_all(
    tx: &DatabaseTransaction,
    keys: &BTreeSet<Key>,
) -> Result<Vec<stages::Model>, StorageError> {
    let mut rows = around(keys)
        .order_by_asc(stages::Column::PlanId)
        .order_by_asc(stages::Column::AgencyId)
        .order_by_asc(stages::Column::Stage)
        .lock_exclusive()
        .all(tx)
        .await?;
    rows.retain(|row| keys.contains(&key_of_row(row)));
    if rows.len() != keys.len() {
        return Err(corrupt("stage"));
    }
    Ok(rows)
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

/// Completes the dispatched ones among these stages whose last email is settled, or notes that nobody could be told.
pub(super) async fn settle_all(
    tx: &DatabaseTransaction,
    rows: Vec<stages::Model>,
    now: DateTime<Utc>,
) -> Result<(), StorageError> {
    let dispatched: Vec<_> = rows.into_iter().filter(|row| row.state == StageState::Dispatched.code()).collect();
    if dispatched.is_empty() {
        return Ok(());
    }
    let settled = without_open(tx, &dispatched.iter().map(key_of_row).collect()).await?;
    if settled.is_empty() {
        return Ok(());
    }
    let mut counts = counts_by_state(tx, &settled).await?;
    for row in dispatched {
        if let Some(counts) = counts.remove(&key_of_row(&row)) {
            settle(tx, row, &counts, now).await?;
        }
    }
    Ok(())
}

/// Those of these stages that have no email left to settle. One look into an index each, however many emails they have.
async fn without_open(tx: &DatabaseTransaction, keys: &BTreeSet<Key>) -> Result<BTreeSet<Key>, DbErr> {
    let same = |email: deliveries::Column, stage: stages::Column| {
        Expr::col((deliveries::Entity, email)).equals((stages::Entity, stage))
    };
    // A value, not EXISTS, which a planner without statistics turns into a join over all emails.
    let open = Query::select()
        .column((deliveries::Entity, deliveries::Column::State))
        .from(deliveries::Entity)
        .and_where(same(deliveries::Column::PlanId, stages::Column::PlanId))
        .and_where(same(deliveries::Column::AgencyId, stages::Column::AgencyId))
        .and_where(same(deliveries::Column::Stage, stages::Column::Stage))
        .and_where(
            Expr::col((deliveries::Entity, deliveries::Column::State))
                .is_in([DeliveryState::Pending.code(), DeliveryState::Sending.code()]),
        )
        .limit(1)
        .to_owned();
    let found: Vec<Key> = around(keys)
        .select_only()
        .column(stages::Column::PlanId)
        .column(stages::Column::AgencyId)
        .column(stages::Column::Stage)
        .filter(SimpleExpr::SubQuery(None, Box::new(open.into())).is_null())
        .into_tuple()
        .all(tx)
        .await?;
    Ok(found.into_iter().filter(|key| keys.contains(key)).collect())
}

/// How many emails are in a state, and when the last of them was settled.
struct Settled {
    state: i16,
    count: i64,
    last: Option<i64>,
}

async fn counts_by_state(tx: &DatabaseTransaction, keys: &BTreeSet<Key>) -> Result<HashMap<Key, Vec<Settled>>, DbErr> {
    let counts: Vec<(String, String, i16, i16, i64, Option<i64>)> = deliveries::Entity::find()
        .select_only()
        .column(deliveries::Column::PlanId)
        .column(deliveries::Column::AgencyId)
        .column(deliveries::Column::Stage)
        .column(deliveries::Column::State)
        .column_as(deliveries::Column::DeliveryId.count(), "count")
        .column_as(deliveries::Column::SettledAt.max(), "last")
        .filter(deliveries::Column::PlanId.is_in(keys.iter().map(|key| key.0.as_str()).collect::<BTreeSet<_>>()))
        .filter(deliveries::Column::AgencyId.is_in(keys.iter().map(|key| key.1.as_str()).collect::<BTreeSet<_>>()))
        .group_by(deliveries::Column::PlanId)
        .group_by(deliveries::Column::AgencyId)
        .group_by(deliveries::Column::Stage)
        .group_by(deliveries::Column::State)
        .into_tuple()
        .all(tx)
        .await?;
    let mut of: HashMap<Key, Vec<Settled>> = HashMap::new();
    for (plan_id, agency_id, stage, state, count, last) in counts {
        of.entry((plan_id, agency_id, stage)).or_default().push(Settled { state, count, last });
    }
    Ok(of)
}

async fn settle(
    tx: &DatabaseTransaction,
    row: stages::Model,
    counts: &[Settled],
    now: DateTime<Utc>,
) -> Result<(), StorageError> {
    let of = |state: DeliveryState| counts.iter().find(|settled| settled.state == state.code());
    let (known, dispatched_at) = (row.hold_reason, row.dispatched_at);
    let mut change: stages::ActiveModel = row.into();
    if let Some(accepted) = of(DeliveryState::Accepted) {
        change.state = Set(StageState::Complete.code());
        change.delivered_at = Set(std::cmp::max(accepted.last, dispatched_at));
        change.emails_accepted = Set(accepted.count);
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
