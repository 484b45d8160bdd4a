//! The port of keys on the database.

use std::collections::HashMap;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sea_orm::sea_query::{CaseStatement, Expr, ExprTrait, Query};
use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, DatabaseConnection, DatabaseTransaction, EntityTrait, FromQueryResult,
    QueryFilter, QueryOrder, QuerySelect, Statement,
};
use service_kit::actor::Actor;
use service_kit::db::begin_write;
use service_kit::keyring::Sealed;
use service_kit::time::{from_micros, to_micros};

use super::entities::api_keys::{Column, Entity};
use super::rows::{FoundRow, json_list, to_key, to_row, to_sealed};
use super::{StorageError, audit, import, requests, sweep};
use crate::app::keys::{
    Change, ImportCandidate, ImportOutcome, KeyFilter, KeyStore, NewKey, Recall, Record, Request, Retirement,
    UseOutcome,
};
use crate::domain::audit::NewAuditEvent;
use crate::domain::key::{ApiKey, ApiKeyState, PendingDeletion, Selector, StoredKey};
use crate::domain::sweep::RescueCause;

/// `max(created_at, last_used_at)` where a key never used counts from its creation; the database's own greatest-of
/// functions treat NULL differently.
const EFFECTIVE_LAST_USE: &str =
    "CASE WHEN last_used_at IS NULL OR last_used_at < created_at THEN created_at ELSE last_used_at END";

/// The ports of `app` on one database.
#[derive(Debug, Clone)]
pub struct SqlStore {
    pub(super) db: DatabaseConnection,
}

impl SqlStore {
    /// The ports on this database.
    pub fn new(db: DatabaseConnection) -> Self {
        Self { db }
    }

    /// The deletions announced for some keys.
    async fn pending(&self, key_ids: &[String]) -> Result<HashMap<String, PendingDeletion>, StorageError> {
        let query = Query::select()
            .column(("e", "key_id"))
            .column(("e", "plan_id"))
            .column(("l", "delete_at"))
            .from_as("sweep_entries", "e")
            .join_as(
                sea_orm::JoinType::InnerJoin,
                "sweep_lots",
                "l",
                Expr::col(("l", "plan_id"))
                    .equals(("e", "plan_id"))
                    .and(Expr::col(("l", "agency_id")).equals(("e", "agency_id"))),
            )
            // 1 is PLANNED.
            .and_where(Expr::col(("e", "state")).eq(1_i16))
            .and_where(Expr::col(("e", "key_id")).is_in(key_ids))
            .to_owned();
        let mut pending = HashMap::new();
        for row in self.db.query_all(&query).await? {
            let deletion = PendingDeletion {
                plan_id: row.try_get("", "plan_id")?,
                delete_at: from_micros(row.try_get("", "delete_at")?),
            };
            pending.insert(row.try_get("", "key_id")?, deletion);
        }
        Ok(pending)
    }
}

#[async_trait]
impl KeyStore for SqlStore {
    async fn recall(&self, request: &Request, now: DateTime<Utc>) -> Result<Recall, StorageError> {
        requests::recall(&self.db, request, now).await
    }

    async fn insert(&self, new: NewKey, record: Record) -> Result<Change, StorageError> {
        let tx = begin_write(&self.db).await?;
        if let Some(answer) = requests::answered(&tx, &record).await? {
            return Ok(answer);
        }
        requests::remember(&tx, &record).await?;
        Entity::insert(to_row(new, None)?).exec_without_returning(&tx).await?;
        audit::append(&tx, vec![record.audit]).await?;
        tx.commit().await?;
        Ok(Change::Made { rescued: false })
    }

    async fn get(&self, key_id: &str) -> Result<Option<ApiKey>, StorageError> {
        let Some(row) = Entity::find_by_id(key_id).one(&self.db).await? else { return Ok(None) };
        let pending = self.pending(std::slice::from_ref(&row.id)).await?.remove(&row.id);
        to_key(row, pending).map(Some)
    }

    async fn sealed_secret(&self, key_id: &str) -> Result<Option<Sealed>, StorageError> {
        let row = Entity::find_by_id(key_id).filter(Column::State.eq(ApiKeyState::Active.code())).one(&self.db).await?;
        row.map_or(Ok(None), to_sealed)
    }

    async fn list(
        &self,
        filter: &KeyFilter,
        after: Option<&str>,
        limit: u32,
        now: DateTime<Utc>,
    ) -> Result<Vec<ApiKey>, StorageError> {
        let mut query = Entity::find().order_by_asc(Column::Id).limit(u64::from(limit));
        if let Some(after) = after {
            query = query.filter(Column::Id.gt(after));
        }
        if let Some(agency_id) = &filter.agency_id {
            query = query.filter(Column::AgencyId.eq(agency_id));
        }
        if let Some(location_id) = &filter.location_id {
            query = query.filter(Column::LocationId.eq(location_id));
        }
        if let Some(state) = filter.state {
            query = query.filter(state_at(state, now));
        }
        if let Some(idle_since) = filter.idle_since {
            query = query.filter(Expr::cust(EFFECTIVE_LAST_USE).lte(to_micros(idle_since)));
        }
        let rows = query.all(&self.db).await?;
        let key_ids: Vec<_> = rows.iter().map(|row| row.id.clone()).collect();
        let mut pending = if key_ids.is_empty() { HashMap::new() } else { self.pending(&key_ids).await? };
        rows.into_iter()
            .map(|row| {
                let deletion = pending.remove(&row.id);
                to_key(row, deletion)
            })
            .collect()
    }

    async fn find(&self, selectors: &[Selector]) -> Result<Vec<(Selector, StoredKey)>, StorageError> {
        let places: Vec<_> = (1..=selectors.len()).map(|number| format!("${number}")).collect();
        let sql = format!("SELECT {} FROM api_keys WHERE selector IN ({})", FoundRow::COLUMNS, places.join(", "));
        let values = selectors.iter().map(|selector| selector.as_bytes().to_vec().into());
        let statement = Statement::from_sql_and_values(self.db.get_database_backend(), sql, values);
        let rows = FoundRow::find_by_statement(statement).all(&self.db).await?;
        rows.into_iter().map(FoundRow::into_stored).collect()
    }

    async fn store_use(&self, key_id: &str, used_at: DateTime<Utc>, actor: &Actor) -> Result<UseOutcome, StorageError> {
        let tx = begin_write(&self.db).await?;
        let micros = to_micros(used_at);
        let earlier = Condition::any().add(Column::LastUsedAt.is_null()).add(Column::LastUsedAt.lt(micros));
        let later = CaseStatement::new().case(earlier, micros).finally(Expr::col(Column::LastUsedAt));
        let stored = Entity::update_many()
            .col_expr(Column::LastUsedAt, later.into())
            .filter(Column::Id.eq(key_id))
            .filter(state_at(ApiKeyState::Active, used_at))
            .exec(&tx)
            .await?;
        if stored.rows_affected == 0 {
            return Ok(UseOutcome::Ended);
        }
        let plan_id = sweep::rescue(&tx, key_id, RescueCause::Used, used_at, actor).await?;
        tx.commit().await?;
        Ok(UseOutcome::Stored { plan_id })
    }

    async fn update(&self, key: &ApiKey, record: Record) -> Result<Change, StorageError> {
        let tx = begin_write(&self.db).await?;
        if let Some(answer) = requests::answered(&tx, &record).await? {
            return Ok(answer);
        }
        let changed = unchanged_key(&key.key_id, key.revision)
            .col_expr(Column::DisplayName, Expr::value(key.display_name.clone()))
            .col_expr(Column::Scopes, Expr::value(json_list(key.scopes.as_slice())))
            .col_expr(Column::AllowedCidrs, Expr::value(json_list(key.networks.as_slice())))
            .col_expr(Column::ExpiresAt, Expr::value(key.expires_at.map(to_micros)))
            .exec(&tx)
            .await?;
        if changed.rows_affected != 1 {
            return Ok(Change::Stale);
        }
        requests::remember(&tx, &record).await?;
        audit::append(&tx, vec![record.audit]).await?;
        tx.commit().await?;
        Ok(Change::Made { rescued: false })
    }

    async fn rotate(&self, retirement: Retirement, successor: NewKey, record: Record) -> Result<Change, StorageError> {
        let tx = begin_write(&self.db).await?;
        if let Some(answer) = requests::answered(&tx, &record).await? {
            return Ok(answer);
        }
        let mut retire = unchanged_key(&retirement.key_id, retirement.revision)
            .col_expr(Column::SuccessorId, Expr::value(successor.key.key_id.clone()))
            .col_expr(Column::RevokeAt, Expr::value(to_micros(retirement.revoke_at)));
        if retirement.revoke_at <= record.now {
            retire = end(retire);
        }
        if retire.exec(&tx).await?.rows_affected != 1 {
            return Ok(Change::Stale);
        }
        requests::remember(&tx, &record).await?;
        Entity::insert(to_row(successor, None)?).exec_without_returning(&tx).await?;
        close(tx, &retirement.key_id, RescueCause::Rotated, record).await
    }

    async fn revoke(&self, key_id: &str, revision: i64, record: Record) -> Result<Change, StorageError> {
        let tx = begin_write(&self.db).await?;
        if let Some(answer) = requests::answered(&tx, &record).await? {
            return Ok(answer);
        }
        let revoked = end(unchanged_key(key_id, revision))
            .col_expr(Column::RevokeAt, Expr::value(to_micros(record.now)))
            .exec(&tx)
            .await?;
        if revoked.rows_affected != 1 {
            return Ok(Change::Stale);
        }
        requests::remember(&tx, &record).await?;
        close(tx, key_id, RescueCause::Revoked, record).await
    }

    async fn import(&self, rows: Vec<ImportCandidate>) -> Result<Vec<ImportOutcome>, StorageError> {
        let tx = begin_write(&self.db).await?;
        let outcomes = import::store(&tx, rows).await?;
        tx.commit().await?;
        Ok(outcomes)
    }

    async fn audit(&self, event: NewAuditEvent) -> Result<(), StorageError> {
        let tx = begin_write(&self.db).await?;
        audit::append(&tx, vec![event]).await?;
        Ok(tx.commit().await?)
    }
}

/// Takes the key out of its plan, writes the audit and commits: entries before the audit's head, the events' head last.
async fn close(
    tx: DatabaseTransaction,
    key_id: &str,
    cause: RescueCause,
    record: Record,
) -> Result<Change, StorageError> {
    let rescued = sweep::rescue(&tx, key_id, cause, record.now, &record.actor).await?.is_some();
    audit::append(&tx, vec![record.audit]).await?;
    tx.commit().await?;
    Ok(Change::Made { rescued })
}

/// An update of a key that is still ACTIVE and as it was read; counts the change.
fn unchanged_key(key_id: &str, revision: i64) -> sea_orm::UpdateMany<Entity> {
    Entity::update_many()
        .col_expr(Column::Revision, Expr::value(revision + 1))
        .filter(Column::Id.eq(key_id))
        .filter(Column::State.eq(ApiKeyState::Active.code()))
        .filter(Column::Revision.eq(revision))
}

/// Ends a key: its secret material is destroyed, all but the selector, which leads back to nothing.
pub(super) fn end(update: sea_orm::UpdateMany<Entity>) -> sea_orm::UpdateMany<Entity> {
    update
        .col_expr(Column::State, Expr::value(ApiKeyState::Revoked.code()))
        .col_expr(Column::SecretHash, Expr::value(None::<Vec<u8>>))
        .col_expr(Column::PepperVersion, Expr::value(None::<i32>))
        .col_expr(Column::SealedSecret, Expr::value(None::<Vec<u8>>))
        .col_expr(Column::MasterVersion, Expr::value(None::<i32>))
}

/// Keys that are in a state at an instant: an overlap that has run out makes a key REVOKED before that is stored.
fn state_at(state: ApiKeyState, now: DateTime<Utc>) -> Condition {
    let active = ApiKeyState::Active.code();
    let now = to_micros(now);
    match state {
        ApiKeyState::Active => Condition::all()
            .add(Column::State.eq(active))
            .add(Condition::any().add(Column::RevokeAt.is_null()).add(Column::RevokeAt.gt(now))),
        ApiKeyState::Revoked => Condition::any()
            .add(Column::State.eq(ApiKeyState::Revoked.code()))
            .add(Condition::all().add(Column::State.eq(active)).add(Column::RevokeAt.lte(now))),
        ApiKeyState::Deleted => Condition::all().add(Column::State.eq(state.code())),
    }
}
