//! The history of events, read from disk.

use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveValue::Set, ColumnTrait, ConnectionTrait, DatabaseConnection, EntityTrait, QueryFilter, QueryOrder,
    QuerySelect, sea_query::OnConflict,
};
use service_kit::time::{from_micros, to_micros};

use super::codes;
use super::entities::{entries, events, head, plans, subscribers};
use super::sql::{look_up, statement};
use crate::app::sweep::History;
use crate::domain::sweep::{Entry, EntryState, KeyRange, StoredEvent};
use crate::storage::StorageError;

/// Where the history begins and ends.
pub(super) async fn history(db: &DatabaseConnection) -> Result<History, StorageError> {
    let row = head::Entity::find_by_id(1_i16).one(db).await?;
    let row = row.ok_or_else(|| StorageError::Internal("table sweep_head has lost its row".to_owned()))?;
    Ok(History { id: row.history_id, first: row.first_sequence, head: row.sequence })
}

/// Events after a sequence, in order.
pub(super) async fn events_after(
    db: &DatabaseConnection,
    sequence: i64,
    limit: u32,
) -> Result<Vec<StoredEvent>, StorageError> {
    let rows = events::Entity::find()
        .filter(events::Column::Sequence.gt(sequence))
        .order_by_asc(events::Column::Sequence)
        .limit(u64::from(limit))
        .all(db)
        .await?;
    rows.into_iter().map(codes::event).collect()
}

/// The entries of a chunk as they were when the plan was made.
pub(super) async fn chunk(
    db: &DatabaseConnection,
    plan_id: &str,
    range: &KeyRange,
) -> Result<(DateTime<Utc>, Vec<Entry>), StorageError> {
    let plan = plans::Entity::find_by_id(plan_id).one(db).await?;
    let plan = plan.ok_or_else(|| StorageError::Internal(format!("an event names plan {plan_id}, which is lost")))?;
    let sql = "SELECT * FROM sweep_entries WHERE plan_id = $1 AND (agency_id, key_id) >= ($2, $3) AND (agency_id, key_id) <= ($4, $5) \
               ORDER BY agency_id, key_id";
    let values = [plan_id, &range.first.0, &range.first.1, &range.last.0, &range.last.1].map(Into::into).to_vec();
    // Prepared for any range, PostgreSQL would read all entries of a large plan for each chunk.
    let look = look_up(db).await?;
    let rows = entries::Entity::find().from_raw_sql(statement(&look, sql, values)).all(&look).await?;
    look.rollback().await?;
    let planned = |entry: Entry| Entry { state: EntryState::Planned, cause: None, ended_at: None, ..entry };
    let entries: Result<Vec<_>, _> = rows.into_iter().map(|row| codes::entry(row).map(planned)).collect();
    Ok((from_micros(plan.delete_at), entries?))
}

/// Notes how far a subscriber is.
pub(super) async fn note_subscriber(
    db: &DatabaseConnection,
    name: &str,
    sequence: i64,
    now: DateTime<Utc>,
) -> Result<(), StorageError> {
    let row =
        subscribers::ActiveModel { name: Set(name.to_owned()), sequence: Set(sequence), seen_at: Set(to_micros(now)) };
    let known = OnConflict::column(subscribers::Column::Name)
        .update_columns([subscribers::Column::Sequence, subscribers::Column::SeenAt])
        .to_owned();
    subscribers::Entity::insert(row).on_conflict(known).exec_without_returning(db).await?;
    Ok(())
}

/// The last event of a plan; 0: none.
pub(super) async fn last_sequence(db: &impl ConnectionTrait, plan_id: &str) -> Result<i64, StorageError> {
    let last: Option<Option<i64>> = events::Entity::find()
        .select_only()
        .column_as(events::Column::Sequence.max(), "last")
        .filter(events::Column::PlanId.eq(plan_id))
        .into_tuple()
        .one(db)
        .await?;
    Ok(last.flatten().unwrap_or(0))
}
