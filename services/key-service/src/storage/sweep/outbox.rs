//! The history of events: appended with what they tell of, read from disk.

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DatabaseTransaction};
use service_kit::notify::notify;
use service_kit::rows::{Column, Rows};
use service_kit::time::to_micros;

use super::sql::statement;
use crate::domain::sweep::NewEvent;
use crate::storage::StorageError;

/// The channel on which PostgreSQL tells replicas that there are new events.
pub const SWEEP_EVENTS: &str = "keysweep_sweep_events";

/// Rows of one INSERT: many enough that the statement costs nothing, few enough that they take little memory.
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
    let mut first = head - count + 1;
    for chunk in new.chunks(INSERT_ROWS) {
        let payload = |event: &NewEvent| serde_json::to_string(&event.payload);
        let payloads: Result<Vec<_>, _> = chunk.iter().map(payload).collect();
        let payloads =
            payloads.map_err(|error| StorageError::Internal(format!("an event cannot be written: {error}")))?;
        let rows = Rows::new("t")
            .column("sequence", Column::BigInt((first..).take(chunk.len()).collect()))
            .column("occurred_at", Column::SameBigInt(to_micros(now)))
            .column("plan_id", Column::text(chunk.iter().map(|event| event.plan_id.clone()).collect()))
            .column("payload", Column::Text(payloads));
        let (relation, values) = rows.relation(tx.get_database_backend(), 1);
        let sql = format!(
            "INSERT INTO sweep_events (sequence, occurred_at, plan_id, payload) \
             SELECT t.sequence, t.occurred_at, t.plan_id, t.payload FROM {relation}"
        );
        tx.execute_raw(statement(tx, sql, values)).await?;
        first += i64::try_from(chunk.len()).unwrap_or(i64::MAX);
    }
    notify(tx, SWEEP_EVENTS).await?;
    Ok(head)
}
