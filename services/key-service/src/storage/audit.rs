//! The audit chain in the database.

use async_trait::async_trait;
use sea_orm::sea_query::Expr;
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, EntityTrait, QueryFilter, QueryOrder, QuerySelect, Statement,
};
use service_kit::notify::notify;
use service_kit::rows::{Column, Rows};
use service_kit::time::{from_micros, to_micros};

use super::changes::KEY_CHANGES;
use super::entities::{audit_events, audit_head};
use super::{SqlStore, StorageError};
use crate::app::audit::{AuditFilter, AuditStore};
use crate::domain::audit::{AuditEvent, CHANGES_OF_VERIFICATION, ChainHead, NewAuditEvent};

/// The one row of `audit_head`.
const HEAD_ID: i16 = 1;
/// Rows of one INSERT: many enough that the statement costs nothing, few enough that they take little memory.
const INSERT_ROWS: usize = 1_000;

/// Every column, in the order of [`rows`].
const COLUMNS: &str =
    "sequence, occurred_at, actor, action, agency_id, key_id, plan_id, reason, request_id, detail, hash";

/// Appends events to the chain, in the given order, within the caller's transaction. Locks the chain's head until the
/// transaction ends, so it comes after all locks on keys and entries.
pub async fn append(tx: &DatabaseTransaction, events: Vec<NewAuditEvent>) -> Result<(), StorageError> {
    if events.is_empty() {
        return Ok(());
    }
    let concerns_verification = events.iter().any(|event| CHANGES_OF_VERIFICATION.contains(&event.action));
    let stored = audit_head::Entity::find_by_id(HEAD_ID).lock_exclusive().one(tx).await?;
    let mut head = chain_head(stored)?;
    let before = head.sequence;
    let placed: Vec<AuditEvent> = events.into_iter().map(|event| head.append(event)).collect();
    let backend = tx.get_database_backend();
    for chunk in placed.chunks(INSERT_ROWS) {
        let (relation, values) = rows(chunk).relation(backend, 1);
        let sql = format!("INSERT INTO audit_events ({COLUMNS}) SELECT {COLUMNS} FROM {relation}");
        tx.execute_raw(Statement::from_sql_and_values(backend, sql, values)).await?;
    }
    if concerns_verification {
        notify(tx, KEY_CHANGES).await?;
    }
    let moved = audit_head::Entity::update_many()
        .col_expr(audit_head::Column::Sequence, Expr::value(head.sequence))
        .col_expr(audit_head::Column::Hash, Expr::value(head.hash.to_vec()))
        .filter(audit_head::Column::Id.eq(HEAD_ID))
        .filter(audit_head::Column::Sequence.eq(before))
        .exec(tx)
        .await?;
    if moved.rows_affected != 1 {
        return Err(StorageError::Conflict("the audit chain moved while its head was locked".to_owned()));
    }
    Ok(())
}

/// The chain's head as stored.
fn chain_head(stored: Option<audit_head::Model>) -> Result<ChainHead, StorageError> {
    let stored = stored.ok_or_else(|| StorageError::Internal("table audit_head has lost its row".to_owned()))?;
    let hash =
        stored.hash.try_into().map_err(|_| StorageError::Internal("audit_head.hash is not 32 bytes".to_owned()))?;
    Ok(ChainHead { sequence: stored.sequence, hash })
}

/// Events as the columns of their table.
fn rows(events: &[AuditEvent]) -> Rows {
    let text = |of: fn(&AuditEvent) -> &str| Column::text(events.iter().map(|event| of(event).to_owned()).collect());
    Rows::new("t")
        .column("sequence", Column::BigInt(events.iter().map(|event| event.sequence).collect()))
        .column("occurred_at", Column::big_int(events.iter().map(|event| to_micros(event.occurred_at)).collect()))
        .column("actor", text(|event| &event.actor))
        .column("action", text(|event| &event.action))
        .column("agency_id", text(|event| &event.agency_id))
        .column("key_id", text(|event| &event.key_id))
        .column("plan_id", text(|event| &event.plan_id))
        .column("reason", text(|event| &event.reason))
        .column("request_id", text(|event| &event.request_id))
        .column("detail", text(|event| &event.detail))
        .column("hash", Column::Bytes(events.iter().map(|event| event.hash.to_vec()).collect()))
}

/// An event as stored. A hash of another length than 32 bytes was tampered with: it reads as zeros and breaks the chain.
fn from_row(row: audit_events::Model) -> AuditEvent {
    AuditEvent {
        sequence: row.sequence,
        occurred_at: from_micros(row.occurred_at),
        actor: row.actor,
        action: row.action,
        agency_id: row.agency_id,
        key_id: row.key_id,
        plan_id: row.plan_id,
        reason: row.reason,
        request_id: row.request_id,
        detail: row.detail,
        hash: row.hash.try_into().unwrap_or([0; 32]),
    }
}

#[async_trait]
impl AuditStore for SqlStore {
    async fn events(&self, filter: &AuditFilter, after: i64, limit: u32) -> Result<Vec<AuditEvent>, StorageError> {
        use audit_events::Column;
        let mut query = audit_events::Entity::find()
            .filter(Column::Sequence.gt(after))
            .order_by_asc(Column::Sequence)
            .limit(u64::from(limit));
        if let Some(agency_id) = &filter.agency_id {
            query = query.filter(Column::AgencyId.eq(agency_id));
        }
        if let Some(key_id) = &filter.key_id {
            query = query.filter(Column::KeyId.eq(key_id));
        }
        if let Some(from) = filter.from {
            query = query.filter(Column::OccurredAt.gte(to_micros(from)));
        }
        if let Some(until) = filter.until {
            query = query.filter(Column::OccurredAt.lt(to_micros(until)));
        }
        Ok(query.all(&self.db).await?.into_iter().map(from_row).collect())
    }

    async fn head(&self) -> Result<ChainHead, StorageError> {
        chain_head(audit_head::Entity::find_by_id(HEAD_ID).one(&self.db).await?)
    }
}
