//! Old events leave the history: whole plans that have ended, the oldest first.

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction, EntityTrait, Value};
use service_kit::time::to_micros;

use super::entities::head;
use super::lease;
use super::sql::statement;
use crate::app::sweep::{Lease, SweepJobError};
use crate::storage::StorageError;

/// Removes up to `limit` events of plans that have ended, each event from before `before` and passed by every subscriber;
/// answers how many.
///
/// The history begins behind them from the first removal on: it never begins within a plan.
pub(super) async fn forget_events(
    db: &DatabaseConnection,
    lease: &Lease,
    before: DateTime<Utc>,
    limit: u32,
) -> Result<u64, SweepJobError> {
    let tx = lease::begin(db, lease).await?;
    let Some(oldest) = number(&tx, "SELECT MIN(sequence) AS number FROM sweep_events", Vec::new()).await? else {
        return Ok(0);
    };
    let head = head::Entity::find_by_id(1_i16).one(&tx).await.map_err(StorageError::from)?;
    let mut end = head.map_or(oldest, |head| head.first_sequence);
    if oldest >= end {
        end = ended_through(&tx, oldest, before).await? + 1;
        if end <= oldest {
            return Ok(0);
        }
        let sql = "UPDATE sweep_head SET first_sequence = $1 WHERE id = 1";
        tx.execute_raw(statement(&tx, sql, vec![end.into()])).await?;
    }
    let end = end.min(oldest + i64::from(limit));
    let sql = "DELETE FROM sweep_events WHERE sequence < $1";
    let removed = tx.execute_raw(statement(&tx, sql, vec![end.into()])).await?.rows_affected();
    tx.commit().await?;
    Ok(removed)
}

/// The last event that may go with all before it; less than `oldest`: none.
async fn ended_through(tx: &DatabaseTransaction, oldest: i64, before: DateTime<Utc>) -> Result<i64, StorageError> {
    let young = "SELECT MIN(sequence) AS number FROM sweep_events WHERE occurred_at >= $1";
    let young = number(tx, young, vec![to_micros(before).into()]).await?;
    let passed = number(tx, "SELECT MIN(sequence) AS number FROM sweep_subscribers", Vec::new()).await?;
    let head = number(tx, "SELECT MAX(sequence) AS number FROM sweep_events", Vec::new()).await?;
    let mut last = [young.map(|young| young - 1), passed, head].into_iter().flatten().min().unwrap_or(0);
    // A plan that stays keeps what follows its first event, and so perhaps an event of a plan that would have gone.
    let stays = "SELECT MIN(first) AS number FROM (SELECT plan_id, MIN(sequence) AS first FROM sweep_events \
                 WHERE sequence <= $1 GROUP BY plan_id) AS begun \
                 WHERE NOT EXISTS (SELECT 1 FROM sweep_plans p WHERE p.plan_id = begun.plan_id AND p.state IN (3, 4)) \
                 OR EXISTS (SELECT 1 FROM sweep_events e WHERE e.plan_id = begun.plan_id AND e.sequence > $1)";
    while last >= oldest {
        match number(tx, stays, vec![last.into()]).await? {
            Some(first) => last = first - 1,
            None => break,
        }
    }
    Ok(last)
}

async fn number(tx: &DatabaseTransaction, sql: &str, values: Vec<Value>) -> Result<Option<i64>, StorageError> {
    let row = tx.query_one_raw(statement(tx, sql, values)).await?;
    let row = row.ok_or_else(|| StorageError::Internal("an aggregate has no row".to_owned()))?;
    Ok(row.try_get("", "number")?)
}
