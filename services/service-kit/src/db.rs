//! One database a service: an embedded SQLite file or a PostgreSQL database, behind the same entities.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use sea_orm::sea_query::Query;
use sea_orm::sqlx::postgres::PgConnectOptions;
use sea_orm::sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sea_orm::sqlx::{Connection, Executor};
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseBackend, DatabaseConnection, DatabaseTransaction, DbErr,
    RuntimeErr, SqliteTransactionMode, TransactionOptions, TransactionTrait,
};
use sea_orm_migration::{IntoSchemaManagerConnection, MigratorTrait, SchemaManager};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::clock::SharedClock;
use crate::config::{Faults, Validate};
use crate::telemetry::traces;

/// Where a service keeps its data.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseConfig {
    /// `sqlite:PATH` or `postgres://USER@HOST/NAME`.
    pub url: SecretString,
    /// The most connections held open at once.
    pub max_connections: u32,
    /// How long a call waits for a free connection, milliseconds.
    pub acquire_timeout_ms: u64,
    /// Whether `serve` applies pending migrations before it listens.
    pub migrate_on_start: bool,
}

impl DatabaseConfig {
    /// The SQLite file, if the database is one.
    pub fn sqlite_path(&self) -> Option<PathBuf> {
        let rest = self.url.expose_secret().strip_prefix("sqlite:")?;
        let path = rest.strip_prefix("//").unwrap_or(rest).split('?').next()?;
        Some(PathBuf::from(path))
    }
}

impl Validate for DatabaseConfig {
    fn validate(&self, faults: &mut Faults) {
        let url = self.url.expose_secret();
        if self.sqlite_path().is_some_and(|path| path.as_os_str().is_empty() || path.as_os_str() == ":memory:") {
            faults.push("database.url", "must name a file after sqlite:");
        } else if self.sqlite_path().is_none() && !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            faults.push("database.url", "must begin with sqlite: or postgres://");
        } else if self.sqlite_path().is_none() && PgConnectOptions::from_str(url).is_err() {
            faults.push("database.url", "is no valid PostgreSQL URL");
        }
        if !(1..=1_000).contains(&self.max_connections) {
            faults.push("database.max_connections", "must lie between 1 and 1000");
        }
        if !(1..=600_000).contains(&self.acquire_timeout_ms) {
            faults.push("database.acquire_timeout_ms", "must lie between 1 and 600000");
        }
    }
}

/// Another process may hold SQLite's write lock for a whole batch; waiting for it beats failing the call.
const SQLITE_BUSY_TIMEOUT: Duration = Duration::from_secs(30);

/// Connects, and for SQLite creates the file and its folder if missing: WAL, `synchronous=FULL`, foreign keys.
///
/// # Errors
/// When the database cannot be reached or opened. The message names the place without its password.
pub async fn connect(config: &DatabaseConfig) -> anyhow::Result<DatabaseConnection> {
    let mut options = ConnectOptions::new(config.url.expose_secret().to_owned());
    options
        .max_connections(config.max_connections)
        .acquire_timeout(Duration::from_millis(config.acquire_timeout_ms))
        .connect_timeout(Duration::from_millis(config.acquire_timeout_ms))
        .sqlx_logging(false);
    if let Some(path) = config.sqlite_path() {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            tokio::fs::create_dir_all(folder)
                .await
                .with_context(|| format!("cannot create the folder {}", folder.display()))?;
        }
        let file = path.clone();
        options.map_sqlx_sqlite_opts(move |_| {
            SqliteConnectOptions::new()
                .filename(&file)
                .create_if_missing(true)
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Full)
                .foreign_keys(true)
                .busy_timeout(SQLITE_BUSY_TIMEOUT)
                // What is deleted here is often secret: overwrite it in the file.
                .pragma("secure_delete", "ON")
        });
        #[cfg(feature = "testing")]
        let judge = crate::testing::commits::judge_of_this_thread();
        options.map_sqlx_sqlite_pool_opts(move |pool| {
            #[cfg(feature = "testing")]
            let pool = crate::testing::commits::watch(pool, judge.clone());
            pool.after_release(|connection, _| Box::pin(is_idle(connection)))
        });
        let opened = Database::connect(options).await;
        let db = opened.with_context(|| format!("cannot open the SQLite database {}", path.display()))?;
        return Ok(traced(db, "sqlite"));
    }
    // PostgreSQL would compile a statement that it takes for long, for some 100 ms; here each is short, or is executed once.
    options.map_sqlx_postgres_pool_opts(|pool| {
        pool.after_connect(|connection, _| Box::pin(async { connection.execute("SET jit = off").await.map(drop) }))
    });
    let place = PgConnectOptions::from_str(config.url.expose_secret())
        .map(|o| format!("{}:{}/{}", o.get_host(), o.get_port(), o.get_database().unwrap_or("")))
        .unwrap_or_default();
    let connected = Database::connect(options).await;
    let db = connected.with_context(|| format!("cannot connect to the PostgreSQL database {place}"))?;
    Ok(traced(db, "postgresql"))
}

/// The same, with a span for each statement where calls are traced.
fn traced(mut db: DatabaseConnection, system: &'static str) -> DatabaseConnection {
    if traces::enabled() {
        db.set_metric_callback(move |done| traces::statement(system, &done.statement.sql, done.elapsed, done.failed));
    }
    db
}

/// As [`connect`], for commands that work on what is there: a SQLite file is not made.
///
/// # Errors
/// As [`connect`], and when there is no such file.
pub async fn connect_existing(config: &DatabaseConfig) -> anyhow::Result<DatabaseConnection> {
    if let Some(path) = config.sqlite_path() {
        anyhow::ensure!(path.exists(), "there is no SQLite database {}", path.display());
    }
    connect(config).await
}

/// Whether a connection has no transaction left, once what was told it last is done.
///
/// Where the disk is full, SQLite ends a transaction by itself, and its ROLLBACK fails: sqlx then takes all that follows for a part of
/// that transaction, and a commit within it may be none. Such a connection is closed.
async fn is_idle(connection: &mut SqliteConnection) -> Result<bool, sea_orm::sqlx::Error> {
    if connection.is_in_transaction() {
        // Perhaps it was only told to roll back.
        connection.ping().await?;
    }
    Ok(!connection.is_in_transaction())
}

/// Any number does, as long as every service and replica takes the same one: each has its own database.
const MIGRATION_LOCK: i64 = 0x6b65_7973;

/// Brings the schema to this version before a service is run: applies the pending migrations, or, where `migrate_on_start` is off,
/// waits until somebody else has, looking once a second.
///
/// # Errors
/// When a migration fails, the database cannot be read, or `stop` was asked for meanwhile.
pub async fn prepare<M: MigratorTrait>(
    db: &DatabaseConnection,
    config: &DatabaseConfig,
    clock: &SharedClock,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    if config.migrate_on_start {
        return migrate::<M>(db).await;
    }
    loop {
        let pending = pending::<M, _>(db).await.context("cannot read which migrations were applied")?;
        if pending.is_empty() {
            return Ok(());
        }
        tracing::info!(?pending, "waiting for the command migrate");
        tokio::select! {
            () = stop.cancelled() => anyhow::bail!("stopped while it waited for the command migrate"),
            () = clock.sleep(LOOK_AGAIN) => {}
        }
    }
}

/// Between two looks at whether somebody has migrated.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Applies the pending migrations, one replica at a time. A database that a newer version has migrated is left as it is: versions
/// that follow each other work side by side.
///
/// # Errors
/// When a migration fails; on PostgreSQL none of them is then applied.
pub async fn migrate<M: MigratorTrait>(db: &DatabaseConnection) -> anyhow::Result<()> {
    if db.get_database_backend() != DatabaseBackend::Postgres {
        return apply::<M, _>(db).await;
    }
    let transaction = db.begin().await.context("cannot begin the database migrations")?;
    transaction
        .execute_unprepared(&format!("SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
        .await
        .context("cannot take the migration lock")?;
    apply::<M, _>(&transaction).await?;
    transaction.commit().await.context("cannot commit the database migrations")
}

async fn apply<'c, M: MigratorTrait, C>(db: &'c C) -> anyhow::Result<()>
where
    C: ConnectionTrait,
    &'c C: IntoSchemaManagerConnection<'c>,
{
    if pending::<M, _>(db).await.context("cannot read which migrations were applied")?.is_empty() {
        return Ok(());
    }
    M::up(db, None).await.context("cannot apply the database migrations")
}

/// The migrations that the database lacks; nothing is written. It may have others besides: those of a newer version.
async fn pending<'c, M: MigratorTrait, C>(db: &'c C) -> Result<Vec<String>, DbErr>
where
    C: ConnectionTrait,
    &'c C: IntoSchemaManagerConnection<'c>,
{
    let mut names: Vec<String> = M::migrations().iter().map(|migration| migration.name().to_owned()).collect();
    if SchemaManager::new(db).has_table(M::migration_table_name().to_string()).await? {
        let applied = Query::select().column("version").from(M::migration_table_name()).take();
        for row in db.query_all(&applied).await? {
            let version: String = row.try_get("", "version")?;
            names.retain(|name| *name != version);
        }
    }
    Ok(names)
}

/// Begins a transaction that will write: on SQLite it takes the write lock at once, since a lock that is taken later fails
/// when somebody else has written in between.
///
/// # Errors
/// As the database has them.
pub async fn begin_write(db: &DatabaseConnection) -> Result<DatabaseTransaction, DbErr> {
    let options = TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..TransactionOptions::default()
    };
    db.begin_with_options(options).await
}

/// Whether the error means that the database did not answer, so that the same call may succeed later.
pub fn is_unavailable(error: &DbErr) -> bool {
    match error {
        DbErr::ConnectionAcquire(_) | DbErr::Conn(_) => true,
        DbErr::Exec(RuntimeErr::SqlxError(e)) | DbErr::Query(RuntimeErr::SqlxError(e)) => match &**e {
            sea_orm::sqlx::Error::Io(_)
            | sea_orm::sqlx::Error::PoolTimedOut
            | sea_orm::sqlx::Error::PoolClosed
            | sea_orm::sqlx::Error::WorkerCrashed => true,
            sea_orm::sqlx::Error::Database(e) => e.code().is_some_and(|code| is_outage(&code)),
            _ => false,
        },
        _ => false,
    }
}

/// Whether this code of PostgreSQL or SQLite means that the database cannot work for now.
fn is_outage(code: &str) -> bool {
    // SQLite's codes have fewer than five digits, and the kind of error in the lowest byte: 10 the file cannot be read or
    // written, 13 the disk is full, 14 the file cannot be opened.
    if let Some(number) = code.parse::<u32>().ok().filter(|_| code.len() < 5) {
        return matches!(number & 0xff, 10 | 13 | 14);
    }
    // PostgreSQL's: 57P the server is shutting down or starting up, 08 connection exceptions, 53 out of resources, such as a full
    // disk, 58 errors of the system below.
    ["57P", "08", "53", "58"].iter().any(|class| code.starts_with(class))
}

/// Whether the error means that two transactions met, so that the whole transaction is worth repeating at once.
pub fn is_conflict(error: &DbErr) -> bool {
    // PostgreSQL: serialization failure, deadlock. SQLite: busy in its three forms.
    database_code(error).is_some_and(|code| matches!(code.as_str(), "40001" | "40P01" | "5" | "261" | "517"))
}

/// Whether the error means that a row with this unique value exists already.
pub fn is_unique_violation(error: &DbErr) -> bool {
    matches!(error.sql_err(), Some(sea_orm::SqlErr::UniqueConstraintViolation(_)))
}

fn database_code(error: &DbErr) -> Option<String> {
    let (DbErr::Exec(RuntimeErr::SqlxError(e)) | DbErr::Query(RuntimeErr::SqlxError(e))) = error else {
        return None;
    };
    match &**e {
        sea_orm::sqlx::Error::Database(e) => e.code().map(Into::into),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_told_from_what_does_not() {
        for code in ["57P01", "08006", "53100", "58030", "13", "10", "778", "4874", "14", "526"] {
            assert!(is_outage(code), "{code}");
        }
        for code in ["23505", "40001", "42601", "57014", "19", "2067", "1", "5", "517", ""] {
            assert!(!is_outage(code), "{code}");
        }
    }
}

#[cfg(all(test, feature = "testing"))]
mod postgres {
    use sea_orm::Statement;

    use super::*;
    use crate::testing::{Kind, TestDatabase};

    #[tokio::test]
    #[cfg_attr(keysweep_no_postgres, ignore = "left out: no PostgreSQL server is installed")]
    async fn no_connection_compiles_statements() {
        let db = connect(&TestDatabase::new(Kind::Postgres).config()).await.expect("connects");
        let asked = Statement::from_string(DatabaseBackend::Postgres, "SHOW jit");
        let row = db.query_one_raw(asked).await.expect("an answer").expect("a row");
        assert_eq!(row.try_get_by_index::<String>(0).expect("a text"), "off");
    }
}

#[cfg(all(test, feature = "testing"))]
mod broken_transactions {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::testing::commits::{CommitJudge, judge_commits};
    use crate::testing::{Kind, TestDatabase};

    /// Lets nothing be committed while it refuses; SQLite then ends the transaction, as where the disk is full.
    #[derive(Debug)]
    struct Refuses(AtomicBool);

    impl CommitJudge for Refuses {
        fn allows(&self) -> bool {
            !self.0.load(Ordering::SeqCst)
        }
    }

    #[tokio::test]
    async fn what_is_committed_after_a_transaction_broke_off_is_there_for_all() {
        let database = TestDatabase::new(Kind::Sqlite);
        let judge = Arc::new(Refuses(AtomicBool::new(false)));
        judge_commits(judge.clone());
        let config = DatabaseConfig { max_connections: 1, ..database.config() };
        let (db, other) = (connect(&config).await.expect("open"), connect(&config).await.expect("open"));
        db.execute_unprepared("CREATE TABLE things (id INTEGER PRIMARY KEY)").await.expect("a table");
        let insert = async |id: u32| {
            let transaction = begin_write(&db).await.expect("begun");
            transaction.execute_unprepared(&format!("INSERT INTO things VALUES ({id})")).await.expect("written");
            transaction
        };

        judge.0.store(true, Ordering::SeqCst);
        insert(1).await.commit().await.expect_err("refused");
        judge.0.store(false, Ordering::SeqCst);
        drop(insert(2).await);
        insert(3).await.commit().await.expect("committed");
        let rows = other.query_all_raw(sea_orm::Statement::from_string(
            DatabaseBackend::Sqlite,
            "SELECT id FROM things".to_owned(),
        ));
        let ids: Vec<i64> =
            rows.await.expect("rows").iter().map(|row| row.try_get("", "id").expect("a number")).collect();
        assert_eq!(ids, [3]);
    }
}

#[cfg(all(test, feature = "testing"))]
mod migrating {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use chrono::{DateTime, Utc};
    use futures::future::BoxFuture;
    use sea_orm_migration::prelude::*;

    use super::*;
    use crate::clock::{Clock, SimulatedClock};
    use crate::testing::TestDatabase;

    struct Step(&'static str);

    impl MigrationName for Step {
        fn name(&self) -> &str {
            self.0
        }
    }

    #[async_trait::async_trait]
    impl MigrationTrait for Step {
        async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
            let table = Table::create().table(self.0).col(ColumnDef::new("id").integer()).to_owned();
            manager.create_table(table).await
        }
    }

    struct Old;

    impl MigratorTrait for Old {
        fn migrations() -> Vec<Box<dyn MigrationTrait>> {
            vec![Box::new(Step("m0001"))]
        }
    }

    struct New;

    impl MigratorTrait for New {
        fn migrations() -> Vec<Box<dyn MigrationTrait>> {
            vec![Box::new(Step("m0001")), Box::new(Step("m0002"))]
        }
    }

    /// A clock in whose seconds somebody else migrates.
    #[derive(Debug)]
    struct MigrateMeanwhile {
        db: DatabaseConnection,
        waits: AtomicU32,
    }

    impl Clock for MigrateMeanwhile {
        fn now(&self) -> DateTime<Utc> {
            crate::time::from_micros(0)
        }

        fn lived(&self) -> Duration {
            Duration::ZERO
        }

        fn sleep_until(&self, _: DateTime<Utc>) -> BoxFuture<'_, ()> {
            Box::pin(std::future::pending())
        }

        fn sleep(&self, _: Duration) -> BoxFuture<'_, ()> {
            Box::pin(async {
                migrate::<New>(&self.db).await.expect("the newer version migrates");
                self.waits.fetch_add(1, Ordering::SeqCst);
            })
        }
    }

    crate::both_databases! {
        async fn a_service_waits_for_the_migrations_that_it_must_not_apply(database: TestDatabase) {
            let config = DatabaseConfig { migrate_on_start: false, ..database.config() };
            let db = connect(&config).await.expect("connects");
            let stop = CancellationToken::new();
            migrate::<Old>(&db).await.expect("the older version migrates");
            let job = Arc::new(MigrateMeanwhile { db: db.clone(), waits: AtomicU32::new(0) });
            let clock: SharedClock = job.clone();
            prepare::<New>(&db, &config, &clock, &stop).await.expect("it goes on");
            assert_eq!(job.waits.load(Ordering::SeqCst), 1, "it looked, waited once and looked again");

            // Stopped, it does not wait for ever.
            let empty = TestDatabase::new(database.kind);
            let db = connect(&empty.config()).await.expect("connects");
            stop.cancel();
            let clock: SharedClock = Arc::new(SimulatedClock::new(crate::time::from_micros(0)));
            let error = prepare::<New>(&db, &config, &clock, &stop).await.expect_err("it stops").to_string();
            assert!(error.contains("migrate"), "{error}");
            let manager = SchemaManager::new(&db);
            assert!(!manager.has_table("m0001").await.expect("a look"), "it has migrated");
        }

        async fn a_version_starts_on_the_database_of_the_next(database: TestDatabase) {
            let db = connect(&database.config()).await.expect("connects");
            migrate::<New>(&db).await.expect("the newer version migrates");
            migrate::<Old>(&db).await.expect("the older version finds nothing to do");
            assert!(SchemaManager::new(&db).has_table("m0002").await.expect("a look"), "it was taken back");
        }
    }
}
