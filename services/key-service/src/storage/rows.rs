//! Between the rows of `api_keys` and the domain.

use chrono::{DateTime, Utc};
use ipnet::IpNet;
use sea_orm::{ActiveValue::Set, FromQueryResult, IntoActiveModel};
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
        state: state(&row.id, row.state)?,
        scopes: scopes(&row.id, &row.scopes)?,
        networks: networks(&row.id, &row.allowed_cidrs)?,
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

/// What verification needs of a row, and nothing else: no sealed secret, for one.
#[derive(FromQueryResult)]
pub(super) struct FoundRow {
    id: String,
    agency_id: String,
    location_id: Option<String>,
    scopes: String,
    allowed_cidrs: String,
    created_at: i64,
    last_used_at: Option<i64>,
    expires_at: Option<i64>,
    state: i16,
    revoke_at: Option<i64>,
    deleted_at: Option<i64>,
    selector: Vec<u8>,
    secret_hash: Option<Vec<u8>>,
}

impl FoundRow {
    /// The columns, as a statement names them.
    pub(super) const COLUMNS: &str = "id, agency_id, location_id, scopes, allowed_cidrs, created_at, last_used_at, expires_at, state, \
                                      revoke_at, deleted_at, selector, secret_hash";

    pub(super) fn into_stored(self) -> Result<(Selector, StoredKey), StorageError> {
        let Self { id, .. } = &self;
        let selector = Selector::from_bytes(&self.selector).ok_or_else(|| corrupt(id, "selector"))?;
        let secret_hash = match &self.secret_hash {
            Some(hash) => Some(hash.as_slice().try_into().map_err(|_| corrupt(id, "secret_hash"))?),
            None => None,
        };
        let stored = StoredKey {
            state: state(id, self.state)?,
            scopes: scopes(id, &self.scopes)?,
            networks: networks(id, &self.allowed_cidrs)?,
            secret_hash,
            key_id: self.id,
            owner: Owner { agency_id: self.agency_id, location_id: self.location_id },
            created_at: from_micros(self.created_at),
            last_used_at: instant(self.last_used_at),
            expires_at: instant(self.expires_at),
            revoke_at: instant(self.revoke_at),
            deleted_at: instant(self.deleted_at),
        };
        Ok((selector, stored))
    }
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

fn state(key_id: &str, code: i16) -> Result<ApiKeyState, StorageError> {
    ApiKeyState::from_code(code).ok_or_else(|| corrupt(key_id, "state"))
}

fn scopes(key_id: &str, list: &str) -> Result<Scopes, StorageError> {
    serde_json::from_str(list).map(Scopes::from_stored).map_err(|_| corrupt(key_id, "scopes"))
}

fn networks(key_id: &str, list: &str) -> Result<Networks, StorageError> {
    let networks = serde_json::from_str::<Vec<IpNet>>(list);
    networks.map(Networks::from_stored).map_err(|_| corrupt(key_id, "allowed_cidrs"))
}

fn corrupt(key_id: &str, column: &str) -> StorageError {
    StorageError::Internal(format!("api_keys.{column} of {key_id} does not hold what it should"))
}
