//! The projection made anew from the first event, in one transaction: until it commits, everybody sees the old one.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sea_orm::prelude::*;
use sea_orm::{ConnectionTrait, DatabaseBackend, DatabaseTransaction};
use service_kit::ids::IdGenerator;

use super::Store;
use super::entities::{entries, lots, plans};
use super::projection::{Replay, lock_head};
use crate::app::ports::{ApplyError, Cursor, Projected, Rebuild, RebuildStore, StorageError};
use crate::domain::event::SweepEvent;

struct Rebuilding {
    tx: DatabaseTransaction,
    ids: IdGenerator,
    before: i64,
    replay: Replay,
}

#[async_trait]
impl RebuildStore for Store {
    async fn begin_rebuild(&self, now: DateTime<Utc>) -> Result<Box<dyn Rebuild>, StorageError> {
        let tx = self.begin().await?;
        let head = lock_head(&tx).await?;
        if self.db.get_database_backend() == DatabaseBackend::Postgres {
            // Events touch stages in their own order; nobody else may hold one of them meanwhile.
            tx.execute_unprepared("LOCK TABLE stages IN SHARE ROW EXCLUSIVE MODE").await?;
        }
        entries::Entity::delete_many().exec(&tx).await?;
        lots::Entity::delete_many().exec(&tx).await?;
        plans::Entity::delete_many().exec(&tx).await?;
        let replay = Replay { cursor: Cursor::default(), notifications: head.notification_sequence, now, muted: true };
        Ok(Box::new(Rebuilding { tx, ids: self.ids.clone(), before: head.applied_sequence, replay }))
    }
}

#[async_trait]
impl Rebuild for Rebuilding {
    fn cursor(&self) -> i64 {
        self.before
    }

    async fn apply(&mut self, events: Vec<SweepEvent>) -> Result<(), ApplyError> {
        self.replay.apply(&self.tx, &self.ids, events).await
    }

    async fn finish(self: Box<Self>) -> Result<Projected, StorageError> {
        self.replay.write(&self.tx).await?;
        let projected = Projected {
            plans: plans::Entity::find().count(&self.tx).await?,
            lots: lots::Entity::find().count(&self.tx).await?,
            entries: entries::Entity::find().count(&self.tx).await?,
            cursor: self.replay.cursor.sequence,
        };
        self.tx.commit().await?;
        Ok(projected)
    }
}
