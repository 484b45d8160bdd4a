//! What operators ask for: each call once, audited, with its reason.

use chrono::{DateTime, Utc};
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, DatabaseConnection, DatabaseTransaction, DbErr, EntityTrait, QueryFilter, QuerySelect};
use serde_json::json;
use service_kit::db::begin_write;
use service_kit::idempotency::{self, Recall, RequestKey};
use service_kit::time::to_micros;

use super::closing;
use super::codes::{self, Coded};
use super::deletion::receipts_of;
use super::entities::{lots, plans};
use super::journal::Journal;
use super::notices;
use crate::app::sweep::{Command, DeskError};
use crate::domain::sweep::schedule::planning_closes_at;
use crate::domain::sweep::{EventPayload, HoldReason, Lot, LotState, Plan, PlanState};

impl From<DbErr> for DeskError {
    fn from(error: DbErr) -> Self {
        Self::Storage(error.into())
    }
}

/// A call within its transaction.
struct Call {
    tx: DatabaseTransaction,
    journal: Journal,
    request: Option<RequestKey>,
    resource: String,
    now: DateTime<Utc>,
}

impl Call {
    /// Begins the transaction. None: the call was made before, under the same request id.
    async fn begin(
        db: &DatabaseConnection,
        method: &'static str,
        resource: String,
        by: &Command,
        now: DateTime<Utc>,
    ) -> Result<Option<Self>, DeskError> {
        let tx = begin_write(db).await?;
        let request = (!by.request_id.is_empty()).then(|| RequestKey {
            method,
            scope: by.actor.to_string(),
            request_id: by.request_id.clone(),
            fingerprint: idempotency::fingerprint(&[resource.as_bytes(), by.reason.as_bytes()]),
        });
        if let Some(key) = &request {
            match idempotency::recall(&tx, key, now).await? {
                Recall::New => {}
                Recall::Replay { .. } => return Ok(None),
                Recall::Reused => return Err(DeskError::RequestIdReused),
            }
        }
        let journal = Journal::of(by.actor.clone(), by.call_id.clone(), by.origin.clone(), now);
        Ok(Some(Self { tx, journal, request, resource, now }))
    }

    async fn commit(self) -> Result<(), DeskError> {
        if let Some(key) = &self.request {
            idempotency::record(&self.tx, key, &self.resource, None, self.now).await?;
        }
        self.journal.write(&self.tx).await?;
        self.tx.commit().await?;
        Ok(())
    }

    async fn lock_plan(&self, plan_id: &str) -> Result<Plan, DeskError> {
        let row = plans::Entity::find_by_id(plan_id).lock_exclusive().one(&self.tx).await?;
        Ok(codes::plan(row.ok_or(DeskError::PlanNotFound)?)?)
    }

    async fn lock_lot(&self, plan_id: &str, agency_id: &str) -> Result<Lot, DeskError> {
        let key = (plan_id.to_owned(), agency_id.to_owned());
        let row = lots::Entity::find_by_id(key).lock_exclusive().one(&self.tx).await?;
        let row = row.ok_or(DeskError::LotNotFound)?;
        let receipts = receipts_of(&self.tx, plan_id, &[agency_id]).await?.remove(agency_id).unwrap_or_default();
        Ok(codes::lot(row, receipts)?)
    }
}

/// Lets a plan go ahead that the breaker stopped. Confirmed again, nothing changes.
pub(super) async fn confirm_plan(
    db: &DatabaseConnection,
    plan_id: &str,
    by: &Command,
    now: DateTime<Utc>,
) -> Result<(), DeskError> {
    let Some(mut call) = Call::begin(db, "ConfirmPlan", plan_id.to_owned(), by, now).await? else { return Ok(()) };
    let plan = call.lock_plan(plan_id).await?;
    if plan.state != PlanState::AwaitingConfirmation || now > planning_closes_at(plan.delete_at) {
        let needed = "the plan must be AWAITING_CONFIRMATION, with time left for its notices";
        return Err(DeskError::PlanState { state: plan.state, needed });
    }
    if plan.confirmed_at.is_none() {
        plans::Entity::update_many()
            .col_expr(plans::Column::ConfirmedAt, Expr::value(to_micros(now)))
            .col_expr(plans::Column::StateReason, Expr::value("confirmed; published in a moment"))
            .filter(plans::Column::PlanId.eq(plan_id))
            .exec(&call.tx)
            .await?;
        let detail = json!({ "entry_count": plan.entry_count, "active_key_count": plan.active_key_count });
        call.journal.plan("plan.confirmed", plan_id, &by.reason, detail);
    }
    call.commit().await
}

/// Ends a plan that is waiting or open.
pub(super) async fn cancel_plan(
    db: &DatabaseConnection,
    plan_id: &str,
    by: &Command,
    now: DateTime<Utc>,
) -> Result<(), DeskError> {
    let Some(mut call) = Call::begin(db, "CancelPlan", plan_id.to_owned(), by, now).await? else { return Ok(()) };
    let plan = call.lock_plan(plan_id).await?;
    let published = match plan.state {
        PlanState::AwaitingConfirmation => false,
        PlanState::Open => true,
        PlanState::Completed | PlanState::Cancelled => {
            let needed = "the plan must be AWAITING_CONFIRMATION or OPEN";
            return Err(DeskError::PlanState { state: plan.state, needed });
        }
    };
    let spared = closing::cancel_lots(&call.tx, plan_id, &by.reason, now).await?;
    plans::Entity::update_many()
        .col_expr(plans::Column::State, Expr::value(PlanState::Cancelled.code()))
        .col_expr(plans::Column::StateReason, Expr::value(by.reason.as_str()))
        .filter(plans::Column::PlanId.eq(plan_id))
        .exec(&call.tx)
        .await?;
    call.journal.plan("plan.cancelled", plan_id, &by.reason, json!({ "spared_count": spared }));
    if published {
        call.journal.event(plan_id, EventPayload::PlanCancelled { reason: by.reason.clone() });
    }
    call.commit().await
}

/// Holds a lot. An operator's hold takes the place of any other: of one for want of a reader, which would end by itself, and of an
/// earlier operator's, whose reason no longer holds.
pub(super) async fn hold_lot(
    db: &DatabaseConnection,
    plan_id: &str,
    agency_id: &str,
    by: &Command,
    now: DateTime<Utc>,
) -> Result<(), DeskError> {
    let Some(mut call) = Call::begin(db, "HoldLot", format!("{plan_id}/{agency_id}"), by, now).await? else {
        return Ok(());
    };
    let mut lot = call.lock_lot(plan_id, agency_id).await?;
    if lot.state.is_closed() {
        return Err(DeskError::LotState { state: lot.state, needed: "the lot must be OPEN or HELD" });
    }
    notices::hold(&call.tx, &mut call.journal, &mut lot, HoldReason::Operator, &by.reason).await?;
    call.commit().await
}

/// Ends a lot's hold, whatever its cause.
pub(super) async fn release_lot(
    db: &DatabaseConnection,
    plan_id: &str,
    agency_id: &str,
    by: &Command,
    now: DateTime<Utc>,
) -> Result<(), DeskError> {
    let Some(mut call) = Call::begin(db, "ReleaseLot", format!("{plan_id}/{agency_id}"), by, now).await? else {
        return Ok(());
    };
    let mut lot = call.lock_lot(plan_id, agency_id).await?;
    if lot.state != LotState::Held {
        return Err(DeskError::LotState { state: lot.state, needed: "the lot must be HELD" });
    }
    notices::release(&call.tx, &mut call.journal, &mut lot, &by.reason).await?;
    call.commit().await
}
