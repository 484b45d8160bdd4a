//! The audit chain in the database.

use async_trait::async_trait;
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, DatabaseTransaction, EntityTrait, IntoActiveModel, QueryFilter, QueryOrder, QuerySelect};
use service_kit::notify::notify;
use service_kit::time::{from_micros, to_micros};

use super::changes::KEY_CHANGES;
use super::entities::{audit_events, audit_head};
use super::{SqlStore, StorageError};
use crate::app::audit::{AuditFilter, AuditStore};
use crate::domain::audit::{AuditEvent, CHANGES_OF_VERIFICATION, ChainHead, NewAuditEvent};

/// The one row of `audit_head`.
const HEAD_ID: i16 = 1;
/// Eleven columns a row: 1,000 rows stay below the 32,766 variables of a SQLite statement.
const INSERT_ROWS: usize = 1_000;

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
    let mut rows = events.into_iter().map(|event| to_row(head.append(event)).into_active_model()).peekable();
    while rows.peek().is_some() {
        let chunk: Vec<_> = rows.by_ref().take(INSERT_ROWS).collect();
        audit_events::Entity::insert_many(chunk).exec_without_returning(tx).await?;
    }
    drop(rows);
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

fn to_row(event: AuditEvent) -> audit_events::Model {
    audit_events::Model {
        sequence: event.sequence,
        occurred_at: to_micros(event.occurred_at),
        actor: event.actor,
        action: event.action,
        agency_id: event.agency_id,
        key_id: event.key_id,
        plan_id: event.plan_id,
        reason: event.reason,
        request_id: event.request_id,
        detail: event.detail,
        hash: event.hash.to_vec(),
    }
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
