//! A plan is made. No row of it passes through this process: entries and lots are written by the database from what it holds.

use chrono::{DateTime, Utc};
use sea_orm::sea_query::Expr;
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, EntityTrait, QueryFilter,
    QuerySelect, TransactionTrait,
};
use serde_json::json;
use service_kit::time::to_micros;

use super::codes::{self, Coded};
use super::entities::plans;
use super::journal::Journal;
use super::lease;
use super::sql::{last_use, statement, without_parallel_workers};
use crate::app::sweep::{Lease, PlanDraft, SweepJobError};
use crate::domain::sweep::event::CHUNK_ENTRIES;
use crate::domain::sweep::{EventPayload, KeyRange, Plan, PlanState};
use crate::storage::StorageError;

/// Makes a plan: publishes it, or lets it await confirmation if it is above the breaker.
pub(super) async fn make(
    db: &DatabaseConnection,
    lease: &Lease,
    draft: &PlanDraft,
    now: DateTime<Utc>,
) -> Result<Option<Plan>, SweepJobError> {
    let tx = lease::begin(db, lease).await?;
    without_parallel_workers(&tx).await?;
    let mut plan = Plan {
        plan_id: draft.plan_id.clone(),
        delete_at: draft.delete_at,
        idle_since: draft.idle_since,
        last_delete_at: draft.last_delete_at,
        stage_window: draft.stage_window,
        state: PlanState::AwaitingConfirmation,
        state_reason: String::new(),
        created_at: now,
        confirmed_at: None,
        published_at: None,
        completed_at: None,
        entry_count: 0,
        lot_count: 0,
        active_key_count: draft.active_key_count,
    };
    if !claim(&tx, &plan).await? {
        tx.rollback().await?;
        return Ok(None);
    }
    // Written first and counted then: the keys are read once. Above the breaker, what was written is undone.
    let trial = tx.begin().await?;
    write(&trial, &mut plan).await?;
    let count = |number: i64| u64::try_from(number).unwrap_or(0);
    let mut journal = Journal::of_sweep(now);
    if draft.breaker.trips(count(plan.entry_count), count(plan.active_key_count)) {
        trial.rollback().await?;
        let (listed, active) = (plan.entry_count, plan.active_key_count);
        plan.state_reason =
            format!("{listed} of {active} active keys would be deleted: waits for an operator to confirm or cancel");
        let detail = json!({ "entry_count": listed, "active_key_count": active });
        journal.plan("plan.stopped", &plan.plan_id, &plan.state_reason, detail);
    } else {
        trial.commit().await?;
        publish(&tx, &mut plan, &mut journal, now).await?;
    }
    save(&tx, &plan).await?;
    journal.write(&tx).await?;
    tx.commit().await?;
    Ok(Some(plan))
}

/// Publishes a plan that an operator has confirmed, with what is idle now.
pub(super) async fn publish_confirmed(
    db: &DatabaseConnection,
    lease: &Lease,
    plan_id: &str,
    idle_since: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<Option<Plan>, SweepJobError> {
    let tx = lease::begin(db, lease).await?;
    without_parallel_workers(&tx).await?;
    let row = plans::Entity::find_by_id(plan_id).lock_exclusive().one(&tx).await?;
    let Some(mut plan) = row.map(codes::plan).transpose()? else { return Ok(None) };
    if plan.state != PlanState::AwaitingConfirmation || plan.confirmed_at.is_none() {
        return Ok(None);
    }
    plan.idle_since = idle_since;
    let mut journal = Journal::of_sweep(now);
    write(&tx, &mut plan).await?;
    publish(&tx, &mut plan, &mut journal, now).await?;
    save(&tx, &plan).await?;
    journal.write(&tx).await?;
    tx.commit().await?;
    Ok(Some(plan))
}

/// Inserts the plan's row if nobody has made a plan for its instant. Waits for whoever is about to.
async fn claim(tx: &DatabaseTransaction, plan: &Plan) -> Result<bool, StorageError> {
    let row = codes::plan_row(plan);
    let sql = "INSERT INTO sweep_plans (plan_id, delete_at, idle_since_at, last_delete_at, stage_window_ms, state, state_reason, \
               created_at, entry_count, lot_count, active_key_count) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0, 0, 0) \
               ON CONFLICT (delete_at) DO NOTHING";
    let values = vec![
        row.plan_id.into(),
        row.delete_at.into(),
        row.idle_since_at.into(),
        row.last_delete_at.into(),
        row.stage_window_ms.into(),
        row.state.into(),
        row.state_reason.into(),
        row.created_at.into(),
    ];
    Ok(tx.execute_raw(statement(tx, sql, values)).await?.rows_affected() == 1)
}

/// Which keys a plan lists: the key is `k`, the cutoff parameter 1, and from 3 on the published plans that are not over, if there are
/// any: only their entries can be planned.
fn listed(unclosed: usize) -> String {
    let idle = format!("k.state = 1 AND k.revoke_at IS NULL AND {} <= $1", last_use("k"));
    if unclosed == 0 {
        return idle;
    }
    let plans: Vec<_> = (3..3 + unclosed).map(|place| format!("${place}")).collect();
    format!(
        "{idle} AND NOT EXISTS (SELECT 1 FROM sweep_entries o WHERE o.key_id = k.id AND o.state = 1 AND o.plan_id IN ({}))",
        plans.join(", ")
    )
}

/// The published plans that have lots which are not closed.
async fn unclosed_plans(tx: &DatabaseTransaction) -> Result<Vec<String>, StorageError> {
    let open = plans::Entity::find().select_only().column(plans::Column::PlanId);
    Ok(open.filter(plans::Column::State.eq(PlanState::Open.code())).into_tuple().all(tx).await?)
}

/// Writes entries and lots, and counts them.
async fn write(tx: &DatabaseTransaction, plan: &mut Plan) -> Result<(), StorageError> {
    let unclosed = unclosed_plans(tx).await?;
    let sql = format!(
        "INSERT INTO sweep_entries (plan_id, agency_id, key_id, location_id, display_name, display_prefix, created_at, last_used_at, state) \
         SELECT CAST($2 AS TEXT), k.agency_id, k.id, k.location_id, k.display_name, k.display_prefix, k.created_at, k.last_used_at, 1 \
         FROM api_keys k WHERE {} ORDER BY k.agency_id, k.id",
        listed(unclosed.len())
    );
    let mut values = vec![to_micros(plan.idle_since).into(), plan.plan_id.as_str().into()];
    values.extend(unclosed.into_iter().map(Into::into));
    let entries = tx.execute_raw(statement(tx, sql, values)).await?.rows_affected();

    let sql = "INSERT INTO sweep_lots (plan_id, agency_id, state, delete_at, last_delete_at, entry_count, state_reason, swept_through) \
               SELECT e.plan_id, e.agency_id, 1, CAST($2 AS BIGINT), CAST($3 AS BIGINT), COUNT(*), '', '' \
               FROM sweep_entries e WHERE e.plan_id = $1 GROUP BY e.plan_id, e.agency_id";
    let values =
        vec![plan.plan_id.as_str().into(), to_micros(plan.delete_at).into(), to_micros(plan.last_delete_at).into()];
    let lots = tx.execute_raw(statement(tx, sql, values)).await?.rows_affected();
    plan.entry_count = i64::try_from(entries).unwrap_or(i64::MAX);
    plan.lot_count = i64::try_from(lots).unwrap_or(i64::MAX);
    Ok(())
}

/// Names entries and lots, which are written, to the subscribers; sets what of the plan follows from it.
async fn publish(
    tx: &DatabaseTransaction,
    plan: &mut Plan,
    journal: &mut Journal,
    now: DateTime<Utc>,
) -> Result<(), StorageError> {
    plan.state = PlanState::Open;
    plan.state_reason = String::new();
    plan.published_at = Some(now);

    // The database plans its reads of what was just written by what it knows of it: of the columns that are asked for.
    if tx.get_database_backend() == DbBackend::Postgres {
        let sql = "ANALYZE sweep_entries (plan_id, agency_id, key_id, state), sweep_lots (plan_id, agency_id, state, delete_at)";
        tx.execute_unprepared(sql).await?;
    }

    journal.event(&plan.plan_id, EventPayload::published(plan));
    for range in chunks(tx, plan).await? {
        journal.event(&plan.plan_id, EventPayload::PlanEntries(range));
    }
    journal.event(&plan.plan_id, EventPayload::PlanSealed { entry_count: plan.entry_count, lot_count: plan.lot_count });
    let detail = json!({
        "delete_time": plan.delete_at,
        "entry_count": plan.entry_count,
        "lot_count": plan.lot_count,
        "active_key_count": plan.active_key_count,
    });
    journal.plan("plan.published", &plan.plan_id, "", detail);
    Ok(())
}

/// The first and last entry of each chunk, in the order of (agency, key): two rows a chunk.
async fn chunks(tx: &DatabaseTransaction, plan: &Plan) -> Result<Vec<KeyRange>, StorageError> {
    // The total is a parameter: counted beside the places, it would have the database keep all rows before it gives the first.
    let sql = "SELECT agency_id, key_id, place FROM (SELECT agency_id, key_id, \
               ROW_NUMBER() OVER (ORDER BY agency_id, key_id) AS place FROM sweep_entries WHERE plan_id = $1) AS numbered \
               WHERE place % $2 IN (0, 1) OR place = $3 ORDER BY place";
    let size = i64::from(CHUNK_ENTRIES);
    let mut ranges: Vec<KeyRange> = Vec::new();
    for row in tx
        .query_all_raw(statement(tx, sql, vec![plan.plan_id.as_str().into(), size.into(), plan.entry_count.into()]))
        .await?
    {
        let place: i64 = row.try_get("", "place")?;
        let at: (String, String) = (row.try_get("", "agency_id")?, row.try_get("", "key_id")?);
        match ranges.last_mut() {
            Some(range) if place % size != 1 => range.last = at,
            _ => ranges.push(KeyRange { first: at.clone(), last: at }),
        }
    }
    Ok(ranges)
}

/// Stores what measuring and publishing have set.
async fn save(tx: &DatabaseTransaction, plan: &Plan) -> Result<(), StorageError> {
    let row = codes::plan_row(plan);
    plans::Entity::update_many()
        .col_expr(plans::Column::IdleSinceAt, Expr::value(row.idle_since_at))
        .col_expr(plans::Column::State, Expr::value(row.state))
        .col_expr(plans::Column::StateReason, Expr::value(row.state_reason))
        .col_expr(plans::Column::PublishedAt, Expr::value(row.published_at))
        .col_expr(plans::Column::EntryCount, Expr::value(row.entry_count))
        .col_expr(plans::Column::LotCount, Expr::value(row.lot_count))
        .col_expr(plans::Column::ActiveKeyCount, Expr::value(row.active_key_count))
        .filter(plans::Column::PlanId.eq(&plan.plan_id))
        .exec(tx)
        .await?;
    Ok(())
}

/// Ends a plan that was never published.
pub(super) async fn cancel_unpublished(
    db: &DatabaseConnection,
    lease: &Lease,
    plan_id: &str,
    reason: &str,
    now: DateTime<Utc>,
) -> Result<bool, SweepJobError> {
    let tx = lease::begin(db, lease).await?;
    let ended = plans::Entity::update_many()
        .col_expr(plans::Column::State, Expr::value(PlanState::Cancelled.code()))
        .col_expr(plans::Column::StateReason, Expr::value(reason))
        .filter(plans::Column::PlanId.eq(plan_id))
        .filter(plans::Column::State.eq(PlanState::AwaitingConfirmation.code()))
        .exec(&tx)
        .await?;
    if ended.rows_affected == 0 {
        return Ok(false);
    }
    let mut journal = Journal::of_sweep(now);
    journal.plan("plan.cancelled", plan_id, reason, json!({}));
    journal.write(&tx).await?;
    tx.commit().await?;
    Ok(true)
}
