//! Where a quarter is played: three databases and a folder, gone afterwards unless they are to be kept.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use sea_orm::{ConnectOptions, ConnectionTrait, Database};
use service_kit::entropy::{Entropy, OsEntropy};
use service_kit::keyring::KeyRing;
use tempfile::TempDir;

use crate::quarter::Options;
use crate::suite::Which;

/// Three databases and a folder.
pub(crate) struct Place {
    pub(crate) folder: PathBuf,
    pub(crate) databases: [String; 3],
    temporary: Option<TempDir>,
    server: Option<Server>,
}

/// A PostgreSQL server on which databases were made.
struct Server {
    url: String,
    names: [String; 3],
}

impl Place {
    pub(crate) async fn find(options: &Options) -> anyhow::Result<Self> {
        let (folder, temporary) = match &options.keep {
            Some(folder) => {
                let empty = std::fs::read_dir(folder).map(|mut entries| entries.next().is_none()).unwrap_or(true);
                ensure!(empty, "{} is not empty", folder.display());
                std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
                (folder.clone(), None)
            }
            None => {
                let temporary = tempfile::Builder::new()
                    .prefix("keysweep-quarter-")
                    .tempdir()
                    .context("cannot make a temporary folder")?;
                (temporary.path().to_path_buf(), Some(temporary))
            }
        };
        let sqlite = |which: Which| format!("sqlite:{}", folder.join(format!("{}.sqlite", which.name())).display());
        let (databases, server) = match &options.database_url {
            None => (Which::ALL.map(sqlite), None),
            Some(url) => {
                for which in [Which::Key, Which::Location] {
                    let path = folder.join(format!("{}.keyring", which.name()));
                    std::fs::write(&path, KeyRing::generate(&OsEntropy).as_str())
                        .with_context(|| format!("cannot write {}", path.display()))?;
                }
                let server = Server::make_databases(url).await?;
                (server.urls()?, Some(server))
            }
        };
        Ok(Self { folder, databases, temporary, server })
    }

    /// Whether the databases are files of the folder, to be searched.
    pub(crate) fn keeps_files(&self) -> bool {
        self.server.is_none()
    }

    /// Where the keyrings are, if not beside the databases.
    pub(crate) fn keyrings(&self) -> Option<PathBuf> {
        self.server.is_some().then(|| self.folder.clone())
    }

    pub(crate) fn kind(&self) -> &'static str {
        if self.server.is_some() { "PostgreSQL" } else { "SQLite" }
    }

    /// Removes everything, unless it is to be kept. After a failure the first error is the one that counts.
    pub(crate) async fn leave(self, succeeded: bool) -> anyhow::Result<()> {
        let dropped = match &self.server {
            Some(server) if self.temporary.is_some() => server.drop_databases().await,
            _ => Ok(()),
        };
        if let Some(temporary) = self.temporary {
            temporary.close().context("cannot remove the temporary folder")?;
        }
        if succeeded { dropped } else { Ok(()) }
    }
}

impl Server {
    async fn make_databases(url: &str) -> anyhow::Result<Self> {
        let mut random = [0; 4];
        OsEntropy.fill(&mut random);
        let mark = u32::from_be_bytes(random);
        let names = Which::ALL.map(|which| format!("keysweep_quarter_{mark:08x}_{}", which.name().replace('-', "_")));
        let server = Self { url: url.to_owned(), names };
        for name in &server.names {
            server.execute(&format!("CREATE DATABASE {name}")).await?;
        }
        Ok(server)
    }

    async fn drop_databases(&self) -> anyhow::Result<()> {
        for name in &self.names {
            self.execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await?;
        }
        Ok(())
    }

    async fn execute(&self, sql: &str) -> anyhow::Result<()> {
        let mut options = ConnectOptions::new(self.url.clone());
        options.max_connections(1).sqlx_logging(false);
        let db = Database::connect(options).await.context("cannot connect to the PostgreSQL server")?;
        db.execute_unprepared(sql).await.with_context(|| format!("cannot {sql}"))?;
        db.close().await.context("cannot close the connection")
    }

    /// The server's URL with each of the databases in place of its own.
    fn urls(&self) -> anyhow::Result<[String; 3]> {
        let mut urls = [const { String::new() }; 3];
        for (url, name) in urls.iter_mut().zip(&self.names) {
            let mut parsed = url::Url::parse(&self.url).context("the PostgreSQL URL is malformed")?;
            parsed.set_path(name);
            *url = parsed.into();
        }
        Ok(urls)
    }
}
