//! The sweeper's lease, and the transactions that only its holder may make.

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr};
use service_kit::db::begin_write;
use service_kit::time::{from_micros, to_micros};

use super::sql::statement;
use crate::app::sweep::{Lease, LeaseAnswer, SweepJobError};
use crate::storage::StorageError;

impl From<DbErr> for SweepJobError {
    fn from(error: DbErr) -> Self {
        Self::Storage(error.into())
    }
}

/// Begins a transaction that writes for the sweep, if the lease is still the one that is in the database. Until it ends, nobody
/// else can take the lease.
pub(super) async fn begin(db: &DatabaseConnection, lease: &Lease) -> Result<DatabaseTransaction, SweepJobError> {
    let tx = begin_write(db).await?;
    let mut lock = "";
    if tx.get_database_backend() == DbBackend::Postgres {
        // A holder that stopped in the middle of a transaction must not keep its locks for longer than its lease.
        let longest = lease.lasts.num_milliseconds().to_string();
        let sql = "SELECT set_config('idle_in_transaction_session_timeout', $1, true)";
        tx.query_one_raw(statement(&tx, sql, vec![longest.into()])).await?;
        lock = " FOR SHARE";
    }
    let sql = format!("SELECT token FROM sweep_lease WHERE id = 1 AND owner = $1 AND token = $2{lock}");
    let values = vec![lease.owner.as_str().into(), lease.token.into()];
    if tx.query_one_raw(statement(&tx, sql, values)).await?.is_none() {
        tx.rollback().await?;
        return Err(SweepJobError::LeaseLost);
    }
    Ok(tx)
}

/// Renews the lease for its holder, or takes it if it has run out at `at`.
///
/// `at` was read before, so it is never later than the database's own time: a lease is never taken too early.
pub(super) async fn take(
    db: &DatabaseConnection,
    owner: &str,
    lasts: TimeDelta,
    at: DateTime<Utc>,
) -> Result<LeaseAnswer, StorageError> {
    // A lease that was renewed later than a whole lease from now is one of before the clock was set back.
    let free = "owner = $1 OR expires_at <= $2 OR renewed_at > $3";
    // Who holds its row in a transaction is alive: the next activation asks again.
    let unlocked = if db.get_database_backend() == DbBackend::Postgres { " FOR UPDATE SKIP LOCKED" } else { "" };
    let sql = format!(
        "UPDATE sweep_lease SET token = CASE WHEN owner = $1 THEN token ELSE token + 1 END, owner = $1, renewed_at = $2, expires_at = $3 \
         WHERE id IN (SELECT id FROM sweep_lease WHERE id = 1 AND ({free}){unlocked}) RETURNING token"
    );
    let values = vec![owner.into(), to_micros(at).into(), to_micros(at + lasts).into()];
    if let Some(row) = db.query_one_raw(statement(db, sql, values)).await? {
        return Ok(LeaseAnswer::Held(Lease { owner: owner.to_owned(), token: row.try_get("", "token")?, lasts }));
    }
    let row = db.query_one_raw(statement(db, "SELECT owner FROM sweep_lease WHERE id = 1", Vec::new())).await?;
    let row = row.ok_or_else(|| StorageError::Internal("table sweep_lease has lost its row".to_owned()))?;
    Ok(LeaseAnswer::Other { owner: row.try_get("", "owner")? })
}

/// Ends a lease before its time, if it is still this one.
pub(super) async fn give_back(db: &DatabaseConnection, lease: &Lease) -> Result<(), StorageError> {
    let sql =
        "UPDATE sweep_lease SET owner = '', expires_at = 0, renewed_at = 0 WHERE id = 1 AND owner = $1 AND token = $2";
    db.execute_raw(statement(db, sql, vec![lease.owner.as_str().into(), lease.token.into()])).await?;
    Ok(())
}

/// What the database's clock shows. SQLite has none: it is this process.
pub(super) async fn database_time(db: &DatabaseConnection) -> Result<Option<DateTime<Utc>>, StorageError> {
    if db.get_database_backend() != DbBackend::Postgres {
        return Ok(None);
    }
    let sql = "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT) AS micros";
    let row = db.query_one_raw(statement(db, sql, Vec::new())).await?;
    let row = row.ok_or_else(|| StorageError::Internal("the database told no time".to_owned()))?;
    Ok(Some(from_micros(row.try_get("", "micros")?)))
}
