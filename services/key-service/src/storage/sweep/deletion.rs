//! A lot is deleted, batch after batch, each one transaction.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::sea_query::Expr;
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseConnection, DatabaseTransaction, EntityTrait, QueryFilter, QueryOrder,
    QuerySelect, Value,
};
use serde_json::json;
use service_kit::time::{from_micros, to_micros};

use super::closing;
use super::codes::{self, Coded};
use super::entities::{entries, lots, receipts};
use super::gate::{self, Condition};
use super::journal::Journal;
use super::lease;
use super::rescue::take_out;
use super::sql::{for_update, last_use, statement, with_own_plans};
use crate::app::sweep::{BatchOrder, BatchOutcome, Lease, SweepJobError};
use crate::domain::sweep::schedule::idle_since;
use crate::domain::sweep::{EntryBlock, EntryState, KeyFacts, LotBlock, Receipts, entry_gate, lot_gate};
use crate::storage::StorageError;

/// Lots whose gate is open now, as far as one look can tell: the batch decides.
pub(super) async fn due_lots(
    db: &DatabaseConnection,
    after: Option<(String, String)>,
    limit: u32,
    now: DateTime<Utc>,
) -> Result<Vec<(String, String, DateTime<Utc>)>, StorageError> {
    let (plan, agency) = after.unwrap_or_default();
    let sql = format!(
        "SELECT l.plan_id, l.agency_id, l.delete_at FROM sweep_lots l \
         WHERE l.state = 1 AND l.delete_at <= $1 AND l.last_delete_at >= $1 AND (l.plan_id, l.agency_id) > ($2, $3) AND {} \
         ORDER BY l.plan_id, l.agency_id LIMIT $4",
        gate::receipted("l")
    );
    let values = vec![to_micros(now).into(), plan.into(), agency.into(), i64::from(limit).into()];
    let mut due = Vec::new();
    for row in db.query_all_raw(statement(db, sql, values)).await? {
        due.push((
            row.try_get("", "plan_id")?,
            row.try_get("", "agency_id")?,
            from_micros(row.try_get("", "delete_at")?),
        ));
    }
    Ok(due)
}

/// The receipts of a lot.
pub(super) async fn receipts_of(
    tx: &impl ConnectionTrait,
    plan_id: &str,
    agency_id: &str,
) -> Result<Receipts, StorageError> {
    let rows = receipts::Entity::find()
        .filter(receipts::Column::PlanId.eq(plan_id))
        .filter(receipts::Column::AgencyId.eq(agency_id))
        .all(tx)
        .await?;
    rows.iter().map(codes::receipt).collect()
}

/// A stretch of a lot's planned entries: their keys, not empty, in the order of the database.
///
/// Statements name these keys and bound the entries by the first and the last: so each touches a batch, whatever the
/// database's statistics make it think of tables that were filled a moment ago.
pub(super) struct Stretch<'a> {
    pub(super) order: &'a BatchOrder,
    pub(super) key_ids: Vec<&'a str>,
}

impl Stretch<'_> {
    fn first(&self) -> &str {
        self.key_ids.first().copied().unwrap_or_default()
    }

    fn last(&self) -> &str {
        self.key_ids.last().copied().unwrap_or_default()
    }

    /// Plan, agency, first and last key, then every key: the parameters from number `from` on. The second part is the list of the
    /// keys' places.
    fn parameters(&self, from: usize) -> (Vec<Value>, String) {
        let bounds = [self.order.plan_id.as_str(), self.order.agency_id.as_str(), self.first(), self.last()];
        let values = bounds.iter().chain(&self.key_ids).map(|text| (*text).into()).collect();
        let from = from + bounds.len();
        let places: Vec<String> = (from..from + self.key_ids.len()).map(|number| format!("${number}")).collect();
        (values, places.join(", "))
    }
}

/// Deletes the next batch of a lot, if its gate is open.
pub(super) async fn delete_batch(
    db: &DatabaseConnection,
    lease: &Lease,
    order: &BatchOrder,
    now: DateTime<Utc>,
) -> Result<BatchOutcome, SweepJobError> {
    let tx = lease::begin(db, lease).await?;
    with_own_plans(&tx).await?;
    let row =
        lots::Entity::find_by_id((order.plan_id.clone(), order.agency_id.clone())).lock_exclusive().one(&tx).await?;
    let row = row.ok_or_else(|| StorageError::Internal(format!("plan {} has lost a lot", order.plan_id)))?;
    let lot = codes::lot(row.clone(), receipts_of(&tx, &order.plan_id, &order.agency_id).await?)?;
    let mut blocks = lot_gate(&lot, from_micros(row.last_delete_at), now);
    if blocks.is_empty() && lot.delete_at != order.delete_at {
        blocks.push(LotBlock::NotYet { delete_at: lot.delete_at });
    }
    if !blocks.is_empty() {
        return Ok(BatchOutcome::Blocked(blocks));
    }

    let mut journal = Journal::of_sweep(now);
    let batch = entries::Entity::find()
        .filter(entries::Column::PlanId.eq(&order.plan_id))
        .filter(entries::Column::AgencyId.eq(&order.agency_id))
        .filter(entries::Column::KeyId.gt(&row.swept_through))
        .filter(entries::Column::State.eq(EntryState::Planned.code()))
        .order_by_asc(entries::Column::KeyId)
        .limit(u64::from(order.limit.max(1)))
        .all(&tx)
        .await?;
    let (mut deleted, mut kept, mut stuck) = (0, 0, false);
    if !batch.is_empty() {
        let stretch = Stretch { order, key_ids: batch.iter().map(|entry| entry.key_id.as_str()).collect() };
        (deleted, kept) = work_through(&tx, &mut journal, &stretch, &batch, now).await?;
        stuck = deleted + kept < batch.len() as u64;
        if !stuck {
            set_swept_through(&tx, order, stretch.last()).await?;
        }
    }
    let ended = batch.len() < order.limit.max(1) as usize && !stuck;
    let closed = ended && close(&tx, &mut journal, order, now).await?;
    journal.write(&tx).await?;
    tx.commit().await?;
    Ok(BatchOutcome::Done { deleted, kept, closed })
}

/// Closes the lot if really no entry is planned any more; otherwise the next batch begins anew.
async fn close(
    tx: &DatabaseTransaction,
    journal: &mut Journal,
    order: &BatchOrder,
    now: DateTime<Utc>,
) -> Result<bool, StorageError> {
    if closing::has_planned(tx, &order.plan_id, &order.agency_id).await? {
        set_swept_through(tx, order, "").await?;
        return Ok(false);
    }
    closing::execute(tx, journal, &order.plan_id, &order.agency_id, now).await?;
    Ok(true)
}

async fn set_swept_through(tx: &DatabaseTransaction, order: &BatchOrder, key_id: &str) -> Result<(), StorageError> {
    lots::Entity::update_many()
        .col_expr(lots::Column::SweptThrough, Expr::value(key_id))
        .filter(lots::Column::PlanId.eq(&order.plan_id))
        .filter(lots::Column::AgencyId.eq(&order.agency_id))
        .exec(tx)
        .await?;
    Ok(())
}

/// Deletes the batch's keys that may be, and lets the others go; answers how many of each.
async fn work_through(
    tx: &DatabaseTransaction,
    journal: &mut Journal,
    stretch: &Stretch<'_>,
    batch: &[entries::Model],
    now: DateTime<Utc>,
) -> Result<(u64, u64), StorageError> {
    let order = stretch.order;
    let facts = lock_keys(tx, stretch).await?;
    let deleted = delete_keys(tx, stretch, gate::conditions, now).await?;
    mark_deleted(tx, stretch, &deleted, now).await?;
    let mut kept = 0;
    let cutoff = idle_since(order.delete_at);
    for entry in batch {
        if deleted.contains(&entry.key_id) {
            let detail = json!({
                "last_use_time": entry.last_used_at.map(from_micros),
                "create_time": from_micros(entry.created_at),
            });
            journal.key("key.deleted", &order.plan_id, &order.agency_id, &entry.key_id, detail);
            continue;
        }
        let owner = (entry.agency_id.as_str(), entry.location_id.as_deref());
        let gate = match facts.get(&entry.key_id) {
            Some(key) => entry_gate(EntryState::Planned, owner, key, cutoff, order.slack),
            // The row is gone for good: whoever removed it has ended the key.
            None => Err(EntryBlock::NotActive),
        };
        let Err(block) = gate else { continue };
        let left = match block.rescue_cause() {
            Some(cause) => take_out(tx, journal, &entry.key_id, cause, now).await?.is_some(),
            None => spare(tx, &entry.key_id, now).await?,
        };
        if left && block.rescue_cause().is_none() {
            journal.key(
                "key.spared",
                &order.plan_id,
                &order.agency_id,
                &entry.key_id,
                json!({ "cause": block.as_str() }),
            );
        }
        // What has left by itself meanwhile needs no further work either.
        kept += 1;
    }
    Ok((deleted.len() as u64, kept))
}

/// Locks the rows of the stretch's keys in the order of their ids, and reads what the gate needs.
async fn lock_keys(tx: &DatabaseTransaction, stretch: &Stretch<'_>) -> Result<HashMap<String, KeyFacts>, StorageError> {
    let used = last_use("k");
    let lock = for_update(tx);
    let values: Vec<Value> = stretch.key_ids.iter().map(|id| (*id).into()).collect();
    let places: Vec<String> = (1..=values.len()).map(|number| format!("${number}")).collect();
    let places = places.join(", ");
    let sql = format!(
        "SELECT k.id, k.state, k.revoke_at, k.agency_id, k.location_id, {used} AS last_use FROM api_keys k \
         WHERE k.id IN ({places}) ORDER BY k.id{lock}"
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
    stretch: &Stretch<'_>,
    conditions: impl FnOnce(&str) -> Vec<Condition>,
    now: DateTime<Utc>,
) -> Result<HashSet<String>, StorageError> {
    let (parameters, places) = stretch.parameters(3);
    let cutoff = idle_since(stretch.order.delete_at) - stretch.order.slack.max(TimeDelta::zero());
    let values = [vec![to_micros(now).into(), to_micros(cutoff).into()], parameters].concat();
    let rows = tx.query_all_raw(statement(tx, gate::deletion(&conditions(&places)), values)).await?;
    rows.iter().map(|row| Ok(row.try_get("", "id")?)).collect()
}

async fn mark_deleted(
    tx: &DatabaseTransaction,
    stretch: &Stretch<'_>,
    deleted: &HashSet<String>,
    now: DateTime<Utc>,
) -> Result<(), StorageError> {
    if deleted.is_empty() {
        return Ok(());
    }
    let marked = entries::Entity::update_many()
        .col_expr(entries::Column::State, Expr::value(EntryState::Deleted.code()))
        .col_expr(entries::Column::EndedAt, Expr::value(to_micros(now)))
        .filter(entries::Column::PlanId.eq(&stretch.order.plan_id))
        .filter(entries::Column::AgencyId.eq(&stretch.order.agency_id))
        .filter(entries::Column::KeyId.between(stretch.first(), stretch.last()))
        .filter(entries::Column::State.eq(EntryState::Planned.code()))
        .filter(entries::Column::KeyId.is_in(deleted))
        .exec(tx)
        .await?;
    if marked.rows_affected == deleted.len() as u64 {
        Ok(())
    } else {
        // A key must not go without its entry: the transaction is given up.
        Err(StorageError::Conflict("an entry left its lot while its key was deleted".to_owned()))
    }
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
