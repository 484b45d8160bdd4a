//! Real databases for tests, one a test, gone when the test is.

pub mod certificates;
pub mod commits;
mod fuzz;
mod postgres;
pub mod wait;

use std::path::Path;
use std::sync::Arc;

use secrecy::SecretString;
use tempfile::TempDir;

use crate::Deps;
use crate::clock::SharedClock;
use crate::db::DatabaseConfig;
use crate::entropy::SeededEntropy;
use crate::jobs::JobRegistry;

pub use fuzz::replay;

/// Which database a test runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file in a temporary folder.
    Sqlite,
    /// A database of a throwaway cluster on a Unix socket.
    Postgres,
}

/// An empty database for one test.
#[derive(Debug)]
pub struct TestDatabase {
    /// Which database it is.
    pub kind: Kind,
    /// Its URL, as a service's configuration has it.
    pub url: String,
    _files: Files,
}

/// What goes with the database.
#[derive(Debug)]
enum Files {
    /// Nothing: its files are of the cluster, or of the test.
    Elsewhere,
    Folder {
        _folder: TempDir,
    },
    Housed {
        _database: postgres::Housed,
    },
}

impl TestDatabase {
    /// An empty database of the kind.
    ///
    /// # Panics
    /// When it cannot be made: the test cannot go on.
    pub fn new(kind: Kind) -> Self {
        match kind {
            Kind::Sqlite => {
                let folder = tempfile::tempdir().expect("a temporary folder");
                let url = format!("sqlite:{}", folder.path().join("test.sqlite").display());
                Self { kind, url, _files: Files::Folder { _folder: folder } }
            }
            Kind::Postgres => Self { kind, url: postgres::new_database(), _files: Files::Elsewhere },
        }
    }

    /// An empty database whose files lie in this folder, on a disk of the test's: all of SQLite's, PostgreSQL's without its log.
    ///
    /// # Panics
    /// When it cannot be made: the test cannot go on.
    pub fn within(kind: Kind, folder: &Path) -> Self {
        match kind {
            Kind::Sqlite => {
                let url = format!("sqlite:{}", folder.join("test.sqlite").display());
                Self { kind, url, _files: Files::Elsewhere }
            }
            Kind::Postgres => {
                let database = postgres::Housed::new(folder);
                Self { kind, url: database.url(), _files: Files::Housed { _database: database } }
            }
        }
    }

    /// Restarts the PostgreSQL server of all tests of this process: in an orderly way, or as after a crash of the server, which
    /// loses nothing that was committed with `synchronous_commit`.
    ///
    /// # Panics
    /// When it does not come up again.
    pub fn restart_server(crash: bool) {
        postgres::restart(crash);
    }

    /// Gives the PostgreSQL server of this process so much shared memory, such as `1GB`: for benchmarks, whose tables are larger than its
    /// default of 128 MiB.
    ///
    /// # Panics
    /// When a database was made before.
    pub fn share_memory(buffers: &'static str) {
        postgres::share(buffers);
    }

    /// The configuration of a service that uses it.
    pub fn config(&self) -> DatabaseConfig {
        DatabaseConfig {
            url: SecretString::from(self.url.clone()),
            max_connections: 8,
            acquire_timeout_ms: 30_000,
            migrate_on_start: true,
        }
    }
}

/// What a service under test is given: the test's clock, and randomness that `seed` determines.
pub fn deps(clock: SharedClock, seed: u64) -> Deps {
    Deps { clock, entropy: Arc::new(SeededEntropy::new(seed)), jobs: JobRegistry::default() }
}

/// Writes a test for both databases: `name::sqlite` and `name::postgres`. The crate's build script must be the kit's
/// `postgres_probe.rs`; without a PostgreSQL server the second is reported as ignored, with the reason.
#[macro_export]
macro_rules! both_databases {
    ($($(#[$meta:meta])* async fn $name:ident($db:ident: TestDatabase) $body:block)+) => {
        $(
            $(#[$meta])*
            mod $name {
                #[allow(unused_imports)]
                use super::*;

                async fn case($db: $crate::testing::TestDatabase) $body

                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn sqlite() {
                    Box::pin(case($crate::testing::TestDatabase::new($crate::testing::Kind::Sqlite))).await;
                }

                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                #[cfg_attr(keysweep_no_postgres, ignore = "left out: no PostgreSQL server is installed")]
                async fn postgres() {
                    Box::pin(case($crate::testing::TestDatabase::new($crate::testing::Kind::Postgres))).await;
                }
            }
        )+
    };
}
