//! What the statements of the sweep have in common. They are written by hand where one must say exactly what it touches, in the
//! dialect that SQLite and PostgreSQL share.

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, Statement, TransactionTrait, Value,
};
use service_kit::rows::{Column, Rows};

use crate::domain::sweep::schedule::IDLE_DAYS;
use crate::storage::StorageError;
use crate::storage::usage::POSTGRES_NESTED_LOOP;

/// Days without use, in the database's unit.
pub(super) const IDLE_MICROS: i64 = IDLE_DAYS * 86_400_000_000;

/// A statement with numbered parameters.
pub(super) fn statement(db: &impl ConnectionTrait, sql: impl Into<String>, values: Vec<Value>) -> Statement {
    Statement::from_sql_and_values(db.get_database_backend(), sql, values)
}

/// The effective last use of the key that `alias` names: a key never used counts from its creation.
pub(super) fn last_use(alias: &str) -> String {
    format!(
        "(CASE WHEN {alias}.last_used_at IS NULL OR {alias}.last_used_at < {alias}.created_at \
         THEN {alias}.created_at ELSE {alias}.last_used_at END)"
    )
}

/// Ends a SELECT that locks the rows it finds. SQLite has one writer, who holds the lock already.
pub(super) fn for_update(db: &impl ConnectionTrait) -> &'static str {
    match db.get_database_backend() {
        DbBackend::Postgres => " FOR UPDATE",
        _ => "",
    }
}

/// Keeps PostgreSQL from scanning with all processors, since verification runs beside it.
pub(in crate::storage) async fn without_parallel_workers(tx: &DatabaseTransaction) -> Result<(), StorageError> {
    if tx.get_database_backend() == DbBackend::Postgres {
        tx.execute_unprepared("SET LOCAL max_parallel_workers_per_gather = 0").await?;
    }
    Ok(())
}

/// Has PostgreSQL look up what a statement names one after the other, in the order in which it is named, whatever its statistics say
/// of tables that were filled a moment ago; and plan each statement for its own parameters.
pub(super) async fn one_after_the_other(tx: &DatabaseTransaction) -> Result<(), StorageError> {
    if tx.get_database_backend() == DbBackend::Postgres {
        tx.execute_unprepared(&format!("{POSTGRES_NESTED_LOOP}; SET LOCAL plan_cache_mode = force_custom_plan"))
            .await?;
    }
    Ok(())
}

/// A transaction that only reads, [`one_after_the_other`]: for a stretch of a table of which PostgreSQL may think it cheaper to read all.
pub(super) async fn look_up(db: &DatabaseConnection) -> Result<DatabaseTransaction, StorageError> {
    let look = db.begin().await?;
    one_after_the_other(&look).await?;
    Ok(look)
}

/// Agencies as rows `t`.
pub(super) fn of_agencies(agencies: &[&str]) -> Rows {
    let ids = agencies.iter().map(|agency_id| (*agency_id).to_owned()).collect();
    Rows::new("t").column("agency_id", Column::Text(ids))
}
