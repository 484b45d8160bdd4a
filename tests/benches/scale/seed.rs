//! The databases, filled by the database itself.

use anyhow::Context;
use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};
use sea_orm_migration::MigratorTrait;
use secrecy::SecretString;
use service_kit::db::{self, DatabaseConfig};
use service_kit::testing::{Kind, TestDatabase};

use crate::measure::{DAY, DELETE_AT, PLAN_AT};

/// Keys of an agency, but the large one; their blocks of [`BLOCK`] lie scattered among those of all others.
const AGENCY: u64 = 100;
/// Keys of a location, next to each other.
const BLOCK: u64 = 10;
/// One block in so many belongs to the large agency, and each of its keys to a location of its own: 250,000 locations among 10,000,000 keys.
const LARGE: u64 = 40;

/// How much there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    /// Keys, all ACTIVE.
    pub(crate) keys: u64,
    /// Those that nobody has used for 90 days, spread evenly.
    pub(crate) stale: u64,
}

/// A database, gone when this is.
pub(crate) struct Database {
    pub(crate) kind: Kind,
    pub(crate) url: String,
    pub(crate) db: DatabaseConnection,
    _database: TestDatabase,
}

impl Database {
    async fn new<M: MigratorTrait>(kind: Kind) -> anyhow::Result<Self> {
        let database = TestDatabase::new(kind);
        let url = database.url.clone();
        let config = DatabaseConfig { url: SecretString::from(url.clone()), max_connections: 2, ..database.config() };
        let db = db::connect(&config).await?;
        db::migrate::<M>(&db).await?;
        Ok(Self { kind, url, db, _database: database })
    }

    /// Executes a statement; answers the rows it touched.
    pub(crate) async fn execute(&self, sql: &str) -> anyhow::Result<u64> {
        let statement = Statement::from_string(self.db.get_database_backend(), sql);
        Ok(self.db.execute_raw(statement).await.with_context(|| sql.to_owned())?.rows_affected())
    }

    /// The one number that a query answers.
    pub(crate) async fn number(&self, sql: &str) -> anyhow::Result<i64> {
        let statement = Statement::from_string(self.db.get_database_backend(), sql);
        let row = self.db.query_one_raw(statement).await.with_context(|| sql.to_owned())?;
        Ok(row.context("a row")?.try_get_by_index(0)?)
    }

    async fn seeded(&self, statements: &[String]) -> anyhow::Result<()> {
        if self.kind == Kind::Sqlite {
            // What is seeded need not survive a power cut.
            self.execute("PRAGMA synchronous = OFF").await?;
        }
        for sql in statements {
            self.execute(sql).await?;
        }
        // As autovacuum does within a minute.
        self.execute(if self.kind == Kind::Postgres { "VACUUM ANALYZE" } else { "ANALYZE" }).await?;
        Ok(())
    }
}

/// The databases of the three services.
pub(crate) struct Databases {
    pub(crate) key: Database,
    pub(crate) location: Database,
    pub(crate) notification: Database,
}

impl Databases {
    /// Makes and fills them.
    pub(crate) async fn new(kind: Kind, size: Size) -> anyhow::Result<Self> {
        let key = Database::new::<key_service::storage::Migrator>(kind).await?;
        let location = Database::new::<location_service::Migrator>(kind).await?;
        let notification = Database::new::<notification_service::storage::Migrator>(kind).await?;
        key.seeded(&[keys(kind, size)]).await?;
        location.seeded(&people(kind, size)).await?;
        Ok(Self { key, location, notification })
    }
}

/// `n` from 0 to below `count`.
fn numbers(kind: Kind, count: u64) -> String {
    match kind {
        Kind::Sqlite => {
            format!(
                "(WITH RECURSIVE s(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM s WHERE n + 1 < {count}) SELECT n FROM s) AS s"
            )
        }
        Kind::Postgres => format!("(SELECT n FROM generate_series(0::bigint, {} - 1) AS n) AS s", count.max(1)),
    }
}

fn id(kind: Kind, prefix: &str, number: &str) -> String {
    match kind {
        Kind::Sqlite => format!("printf('{prefix}_%032x', {number})"),
        Kind::Postgres => format!("('{prefix}_' || lpad(to_hex({number}), 32, '0'))"),
    }
}

fn agencies(size: Size) -> u64 {
    (size.keys / AGENCY).max(1)
}

/// The number of a block's agency, the large one's being 0.
fn agency(size: Size, block: &str) -> String {
    format!("CASE WHEN {block} % {LARGE} = 0 THEN 0 ELSE 1 + {block} % {} END", agencies(size))
}

/// The location of a key.
fn location(kind: Kind, block: &str) -> String {
    format!("CASE WHEN {block} % {LARGE} = 0 THEN {} ELSE {} END", id(kind, "loc_booth", "n"), id(kind, "loc", block))
}

fn keys(kind: Kind, size: Size) -> String {
    let block = format!("(n / {BLOCK})");
    let every = (size.keys / size.stale.max(1)).max(1);
    let (hash, sealed) = match kind {
        Kind::Sqlite => ("randomblob(16)", "randomblob(94)"),
        Kind::Postgres => ("decode(md5(n::text), 'hex')", "decode(repeat('5a', 94), 'hex')"),
    };
    let (created, used) = (DELETE_AT - 400 * DAY, PLAN_AT - DAY);
    format!(
        "INSERT INTO api_keys (id, agency_id, location_id, display_name, display_prefix, scopes, allowed_cidrs, created_at, \
         last_used_at, state, selector, secret_hash, pepper_version, sealed_secret, master_version, revision) \
         SELECT {}, {}, {}, 'till ' || n, 'ksw_loc_Ab3x', '[\"read\",\"write\"]', '[]', {created}, \
         CASE WHEN n % {every} = 0 AND n / {every} < {} THEN {} ELSE {used} END, 1, {hash}, {sealed}, 1, {sealed}, 1, 1 FROM {}",
        id(kind, "key", "n"),
        id(kind, "agy", &agency(size, &block)),
        location(kind, &block),
        size.stale,
        DELETE_AT - 100 * DAY,
        numbers(kind, size.keys),
    )
}

/// An admin of each agency, and one of the first location of each but the large one.
fn people(kind: Kind, size: Size) -> Vec<String> {
    let profile = "email, phone, address, city, state, postal_code, country, time_zone, website, created_at, updated_at, revision";
    let at = DELETE_AT - 400 * DAY;
    let of = format!("'office@acme.example', '', '', '', '', '', 'US', 'America/New_York', '', {at}, {at}, 1");
    let user = |name: &str, agency: &str, kind_of: i16, from: String| {
        format!(
            "INSERT INTO users (id, agency_id, first_name, last_name, email, email_key, role_type, role_level, disabled, created_at, updated_at, revision) \
             SELECT {}, {agency}, 'Ada', 'Byron', '{name}' || n || '@acme.example', '{name}' || n || '@acme.example', {kind_of}, 1, {}, {at}, {at}, 1 FROM {from}",
            id(kind, &format!("usr_{name}"), "n"),
            if kind == Kind::Sqlite { "0" } else { "false" },
        )
    };
    let every = (size.keys / size.stale.max(1)).max(1);
    let agencies = agencies(size);
    let one = id(kind, "agy", "n");
    let blocks = numbers(kind, size.keys.div_ceil(BLOCK));
    let own = |block: &str| id(kind, "agy", &agency(size, block));
    vec![
        format!(
            "INSERT INTO agencies (id, name, name_key, {profile}) SELECT {one}, 'Acme ' || n, 'acme ' || n, {of} FROM {}",
            numbers(kind, agencies + 1)
        ),
        format!(
            "INSERT INTO locations (id, agency_id, name, name_key, {profile}) SELECT {}, {}, 'Shop ' || n, 'shop ' || n, {of} FROM {blocks} WHERE n % {LARGE} <> 0",
            id(kind, "loc", "n"),
            own("n"),
        ),
        // The large agency's: those with a key that is listed.
        format!(
            "INSERT INTO locations (id, agency_id, name, name_key, {profile}) SELECT {}, {}, 'Booth ' || n, 'booth ' || n, {of} FROM {} \
             WHERE (n / {BLOCK}) % {LARGE} = 0 AND n % {every} = 0",
            id(kind, "loc_booth", "n"),
            id(kind, "agy", "0"),
            numbers(kind, size.keys),
        ),
        user("agency", &one, 1, numbers(kind, agencies + 1)),
        user(
            "local",
            &own("n"),
            2,
            format!("{} WHERE n % {LARGE} <> 0 AND n < {agencies}", numbers(kind, size.keys.div_ceil(BLOCK))),
        ),
        format!(
            "INSERT INTO user_locations (user_id, location_id) SELECT {}, {} FROM {} WHERE n % {LARGE} <> 0 AND n < {agencies}",
            id(kind, "usr_local", "n"),
            id(kind, "loc", "n"),
            numbers(kind, size.keys.div_ceil(BLOCK)),
        ),
    ]
}
