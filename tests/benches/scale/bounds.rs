//! What the database itself needs for the same rows.

use std::time::Instant;

use anyhow::Context;
use futures::StreamExt;
use sea_orm::sea_query::ArrayType;
use sea_orm::sqlx::postgres::PgPoolCopyExt;
use sea_orm::{ConnectionTrait, Statement, Value};
use service_kit::db::begin_write;
use service_kit::testing::Kind;

use crate::measure::{DAY, DELETE_AT};
use crate::seed::Database;

/// Keys of a batch, as the sweep's largest by default.
const BATCH: usize = 1_000;

const LAST_USE: &str =
    "(CASE WHEN last_used_at IS NULL OR last_used_at < created_at THEN created_at ELSE last_used_at END)";

/// A table with the columns and, if asked for, the indexes of another.
async fn twin(database: &Database, table: &str, indexed: bool) -> anyhow::Result<String> {
    let name = format!("bound_{table}");
    database.execute(&format!("DROP TABLE IF EXISTS {name}")).await?;
    if database.kind == Kind::Postgres {
        let with = if indexed { "ALL" } else { "STORAGE" };
        database.execute(&format!("CREATE TABLE {name} (LIKE {table} INCLUDING {with})")).await?;
        return Ok(name);
    }
    let kinds = if indexed { "type IN ('table', 'index')" } else { "type = 'table'" };
    let sql = format!(
        "SELECT sql FROM sqlite_master WHERE tbl_name = '{table}' AND sql IS NOT NULL AND {kinds} ORDER BY type DESC"
    );
    for row in database.db.query_all_raw(Statement::from_string(database.db.get_database_backend(), sql)).await? {
        let create: String = row.try_get_by_index(0)?;
        let create = create.replacen(&format!("\"{table}\""), &format!("\"{name}\""), 1);
        // An index has a name of its own before that of its table.
        let create = match create.split_once("INDEX ") {
            Some((kind, rest)) => {
                format!("{kind}INDEX \"bound_{}", rest.trim_start_matches("IF NOT EXISTS ").trim_start_matches('"'))
            }
            None => create,
        };
        database.execute(&create).await?;
    }
    Ok(name)
}

/// Seconds of the plan's own `INSERT … SELECT` into such a table.
pub(crate) async fn plan(key: &Database) -> anyhow::Result<f64> {
    let name = twin(key, "sweep_entries", true).await?;
    let begun = Instant::now();
    let tx = begin_write(&key.db).await?;
    if key.kind == Kind::Postgres {
        tx.execute_unprepared("SET LOCAL max_parallel_workers_per_gather = 0").await?;
    }
    let sql = format!(
        "INSERT INTO {name} (plan_id, agency_id, key_id, location_id, display_name, display_prefix, created_at, last_used_at, state) \
         SELECT 'plan_019c0000000070008000000000000000', agency_id, id, location_id, display_name, display_prefix, created_at, last_used_at, 1 \
         FROM api_keys WHERE state = 1 AND revoke_at IS NULL AND {LAST_USE} <= {} ORDER BY agency_id, id",
        DELETE_AT - 90 * DAY
    );
    tx.execute_unprepared(&sql).await?;
    tx.commit().await?;
    let seconds = begun.elapsed().as_secs_f64();
    key.execute(&format!("DROP TABLE {name}")).await?;
    Ok(seconds)
}

/// Seconds to put the projection's entries into such a table: COPY on PostgreSQL, `INSERT … SELECT` on SQLite.
pub(crate) async fn project(notification: &Database) -> anyhow::Result<f64> {
    let name = twin(notification, "entries", true).await?;
    let seconds = if notification.kind == Kind::Postgres {
        let pool = notification.db.get_postgres_connection_pool();
        let mut rows = Vec::new();
        let mut out = pool.copy_out_raw("COPY entries TO STDOUT (FORMAT binary)").await?;
        while let Some(some) = out.next().await {
            rows.push(some?);
        }
        drop(out);
        let begun = Instant::now();
        let mut copy = pool.copy_in_raw(&format!("COPY {name} FROM STDIN (FORMAT binary)")).await?;
        for some in rows {
            copy.send(some).await?;
        }
        copy.finish().await?;
        begun.elapsed().as_secs_f64()
    } else {
        let begun = Instant::now();
        notification.execute(&format!("INSERT INTO {name} SELECT * FROM entries")).await?;
        begun.elapsed().as_secs_f64()
    };
    notification.execute(&format!("DROP TABLE {name}")).await?;
    Ok(seconds)
}

/// Keys per second of a DELETE that asks what the sweep asks of a key, in batches in the order of the keys, each a transaction.
pub(crate) async fn delete(key: &Database) -> anyhow::Result<f64> {
    let name = twin(key, "api_keys", false).await?;
    if key.kind == Kind::Postgres {
        key.execute(&format!("ALTER TABLE {name} SET (fillfactor = 85)")).await?;
    }
    key.execute(&format!("INSERT INTO {name} SELECT * FROM api_keys")).await?;
    if key.kind == Kind::Postgres {
        key.execute(&format!("ALTER TABLE {name} ADD PRIMARY KEY (id)")).await?;
        key.execute(&format!("VACUUM ANALYZE {name}")).await?;
    }
    let backend = key.db.get_database_backend();
    let cutoff = DELETE_AT - 90 * DAY;
    let sql = format!("SELECT id FROM {name} WHERE {LAST_USE} <= {cutoff} ORDER BY id");
    let mut ids: Vec<String> = Vec::new();
    for row in key.db.query_all_raw(Statement::from_string(backend, sql)).await? {
        ids.push(row.try_get_by_index(0)?);
    }
    let of_the_batch = match key.kind {
        Kind::Postgres => "ANY($1)",
        Kind::Sqlite => "(SELECT value FROM json_each($1))",
    };
    let comparison = if key.kind == Kind::Postgres { "=" } else { "IN" };
    let sql = format!(
        "DELETE FROM {name} WHERE id {comparison} {of_the_batch} AND state = 1 AND revoke_at IS NULL AND {LAST_USE} <= {cutoff}"
    );
    let begun = Instant::now();
    let mut deleted = 0;
    for batch in ids.chunks(BATCH) {
        let value: Value = match key.kind {
            Kind::Postgres => {
                let all = batch.iter().map(|id| id.as_str().into()).collect();
                Value::Array(ArrayType::String, Some(Box::new(all)))
            }
            Kind::Sqlite => serde_json::to_string(batch)?.into(),
        };
        let tx = begin_write(&key.db).await?;
        deleted += tx.execute_raw(Statement::from_sql_and_values(backend, &sql, [value])).await?.rows_affected();
        tx.commit().await?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    anyhow::ensure!(deleted == ids.len() as u64, "the bound deleted {deleted} of {} keys", ids.len());
    key.execute(&format!("DROP TABLE {name}")).await.context("the bound's table")?;
    Ok(deleted as f64 / seconds)
}
