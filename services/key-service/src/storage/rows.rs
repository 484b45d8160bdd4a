//! Between the rows of `api_keys` and the domain.

use chrono::{DateTime, Utc};
use ipnet::IpNet;
use sea_orm::{ActiveValue::Set, IntoActiveModel};
use service_kit::keyring::Sealed;
use service_kit::time::{from_micros, to_micros};

use super::StorageError;
use super::entities::api_keys;
use crate::app::keys::NewKey;
use crate::domain::key::{ApiKey, ApiKeyState, Networks, Owner, PendingDeletion, Scopes, Selector, StoredKey};

/// The column of a list.
pub(super) fn json_list<T: ToString>(items: &[T]) -> String {
    serde_json::Value::from(items.iter().map(ToString::to_string).collect::<Vec<_>>()).to_string()
}

/// The version column of a key ring's secret.
pub(super) fn version(version: u32) -> Result<i32, StorageError> {
    i32::try_from(version)
        .map_err(|_| StorageError::Internal(format!("version {version} of the key ring is too high to be stored")))
}

pub(super) fn to_row(new: NewKey, import_fingerprint: Option<[u8; 32]>) -> Result<api_keys::ActiveModel, StorageError> {
    let NewKey { key, material } = new;
    let master_version = material.sealed.as_ref().map(|sealed| version(sealed.master_version)).transpose()?;
    let row = api_keys::Model {
        id: key.key_id,
        agency_id: key.owner.agency_id,
        location_id: key.owner.location_id,
        display_name: key.display_name,
        display_prefix: key.display_prefix,
        scopes: json_list(key.scopes.as_slice()),
        allowed_cidrs: json_list(key.networks.as_slice()),
        created_at: to_micros(key.created_at),
        last_used_at: key.last_used_at.map(to_micros),
        expires_at: key.expires_at.map(to_micros),
        state: key.state.code(),
        revoke_at: key.revoke_at.map(to_micros),
        deleted_at: key.deleted_at.map(to_micros),
        selector: material.selector.as_bytes().to_vec(),
        secret_hash: Some(material.hash.to_vec()),
        pepper_version: Some(version(material.pepper_version)?),
        sealed_secret: None,
        master_version,
        successor_id: key.successor_id,
        external_reference: key.external_reference,
        import_fingerprint: import_fingerprint.map(|fingerprint| fingerprint.to_vec()),
        revision: key.revision,
    };
    let sealed_secret = Set(material.sealed.map(|sealed| sealed.bytes));
    Ok(api_keys::ActiveModel { sealed_secret, ..row.into_active_model() })
}

pub(super) fn to_key(row: api_keys::Model, pending_deletion: Option<PendingDeletion>) -> Result<ApiKey, StorageError> {
    Ok(ApiKey {
        state: state(&row)?,
        scopes: scopes(&row)?,
        networks: networks(&row)?,
        sealed: row.sealed_secret.is_some(),
        key_id: row.id,
        owner: Owner { agency_id: row.agency_id, location_id: row.location_id },
        display_name: row.display_name,
        display_prefix: row.display_prefix,
        created_at: from_micros(row.created_at),
        last_used_at: instant(row.last_used_at),
        expires_at: instant(row.expires_at),
        revoke_at: instant(row.revoke_at),
        deleted_at: instant(row.deleted_at),
        pending_deletion,
        successor_id: row.successor_id,
        external_reference: row.external_reference,
        revision: row.revision,
    })
}

pub(super) fn to_stored(row: api_keys::Model) -> Result<(Selector, StoredKey), StorageError> {
    let selector = Selector::from_bytes(&row.selector).ok_or_else(|| corrupt(&row, "selector"))?;
    let secret_hash = match &row.secret_hash {
        Some(hash) => Some(hash.as_slice().try_into().map_err(|_| corrupt(&row, "secret_hash"))?),
        None => None,
    };
    let stored = StoredKey {
        state: state(&row)?,
        scopes: scopes(&row)?,
        networks: networks(&row)?,
        secret_hash,
        key_id: row.id,
        owner: Owner { agency_id: row.agency_id, location_id: row.location_id },
        created_at: from_micros(row.created_at),
        last_used_at: instant(row.last_used_at),
        expires_at: instant(row.expires_at),
        revoke_at: instant(row.revoke_at),
        deleted_at: instant(row.deleted_at),
    };
    Ok((selector, stored))
}

pub(super) fn to_sealed(row: api_keys::Model) -> Result<Option<Sealed>, StorageError> {
    match (row.sealed_secret, row.master_version) {
        (Some(bytes), Some(version)) => match u32::try_from(version) {
            Ok(master_version) => Ok(Some(Sealed { master_version, bytes })),
            Err(_) => Err(StorageError::Internal(format!("api_keys.master_version of {} is negative", row.id))),
        },
        _ => Ok(None),
    }
}

fn instant(micros: Option<i64>) -> Option<DateTime<Utc>> {
    micros.map(from_micros)
}

fn state(row: &api_keys::Model) -> Result<ApiKeyState, StorageError> {
    ApiKeyState::from_code(row.state).ok_or_else(|| corrupt(row, "state"))
}

fn scopes(row: &api_keys::Model) -> Result<Scopes, StorageError> {
    serde_json::from_str(&row.scopes).map(Scopes::from_stored).map_err(|_| corrupt(row, "scopes"))
}

fn networks(row: &api_keys::Model) -> Result<Networks, StorageError> {
    let networks = serde_json::from_str::<Vec<IpNet>>(&row.allowed_cidrs);
    networks.map(Networks::from_stored).map_err(|_| corrupt(row, "allowed_cidrs"))
}

fn corrupt(row: &api_keys::Model, column: &str) -> StorageError {
    StorageError::Internal(format!("api_keys.{column} of {} does not hold what it should", row.id))
}
