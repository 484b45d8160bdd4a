//! The database behind the ports: the projection of key-service's events, and the notices made from it.
//!
//! Row locks are taken in one order everywhere: the head, then stages by their keys, then deliveries, then the send book. A claim
//! takes the book first and waits for nothing after it.

mod announce;
mod banners;
mod claims;
mod collect;
mod deliveries;
mod dispatch;
pub(crate) mod entities;
mod figures;
mod inbox;
mod letters;
mod limits;
mod migrator;
mod outbox;
mod projection;
mod rebuild;
mod receipts;
mod stages;
mod verdicts;

use sea_orm::{ConnectionTrait, DatabaseBackend, DatabaseConnection, DatabaseTransaction, DbErr};
use service_kit::ids::IdGenerator;

pub use migrator::Migrator;

use crate::app::ports::StorageError;
use crate::domain::limits::SendLimits;

/// The stores over one database.
#[derive(Clone, Debug)]
pub struct Store {
    db: DatabaseConnection,
    ids: IdGenerator,
    mail_domain: String,
    limits: SendLimits,
}

impl Store {
    /// The stores over `db`. `mail_domain` stands behind the `@` of every `Message-ID`.
    pub fn new(db: DatabaseConnection, ids: IdGenerator, mail_domain: String) -> Self {
        Self { db, ids, mail_domain, limits: SendLimits::default() }
    }

    /// The same stores, which hand out emails within these limits.
    #[must_use]
    pub fn with_limits(self, limits: SendLimits) -> Self {
        Self { limits, ..self }
    }

    async fn begin(&self) -> Result<DatabaseTransaction, DbErr> {
        service_kit::db::begin_write(&self.db).await
    }

    /// A transaction on the queue of notices or of emails. They fill and empty within minutes, faster than PostgreSQL's statistics
    /// follow: what is asked of them has an index each, and takes it whatever the statistics say.
    async fn begin_on_queue(&self) -> Result<DatabaseTransaction, DbErr> {
        let tx = self.begin().await?;
        if tx.get_database_backend() == DatabaseBackend::Postgres {
            tx.execute_unprepared(
                "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off",
            )
            .await?;
        }
        Ok(tx)
    }
}

impl From<DbErr> for StorageError {
    fn from(error: DbErr) -> Self {
        if service_kit::db::is_unavailable(&error) || service_kit::db::is_conflict(&error) {
            Self::Unavailable(error.to_string())
        } else {
            Self::Internal(error.to_string())
        }
    }
}

/// A row holds what no code of ours writes.
fn corrupt(what: &str) -> StorageError {
    StorageError::Internal(format!("the database holds an unknown {what}"))
}
