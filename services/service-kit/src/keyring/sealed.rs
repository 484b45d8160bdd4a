//! Sealed secrets in a database: which master keys they need, and sealing them anew under the current one.

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, QueryResult, Statement, Value,
};

use super::{KeyRing, Sealed};
use crate::db::{begin_write, is_conflict};
use crate::entropy::Entropy;

/// Secrets sealed anew by one transaction: SQLite's write lock, and the locks of the rows, are held for some milliseconds.
const BATCH: usize = 500;
/// A transaction that met another one is repeated this often.
const ATTEMPTS: u32 = 5;

/// Where the version of a sealed secret's master key stands.
#[derive(Clone, Copy, Debug)]
pub enum VersionIn {
    /// In an integer column of its own.
    Column(&'static str),
    /// Before the sealed bytes, as [`Sealed::to_bytes`] writes it.
    Prefix,
}

/// A column of sealed secrets.
#[derive(Clone, Copy, Debug)]
pub struct SealedColumn {
    /// The table.
    pub table: &'static str,
    /// The columns of its primary key: texts, the first of them never empty.
    pub key: &'static [&'static str],
    /// The column of the sealed bytes; NULL where there is no secret.
    pub sealed: &'static str,
    /// Where the version stands.
    pub version: VersionIn,
    /// The text columns that a secret is bound to.
    pub bound_to: &'static [&'static str],
    /// What it is bound to, made of their values.
    pub binding: fn(&[String]) -> Vec<u8>,
}

/// What sealing anew has done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resealed {
    /// Secrets that were sealed under an older master key and are sealed under the current one now.
    pub done: u64,
    /// Secrets that do not open, by the keys of their rows; they stay as they are.
    pub unreadable: Vec<String>,
}

/// A secret as it was found.
struct Found {
    key: Vec<String>,
    stored: Vec<u8>,
    sealed: Sealed,
    binding: Vec<u8>,
}

/// A secret that is to be replaced.
struct Replacement {
    key: Vec<String>,
    old: Vec<u8>,
    new: Vec<u8>,
}

impl SealedColumn {
    /// Whether a secret here is sealed under the master key of this version.
    ///
    /// # Errors
    /// As the database has them.
    pub async fn needs(&self, db: &impl ConnectionTrait, version: u32) -> Result<bool, DbErr> {
        let (table, sealed, stands) = (self.table, self.sealed, self.version_sql());
        let sql = format!("SELECT 1 AS one FROM {table} WHERE {sealed} IS NOT NULL AND {stands} = $1 LIMIT 1");
        let values = [self.version_value(version)];
        let statement = Statement::from_sql_and_values(db.get_database_backend(), sql, values);
        Ok(db.query_one_raw(statement).await?.is_some())
    }

    /// Seals everything here anew that is sealed under an older master key than the ring's current one, in batches, and tells of
    /// each. It may be ended at any moment and begun again, and others may read and write meanwhile: what they change is left as
    /// they left it, and what they seal under an older key while this is at work is found before it ends.
    ///
    /// # Errors
    /// As the database has them; what was sealed anew stays so.
    pub async fn reseal(
        &self,
        db: &DatabaseConnection,
        ring: &KeyRing,
        entropy: &dyn Entropy,
        mut tell: impl FnMut(&Resealed),
    ) -> Result<Resealed, DbErr> {
        let mut all = Resealed::default();
        loop {
            let before = all.done;
            // Each walk meets anew what does not open.
            all.unreadable.clear();
            let mut after = vec![String::new(); self.key.len()];
            loop {
                let found = self.older(db, ring.current_master(), &after).await?;
                let Some(last) = found.last() else { break };
                after.clone_from(&last.key);
                let mut rows = Vec::with_capacity(found.len());
                for Found { key, stored, sealed, binding } in found {
                    let anew = ring.open(&sealed, &binding).and_then(|secret| ring.seal(&secret, &binding, entropy));
                    match anew {
                        Ok(new) => rows.push(Replacement { key, old: stored, new: self.stored(&new) }),
                        Err(_) => all.unreadable.push(key.join("/")),
                    }
                }
                all.done += self.replace(db, ring.current_master(), &rows).await?;
                tell(&all);
            }
            if all.done == before {
                return Ok(all);
            }
        }
    }

    /// The next secrets behind a key that are sealed under an older version, in the order of their keys.
    async fn older(&self, db: &impl ConnectionTrait, current: u32, after: &[String]) -> Result<Vec<Found>, DbErr> {
        let (table, sealed, key, stands) = (self.table, self.sealed, self.key.join(", "), self.version_sql());
        let bound = self.bound_to.iter().enumerate().map(|(place, column)| format!(", {column} AS bound_{place}"));
        let version = match self.version {
            VersionIn::Column(column) => format!(", {column} AS version"),
            VersionIn::Prefix => String::new(),
        };
        let sql = format!(
            "SELECT {key}, {sealed} AS sealed{version}{} FROM {table} WHERE {sealed} IS NOT NULL AND {stands} < $1 AND ({key}) > ({}) \
             ORDER BY {key} LIMIT {BATCH}",
            bound.collect::<String>(),
            places(2, after.len()),
        );
        let values = std::iter::once(self.version_value(current)).chain(after.iter().map(|text| text.clone().into()));
        let rows = db.query_all_raw(Statement::from_sql_and_values(db.get_database_backend(), sql, values)).await?;
        rows.iter().map(|row| self.found(row)).collect()
    }

    fn found(&self, row: &QueryResult) -> Result<Found, DbErr> {
        let strange = || DbErr::Type(format!("{}.{} holds no sealed secret somewhere", self.table, self.sealed));
        let stored: Vec<u8> = row.try_get("", "sealed")?;
        let sealed = match self.version {
            VersionIn::Column(_) => {
                let version: i32 = row.try_get("", "version")?;
                Sealed { master_version: u32::try_from(version).map_err(|_| strange())?, bytes: stored.clone() }
            }
            VersionIn::Prefix => Sealed::from_bytes(&stored).ok_or_else(strange)?,
        };
        let texts =
            |names: Vec<String>| names.iter().map(|name| row.try_get("", name)).collect::<Result<Vec<String>, _>>();
        let key = texts(self.key.iter().map(ToString::to_string).collect())?;
        let bound = texts((0..self.bound_to.len()).map(|place| format!("bound_{place}")).collect())?;
        Ok(Found { key, stored, sealed, binding: (self.binding)(&bound) })
    }

    /// Puts each new secret where the old one still is; answers how many.
    async fn replace(&self, db: &DatabaseConnection, version: u32, rows: &[Replacement]) -> Result<u64, DbErr> {
        if rows.is_empty() {
            return Ok(0);
        }
        for _ in 1..ATTEMPTS {
            match self.try_replace(db, version, rows).await {
                Err(error) if is_conflict(&error) => {}
                done => return done,
            }
        }
        self.try_replace(db, version, rows).await
    }

    async fn try_replace(&self, db: &DatabaseConnection, version: u32, rows: &[Replacement]) -> Result<u64, DbErr> {
        let tx = begin_write(db).await?;
        self.lock(&tx, rows).await?;
        let (table, sealed, columns) = (self.table, self.sealed, self.key.len() + 2);
        let same_key: Vec<_> = self.key.iter().map(|column| format!("{table}.{column} = anew.{column}")).collect();
        let tuples: Vec<_> = (0..rows.len()).map(|row| format!("({})", places(1 + row * columns, columns))).collect();
        let counted = match self.version {
            VersionIn::Column(column) => format!(", {column} = {version}"),
            VersionIn::Prefix => String::new(),
        };
        let sql = format!(
            "WITH anew ({}, old_bytes, new_bytes) AS (VALUES {}) UPDATE {table} SET {sealed} = anew.new_bytes{counted} FROM anew \
             WHERE {} AND {table}.{sealed} = anew.old_bytes",
            self.key.join(", "),
            tuples.join(", "),
            same_key.join(" AND "),
        );
        let values = rows.iter().flat_map(|row| {
            let key = row.key.iter().map(|text| Value::from(text.clone()));
            key.chain([row.old.clone().into(), row.new.clone().into()])
        });
        let done = tx.execute_raw(Statement::from_sql_and_values(tx.get_database_backend(), sql, values)).await?;
        tx.commit().await?;
        Ok(done.rows_affected())
    }

    /// Locks the rows in the order in which everybody does. SQLite has one writer, who holds the lock already.
    async fn lock(&self, tx: &DatabaseTransaction, rows: &[Replacement]) -> Result<(), DbErr> {
        if tx.get_database_backend() != DbBackend::Postgres {
            return Ok(());
        }
        let (table, key, columns) = (self.table, self.key.join(", "), self.key.len());
        let tuples: Vec<_> = (0..rows.len()).map(|row| format!("({})", places(1 + row * columns, columns))).collect();
        let sql =
            format!("SELECT 1 AS one FROM {table} WHERE ({key}) IN ({}) ORDER BY {key} FOR UPDATE", tuples.join(", "));
        let values = rows.iter().flat_map(|row| row.key.iter().map(|text| Value::from(text.clone())));
        tx.query_all_raw(Statement::from_sql_and_values(DbBackend::Postgres, sql, values)).await.map(drop)
    }

    /// A sealed secret as it is stored here.
    fn stored(&self, sealed: &Sealed) -> Vec<u8> {
        match self.version {
            VersionIn::Column(_) => sealed.bytes.clone(),
            VersionIn::Prefix => sealed.to_bytes(),
        }
    }

    /// The version of a row, comparable with [`SealedColumn::version_value`].
    fn version_sql(&self) -> String {
        match self.version {
            VersionIn::Column(column) => column.to_owned(),
            VersionIn::Prefix => format!("substr({}, 1, {})", self.sealed, Sealed::VERSION_BYTES),
        }
    }

    fn version_value(&self, version: u32) -> Value {
        match self.version {
            VersionIn::Column(_) => i64::from(version).into(),
            // Big-endian, so that bytes are ordered as numbers are.
            VersionIn::Prefix => version.to_be_bytes().to_vec().into(),
        }
    }
}

/// Numbered parameters, such as `$2, $3`.
fn places(first: usize, number: usize) -> String {
    (first..first + number).map(|place| format!("${place}")).collect::<Vec<_>>().join(", ")
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;
    use crate::db::connect;
    use crate::entropy::SeededEntropy;

    const OWNED: SealedColumn = SealedColumn {
        table: "owned",
        key: &["id"],
        sealed: "sealed",
        version: VersionIn::Column("master_version"),
        bound_to: &["owner", "id"],
        binding: |bound_to| bound_to.join("/").into_bytes(),
    };
    const LENT: SealedColumn = SealedColumn {
        table: "lent",
        key: &["scope", "id"],
        sealed: "payload",
        version: VersionIn::Prefix,
        bound_to: &["id"],
        binding: |bound_to| bound_to.concat().into_bytes(),
    };
    /// Three batches.
    const ROWS: usize = 2 * BATCH + 7;

    fn rings() -> (KeyRing, KeyRing) {
        let one = KeyRing::generate(&SeededEntropy::new(1)).to_string();
        let two = KeyRing::generate(&SeededEntropy::new(2)).replace("version = 1", "version = 2");
        (KeyRing::parse(&one).expect("a ring"), KeyRing::parse(&format!("{one}\n{two}")).expect("a ring"))
    }

    async fn execute(db: &DatabaseConnection, sql: &str, values: Vec<Value>) -> u64 {
        let statement = Statement::from_sql_and_values(db.get_database_backend(), sql, values);
        db.execute_raw(statement).await.expect("a statement").rows_affected()
    }

    async fn filled(db: &DatabaseConnection, ring: &KeyRing) {
        let blob = if db.get_database_backend() == DbBackend::Postgres { "BYTEA" } else { "BLOB" };
        for table in [
            format!("owned (id TEXT PRIMARY KEY, owner TEXT NOT NULL, sealed {blob}, master_version INTEGER)"),
            format!("lent (scope TEXT, id TEXT, payload {blob}, PRIMARY KEY (scope, id))"),
        ] {
            execute(db, &format!("CREATE TABLE {table}"), Vec::new()).await;
        }
        let entropy = SeededEntropy::new(3);
        let tx = begin_write(db).await.expect("a transaction");
        for number in 0..ROWS {
            let id = format!("id_{number:05}");
            let owned = ring.seal(id.as_bytes(), format!("own/{id}").as_bytes(), &entropy).expect("seals");
            let lent = ring.seal(id.as_bytes(), id.as_bytes(), &entropy).expect("seals").to_bytes();
            let version = i32::try_from(owned.master_version).expect("small");
            for (sql, values) in [
                (
                    "INSERT INTO owned VALUES ($1, 'own', $2, $3)",
                    vec![id.clone().into(), owned.bytes.into(), version.into()],
                ),
                (
                    "INSERT INTO lent VALUES ($1, $2, $3)",
                    vec![format!("scope_{}", number % 3).into(), id.into(), lent.into()],
                ),
            ] {
                let statement = Statement::from_sql_and_values(tx.get_database_backend(), sql, values);
                tx.execute_raw(statement).await.expect("a row");
            }
        }
        tx.commit().await.expect("a commit");
        execute(db, "INSERT INTO owned VALUES ('nothing', 'own', NULL, NULL)", Vec::new()).await;
        execute(db, "INSERT INTO lent VALUES ('scope_1', 'nothing', NULL)", Vec::new()).await;
    }

    crate::both_databases! {
        async fn everything_is_sealed_anew_and_opens_where_it_belongs(database: TestDatabase) {
            let db = connect(&database.config()).await.expect("connects");
            let (old, new) = rings();
            filled(&db, &old).await;
            execute(&db, "UPDATE owned SET sealed = $1 WHERE id = 'id_00003'", vec![vec![7_u8; 60].into()]).await;
            let entropy = SeededEntropy::new(4);
            for (column, done, strange) in [(OWNED, ROWS - 1, vec!["id_00003".to_owned()]), (LENT, ROWS, Vec::new())] {
                assert!(column.needs(&db, 1).await.expect("an answer") && !column.needs(&db, 2).await.expect("an answer"));
                let mut told = Vec::new();
                let resealed = column.reseal(&db, &new, &entropy, |so_far| told.push(so_far.done)).await.expect("reseals");
                assert_eq!(resealed, Resealed { done: done as u64, unreadable: strange.clone() });
                assert!(told.len() >= 3 && told.is_sorted(), "{told:?}");
                assert_eq!(column.needs(&db, 1).await.expect("an answer"), !strange.is_empty());
                let again = column.reseal(&db, &new, &entropy, |_| {}).await.expect("reseals");
                assert_eq!(again, Resealed { done: 0, unreadable: strange });
                let found = column.older(&db, 3, &vec![String::new(); column.key.len()]).await.expect("rows");
                assert_eq!(found.len(), BATCH);
                for one in found.iter().filter(|one| one.key != ["id_00003"]) {
                    let opened = new.open(&one.sealed, &one.binding).expect("opens");
                    assert_eq!((one.sealed.master_version, opened.as_slice()), (2, one.key.last().expect("an id").as_bytes()));
                }
            }
        }

        async fn what_was_changed_meanwhile_is_left_as_it_is(database: TestDatabase) {
            let db = connect(&database.config()).await.expect("connects");
            let (old, new) = rings();
            filled(&db, &old).await;
            let rows: Vec<_> = OWNED.older(&db, 2, &[String::new()]).await.expect("rows").into_iter().take(2).collect();
            let anew = |found: &Found| new.seal(b"x", &found.binding, &SeededEntropy::new(5)).expect("seals").bytes;
            let rows: Vec<_> = rows.iter().map(|found| Replacement { key: found.key.clone(), old: found.stored.clone(), new: anew(found) }).collect();
            execute(&db, "UPDATE owned SET sealed = NULL, master_version = NULL WHERE id = 'id_00000'", Vec::new()).await;
            assert_eq!(OWNED.replace(&db, 2, &rows).await.expect("replaces"), 1);
            assert_eq!(OWNED.replace(&db, 2, &rows).await.expect("replaces"), 0);
            let gone = execute(&db, "DELETE FROM owned WHERE id = 'id_00000' AND sealed IS NULL", Vec::new()).await;
            assert_eq!(gone, 1, "an ended key stays ended");
        }
    }
}
