//! Lots are deleted, batch after batch, each one transaction: a part of a large lot, or many small ones.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::sea_query::Expr;
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, EntityTrait, FromQueryResult,
    QueryFilter,
};
use serde_json::json;
use service_kit::rows::{Column, Rows};
use service_kit::time::{from_micros, to_micros};

use super::closing;
use super::codes::{self, Coded};
use super::entities::{entries, lots, receipts};
use super::gate::{self, Condition};
use super::journal::Journal;
use super::lease;
use super::rescue::take_out;
use super::sql::{last_use, of_agencies, one_after_the_other, statement};
use crate::app::sweep::{BatchOrder, DueLot, Lease, LotOrder, LotOutcome, SweepJobError};
use crate::domain::sweep::schedule::idle_since;
use crate::domain::sweep::{EntryBlock, EntryState, KeyFacts, LotBlock, Receipts, entry_gate, lot_gate};
use crate::storage::StorageError;

/// Lots whose gate is open now, as far as one look can tell: the batch decides.
pub(super) async fn due_lots(
    db: &DatabaseConnection,
    after: Option<(String, String)>,
    limit: u32,
    now: DateTime<Utc>,
) -> Result<Vec<DueLot>, StorageError> {
    let (plan, agency) = after.unwrap_or_default();
    let sql = format!(
        "SELECT l.plan_id, l.agency_id, l.delete_at, l.entry_count FROM sweep_lots l \
         WHERE l.state = 1 AND l.delete_at <= $1 AND l.last_delete_at >= $1 AND (l.plan_id, l.agency_id) > ($2, $3) AND {} \
         ORDER BY l.plan_id, l.agency_id LIMIT $4",
        gate::receipted("l")
    );
    let values = vec![to_micros(now).into(), plan.into(), agency.into(), i64::from(limit).into()];
    let mut due = Vec::new();
    for row in db.query_all_raw(statement(db, sql, values)).await? {
        due.push(DueLot {
            plan_id: row.try_get("", "plan_id")?,
            agency_id: row.try_get("", "agency_id")?,
            delete_at: from_micros(row.try_get("", "delete_at")?),
            entry_count: row.try_get("", "entry_count")?,
        });
    }
    Ok(due)
}

/// The receipts of some lots of a plan, by agency.
pub(super) async fn receipts_of(
    tx: &impl ConnectionTrait,
    plan_id: &str,
    agencies: &[&str],
) -> Result<HashMap<String, Receipts>, StorageError> {
    let (relation, values) = of_agencies(agencies).relation(tx.get_database_backend(), 2);
    let sql = format!(
        "SELECT r.* FROM {relation} CROSS JOIN sweep_receipts r WHERE r.plan_id = $1 AND r.agency_id = t.agency_id"
    );
    let values = [vec![plan_id.into()], values].concat();
    let rows = receipts::Entity::find().from_raw_sql(statement(tx, sql, values)).all(tx).await?;
    let mut all: HashMap<String, Receipts> = HashMap::new();
    for row in &rows {
        all.entry(row.agency_id.clone()).or_default().insert(codes::receipt(row)?);
    }
    Ok(all)
}

/// A stretch of one lot's planned entries: all that are planned from its first key to its last.
pub(super) struct Stretch<'a> {
    pub(super) lot: &'a LotOrder,
    pub(super) first_key: &'a str,
    pub(super) last_key: &'a str,
}

/// Stretches as rows `t`.
fn ranges(stretches: &[Stretch<'_>]) -> Rows {
    let mut columns = [Vec::new(), Vec::new(), Vec::new()];
    for stretch in stretches {
        columns[0].push(stretch.lot.agency_id.clone());
        columns[1].push(stretch.first_key.to_owned());
        columns[2].push(stretch.last_key.to_owned());
    }
    let [agencies, first_keys, last_keys] = columns.map(Column::Text);
    Rows::new("t").column("agency_id", agencies).column("first_key", first_keys).column("last_key", last_keys)
}

/// What became of the entries of one lot.
#[derive(Debug, Clone, Copy, Default)]
struct Done {
    deleted: u64,
    kept: u64,
    /// Neither deleted nor let go.
    stuck: u64,
}

/// Deletes the next batch of these lots, of those whose gate is open; answers what became of each, in their order.
pub(super) async fn delete_batch(
    db: &DatabaseConnection,
    lease: &Lease,
    order: &BatchOrder,
    now: DateTime<Utc>,
) -> Result<Vec<LotOutcome>, SweepJobError> {
    let tx = lease::begin(db, lease).await?;
    one_after_the_other(&tx).await?;
    let gates = lock_lots(&tx, order, now).await?;
    let open: Vec<&LotOrder> =
        order.lots.iter().filter(|lot| gates.get(&lot.agency_id).is_some_and(Vec::is_empty)).collect();
    let mut journal = Journal::of_sweep(now);
    let (batch, more) = next_entries(&tx, order, &open).await?;
    let done = if batch.is_empty() {
        HashMap::new()
    } else {
        let batch = Batch { plan_id: &order.plan_id, stretches: stretches(&open, &batch), entries: &batch };
        work_through(&tx, &mut journal, &batch, now).await?
    };
    let of = |agency_id: &str| done.get(agency_id).copied().unwrap_or_default();
    let mut through: Vec<&str> = open.iter().map(|lot| lot.agency_id.as_str()).collect();
    if let Some(last) = through.pop_if(|_| more) {
        let reached = batch.last().filter(|entry| entry.agency_id == last && of(last).stuck == 0);
        if let Some(entry) = reached {
            set_swept_through(&tx, &order.plan_id, &[last], &entry.key_id).await?;
        }
    }
    through.retain(|agency_id| of(agency_id).stuck == 0);
    let closed = close(&tx, &mut journal, &order.plan_id, &through, now).await?;
    journal.write(&tx).await?;
    tx.commit().await?;
    let outcome = |lot: &LotOrder| match gates.get(&lot.agency_id) {
        Some(blocks) if !blocks.is_empty() => LotOutcome::Blocked(blocks.clone()),
        _ => {
            let Done { deleted, kept, .. } = of(&lot.agency_id);
            LotOutcome::Done { deleted, kept, closed: closed.contains(lot.agency_id.as_str()) }
        }
    };
    Ok(order.lots.iter().map(outcome).collect())
}

/// Locks the lots of the order, and asks the gate of each; empty: it is open.
async fn lock_lots(
    tx: &DatabaseTransaction,
    order: &BatchOrder,
    now: DateTime<Utc>,
) -> Result<HashMap<String, Vec<LotBlock>>, StorageError> {
    let agencies: Vec<&str> = order.lots.iter().map(|lot| lot.agency_id.as_str()).collect();
    let backend = tx.get_database_backend();
    let (relation, values) = of_agencies(&agencies).relation(backend, 2);
    let lock = if backend == DbBackend::Postgres { " FOR UPDATE OF l" } else { "" };
    let sql = format!(
        "SELECT l.* FROM {relation} CROSS JOIN sweep_lots l WHERE l.plan_id = $1 AND l.agency_id = t.agency_id \
         ORDER BY l.agency_id{lock}"
    );
    let values = [vec![order.plan_id.as_str().into()], values].concat();
    let rows = lots::Entity::find().from_raw_sql(statement(tx, sql, values)).all(tx).await?;
    if rows.len() != agencies.len() {
        return Err(StorageError::Internal(format!("plan {} has lost a lot", order.plan_id)));
    }
    let mut receipts = receipts_of(tx, &order.plan_id, &agencies).await?;
    let judged: HashMap<&str, DateTime<Utc>> =
        order.lots.iter().map(|lot| (lot.agency_id.as_str(), lot.delete_at)).collect();
    let mut gates = HashMap::new();
    for row in rows {
        let last_delete_at = from_micros(row.last_delete_at);
        let receipts = receipts.remove(&row.agency_id).unwrap_or_default();
        let lot = codes::lot(row, receipts)?;
        let mut blocks = lot_gate(&lot, last_delete_at, now);
        if blocks.is_empty() && judged.get(lot.agency_id.as_str()) != Some(&lot.delete_at) {
            blocks.push(LotBlock::NotYet { delete_at: lot.delete_at });
        }
        gates.insert(lot.agency_id, blocks);
    }
    Ok(gates)
}

/// What a deletion needs of a planned entry.
#[derive(Debug, FromQueryResult)]
struct Planned {
    agency_id: String,
    key_id: String,
    location_id: Option<String>,
    created_at: i64,
    last_used_at: Option<i64>,
}

/// The next planned entries in the order of (agency, key), and whether the last lot may have more than these.
async fn next_entries(
    tx: &DatabaseTransaction,
    order: &BatchOrder,
    open: &[&LotOrder],
) -> Result<(Vec<Planned>, bool), StorageError> {
    let Some((last, short)) = open.split_last() else { return Ok((Vec::new(), false)) };
    let limit = u64::from(order.limit.max(1));
    let mut batch = if short.is_empty() { Vec::new() } else { of_short_lots(tx, &order.plan_id, short, limit).await? };
    let left = limit.saturating_sub(batch.len() as u64);
    batch.extend(of_last_lot(tx, &order.plan_id, last, left).await?);
    let more = batch.len() as u64 >= limit;
    Ok((batch, more))
}

/// The planned entries of lots that have few. SQLite takes a CROSS JOIN for the order in which to look up; else it may begin with all
/// entries of the plan.
async fn of_short_lots(
    tx: &DatabaseTransaction,
    plan_id: &str,
    lots: &[&LotOrder],
    limit: u64,
) -> Result<Vec<Planned>, StorageError> {
    let agencies: Vec<&str> = lots.iter().map(|lot| lot.agency_id.as_str()).collect();
    let (relation, agencies) = of_agencies(&agencies).relation(tx.get_database_backend(), 3);
    let sql = planned(&relation);
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let values = [vec![plan_id.into(), limit.into()], agencies].concat();
    Ok(Planned::find_by_statement(statement(tx, sql, values)).all(tx).await?)
}

/// The next planned entries of a lot: parameters plan, agency, and how many.
pub(super) const PLANNED_OF_LOT: &str = "SELECT agency_id, key_id, location_id, created_at, last_used_at \
     FROM sweep_entries WHERE plan_id = $1 AND agency_id = $2 AND state = 1 AND key_id > \
     (SELECT swept_through FROM sweep_lots WHERE plan_id = $1 AND agency_id = $2) ORDER BY key_id LIMIT $3";

/// As many planned entries of the lots `t` of plan 1 as parameter 2 says.
pub(super) fn planned(lots: &str) -> String {
    format!(
        "SELECT e.agency_id, e.key_id, e.location_id, e.created_at, e.last_used_at \
         FROM {lots} CROSS JOIN sweep_lots l CROSS JOIN sweep_entries e \
         WHERE l.plan_id = $1 AND l.agency_id = t.agency_id \
         AND e.plan_id = $1 AND e.agency_id = l.agency_id AND e.key_id > l.swept_through AND e.state = 1 ORDER BY e.agency_id, e.key_id LIMIT $2"
    )
}

/// The next planned entries of a lot that may have any number: no more is read than fits.
async fn of_last_lot(
    tx: &DatabaseTransaction,
    plan_id: &str,
    lot: &LotOrder,
    limit: u64,
) -> Result<Vec<Planned>, StorageError> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let values = vec![plan_id.into(), lot.agency_id.as_str().into(), limit.into()];
    Ok(Planned::find_by_statement(statement(tx, PLANNED_OF_LOT, values)).all(tx).await?)
}

/// The stretch of each lot that the entries are of, which come lot by lot in the order of their keys.
fn stretches<'a>(open: &[&'a LotOrder], batch: &'a [Planned]) -> Vec<Stretch<'a>> {
    let orders: HashMap<&str, &LotOrder> = open.iter().map(|lot| (lot.agency_id.as_str(), *lot)).collect();
    let of_a_lot = batch.chunk_by(|one, next| one.agency_id == next.agency_id);
    let stretch = |entries: &'a [Planned]| {
        let (first, last) = (entries.first()?, entries.last()?);
        let lot = orders.get(first.agency_id.as_str())?;
        Some(Stretch { lot, first_key: &first.key_id, last_key: &last.key_id })
    };
    of_a_lot.filter_map(stretch).collect()
}

/// Closes those of these lots of which really no entry is planned any more; the others begin anew with the next batch.
async fn close(
    tx: &DatabaseTransaction,
    journal: &mut Journal,
    plan_id: &str,
    through: &[&str],
    now: DateTime<Utc>,
) -> Result<HashSet<String>, StorageError> {
    let mut counts = closing::counts_of_lots(tx, plan_id, through).await?;
    counts.retain(|_, counts| counts.planned == 0);
    closing::execute(tx, journal, plan_id, &counts, now).await?;
    let again: Vec<&str> = through.iter().copied().filter(|agency_id| !counts.contains_key(*agency_id)).collect();
    set_swept_through(tx, plan_id, &again, "").await?;
    Ok(counts.into_keys().collect())
}

async fn set_swept_through(
    tx: &DatabaseTransaction,
    plan_id: &str,
    agencies: &[&str],
    key_id: &str,
) -> Result<(), StorageError> {
    if agencies.is_empty() {
        return Ok(());
    }
    lots::Entity::update_many()
        .col_expr(lots::Column::SweptThrough, Expr::value(key_id))
        .filter(lots::Column::PlanId.eq(plan_id))
        .filter(lots::Column::AgencyId.is_in(agencies.iter().copied()))
        .exec(tx)
        .await?;
    Ok(())
}

/// The entries of a batch, and the stretches of lots that they are.
struct Batch<'a> {
    plan_id: &'a str,
    stretches: Vec<Stretch<'a>>,
    entries: &'a [Planned],
}

/// Deletes the batch's keys that may be, and lets the others go; answers how many of each, by agency.
async fn work_through(
    tx: &DatabaseTransaction,
    journal: &mut Journal,
    batch: &Batch<'_>,
    now: DateTime<Utc>,
) -> Result<HashMap<String, Done>, StorageError> {
    let deleted = delete_keys(tx, batch.plan_id, &batch.stretches, gate::conditions(), now).await?;
    mark_deleted(tx, batch, &deleted, now).await?;
    let mut done: HashMap<String, Done> = HashMap::new();
    let mut left = Vec::new();
    for entry in batch.entries {
        if deleted.contains(&entry.key_id) {
            let detail = json!({
                "last_use_time": entry.last_used_at.map(from_micros),
                "create_time": from_micros(entry.created_at),
            });
            journal.key("key.deleted", batch.plan_id, &entry.agency_id, &entry.key_id, detail);
            done.entry(entry.agency_id.clone()).or_default().deleted += 1;
        } else {
            left.push(entry);
        }
    }
    let facts = facts_of(tx, &left).await?;
    let orders: HashMap<&str, &LotOrder> =
        batch.stretches.iter().map(|stretch| (stretch.lot.agency_id.as_str(), stretch.lot)).collect();
    for entry in left {
        let Some(order) = orders.get(entry.agency_id.as_str()) else { continue };
        let gone = let_go(tx, journal, (batch.plan_id, order), entry, facts.get(&entry.key_id), now).await?;
        let of_lot = done.entry(entry.agency_id.clone()).or_default();
        if gone { of_lot.kept += 1 } else { of_lot.stuck += 1 }
    }
    Ok(done)
}

/// Rescues or spares an entry whose key was not deleted; false: nothing is known that kept it.
async fn let_go(
    tx: &DatabaseTransaction,
    journal: &mut Journal,
    (plan_id, order): (&str, &LotOrder),
    entry: &Planned,
    key: Option<&KeyFacts>,
    now: DateTime<Utc>,
) -> Result<bool, StorageError> {
    let owner = (entry.agency_id.as_str(), entry.location_id.as_deref());
    let gate = match key {
        Some(key) => entry_gate(EntryState::Planned, owner, key, idle_since(order.delete_at), order.slack),
        // The row is gone for good: whoever removed it has ended the key.
        None => Err(EntryBlock::NotActive),
    };
    let Err(block) = gate else { return Ok(false) };
    match block.rescue_cause() {
        Some(cause) => _ = take_out(tx, journal, &entry.key_id, cause, now).await?,
        None => {
            if spare(tx, &entry.key_id, now).await? {
                let detail = json!({ "cause": block.as_str() });
                journal.key("key.spared", plan_id, &entry.agency_id, &entry.key_id, detail);
            }
        }
    }
    // What has left by itself meanwhile needs no further work either.
    Ok(true)
}

/// Reads what the gate needs of the keys that the statement did not take.
async fn facts_of(tx: &DatabaseTransaction, left: &[&Planned]) -> Result<HashMap<String, KeyFacts>, StorageError> {
    if left.is_empty() {
        return Ok(HashMap::new());
    }
    let used = last_use("k");
    let ids = left.iter().map(|entry| entry.key_id.clone()).collect();
    let (relation, values) = Rows::new("t").column("id", Column::Text(ids)).relation(tx.get_database_backend(), 1);
    let sql = format!(
        "SELECT k.id, k.state, k.revoke_at, k.agency_id, k.location_id, {used} AS last_use \
         FROM {relation} JOIN api_keys k ON k.id = t.id"
    );
    let mut facts = HashMap::new();
    for row in tx.query_all_raw(statement(tx, sql, values)).await? {
        let state: i16 = row.try_get("", "state")?;
        let revoke_at: Option<i64> = row.try_get("", "revoke_at")?;
        let key = KeyFacts {
            active: state == 1,
            ending: revoke_at.is_some(),
            agency_id: row.try_get("", "agency_id")?,
            location_id: row.try_get("", "location_id")?,
            last_use: from_micros(row.try_get("", "last_use")?),
        };
        facts.insert(row.try_get("", "id")?, key);
    }
    Ok(facts)
}

/// The deletion itself: one statement that asks the database again for everything it depends on.
pub(super) async fn delete_keys(
    tx: &DatabaseTransaction,
    plan_id: &str,
    stretches: &[Stretch<'_>],
    conditions: Vec<Condition>,
    now: DateTime<Utc>,
) -> Result<HashSet<String>, StorageError> {
    let cutoff = |lot: &LotOrder| to_micros(idle_since(lot.delete_at) - lot.slack.max(TimeDelta::zero()));
    let cutoffs = stretches.iter().map(|one| cutoff(one.lot)).collect();
    let rows = ranges(stretches).column("idle_since", Column::BigInt(cutoffs));
    let (relation, parameters) = rows.relation(tx.get_database_backend(), 3);
    let values = [vec![to_micros(now).into(), plan_id.into()], parameters].concat();
    let rows = tx.query_all_raw(statement(tx, gate::deletion(&conditions, &relation), values)).await?;
    rows.iter().map(|row| Ok(row.try_get("", "id")?)).collect()
}

async fn mark_deleted(
    tx: &DatabaseTransaction,
    batch: &Batch<'_>,
    deleted: &HashSet<String>,
    now: DateTime<Utc>,
) -> Result<(), StorageError> {
    if deleted.is_empty() {
        return Ok(());
    }
    let gone = || batch.entries.iter().filter(|entry| deleted.contains(&entry.key_id));
    let rows = Rows::new("t")
        .column("plan_id", Column::Text(vec![batch.plan_id.to_owned(); deleted.len()]))
        .column("agency_id", Column::Text(gone().map(|entry| entry.agency_id.clone()).collect()))
        .column("key_id", Column::Text(gone().map(|entry| entry.key_id.clone()).collect()));
    let (relation, parameters) = rows.relation(tx.get_database_backend(), 3);
    let head = vec![EntryState::Deleted.code().into(), to_micros(now).into()];
    let marked = tx.execute_raw(statement(tx, marking(&relation), [head, parameters].concat())).await?;
    if marked.rows_affected() == deleted.len() as u64 {
        Ok(())
    } else {
        // A key must not go without its entry: the transaction is given up.
        Err(StorageError::Conflict("an entry left its lot while its key was deleted".to_owned()))
    }
}

/// Ends the planned entries `t` in the state and at the instant of parameters 1 and 2.
///
/// The plan is a column, and the state is compared so that no index can serve: SQLite would begin with all entries that are planned.
pub(super) fn marking(entries: &str) -> String {
    format!(
        "UPDATE sweep_entries SET state = $1, ended_at = $2 FROM {entries} WHERE sweep_entries.plan_id = t.plan_id \
         AND sweep_entries.agency_id = t.agency_id AND sweep_entries.key_id = t.key_id AND sweep_entries.state + 0 = 1"
    )
}

/// Leaves a key for the next quarter without a word to its admins.
async fn spare(tx: &DatabaseTransaction, key_id: &str, now: DateTime<Utc>) -> Result<bool, StorageError> {
    let spared = entries::Entity::update_many()
        .col_expr(entries::Column::State, Expr::value(EntryState::Spared.code()))
        .col_expr(entries::Column::EndedAt, Expr::value(to_micros(now)))
        .filter(entries::Column::KeyId.eq(key_id))
        .filter(entries::Column::State.eq(EntryState::Planned.code()))
        .exec(tx)
        .await?;
    Ok(spared.rows_affected == 1)
}
