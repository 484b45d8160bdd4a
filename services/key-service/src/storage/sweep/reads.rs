//! What readers see of plans, and what a sweep would list.

use std::collections::HashMap;

use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseConnection, DatabaseTransaction, EntityTrait, QueryFilter, QueryOrder,
    QuerySelect, TransactionTrait, Value,
};
use service_kit::page::Page;
use service_kit::time::{from_micros, to_micros};

use super::closing::counts;
use super::codes::{self, Coded};
use super::entities::{entries, lots, plans, receipts};
use super::feed::last_sequence;
use super::sql::{last_use, statement, without_parallel_workers};
use crate::app::sweep::{
    AgencyTotal, Difference, EntryFilter, LotFilter, PlanComparison, PlanFilter, PlanView, Preview, PreviewFilter,
};
use crate::domain::sweep::{Entry, EntryState, HoldReason, Lot, LotCounts, Plan, PlanState, Receipt, UsageWriter};
use crate::storage::StorageError;
use crate::storage::entities::usage_writers;

/// The processes that record uses.
pub(super) async fn writers(db: &DatabaseConnection) -> Result<Vec<UsageWriter>, StorageError> {
    let rows = usage_writers::Entity::find().filter(usage_writers::Column::ClosedAt.is_null()).all(db).await?;
    let writer = |row: usage_writers::Model| UsageWriter {
        replica_id: row.replica_id,
        flushed_through_at: from_micros(row.flushed_through_at),
        closed_at: row.closed_at.map(from_micros),
    };
    Ok(rows.into_iter().map(writer).collect())
}

/// The plan for a deletion instant.
pub(super) async fn plan_for(db: &DatabaseConnection, delete_at: i64) -> Result<Option<Plan>, StorageError> {
    let row = plans::Entity::find().filter(plans::Column::DeleteAt.eq(delete_at)).one(db).await?;
    row.map(codes::plan).transpose()
}

/// Plans in a state, oldest first.
pub(super) async fn plans_in(db: &DatabaseConnection, state: PlanState) -> Result<Vec<Plan>, StorageError> {
    let query =
        plans::Entity::find().filter(plans::Column::State.eq(state.code())).order_by_asc(plans::Column::DeleteAt);
    query.all(db).await?.into_iter().map(codes::plan).collect()
}

/// One plan with its counts.
pub(super) async fn plan(db: &DatabaseConnection, plan_id: &str) -> Result<Option<PlanView>, StorageError> {
    let tx = db.begin().await?;
    match plans::Entity::find_by_id(plan_id).one(&tx).await? {
        Some(row) => Ok(Some(plan_view(&tx, row).await?)),
        None => Ok(None),
    }
}

async fn plan_view(db: &impl ConnectionTrait, row: plans::Model) -> Result<PlanView, StorageError> {
    let counts = counts(db, &row.plan_id).await?;
    let last_sequence = last_sequence(db, &row.plan_id).await?;
    Ok(PlanView { plan: codes::plan(row)?, counts, last_sequence })
}

/// One page of plans, newest first, and one row more.
pub(super) async fn plans(
    db: &DatabaseConnection,
    filter: PlanFilter,
    page: &Page,
) -> Result<Vec<PlanView>, StorageError> {
    let mut query = plans::Entity::find().order_by_desc(plans::Column::PlanId).limit(u64::from(page.size) + 1);
    if let Some(state) = filter.state {
        query = query.filter(plans::Column::State.eq(state.code()));
    }
    if let Some(cursor) = &page.cursor {
        query = query.filter(plans::Column::PlanId.lt(cursor));
    }
    let mut views = Vec::new();
    for row in query.all(db).await? {
        views.push(plan_view(db, row).await?);
    }
    Ok(views)
}

/// One lot with its counts.
pub(super) async fn lot(
    db: &DatabaseConnection,
    plan_id: &str,
    agency_id: &str,
) -> Result<Option<(Lot, LotCounts)>, StorageError> {
    let row = lots::Entity::find_by_id((plan_id.to_owned(), agency_id.to_owned())).one(db).await?;
    Ok(with_parts(db, plan_id, row.into_iter().collect()).await?.pop())
}

/// Held lots by reason.
pub(super) async fn held_lots(db: &DatabaseConnection) -> Result<Vec<(HoldReason, i64)>, StorageError> {
    // As the index of held lots has it.
    let sql = "SELECT hold_reason, COUNT(*) AS lots FROM sweep_lots WHERE state = 2 GROUP BY hold_reason";
    let mut held = Vec::new();
    for row in db.query_all_raw(statement(db, sql, Vec::new())).await? {
        let reason: Option<i16> = row.try_get("", "hold_reason")?;
        let reason = reason.map_or(Ok(HoldReason::Operator), HoldReason::decode)?;
        held.push((reason, row.try_get("", "lots")?));
    }
    Ok(held)
}

/// One page of a plan's lots by agency, and one row more.
pub(super) async fn lots(
    db: &DatabaseConnection,
    filter: &LotFilter,
    page: &Page,
) -> Result<Vec<(Lot, LotCounts)>, StorageError> {
    let mut query = lots::Entity::find()
        .filter(lots::Column::PlanId.eq(&filter.plan_id))
        .order_by_asc(lots::Column::AgencyId)
        .limit(u64::from(page.size) + 1);
    if let Some(state) = filter.state {
        query = query.filter(lots::Column::State.eq(state.code()));
    }
    if let Some(cursor) = &page.cursor {
        query = query.filter(lots::Column::AgencyId.gt(cursor));
    }
    with_parts(db, &filter.plan_id, query.all(db).await?).await
}

/// Some lots of a plan with their receipts and counts: two queries for all of them.
async fn with_parts(
    db: &DatabaseConnection,
    plan_id: &str,
    rows: Vec<lots::Model>,
) -> Result<Vec<(Lot, LotCounts)>, StorageError> {
    let agencies: Vec<&str> = rows.iter().map(|row| row.agency_id.as_str()).collect();
    let mut all_receipts: HashMap<String, Vec<Receipt>> = HashMap::new();
    let found = receipts::Entity::find()
        .filter(receipts::Column::PlanId.eq(plan_id))
        .filter(receipts::Column::AgencyId.is_in(agencies.iter().copied()));
    for row in found.all(db).await? {
        let receipt = codes::receipt(&row)?;
        all_receipts.entry(row.agency_id).or_default().push(receipt);
    }
    let numbers: Vec<(String, i16, i64)> = entries::Entity::find()
        .select_only()
        .columns([entries::Column::AgencyId, entries::Column::State])
        .column_as(entries::Column::KeyId.count(), "number")
        .filter(entries::Column::PlanId.eq(plan_id))
        .filter(entries::Column::AgencyId.is_in(agencies))
        .group_by(entries::Column::AgencyId)
        .group_by(entries::Column::State)
        .into_tuple()
        .all(db)
        .await?;
    let mut all_counts: HashMap<String, LotCounts> = HashMap::new();
    for (agency_id, state, number) in numbers {
        codes::count(all_counts.entry(agency_id).or_default(), state, number)?;
    }
    let mut views = Vec::with_capacity(rows.len());
    for row in rows {
        let receipts = all_receipts.remove(&row.agency_id).unwrap_or_default();
        let counts = all_counts.remove(&row.agency_id).unwrap_or_default();
        views.push((codes::lot(row, receipts.into_iter().collect())?, counts));
    }
    Ok(views)
}

/// Entries of a plan by (agency, key), after such a pair.
pub(super) async fn entries(
    db: &DatabaseConnection,
    filter: &EntryFilter,
    after: Option<(String, String)>,
    limit: u32,
) -> Result<Vec<Entry>, StorageError> {
    let (agency, key) = after.unwrap_or_default();
    let mut values: Vec<Value> =
        vec![filter.plan_id.as_str().into(), agency.into(), key.into(), i64::from(limit).into()];
    let mut sql = "SELECT * FROM sweep_entries WHERE plan_id = $1 AND (agency_id, key_id) > ($2, $3)".to_owned();
    if let Some(agency_id) = &filter.agency_id {
        values.push(agency_id.as_str().into());
        sql += &format!(" AND agency_id = ${}", values.len());
    }
    if let Some(state) = filter.state {
        values.push(state.code().into());
        sql += &format!(" AND state = ${}", values.len());
    }
    sql += " ORDER BY agency_id, key_id LIMIT $4";
    let rows = entries::Entity::find().from_raw_sql(statement(db, sql, values)).all(db).await?;
    rows.into_iter().map(codes::entry).collect()
}

/// Which keys a sweep would list: the key is `k`, the cutoff parameter 1, the agency parameter 2 where one is asked for.
fn idle(filter: &PreviewFilter) -> (String, Vec<Value>) {
    let mut sql = format!("k.state = 1 AND k.revoke_at IS NULL AND {} <= $1", last_use("k"));
    let mut values = vec![to_micros(filter.idle_since).into()];
    if let Some(agency_id) = &filter.agency_id {
        sql += " AND k.agency_id = $2";
        values.push(agency_id.as_str().into());
    }
    (sql, values)
}

/// What a sweep would list: the totals.
pub(super) async fn preview(
    db: &DatabaseConnection,
    filter: &PreviewFilter,
    agencies: u32,
) -> Result<Preview, StorageError> {
    let tx = db.begin().await?;
    without_parallel_workers(&tx).await?;
    let (idle_everywhere, cutoff) = idle(&PreviewFilter { agency_id: None, ..filter.clone() });
    let sql = format!(
        "SELECT COUNT(*) AS active, COALESCE(SUM(CASE WHEN {idle_everywhere} THEN 1 ELSE 0 END), 0) AS listed \
         FROM api_keys k WHERE k.state = 1"
    );
    let row = tx.query_one_raw(statement(&tx, sql, cutoff)).await?;
    let row = row.ok_or_else(|| StorageError::Internal("a count has no row".to_owned()))?;
    let mut preview = Preview {
        active: row.try_get("", "active")?,
        listed_anywhere: row.try_get("", "listed")?,
        ..Preview::default()
    };

    let (idle, mut values) = idle(filter);
    let sql = format!("SELECT COUNT(*) AS listed FROM api_keys k WHERE {idle}");
    let row = tx.query_one_raw(statement(&tx, sql, values.clone())).await?;
    let row = row.ok_or_else(|| StorageError::Internal("a count has no row".to_owned()))?;
    preview.listed = row.try_get("", "listed")?;

    values.push(i64::from(agencies).into());
    let sql = format!(
        "SELECT k.agency_id, COUNT(*) AS listed, COUNT(k.location_id) AS of_locations, COUNT(DISTINCT k.location_id) AS locations \
         FROM api_keys k WHERE {idle} GROUP BY k.agency_id ORDER BY listed DESC, k.agency_id LIMIT ${}",
        values.len()
    );
    for row in tx.query_all_raw(statement(&tx, sql, values)).await? {
        let listed: i64 = row.try_get("", "listed")?;
        let location_keys: i64 = row.try_get("", "of_locations")?;
        preview.agencies.push(AgencyTotal {
            agency_id: row.try_get("", "agency_id")?,
            agency_keys: listed - location_keys,
            location_keys,
            locations: row.try_get("", "locations")?,
        });
    }
    preview.last_plan = compare(&tx, filter).await?;
    Ok(preview)
}

/// What a sweep would list beside the last plan that was published.
async fn compare(tx: &DatabaseTransaction, filter: &PreviewFilter) -> Result<Option<PlanComparison>, StorageError> {
    let last = plans::Entity::find()
        .filter(plans::Column::PublishedAt.is_not_null())
        .order_by_desc(plans::Column::DeleteAt)
        .one(tx)
        .await?;
    let Some(plan) = last else { return Ok(None) };
    let (idle, mut values) = idle(filter);
    values.push(plan.plan_id.as_str().into());
    let place = values.len();
    let sql = format!(
        "SELECT COUNT(*) AS keys, COUNT(DISTINCT k.agency_id) AS agencies, COUNT(e.key_id) AS same_keys, \
         COUNT(DISTINCT l.agency_id) AS same_agencies FROM api_keys k \
         LEFT JOIN sweep_entries e ON e.plan_id = ${place} AND e.agency_id = k.agency_id AND e.key_id = k.id \
         LEFT JOIN sweep_lots l ON l.plan_id = ${place} AND l.agency_id = k.agency_id WHERE {idle}"
    );
    let row = tx.query_one_raw(statement(tx, sql, values)).await?;
    let row = row.ok_or_else(|| StorageError::Internal("a count has no row".to_owned()))?;
    let mut values = vec![plan.plan_id.as_str().into()];
    let mut sql = "SELECT COUNT(*) AS agencies, CAST(COALESCE(SUM(entry_count), 0) AS BIGINT) AS keys FROM sweep_lots                    WHERE plan_id = $1".to_owned();
    if let Some(agency_id) = &filter.agency_id {
        sql += " AND agency_id = $2";
        values.push(agency_id.as_str().into());
    }
    let was = tx.query_one_raw(statement(tx, sql, values)).await?;
    let was = was.ok_or_else(|| StorageError::Internal("a count has no row".to_owned()))?;
    let difference = |now: i64, before: i64, same: i64| Difference { new: now - same, gone: before - same, same };
    let (same_keys, same_agencies) = (row.try_get("", "same_keys")?, row.try_get("", "same_agencies")?);
    Ok(Some(PlanComparison {
        plan_id: plan.plan_id,
        keys: difference(row.try_get("", "keys")?, was.try_get("", "keys")?, same_keys),
        agencies: difference(row.try_get("", "agencies")?, was.try_get("", "agencies")?, same_agencies),
    }))
}

/// What a sweep would list: the keys by (agency, key), after such a pair.
pub(super) async fn preview_entries(
    db: &DatabaseConnection,
    filter: &PreviewFilter,
    after: Option<(String, String)>,
    limit: u32,
) -> Result<Vec<Entry>, StorageError> {
    let tx = db.begin().await?;
    without_parallel_workers(&tx).await?;
    let (idle, mut values) = idle(filter);
    let (agency, key) = after.unwrap_or_default();
    let first = values.len();
    values.extend([agency.into(), key.into(), i64::from(limit).into()]);
    let sql = format!(
        "SELECT k.id, k.agency_id, k.location_id, k.display_name, k.display_prefix, k.created_at, k.last_used_at FROM api_keys k \
         WHERE {idle} AND (k.agency_id, k.id) > (${}, ${}) ORDER BY k.agency_id, k.id LIMIT ${}",
        first + 1,
        first + 2,
        first + 3
    );
    let mut found = Vec::new();
    for row in tx.query_all_raw(statement(&tx, sql, values)).await? {
        let last_used_at: Option<i64> = row.try_get("", "last_used_at")?;
        found.push(Entry {
            agency_id: row.try_get("", "agency_id")?,
            location_id: row.try_get("", "location_id")?,
            key_id: row.try_get("", "id")?,
            display_name: row.try_get("", "display_name")?,
            display_prefix: row.try_get("", "display_prefix")?,
            created_at: from_micros(row.try_get("", "created_at")?),
            last_used_at: last_used_at.map(from_micros),
            state: EntryState::Planned,
            cause: None,
            ended_at: None,
        });
    }
    Ok(found)
}
