//! Which stages are due, and the people collected for them.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use sea_orm::prelude::*;
use sea_orm::sea_query::{Cond, ExprTrait, LockBehavior, LockType, Order, Query};
use sea_orm::{ActiveValue::Set, Condition, ConnectionTrait, DatabaseTransaction, DbErr, QueryOrder};
use service_kit::time::to_micros;

use super::entities::{location_names, lots, notice_scopes, plans, stage_recipients, stages};
use super::stages::{StageState, around, key_of_row};
use crate::app::ports::{StageId, StorageError};
use crate::domain::ids::LocationId;
use crate::domain::plan::{HoldReason, LotState, PlanState};

/// Rows in one INSERT of narrow tables.
pub(super) const ROWS: usize = 1_000;

pub(super) fn lease_is_over(now: DateTime<Utc>) -> Condition {
    Condition::any().add(stages::Column::LeaseUntil.is_null()).add(stages::Column::LeaseUntil.lte(to_micros(now)))
}

/// Stages that are due, of lots that can be told: no operator holds them, and everything that their last receipt brought about is
/// known. Within a transaction that claims them, those that another one is claiming are passed over.
pub(super) async fn due(
    db: &impl ConnectionTrait,
    now: DateTime<Utc>,
    limit: u64,
    claiming: bool,
) -> Result<Vec<stages::Model>, StorageError> {
    let stage = |column: stages::Column| Expr::col((stages::Entity, column));
    let lot = |column: lots::Column| Expr::col((lots::Entity, column));
    let plan = |column: plans::Column| Expr::col((plans::Entity, column));
    let looking = Cond::any().add(stage(stages::Column::State).eq(StageState::Waiting.code())).add(
        Cond::all()
            .add(stage(stages::Column::State).eq(StageState::Dispatched.code()))
            .add(stage(stages::Column::HoldReason).is_not_null()),
    );
    let tellable = Cond::any().add(lot(lots::Column::State).eq(LotState::Open.code())).add(
        Cond::all()
            .add(lot(lots::Column::State).eq(LotState::Held.code()))
            .add(lot(lots::Column::HoldReason).ne(HoldReason::Operator.code())),
    );
    let free = Cond::any()
        .add(stage(stages::Column::LeaseUntil).is_null())
        .add(stage(stages::Column::LeaseUntil).lte(to_micros(now)));
    let applied = Query::select()
        .column(super::entities::heads::Column::AppliedSequence)
        .from(super::entities::heads::Entity)
        .to_owned();
    let mut select = Query::select();
    select
        .columns([
            (stages::Entity, stages::Column::PlanId),
            (stages::Entity, stages::Column::AgencyId),
            (stages::Entity, stages::Column::Stage),
        ])
        .from(stages::Entity)
        .inner_join(
            lots::Entity,
            Cond::all()
                .add(lot(lots::Column::PlanId).equals((stages::Entity, stages::Column::PlanId)))
                .add(lot(lots::Column::AgencyId).equals((stages::Entity, stages::Column::AgencyId))),
        )
        .inner_join(plans::Entity, plan(plans::Column::PlanId).equals((stages::Entity, stages::Column::PlanId)))
        .and_where(plan(plans::Column::State).eq(PlanState::Open.code()))
        .and_where(plan(plans::Column::SealedSequence).is_not_null())
        .and_where(stage(stages::Column::DueAt).lte(to_micros(now)))
        .and_where(
            stage(stages::Column::WaitSequence)
                .lte(sea_orm::sea_query::SimpleExpr::SubQuery(None, Box::new(applied.into()))),
        )
        .cond_where(looking)
        .cond_where(tellable)
        .cond_where(free)
        .order_by((stages::Entity, stages::Column::DueAt), Order::Asc)
        .limit(limit);
    if claiming {
        select.lock_with_tables_behavior(LockType::Update, [stages::Entity], LockBehavior::SkipLocked);
    }
    let mut keys = BTreeSet::new();
    for row in db.query_all(&select).await? {
        keys.insert((row.try_get("", "plan_id")?, row.try_get("", "agency_id")?, row.try_get("", "stage")?));
    }
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let mut rows = around(&keys).order_by_asc(stages::Column::DueAt).all(db).await?;
    rows.retain(|row| keys.contains(&key_of_row(row)));
    Ok(rows)
}

pub(super) async fn forget_collected(tx: &DatabaseTransaction, id: &StageId) -> Result<(), DbErr> {
    stage_recipients::Entity::delete_many()
        .filter(stage_recipients::Column::PlanId.eq(id.plan_id.as_str()))
        .filter(stage_recipients::Column::AgencyId.eq(id.agency_id.as_str()))
        .filter(stage_recipients::Column::Stage.eq(id.stage.code()))
        .exec(tx)
        .await?;
    notice_scopes::Entity::delete_many()
        .filter(notice_scopes::Column::PlanId.eq(id.plan_id.as_str()))
        .filter(notice_scopes::Column::AgencyId.eq(id.agency_id.as_str()))
        .filter(notice_scopes::Column::Stage.eq(id.stage.code()))
        .exec(tx)
        .await?;
    Ok(())
}

pub(super) async fn name_locations(
    tx: &DatabaseTransaction,
    id: &StageId,
    named: Vec<(LocationId, String)>,
) -> Result<(), DbErr> {
    for some in named.chunks(ROWS) {
        let rows = some.iter().map(|(location_id, name)| location_names::ActiveModel {
            plan_id: Set(id.plan_id.as_str().to_owned()),
            agency_id: Set(id.agency_id.as_str().to_owned()),
            location_id: Set(location_id.as_str().to_owned()),
            name: Set(name.clone()),
        });
        location_names::Entity::insert_many(rows).on_conflict_do_nothing().exec_without_returning(tx).await?;
    }
    Ok(())
}

pub(super) fn scope(id: &StageId, location_id: String, user_id: String) -> notice_scopes::ActiveModel {
    notice_scopes::ActiveModel {
        plan_id: Set(id.plan_id.as_str().to_owned()),
        agency_id: Set(id.agency_id.as_str().to_owned()),
        stage: Set(id.stage.code()),
        location_id: Set(location_id),
        user_id: Set(user_id),
    }
}
