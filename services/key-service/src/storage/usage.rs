//! Uses in the database: one statement a batch, in the order of the keys' ids.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sea_orm::sea_query::Expr;
use sea_orm::{ActiveValue::Set, ColumnTrait, ConnectionTrait, DbBackend, EntityTrait, QueryFilter, Statement};
use serde_json::json;
use service_kit::db::begin_write;
use service_kit::time::to_micros;

use super::StorageError;
use super::entities::usage_writers::{ActiveModel, Column, Entity};
use super::keys::SqlStore;
use crate::app::verify::UsageStore;

/// Large batches cost PostgreSQL the least for each use.
const POSTGRES_BATCH: usize = 10_000;
/// SQLite has one write lock: others wait for as long as a batch takes, some 30 ms at this size.
const SQLITE_BATCH: usize = 1_000;

/// The rows are locked in the order of their ids, so that two replicas and the sweep never wait for each other.
const POSTGRES_STORE: &str = "WITH uses AS (
    SELECT k.id, u.used_at FROM json_to_recordset($1::text::json) AS u(id text, used_at bigint)
    JOIN api_keys k ON k.id = u.id
    WHERE k.state = 1 AND (k.last_used_at IS NULL OR k.last_used_at < u.used_at)
    ORDER BY k.id FOR NO KEY UPDATE OF k
) UPDATE api_keys SET last_used_at = uses.used_at FROM uses WHERE api_keys.id = uses.id
    AND (api_keys.last_used_at IS NULL OR api_keys.last_used_at < uses.used_at)";

const SQLITE_STORE: &str = "UPDATE api_keys SET last_used_at = uses.used_at
FROM (SELECT value ->> 'id' AS id, value ->> 'used_at' AS used_at FROM json_each(?)) AS uses
WHERE api_keys.id = uses.id AND api_keys.state = 1
    AND (api_keys.last_used_at IS NULL OR api_keys.last_used_at < uses.used_at)";

#[async_trait]
impl UsageStore for SqlStore {
    async fn open_writer(&self, replica_id: &str, now: DateTime<Utc>) -> Result<(), StorageError> {
        let writer = ActiveModel {
            replica_id: Set(replica_id.to_owned()),
            started_at: Set(to_micros(now)),
            flushed_through_at: Set(to_micros(now)),
            closed_at: Set(None),
        };
        Entity::insert(writer).exec_without_returning(&self.db).await?;
        Ok(())
    }

    async fn store_uses(&self, uses: &[(String, DateTime<Utc>)]) -> Result<(), StorageError> {
        let backend = self.db.get_database_backend();
        let (batch, sql) = match backend {
            DbBackend::Postgres => (POSTGRES_BATCH, POSTGRES_STORE),
            _ => (SQLITE_BATCH, SQLITE_STORE),
        };
        for chunk in uses.chunks(batch) {
            let list: Vec<_> =
                chunk.iter().map(|(id, used_at)| json!({ "id": id, "used_at": to_micros(*used_at) })).collect();
            let statement =
                Statement::from_sql_and_values(backend, sql, [serde_json::Value::from(list).to_string().into()]);
            let tx = begin_write(&self.db).await?;
            tx.execute_raw(statement).await?;
            tx.commit().await?;
        }
        Ok(())
    }

    async fn report_flushed(&self, replica_id: &str, through: DateTime<Utc>) -> Result<(), StorageError> {
        let reported = Entity::update_many()
            .col_expr(Column::FlushedThroughAt, Expr::value(to_micros(through)))
            .filter(Column::ReplicaId.eq(replica_id))
            .exec(&self.db)
            .await?;
        if reported.rows_affected != 1 {
            return Err(StorageError::Internal(format!("table usage_writers has lost the row of {replica_id}")));
        }
        Ok(())
    }

    async fn close_writer(&self, replica_id: &str, now: DateTime<Utc>) -> Result<(), StorageError> {
        Entity::update_many()
            .col_expr(Column::ClosedAt, Expr::value(to_micros(now)))
            .filter(Column::ReplicaId.eq(replica_id))
            .exec(&self.db)
            .await?;
        Ok(())
    }
}
