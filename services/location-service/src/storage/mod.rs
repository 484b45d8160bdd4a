//! The ports on one database, SQLite or PostgreSQL. Every method that writes is one transaction.

mod agencies;
mod convert;
mod entities;
mod listing;
mod locations;
mod migrator;
mod requests;
mod users;

use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveValue::Set, ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, EntityTrait, PaginatorTrait,
};
use service_kit::db;
use service_kit::entropy::Entropy;
use service_kit::idempotency::{self, Recall, RequestKey};
use service_kit::keyring::{
    KeyRing, KeyRingFault, SealedColumn, VersionIn, needs_master, parse_name, rotate_master_key,
};
use service_kit::time::to_micros;

use crate::app::ports::{AuditEvent, MutationKey, StoreError, Written};
use crate::domain::resources::seal_binding;

pub use migrator::Migrator;

/// Where sealed secrets lie: the keys of locations of agencies that opted out.
const SEALED: [SealedColumn; 1] = [SealedColumn {
    table: "locations",
    key: &["id"],
    sealed: "sealed_key",
    version: VersionIn::Column("master_version"),
    bound_to: &["agency_id", "id"],
    binding: |bound_to| match bound_to {
        [agency_id, id] => seal_binding(agency_id, id),
        _ => Vec::new(),
    },
}];

/// The ports on one database.
#[derive(Clone, Debug)]
pub struct DatabaseStore {
    db: DatabaseConnection,
}

impl DatabaseStore {
    /// The ports on a connected and migrated database.
    pub fn new(db: DatabaseConnection) -> Self {
        Self { db }
    }

    /// Whether no secret of any ring is needed to read this database.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn needs_no_keyring(&self) -> anyhow::Result<bool> {
        Ok(entities::keyring_check::Entity::find().count(&self.db).await? == 0)
    }

    /// Compares the ring with the one that the database was filled with, and remembers new secrets. That the ring lacks a secret
    /// which nothing needs any more is let pass.
    ///
    /// # Errors
    /// When a secret of the same name differs or one that is needed is missing, and when the database does not answer.
    pub async fn check_keyring(&self, ring: &KeyRing) -> anyhow::Result<()> {
        use entities::keyring_check::{ActiveModel, Entity};
        let stored = Entity::find().all(&self.db).await?;
        let known = ring.recognise(stored.into_iter().map(|row| (row.label, row.fingerprint)))?;
        for name in known.absent {
            // Nothing is hashed here: no pepper is ever needed.
            if let Some(("master", version)) = parse_name(&name)
                && needs_master(&self.db, &SEALED, version).await?
            {
                return Err(KeyRingFault::Missing(name).into());
            }
            tracing::warn!(secret = name, "the key ring lacks a secret of this database, which nothing needs any more");
        }
        for (label, fingerprint) in known.fresh {
            let row = ActiveModel { label: Set(label), fingerprint: Set(fingerprint.to_vec()) };
            Entity::insert(row).on_conflict_do_nothing().exec_without_returning(&self.db).await?;
        }
        Ok(())
    }

    /// Seals the key of every location anew under the ring's current master key, says how it goes, and answers how many.
    ///
    /// # Errors
    /// When the database does not answer, and at the end when some do not open.
    pub async fn rotate_master_key(&self, ring: &KeyRing, entropy: &dyn Entropy) -> anyhow::Result<u64> {
        rotate_master_key(&self.db, ring, &SEALED, entropy).await
    }

    async fn begin(&self) -> Result<DatabaseTransaction, StoreError> {
        db::begin_write(&self.db).await.map_err(fault)
    }
}

/// What a mutation did before, as the answer of a write. `None`: nothing.
async fn replayed(
    tx: &DatabaseTransaction,
    key: Option<&MutationKey>,
    now: DateTime<Utc>,
) -> Result<Option<Written>, StoreError> {
    let Some(key) = key else { return Ok(None) };
    Ok(match idempotency::recall(tx, &request_key(key), now).await.map_err(fault)? {
        Recall::New => None,
        Recall::Replay { resource_id, .. } => Some(Written::Replayed(resource_id)),
        Recall::Reused => Some(Written::RequestReused),
    })
}

/// Remembers the mutation, commits, and says so.
async fn finish(
    tx: DatabaseTransaction,
    key: Option<&MutationKey>,
    id: &str,
    now: DateTime<Utc>,
) -> Result<Written, StoreError> {
    if let Some(key) = key {
        idempotency::record(&tx, &request_key(key), id, None, now).await.map_err(fault)?;
    }
    tx.commit().await.map_err(fault)?;
    Ok(Written::Stored)
}

async fn write_audit(db: &impl ConnectionTrait, event: &AuditEvent) -> Result<(), StoreError> {
    let row = entities::audit_events::ActiveModel {
        id: Set(event.id.clone()),
        occurred_at: Set(to_micros(event.occurred_at)),
        actor: Set(event.actor.to_string()),
        action: Set(event.action.to_owned()),
        agency_id: Set(event.agency_id.clone()),
        location_id: Set(event.location_id.clone()),
        call_id: Set(event.call_id.clone()),
        detail: Set(event.detail.to_string()),
    };
    entities::audit_events::Entity::insert(row)
        .on_conflict_do_nothing()
        .exec_without_returning(db)
        .await
        .map(drop)
        .map_err(fault)
}

fn request_key(key: &MutationKey) -> RequestKey {
    RequestKey {
        method: key.method,
        scope: key.scope.clone(),
        request_id: key.request_id.clone(),
        fingerprint: key.fingerprint,
    }
}

/// A unique value that is there already means that another call wrote it since this one looked.
fn fault(error: DbErr) -> StoreError {
    if db::is_unavailable(&error) {
        StoreError::Unavailable(error.to_string())
    } else if db::is_conflict(&error) || db::is_unique_violation(&error) {
        StoreError::Conflict
    } else {
        StoreError::Internal(error.to_string())
    }
}
