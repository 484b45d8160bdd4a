//! Whether the key ring is the one that the database was filled with.

use std::collections::HashMap;

use sea_orm::sea_query::{Expr, ExprTrait, Query};
use sea_orm::{
    ActiveValue::Set, ColumnTrait, ConnectionTrait, DatabaseConnection, EntityTrait, QueryFilter, QuerySelect,
};
use service_kit::db::begin_write;
use service_kit::keyring::KeyRing;

use super::StorageError;
use super::entities::{api_keys, keyring_check};

/// Why a key ring does not serve this database.
#[derive(Debug, thiserror::Error)]
pub enum KeyRingFault {
    /// A secret of the ring is another than the one of the same name that the database was filled with.
    #[error(
        "{0} of the key ring is not the one that this database was filled with: restore the key ring from its backup, \
         or give the new secret a version of its own"
    )]
    Differs(String),
    /// The ring lacks a secret that stored keys need.
    #[error("the key ring lacks {0}, which stored keys still need: restore it from the key ring's backup")]
    Missing(String),
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
/// versions. Forgets secrets that the ring lacks and that nothing needs any more.
pub async fn check(db: &DatabaseConnection, ring: &KeyRing) -> Result<(), KeyRingFault> {
    let mut stored: HashMap<String, Vec<u8>> =
        load(db).await?.into_iter().map(|row| (row.name, row.fingerprint)).collect();
    let mut fresh = Vec::new();
    for (name, fingerprint) in ring.fingerprints() {
        match stored.remove(&name) {
            None => fresh.push((name, fingerprint)),
            Some(known) if known == fingerprint => {}
            Some(_) => return Err(KeyRingFault::Differs(name)),
        }
    }
    for name in stored.into_keys() {
        if is_needed(db, &name).await? {
            return Err(KeyRingFault::Missing(name));
        }
        tracing::warn!(secret = name, "the key ring lacks a secret of this database, which nothing needs any more");
    }
    note(db, fresh).await?;
    Ok(())
}

async fn load(db: &DatabaseConnection) -> Result<Vec<keyring_check::Model>, StorageError> {
    Ok(keyring_check::Entity::find().all(db).await?)
}

async fn note(db: &DatabaseConnection, fresh: Vec<(String, [u8; 32])>) -> Result<(), StorageError> {
    if fresh.is_empty() {
        return Ok(());
    }
    let tx = begin_write(db).await?;
    for (name, fingerprint) in fresh {
        let row = keyring_check::ActiveModel { name: Set(name), fingerprint: Set(fingerprint.to_vec()) };
        keyring_check::Entity::insert(row).exec_without_returning(&tx).await?;
    }
    Ok(tx.commit().await?)
}

/// Whether stored keys, or secrets kept for repeated requests, need the secret `name`, such as `pepper 1`.
async fn is_needed(db: &DatabaseConnection, name: &str) -> Result<bool, StorageError> {
    let Some((kind, version)) = name.split_once(' ').and_then(|(kind, text)| Some((kind, text.parse::<i32>().ok()?)))
    else {
        return Ok(true);
    };
    let keys = api_keys::Entity::find().select_only().column(api_keys::Column::Id);
    let keys = match kind {
        "pepper" => {
            keys.filter(api_keys::Column::PepperVersion.eq(version)).filter(api_keys::Column::SecretHash.is_not_null())
        }
        "master" => keys
            .filter(api_keys::Column::MasterVersion.eq(version))
            .filter(api_keys::Column::SealedSecret.is_not_null()),
        _ => return Ok(true),
    };
    if keys.into_tuple::<String>().one(db).await?.is_some() {
        return Ok(true);
    }
    if kind == "pepper" {
        return Ok(false);
    }
    // A payload begins with its master key's version; those of a day are few.
    let lent =
        Query::select().column("payload").from("requests").and_where(Expr::col("payload").is_not_null()).to_owned();
    for row in db.query_all(&lent).await? {
        let payload: Vec<u8> = row.try_get("", "payload")?;
        if payload.starts_with(&version.to_be_bytes()) {
            return Ok(true);
        }
    }
    Ok(false)
}
