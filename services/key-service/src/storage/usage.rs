//! Uses in the database: one statement a batch, in the order of the keys' ids.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sea_orm::sea_query::{ArrayType, Expr};
use sea_orm::{ActiveValue::Set, ColumnTrait, ConnectionTrait, DbBackend, EntityTrait, QueryFilter, Statement, Value};
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

/// The rows are visited, and so locked, in the order of their ids, so that two replicas and the sweep never wait for each
/// other: the batch is sorted, and [`POSTGRES_NESTED_LOOP`] leaves no plan but to look its ids up one after the other.
/// Locking them by a SELECT before would cost nearly as much again as the update.
const POSTGRES_STORE: &str = "UPDATE api_keys SET last_used_at = uses.used_at
FROM (SELECT id, used_at FROM unnest($1::text[], $2::bigint[]) AS u(id, used_at) ORDER BY id) AS uses
WHERE api_keys.id = uses.id AND api_keys.state = 1
    AND (api_keys.last_used_at IS NULL OR api_keys.last_used_at < uses.used_at)";

/// For the transaction alone.
pub(super) const POSTGRES_NESTED_LOOP: &str = "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; \
     SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off";

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
        let batch = if backend == DbBackend::Postgres { POSTGRES_BATCH } else { SQLITE_BATCH };
        for chunk in uses.chunks(batch) {
            let tx = begin_write(&self.db).await?;
            if backend == DbBackend::Postgres {
                tx.execute_unprepared(POSTGRES_NESTED_LOOP).await?;
                tx.execute_raw(Statement::from_sql_and_values(backend, POSTGRES_STORE, arrays(chunk))).await?;
            } else {
                tx.execute_raw(Statement::from_sql_and_values(backend, SQLITE_STORE, [list(chunk)])).await?;
            }
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

/// The uses as two arrays of PostgreSQL.
fn arrays(uses: &[(String, DateTime<Utc>)]) -> [Value; 2] {
    let ids = uses.iter().map(|(id, _)| id.clone().into()).collect();
    let instants = uses.iter().map(|(_, used_at)| to_micros(*used_at).into()).collect();
    [Value::Array(ArrayType::String, Some(Box::new(ids))), Value::Array(ArrayType::BigInt, Some(Box::new(instants)))]
}

/// The uses as a JSON list.
fn list(uses: &[(String, DateTime<Utc>)]) -> Value {
    let list: Vec<_> = uses.iter().map(|(id, used_at)| json!({ "id": id, "used_at": to_micros(*used_at) })).collect();
    serde_json::Value::from(list).to_string().into()
}
