//! The history of events: appended with what they tell of, read from disk.

use chrono::{DateTime, Utc};
use sea_orm::{ActiveValue::Set, ConnectionTrait, DatabaseTransaction, EntityTrait};
use service_kit::notify::notify;
use service_kit::time::to_micros;

use super::entities::events;
use super::sql::statement;
use crate::domain::sweep::NewEvent;
use crate::storage::StorageError;

/// The channel on which PostgreSQL tells replicas that there are new events.
pub const SWEEP_EVENTS: &str = "keysweep_sweep_events";

/// Four columns a row: well below the variables that a SQLite statement may have.
const INSERT_ROWS: usize = 1_000;

/// Appends events in the given order within the caller's transaction; answers the last one's sequence.
///
/// Locks the head of the history until the transaction ends: these must be its last statements. So a sequence is visible only when
/// all before it are, and none is ever missing.
///
/// # Errors
/// The database's; the transaction is then to be rolled back.
pub async fn append(tx: &DatabaseTransaction, new: Vec<NewEvent>, now: DateTime<Utc>) -> Result<i64, StorageError> {
    let count = i64::try_from(new.len()).unwrap_or(i64::MAX);
    let sql = "UPDATE sweep_head SET sequence = sequence + $1 WHERE id = 1 RETURNING sequence";
    let row = tx.query_one_raw(statement(tx, sql, vec![count.into()])).await?;
    let row = row.ok_or_else(|| StorageError::Internal("table sweep_head has lost its row".to_owned()))?;
    let head: i64 = row.try_get("", "sequence")?;
    let mut rows = Vec::with_capacity(new.len());
    for (sequence, event) in (head - count + 1..).zip(new) {
        let payload = serde_json::to_string(&event.payload)
            .map_err(|error| StorageError::Internal(format!("an event cannot be written: {error}")))?;
        rows.push(events::ActiveModel {
            sequence: Set(sequence),
            occurred_at: Set(to_micros(now)),
            plan_id: Set(event.plan_id),
            payload: Set(payload),
        });
    }
    let mut rows = rows.into_iter().peekable();
    while rows.peek().is_some() {
        let chunk: Vec<_> = rows.by_ref().take(INSERT_ROWS).collect();
        events::Entity::insert_many(chunk).exec_without_returning(tx).await?;
    }
    notify(tx, SWEEP_EVENTS).await?;
    Ok(head)
}
