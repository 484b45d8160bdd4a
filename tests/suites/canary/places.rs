//! Where a secret could come to rest.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use keysweep_e2e::collector::Collector;
use prost::Message;
use sea_orm::{ConnectionTrait, Statement};
use service_kit::db;
use service_kit::testing::{Kind, TestDatabase};
use tempfile::TempDir;

use crate::search::Search;

/// Everything that outlives a process, or is seen of it from outside.
pub(crate) struct Places {
    /// What the processes print: their logs, and what they say when they panic.
    pub(crate) logs: TempDir,
    /// Where the processes run, and so where the system puts their core files.
    pub(crate) cores: TempDir,
    /// What they trace, and where they send it.
    pub(crate) collector: Collector,
    pub(crate) collected_at: String,
    /// The folders of their databases.
    databases: BTreeSet<PathBuf>,
    emails: PathBuf,
}

impl Places {
    /// Those of processes on these databases.
    pub(crate) async fn of(databases: &[TestDatabase], emails: &Path) -> Self {
        let mut folders = BTreeSet::new();
        for database in databases {
            folders.insert(folder_of(database).await);
        }
        let (collector, collected_at) = Collector::start().await;
        let (logs, cores) = (TempDir::new().expect("a folder"), TempDir::new().expect("a folder"));
        Self { logs, cores, collector, collected_at, databases: folders, emails: emails.to_path_buf() }
    }

    /// Looks at the databases' files.
    pub(crate) async fn look_at_databases(&self, search: &mut Search, databases: &[TestDatabase], when: &str) {
        for database in databases.iter().filter(|database| database.kind == Kind::Postgres) {
            // What is in the server's memory alone is to be in its files.
            let db = db::connect(&database.config()).await.expect("the database");
            db.execute_unprepared("CHECKPOINT").await.expect("a checkpoint");
        }
        for folder in &self.databases {
            search.folder(&format!("database, {when}"), folder);
        }
    }

    /// Looks at what the processes have left behind elsewhere.
    pub(crate) fn look(&self, search: &mut Search) {
        search.folder("logs", self.logs.path());
        search.folder("core files", self.cores.path());
        search.folder("emails", &self.emails);
        for (service, span) in self.collector.spans() {
            search.bytes(&format!("{service}: traces"), &span.encode_to_vec());
        }
    }
}

/// The folder in which a database keeps its files.
async fn folder_of(database: &TestDatabase) -> PathBuf {
    if database.kind == Kind::Sqlite {
        let path = database.config().sqlite_path().expect("a path");
        return path.parent().expect("a folder").to_path_buf();
    }
    let db = db::connect(&database.config()).await.expect("the database");
    let asked = Statement::from_string(db.get_database_backend(), "SHOW data_directory");
    let row = db.query_one_raw(asked).await.expect("an answer").expect("a row");
    row.try_get::<String>("", "data_directory").expect("a folder").into()
}
