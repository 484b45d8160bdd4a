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

/// Seconds that a key takes, in batches, each a transaction.
pub(crate) struct Deleting {
    /// A DELETE that asks what the sweep asks of a key, in the order of the keys, from a table that has no other index.
    pub(crate) dense: f64,
    /// The same in the order of the plan, lot by lot, from a table with all indexes.
    pub(crate) by_lot: f64,
    /// What the rules ask to be written, and nothing else: tombstone, entry and audit event, lot by lot.
    pub(crate) writes: f64,
}

/// Bounds of the deletion.
pub(crate) async fn delete(key: &Database) -> anyhow::Result<Deleting> {
    let stale = format!("{LAST_USE} <= {}", DELETE_AT - 90 * DAY);
    let of_the_batch = match key.kind {
        Kind::Postgres => "= ANY($1)",
        Kind::Sqlite => "IN (SELECT value FROM json_each($1))",
    };
    let keys = copy_of_keys(key, false).await?;
    let ids = texts(key, &format!("SELECT id FROM {keys} WHERE {stale} ORDER BY id")).await?;
    let deletion =
        format!("DELETE FROM {keys} WHERE id {of_the_batch} AND state = 1 AND revoke_at IS NULL AND {stale}");
    let dense = in_batches(key, &ids, std::slice::from_ref(&deletion)).await?;

    let keys = copy_of_keys(key, true).await?;
    let entries = twin(key, "sweep_entries", true).await?;
    let audit = twin(key, "audit_events", true).await?;
    key.execute(&format!("INSERT INTO {entries} SELECT * FROM sweep_entries")).await?;
    key.execute(&format!("ANALYZE {entries}")).await?;
    let ids = texts(key, &format!("SELECT key_id FROM {entries} ORDER BY plan_id, agency_id, key_id")).await?;
    let (some, others) = ids.split_at(ids.len() / 2);
    let by_lot = in_batches(key, some, &[deletion]).await?;
    let row_number = "row_number() OVER (ORDER BY key_id)";
    let hash = if key.kind == Kind::Postgres { "sha256(key_id::bytea)" } else { "randomblob(32)" };
    let first = format!("(SELECT COALESCE(MAX(sequence), 0) FROM {audit})");
    let writes = [
        format!(
            "UPDATE {keys} SET state = 3, secret_hash = NULL, sealed_secret = NULL, deleted_at = {DELETE_AT}, revision = revision + 1 \
             WHERE id {of_the_batch} AND state = 1 AND revoke_at IS NULL AND {stale}"
        ),
        format!(
            "INSERT INTO {audit} SELECT {first} + {row_number}, {DELETE_AT}, 'service/key-service', 'key.deleted', agency_id, key_id, \
             plan_id, '', '', '{{\"create_time\":\"2025-11-27T00:00:00Z\",\"last_use_time\":\"2026-09-23T00:00:00Z\"}}', {hash} \
             FROM {entries} WHERE state = 1 AND key_id {of_the_batch}"
        ),
        format!("UPDATE {entries} SET state = 2, ended_at = {DELETE_AT} WHERE state = 1 AND key_id {of_the_batch}"),
    ];
    let writes = in_batches(key, others, &writes).await?;
    for table in [keys, entries, audit] {
        key.execute(&format!("DROP TABLE {table}")).await.context("the bound's table")?;
    }
    Ok(Deleting { dense, by_lot, writes })
}

/// All keys again, in a table with their primary key or with all their indexes.
async fn copy_of_keys(key: &Database, indexed: bool) -> anyhow::Result<String> {
    let name = twin(key, "api_keys", indexed).await?;
    if key.kind == Kind::Postgres {
        key.execute(&format!("ALTER TABLE {name} SET (fillfactor = 85)")).await?;
    }
    key.execute(&format!("INSERT INTO {name} SELECT * FROM api_keys")).await?;
    if key.kind == Kind::Postgres {
        if !indexed {
            key.execute(&format!("ALTER TABLE {name} ADD PRIMARY KEY (id)")).await?;
        }
        key.execute(&format!("VACUUM ANALYZE {name}")).await?;
    }
    Ok(name)
}

async fn texts(key: &Database, sql: &str) -> anyhow::Result<Vec<String>> {
    let statement = Statement::from_string(key.db.get_database_backend(), sql);
    key.db.query_all_raw(statement).await?.iter().map(|row| Ok(row.try_get_by_index(0)?)).collect()
}

/// Seconds for a key, of statements that have a batch of them as their parameter and touch a row for each.
async fn in_batches(key: &Database, ids: &[String], statements: &[String]) -> anyhow::Result<f64> {
    let backend = key.db.get_database_backend();
    let begun = Instant::now();
    for batch in ids.chunks(BATCH) {
        let value: Value = match key.kind {
            Kind::Postgres => {
                let all = batch.iter().map(|id| id.as_str().into()).collect();
                Value::Array(ArrayType::String, Some(Box::new(all)))
            }
            Kind::Sqlite => serde_json::to_string(batch)?.into(),
        };
        let tx = begin_write(&key.db).await?;
        for sql in statements {
            let touched = tx.execute_raw(Statement::from_sql_and_values(backend, sql, [value.clone()])).await?;
            let touched = touched.rows_affected();
            anyhow::ensure!(touched == batch.len() as u64, "{touched} of {} rows: {sql}", batch.len());
        }
        tx.commit().await?;
    }
    Ok(begun.elapsed().as_secs_f64() / ids.len() as f64)
}
