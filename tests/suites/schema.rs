//! Each migration since the last release only adds what that release does not mind: its statements go on working on the new schema, so that
//! both versions may run on one database.
//!
//! `migrations/released.schema` of each service is what the last release made of PostgreSQL. A release renews it:
//! `KEYSWEEP_RENEW_SCHEMA=1 cargo test -p keysweep-e2e --test schema`.

use std::collections::BTreeSet;
use std::path::Path;

use sea_orm::{ConnectionTrait, Statement, TransactionTrait};
use service_kit::cli::Service;
use service_kit::db;
use service_kit::testing::{Kind, TestDatabase};

/// What a statement may depend on, a line each: the columns of the tables, and what is forbidden in them.
const SCHEMA: [&str; 3] = [
    "SELECT format('%s: column %s %s%s%s', table_name, column_name, udt_name,
                   CASE is_nullable WHEN 'NO' THEN ', not null' ELSE '' END,
                   CASE WHEN column_default IS NULL AND is_identity = 'NO' THEN '' ELSE ', has a default' END) AS line
     FROM information_schema.columns WHERE table_schema = 'public'",
    // A unique index is what `ON CONFLICT` asks for, and what an insertion may run into.
    "SELECT format('%s: unique %s', tablename, substring(indexdef FROM ' USING .*$')) AS line
     FROM pg_indexes WHERE schemaname = 'public' AND indexdef LIKE 'CREATE UNIQUE INDEX%'",
    "SELECT format('%s: constraint %s', conrelid::regclass, pg_get_constraintdef(oid)) AS line
     FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype IN ('c', 'f', 'x')",
];

async fn schema(db: &impl ConnectionTrait) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for sql in SCHEMA {
        let rows = db.query_all_raw(Statement::from_string(db.get_database_backend(), sql)).await.expect("an answer");
        lines.extend(rows.iter().map(|row| row.try_get::<String>("", "line").expect("a line")));
    }
    lines
}

fn table(line: &str) -> &str {
    line.split(':').next().unwrap_or_default()
}

/// What of the new schema a statement that was written for the old one could run into.
fn faults(old: &BTreeSet<String>, new: &BTreeSet<String>) -> Vec<String> {
    let tables: BTreeSet<_> = old.iter().map(|line| table(line)).collect();
    let gone = old.difference(new).map(|line| format!("is no more: {line}"));
    let harmless =
        |line: &str| line.contains(": column ") && (!line.contains(", not null") || line.contains(", has a default"));
    let come = new.difference(old).filter(|line| tables.contains(table(line)) && !harmless(line));
    gone.chain(come.map(|line| format!("is new: {line}"))).collect()
}

async fn holds<S: Service>() {
    let database = TestDatabase::new(Kind::Postgres);
    let db = db::connect(&database.config()).await.expect("the database");
    db::migrate::<S::Migrator>(&db).await.expect("it migrates");
    let now = schema(&db).await;
    let file =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../services").join(S::NAME).join("migrations/released.schema");
    if std::env::var_os("KEYSWEEP_RENEW_SCHEMA").is_some() {
        let lines: String = now.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(&file, lines).expect("the file is written");
        return;
    }
    let released = std::fs::read_to_string(&file).expect("the schema of the last release");
    let faults = faults(&released.lines().map(str::to_owned).collect(), &now);
    assert!(faults.is_empty(), "the last release of {} cannot work on this schema:\n{}", S::NAME, faults.join("\n"));
}

#[tokio::test]
#[cfg_attr(keysweep_no_postgres, ignore = "left out: no PostgreSQL server is installed")]
async fn the_last_release_works_on_the_schema_of_this_version() {
    holds::<key_service::KeyService>().await;
    holds::<location_service::LocationService>().await;
    holds::<notification_service::NotificationService>().await;
}

#[tokio::test]
#[cfg_attr(keysweep_no_postgres, ignore = "left out: no PostgreSQL server is installed")]
async fn what_the_last_release_would_mind_is_seen() {
    let database = TestDatabase::new(Kind::Postgres);
    let db = db::connect(&database.config()).await.expect("the database");
    let begin = "CREATE TABLE old (id BIGINT PRIMARY KEY, name TEXT NOT NULL, note TEXT); CREATE UNIQUE INDEX names ON old (name)";
    db.execute_unprepared(begin).await.expect("a table");
    let old = schema(&db).await;
    for (migration, minded) in [
        ("ALTER TABLE old ADD COLUMN more TEXT", false),
        ("ALTER TABLE old ADD COLUMN more BIGINT NOT NULL DEFAULT 0", false),
        ("CREATE TABLE another (id BIGINT PRIMARY KEY REFERENCES old (id), name TEXT NOT NULL)", false),
        ("CREATE INDEX notes ON old (note)", false),
        ("ALTER TABLE old ADD COLUMN more TEXT NOT NULL", true),
        ("ALTER TABLE old DROP COLUMN note", true),
        ("ALTER TABLE old RENAME COLUMN note TO remark", true),
        ("ALTER TABLE old RENAME TO older", true),
        ("ALTER TABLE old ALTER COLUMN note SET NOT NULL", true),
        ("ALTER TABLE old ALTER COLUMN name DROP NOT NULL", true),
        ("ALTER TABLE old ALTER COLUMN id TYPE INTEGER", true),
        ("DROP INDEX names", true),
        ("CREATE UNIQUE INDEX notes ON old (note)", true),
        ("ALTER TABLE old ADD CHECK (length(name) < 9)", true),
    ] {
        let transaction = db.begin().await.expect("begun");
        transaction.execute_unprepared(migration).await.expect(migration);
        let found = faults(&old, &schema(&transaction).await);
        transaction.rollback().await.expect("rolled back");
        assert_eq!(!found.is_empty(), minded, "{migration}: {found:?}");
    }
}
