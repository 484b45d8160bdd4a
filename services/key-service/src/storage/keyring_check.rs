//! Whether the key ring is the one that the database was filled with.

use sea_orm::{ActiveValue::Set, ColumnTrait, DatabaseConnection, EntityTrait, QueryFilter, QuerySelect};
use service_kit::keyring::{KeyRing, KeyRingFault, needs_master, parse_name};

use super::StorageError;
use super::entities::{api_keys, keyring_check};
use super::sealed::SEALED;

/// Why a key ring does not serve this database.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The ring is not the one that the database was filled with.
    #[error(transparent)]
    Ring(#[from] KeyRingFault),
    /// The database failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Whether the database holds nothing yet that a key ring is needed for, so that a new one may be made.
pub async fn is_unused(db: &DatabaseConnection) -> Result<bool, StorageError> {
    let keys =
        api_keys::Entity::find().select_only().column(api_keys::Column::Id).into_tuple::<String>().one(db).await?;
    Ok(keys.is_none() && keyring_check::Entity::find().one(db).await?.is_none())
}

/// Compares the ring with the fingerprints of the secrets that this database was filled with, and notes those of new
/// versions. That the ring lacks a secret which nothing needs any more is said and let pass.
pub async fn check(db: &DatabaseConnection, ring: &KeyRing) -> Result<(), Refusal> {
    let stored = keyring_check::Entity::find().all(db).await.map_err(StorageError::from)?;
    let known = ring.recognise(stored.into_iter().map(|row| (row.name, row.fingerprint)))?;
    for name in known.absent {
        if is_needed(db, &name).await? {
            return Err(KeyRingFault::Missing(name).into());
        }
        tracing::warn!(secret = name, "the key ring lacks a secret of this database, which nothing needs any more");
    }
    Ok(note(db, known.fresh).await?)
}

/// Two replicas that start at once note the same.
async fn note(db: &DatabaseConnection, fresh: Vec<(String, [u8; 32])>) -> Result<(), StorageError> {
    for (name, fingerprint) in fresh {
        let row = keyring_check::ActiveModel { name: Set(name), fingerprint: Set(fingerprint.to_vec()) };
        keyring_check::Entity::insert(row).on_conflict_do_nothing().exec_without_returning(db).await?;
    }
    Ok(())
}

/// Whether stored keys, or secrets kept for repeated requests, need the secret `name`, such as `pepper 1`.
async fn is_needed(db: &DatabaseConnection, name: &str) -> Result<bool, StorageError> {
    match parse_name(name) {
        Some(("master", version)) => Ok(needs_master(db, &SEALED, version).await?),
        Some(("pepper", version)) => {
            let hashed = api_keys::Entity::find()
                .select_only()
                .column(api_keys::Column::Id)
                .filter(api_keys::Column::PepperVersion.eq(i64::from(version)))
                .filter(api_keys::Column::SecretHash.is_not_null());
            Ok(hashed.into_tuple::<String>().one(db).await?.is_some())
        }
        _ => Ok(true),
    }
}
