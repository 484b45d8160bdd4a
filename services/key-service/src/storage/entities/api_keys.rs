//! Table `api_keys`: one row per key, also of those that have ended.

use sea_orm::entity::prelude::*;

/// A key, or its tombstone.
#[derive(Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "api_keys")]
pub struct Model {
    /// `key_…`.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    /// The agency that owns the key, or whose location does.
    pub agency_id: String,
    /// The location that owns the key; `None`: the agency does.
    pub location_id: Option<String>,
    /// A name for people.
    pub display_name: String,
    /// The first characters of the secret.
    pub display_prefix: String,
    /// A JSON list of strings.
    pub scopes: String,
    /// A JSON list of networks.
    pub allowed_cidrs: String,
    /// Unix microseconds.
    pub created_at: i64,
    /// Unix microseconds; `None`: never used, which counts as used at creation.
    pub last_used_at: Option<i64>,
    /// Unix microseconds.
    pub expires_at: Option<i64>,
    /// 1 ACTIVE, 2 REVOKED, 3 DELETED.
    pub state: i16,
    /// The end of the overlap, or the instant of revocation, in unix microseconds.
    pub revoke_at: Option<i64>,
    /// Unix microseconds.
    pub deleted_at: Option<i64>,
    /// 16 bytes that find the row; kept in tombstones.
    pub selector: Vec<u8>,
    /// The keyed hash; `None` in tombstones.
    pub secret_hash: Option<Vec<u8>>,
    /// The pepper of the hash and of the selector; `None` in revoked keys, which so leave the index of overlaps.
    pub pepper_version: Option<i32>,
    /// The sealed secret; `None` where it is not kept.
    pub sealed_secret: Option<Vec<u8>>,
    /// The master key of the sealed secret.
    pub master_version: Option<i32>,
    /// The key that a rotation issued in place of this one.
    pub successor_id: Option<String>,
    /// The adopter's own name for an imported key.
    pub external_reference: Option<String>,
    /// A digest of what was imported, the secret left out: tells a repeated row from a changed one.
    pub import_fingerprint: Option<Vec<u8>>,
    /// Counts the changes of the key's metadata.
    pub revision: i64,
}

/// No relations: joins are written where they are needed.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl std::fmt::Debug for Model {
    /// Leaves out what could help to find the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("api_keys::Model").field("id", &self.id).field("state", &self.state).finish_non_exhaustive()
    }
}
