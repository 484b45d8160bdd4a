//! Keys whose secrets follow from their numbers, so that nobody has to remember a million of them.

use std::sync::Arc;

use anyhow::Context;
use key_service::domain::key::{Owner, Secret, SecretDigest, Selector};
use key_service::storage::Migrator;
use key_service::storage::entities::api_keys;
use key_service::storage::keyring_check;
use sea_orm::{ActiveValue::Set, ConnectionTrait, DatabaseConnection, DbBackend, EntityTrait, TransactionTrait};
use secrecy::SecretString;
use service_kit::clock::{Clock, SystemClock};
use service_kit::db::{self, DatabaseConfig};
use service_kit::entropy::SeededEntropy;
use service_kit::keyring::KeyRing;
use service_kit::testing::{Kind, TestDatabase};
use service_kit::time::to_micros;
use tempfile::TempDir;

/// Ten locations an agency, ten keys a location.
const KEYS_OF_A_LOCATION: u64 = 10;
const KEYS_OF_AN_AGENCY: u64 = 100;
/// 22 columns each: below the most parameters that SQLite and PostgreSQL take.
const ROWS_OF_AN_INSERT: u64 = 1_000;
const ROWS_OF_A_TRANSACTION: u64 = 50_000;
/// Secrets of this number and above belong to no key.
const UNKNOWN_FROM: u64 = 1 << 40;

pub(crate) fn key_id(number: u64) -> String {
    format!("key_{number:032x}")
}

pub(crate) fn owner(number: u64) -> Owner {
    Owner {
        agency_id: format!("agy_{:032x}", number / KEYS_OF_AN_AGENCY),
        location_id: Some(format!("loc_{:032x}", number / KEYS_OF_A_LOCATION)),
    }
}

/// The secret of a key.
pub(crate) fn secret(number: u64) -> Secret {
    // Only the kind of the owner shows in a secret.
    let owner = Owner { agency_id: String::new(), location_id: Some(String::new()) };
    Secret::generate(&owner, &SeededEntropy::new(number))
}

/// A well-formed secret that no key has.
pub(crate) fn unknown_secret(number: u64) -> Secret {
    secret(UNKNOWN_FROM + number)
}

/// The secret of a key with its last character wrong.
pub(crate) fn malformed_secret(number: u64) -> String {
    let mut text = secret(number).expose().to_owned();
    let last = text.pop();
    text.push(if last == Some('0') { '1' } else { '0' });
    text
}

/// A key ring, and the keyed hashes under it.
pub(crate) struct Ring {
    pub(crate) text: String,
    ring: KeyRing,
}

impl Ring {
    pub(crate) fn new() -> anyhow::Result<Self> {
        Self::parse(KeyRing::generate(&SeededEntropy::new(0)).to_string())
    }

    pub(crate) fn parse(text: String) -> anyhow::Result<Self> {
        Ok(Self { ring: KeyRing::parse(&text)?, text })
    }

    /// The keyed hash of a secret, and what finds its row.
    pub(crate) fn hash(&self, secret: &str) -> ([u8; 32], Selector) {
        let digest = SecretDigest::of(secret);
        let hash = self.ring.hmac(self.ring.current_pepper(), digest.as_bytes()).unwrap_or_default();
        (hash, Selector::of(&hash))
    }
}

/// A database full of keys, gone at the end of the run unless it was given.
pub(crate) struct Seeded {
    pub(crate) kind: Kind,
    pub(crate) url: String,
    pub(crate) db: DatabaseConnection,
    pub(crate) ring: Arc<Ring>,
    _database: Option<TestDatabase>,
    folder: TempDir,
}

impl Seeded {
    /// Makes the database and fills it: every key ACTIVE and used just now, so that a use of it may wait in memory.
    pub(crate) async fn new(kind: Kind, keys: u64) -> anyhow::Result<Self> {
        let given = std::env::var("KEYSWEEP_BENCH_POSTGRES").ok().filter(|_| kind == Kind::Postgres);
        let database = given.is_none().then(|| TestDatabase::new(kind));
        let url = given.or_else(|| database.as_ref().map(|one| one.url.clone())).unwrap_or_default();
        let config = DatabaseConfig {
            url: SecretString::from(url.clone()),
            max_connections: 10,
            acquire_timeout_ms: 30_000,
            migrate_on_start: true,
        };
        let db = db::connect(&config).await?;
        db::migrate::<Migrator>(&db).await?;
        let ring = Arc::new(Ring::new()?);
        keyring_check::check(&db, &ring.ring).await?;
        fill(&db, &ring, keys).await.context("cannot seed the keys")?;
        if kind == Kind::Postgres {
            // As autovacuum does within a minute.
            db.execute_unprepared("VACUUM ANALYZE api_keys").await?;
        }
        Ok(Self { kind, url, db, ring, _database: database, folder: tempfile::tempdir()? })
    }

    pub(crate) fn name(&self) -> &'static str {
        match self.kind {
            Kind::Sqlite => "sqlite",
            Kind::Postgres => "postgres",
        }
    }

    /// What a key-service on this database is configured by.
    pub(crate) fn settings(&self, port: u16) -> anyhow::Result<Vec<(String, String)>> {
        let keyring = self.folder.path().join("keyring.toml");
        std::fs::write(&keyring, &self.ring.text)?;
        let pairs = [
            ("KEYSWEEP_SERVER__LISTEN", format!("127.0.0.1:{port}")),
            ("KEYSWEEP_DATABASE__URL", self.url.clone()),
            ("KEYSWEEP_KEYRING__PATH", keyring.display().to_string()),
            ("KEYSWEEP_LOG__LEVEL", "warn".to_owned()),
            // Counted as in production; no port is promised to anybody.
            ("KEYSWEEP_METRICS__LISTEN", "127.0.0.1:0".to_owned()),
        ];
        Ok(pairs.map(|(name, value)| (name.to_owned(), value)).to_vec())
    }

    /// Through which instant all uses of the process that was started last are stored, in unix microseconds. Those before
    /// were killed, and say nothing more.
    pub(crate) async fn flushed_through(&self) -> anyhow::Result<i64> {
        let sql = "SELECT flushed_through_at AS at FROM usage_writers ORDER BY started_at DESC LIMIT 1";
        let row = self.db.query_one_raw(sea_orm::Statement::from_string(self.db.get_database_backend(), sql)).await?;
        Ok(row.context("no process records uses")?.try_get("", "at")?)
    }
}

async fn fill(db: &DatabaseConnection, ring: &Ring, keys: u64) -> anyhow::Result<()> {
    if db.get_database_backend() == DbBackend::Sqlite {
        // What is seeded need not survive a power cut.
        db.execute_unprepared("PRAGMA synchronous = OFF").await?;
    }
    let now = to_micros(SystemClock.now());
    let mut number = 0;
    while number < keys {
        let tx = db.begin().await?;
        let end = (number + ROWS_OF_A_TRANSACTION).min(keys);
        while number < end {
            let next = (number + ROWS_OF_AN_INSERT).min(end);
            let rows = (number..next).map(|number| row(ring, number, now));
            api_keys::Entity::insert_many(rows).exec_without_returning(&tx).await?;
            number = next;
        }
        tx.commit().await?;
    }
    Ok(())
}

fn row(ring: &Ring, number: u64, now: i64) -> api_keys::ActiveModel {
    let secret = secret(number);
    let (hash, selector) = ring.hash(secret.expose());
    let owner = owner(number);
    api_keys::ActiveModel {
        id: Set(key_id(number)),
        agency_id: Set(owner.agency_id),
        location_id: Set(owner.location_id),
        display_name: Set(format!("till {number}")),
        display_prefix: Set(secret.display_prefix()),
        scopes: Set(r#"["read","write"]"#.to_owned()),
        allowed_cidrs: Set("[]".to_owned()),
        created_at: Set(now - 86_400_000_000),
        last_used_at: Set(Some(now)),
        expires_at: Set(None),
        state: Set(1),
        revoke_at: Set(None),
        deleted_at: Set(None),
        selector: Set(selector.as_bytes().to_vec()),
        secret_hash: Set(Some(hash.to_vec())),
        pepper_version: Set(Some(1)),
        // As long as a sealed secret is: nonce, ciphertext, tag.
        sealed_secret: Set(Some(vec![0x5a; 24 + 54 + 16])),
        master_version: Set(Some(1)),
        successor_id: Set(None),
        external_reference: Set(None),
        import_fingerprint: Set(None),
        revision: Set(1),
    }
}
