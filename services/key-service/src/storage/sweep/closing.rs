//! Lots and plans come to their end.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sea_orm::sea_query::Expr;
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseConnection, DatabaseTransaction, EntityTrait, QueryFilter, QueryOrder,
    QuerySelect,
};
use serde_json::json;
use service_kit::rows::{Column, Rows};
use service_kit::time::to_micros;

use super::codes::{self, Coded};
use super::entities::{entries, lots, plans};
use super::journal::Journal;
use super::lease;
use super::sql::{of_agencies, statement};
use crate::app::sweep::{Lease, SweepJobError};
use crate::domain::sweep::{EntryState, EventPayload, LotCounts, LotState, PlanState};
use crate::storage::StorageError;

/// States of a lot that is not closed.
pub(super) const UNCLOSED: [LotState; 2] = [LotState::Open, LotState::Held];

/// The entries of a plan, by state.
pub(super) async fn counts(db: &impl ConnectionTrait, plan_id: &str) -> Result<LotCounts, StorageError> {
    let rows: Vec<(i16, i64)> = entries::Entity::find()
        .select_only()
        .column(entries::Column::State)
        .column_as(entries::Column::KeyId.count(), "number")
        .filter(entries::Column::PlanId.eq(plan_id))
        .group_by(entries::Column::State)
        .into_tuple()
        .all(db)
        .await?;
    let mut counts = LotCounts::default();
    for (state, number) in rows {
        codes::count(&mut counts, state, number)?;
    }
    Ok(counts)
}

/// The entries of some lots of a plan, by state.
pub(super) async fn counts_of_lots(
    tx: &impl ConnectionTrait,
    plan_id: &str,
    agencies: &[&str],
) -> Result<BTreeMap<String, LotCounts>, StorageError> {
    let mut all: BTreeMap<String, LotCounts> =
        agencies.iter().map(|agency_id| ((*agency_id).to_owned(), LotCounts::default())).collect();
    if agencies.is_empty() {
        return Ok(all);
    }
    let (relation, values) = of_agencies(agencies).relation(tx.get_database_backend(), 2);
    let values = [vec![plan_id.into()], values].concat();
    for row in tx.query_all_raw(statement(tx, counting(&relation), values)).await? {
        let counts = all.entry(row.try_get("", "agency_id")?).or_default();
        codes::count(counts, row.try_get("", "state")?, row.try_get("", "number")?)?;
    }
    Ok(all)
}

/// How many entries of the lots `t` are in each state; parameter 1 is the plan.
pub(super) fn counting(lots: &str) -> String {
    format!(
        "SELECT t.agency_id, e.state, COUNT(*) AS number FROM {lots} CROSS JOIN sweep_entries e \
         WHERE e.plan_id = $1 AND e.agency_id = t.agency_id GROUP BY t.agency_id, e.state"
    )
}

/// Closes lots of a plan, whose rows the caller has locked, as executed.
pub(super) async fn execute(
    tx: &DatabaseTransaction,
    journal: &mut Journal,
    plan_id: &str,
    lots: &BTreeMap<String, LotCounts>,
    now: DateTime<Utc>,
) -> Result<(), StorageError> {
    if lots.is_empty() {
        return Ok(());
    }
    let agencies: Vec<String> = lots.keys().cloned().collect();
    set_state(tx, plan_id, &agencies, LotState::Executed, "").await?;
    for (agency_id, counts) in lots {
        let detail =
            json!({ "deleted_count": counts.deleted, "rescued_count": counts.rescued, "spared_count": counts.spared });
        journal.lot("lot.executed", plan_id, agency_id, "", detail);
        let event = EventPayload::LotExecuted {
            agency_id: agency_id.clone(),
            deleted_count: counts.deleted,
            rescued_count: counts.rescued,
            executed_at: now,
        };
        journal.event(plan_id, event);
    }
    Ok(())
}

/// Sets the state of some lots of a plan; a hold ends with it.
async fn set_state(
    tx: &DatabaseTransaction,
    plan_id: &str,
    agencies: &[String],
    state: LotState,
    reason: &str,
) -> Result<(), StorageError> {
    // The plan is a column, since SQLite would begin with all lots of one that is given.
    let rows = Rows::new("t")
        .column("plan_id", Column::Text(vec![plan_id.to_owned(); agencies.len()]))
        .column("agency_id", Column::Text(agencies.to_vec()));
    let (relation, values) = rows.relation(tx.get_database_backend(), 3);
    let sql = format!(
        "UPDATE sweep_lots SET state = $1, hold_reason = NULL, state_reason = $2 FROM {relation} \
         WHERE sweep_lots.plan_id = t.plan_id AND sweep_lots.agency_id = t.agency_id"
    );
    let values = [vec![state.code().into(), reason.into()], values].concat();
    tx.execute_raw(statement(tx, sql, values)).await?;
    Ok(())
}

/// Spares what is still planned of some lots of a plan; answers how many entries.
async fn spare(
    tx: &DatabaseTransaction,
    plan_id: &str,
    agencies: &[String],
    now: DateTime<Utc>,
) -> Result<u64, StorageError> {
    let spared = entries::Entity::update_many()
        .col_expr(entries::Column::State, Expr::value(EntryState::Spared.code()))
        .col_expr(entries::Column::EndedAt, Expr::value(to_micros(now)))
        .filter(entries::Column::PlanId.eq(plan_id))
        .filter(entries::Column::AgencyId.is_in(agencies))
        .filter(entries::Column::State.eq(EntryState::Planned.code()))
        .exec(tx)
        .await?;
    Ok(spared.rows_affected)
}

/// Lets one lot, whose row the caller has locked, wait for the next quarter.
pub(super) async fn defer(
    tx: &DatabaseTransaction,
    journal: &mut Journal,
    plan_id: &str,
    agency_id: &str,
    reason: &str,
    now: DateTime<Utc>,
) -> Result<(), StorageError> {
    let agencies = [agency_id.to_owned()];
    let spared = spare(tx, plan_id, &agencies, now).await?;
    set_state(tx, plan_id, &agencies, LotState::Deferred, reason).await?;
    journal.lot("lot.deferred", plan_id, agency_id, reason, json!({ "spared_count": spared }));
    let event = EventPayload::LotDeferred { agency_id: agency_id.to_owned(), reason: reason.to_owned() };
    journal.event(plan_id, event);
    Ok(())
}

/// Cancels all lots of a plan, whose row the caller has locked, that are not closed; answers how many entries are spared.
pub(super) async fn cancel_lots(
    tx: &DatabaseTransaction,
    plan_id: &str,
    reason: &str,
    now: DateTime<Utc>,
) -> Result<u64, StorageError> {
    let open: Vec<String> = lots::Entity::find()
        .select_only()
        .column(lots::Column::AgencyId)
        .filter(lots::Column::PlanId.eq(plan_id))
        .filter(lots::Column::State.is_in(UNCLOSED.map(Coded::code)))
        .order_by_asc(lots::Column::AgencyId)
        .lock_exclusive()
        .into_tuple()
        .all(tx)
        .await?;
    let mut spared = 0;
    // As many as a statement of SQLite takes with room to spare.
    for agencies in open.chunks(1_000) {
        spared += spare(tx, plan_id, agencies, now).await?;
        set_state(tx, plan_id, agencies, LotState::Cancelled, reason).await?;
    }
    Ok(spared)
}

/// Defers open and held lots whose last date has passed.
pub(super) async fn defer_overdue(
    db: &DatabaseConnection,
    lease: &Lease,
    limit: u32,
    now: DateTime<Utc>,
) -> Result<u64, SweepJobError> {
    let overdue = || {
        lots::Entity::find()
            .filter(lots::Column::State.is_in(UNCLOSED.map(Coded::code)))
            .filter(lots::Column::LastDeleteAt.lt(to_micros(now)))
            .order_by_asc(lots::Column::PlanId)
            .order_by_asc(lots::Column::AgencyId)
            .limit(u64::from(limit))
    };
    if overdue().one(db).await?.is_none() {
        return Ok(0);
    }
    let tx = lease::begin(db, lease).await?;
    let mut journal = Journal::of_sweep(now);
    let due = overdue().lock_exclusive().all(&tx).await?;
    for lot in &due {
        let reason = match lot.state_reason.as_str() {
            "" => "its notices were not all delivered in time for the plan's last date".to_owned(),
            why => format!("still held at the plan's last date: {why}"),
        };
        defer(&tx, &mut journal, &lot.plan_id, &lot.agency_id, &reason, now).await?;
    }
    journal.write(&tx).await?;
    tx.commit().await?;
    Ok(due.len() as u64)
}

/// Closes open and held lots whose time has come and of which nothing is left.
pub(super) async fn close_emptied(
    db: &DatabaseConnection,
    lease: &Lease,
    limit: u32,
    now: DateTime<Utc>,
) -> Result<u64, SweepJobError> {
    let sql = "SELECT l.plan_id, l.agency_id FROM sweep_lots l WHERE l.state IN (1, 2) AND l.delete_at <= $1 \
               AND NOT EXISTS (SELECT 1 FROM sweep_entries e \
               WHERE e.plan_id = l.plan_id AND e.agency_id = l.agency_id AND e.state = 1) \
               ORDER BY l.plan_id, l.agency_id LIMIT $2";
    let values = vec![to_micros(now).into(), i64::from(limit).into()];
    let emptied = db.query_all_raw(statement(db, sql, values)).await?;
    if emptied.is_empty() {
        return Ok(0);
    }
    let tx = lease::begin(db, lease).await?;
    let mut journal = Journal::of_sweep(now);
    let mut pairs: Vec<(String, String)> = Vec::with_capacity(emptied.len());
    for row in emptied {
        pairs.push((row.try_get("", "plan_id")?, row.try_get("", "agency_id")?));
    }
    let mut closed = 0;
    for of_plan in pairs.chunk_by(|one, next| one.0 == next.0) {
        let plan_id = of_plan.first().map_or("", |(plan_id, _)| plan_id);
        // Entries never come back, so only the lot's own state can have changed since the look.
        let still: Vec<String> = lots::Entity::find()
            .select_only()
            .column(lots::Column::AgencyId)
            .filter(lots::Column::PlanId.eq(plan_id))
            .filter(lots::Column::AgencyId.is_in(of_plan.iter().map(|(_, agency_id)| agency_id)))
            .filter(lots::Column::State.is_in(UNCLOSED.map(Coded::code)))
            .filter(lots::Column::DeleteAt.lte(to_micros(now)))
            .order_by_asc(lots::Column::AgencyId)
            .lock_exclusive()
            .into_tuple()
            .all(&tx)
            .await?;
        let still: Vec<&str> = still.iter().map(String::as_str).collect();
        let counts = counts_of_lots(&tx, plan_id, &still).await?;
        execute(&tx, &mut journal, plan_id, &counts, now).await?;
        closed += still.len() as u64;
    }
    journal.write(&tx).await?;
    tx.commit().await?;
    Ok(closed)
}

/// Whether a plan has a lot that is not closed.
async fn has_unclosed(db: &impl ConnectionTrait, plan_id: &str) -> Result<bool, StorageError> {
    let one = lots::Entity::find()
        .filter(lots::Column::PlanId.eq(plan_id))
        .filter(lots::Column::State.is_in(UNCLOSED.map(Coded::code)))
        .limit(1)
        .one(db)
        .await?;
    Ok(one.is_some())
}

/// Completes an open plan whose time has come and whose lots are all closed.
pub(super) async fn complete_plan(
    db: &DatabaseConnection,
    lease: &Lease,
    plan_id: &str,
    now: DateTime<Utc>,
) -> Result<bool, SweepJobError> {
    if has_unclosed(db, plan_id).await? {
        return Ok(false);
    }
    // Of closed lots, so that nothing of it changes any more: long plans need not be locked while they are counted.
    let counts = counts(db, plan_id).await?;
    let tx = lease::begin(db, lease).await?;
    let completed = plans::Entity::update_many()
        .col_expr(plans::Column::State, Expr::value(PlanState::Completed.code()))
        .col_expr(plans::Column::CompletedAt, Expr::value(to_micros(now)))
        .col_expr(plans::Column::StateReason, Expr::value(""))
        .filter(plans::Column::PlanId.eq(plan_id))
        .filter(plans::Column::State.eq(PlanState::Open.code()))
        .filter(plans::Column::DeleteAt.lte(to_micros(now)))
        .exec(&tx)
        .await?;
    if completed.rows_affected == 0 {
        return Ok(false);
    }
    let (deleted_count, rescued_count, spared_count) = (counts.deleted, counts.rescued, counts.spared);
    let mut journal = Journal::of_sweep(now);
    let detail =
        json!({ "deleted_count": deleted_count, "rescued_count": rescued_count, "spared_count": spared_count });
    journal.plan("plan.completed", plan_id, "", detail);
    journal.event(plan_id, EventPayload::PlanCompleted { deleted_count, rescued_count, spared_count });
    journal.write(&tx).await?;
    tx.commit().await?;
    Ok(true)
}
