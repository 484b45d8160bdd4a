//! The ports that the use cases of keys need. Each method that writes is one transaction, whole or not at all.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use service_kit::actor::Actor;
use service_kit::keyring::Sealed;

use crate::app::StorageError;
use crate::domain::audit::NewAuditEvent;
use crate::domain::key::{ApiKey, ApiKeyState, Hash, Selector, StoredKey};

/// A call that may be repeated under its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The method.
    pub method: &'static str,
    /// The agency within which the id is unique.
    pub agency_id: String,
    /// The caller's id; not empty.
    pub request_id: String,
    /// Everything that makes two calls the same, the actor included.
    pub contents: Vec<Vec<u8>>,
}

/// What is remembered of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recall {
    /// Nothing within 24 h.
    New,
    /// The same call was made.
    Repeated(Repeated),
    /// The id was used for other contents.
    Reused,
}

/// What a call made when it was made first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repeated {
    /// The key it was about, or brought into being.
    pub key_id: String,
    /// The sealed secret, where it is kept nowhere else.
    pub sealed: Option<Sealed>,
}

/// What a change leaves behind, in its own transaction, besides the change.
#[derive(Debug, Clone)]
pub struct Record {
    /// When the change is made.
    pub now: DateTime<Utc>,
    /// Who it is made for.
    pub actor: Actor,
    /// What is remembered of the call; `None`: it cannot be repeated.
    pub request: Option<(Request, Repeated)>,
    /// What the audit says of it.
    pub audit: NewAuditEvent,
}

/// How a conditional change went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It was made; `true`: the key left its plan.
    Made {
        /// Whether an event about a plan was written, which subscribers wait for.
        rescued: bool,
    },
    /// The key is no longer as it was read; nothing was changed.
    Stale,
    /// The same call had been made before; nothing was changed.
    Repeated(Repeated),
    /// The call's id had been used for other contents; nothing was changed.
    Reused,
}

/// What finds and proves a secret.
#[derive(Clone)]
pub struct Material {
    /// Finds the row.
    pub selector: Selector,
    /// The keyed hash.
    pub hash: Hash,
    /// The pepper of the hash.
    pub pepper_version: u32,
    /// The secret for later retrieval, where the installation allows it.
    pub sealed: Option<Sealed>,
}

/// A key to be stored.
#[derive(Clone)]
pub struct NewKey {
    /// Its metadata.
    pub key: ApiKey,
    /// Its secret material.
    pub material: Material,
}

/// The old key's side of a rotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retirement {
    /// The old key.
    pub key_id: String,
    /// Its revision as read.
    pub revision: i64,
    /// When its secret ends; at once if that is the instant of the change.
    pub revoke_at: DateTime<Utc>,
}

/// Which keys to list; joined by AND.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyFilter {
    /// Only of this agency and its locations.
    pub agency_id: Option<String>,
    /// Only of this location.
    pub location_id: Option<String>,
    /// Only in this state.
    pub state: Option<ApiKeyState>,
    /// Only with an effective last use at or before this instant.
    pub idle_since: Option<DateTime<Utc>>,
}

/// How storing a use went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UseOutcome {
    /// It is stored; with the plan that it rescued the key from.
    Stored {
        /// The plan.
        plan_id: Option<String>,
    },
    /// The key has ended since it was read.
    Ended,
}

/// A row of an import, ready to be stored unless it is there already.
#[derive(Clone)]
pub struct ImportCandidate {
    /// The key that the row would become.
    pub new: NewKey,
    /// The selectors of its secret under every pepper: whoever has one of them has the secret.
    pub selectors: Vec<Selector>,
    /// Tells a repeated row from a changed one.
    pub fingerprint: [u8; 32],
    /// What the audit would say of it.
    pub audit: NewAuditEvent,
}

/// What became of a row of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImportOutcome {
    /// It became a key.
    Imported,
    /// It was imported before, the same.
    Unchanged,
    /// Its reference was imported before with other contents.
    ReferenceTaken,
    /// Another key has its secret.
    SecretTaken,
}

/// Keys in the database.
#[async_trait]
pub trait KeyStore: Send + Sync + 'static {
    /// What is remembered of a request at `now`.
    async fn recall(&self, request: &Request, now: DateTime<Utc>) -> Result<Recall, StorageError>;
    /// Stores a new key.
    async fn insert(&self, new: NewKey, record: Record) -> Result<Change, StorageError>;
    /// One key, with the deletion announced for it.
    async fn get(&self, key_id: &str) -> Result<Option<ApiKey>, StorageError>;
    /// The sealed secret of an ACTIVE key, where it is kept.
    async fn sealed_secret(&self, key_id: &str) -> Result<Option<Sealed>, StorageError>;
    /// At most `limit` keys with ids after `after`, in the order of their ids; states are those at `now`.
    async fn list(
        &self,
        filter: &KeyFilter,
        after: Option<&str>,
        limit: u32,
        now: DateTime<Utc>,
    ) -> Result<Vec<ApiKey>, StorageError>;
    /// The keys that have one of these selectors: one read.
    async fn find(&self, selectors: &[Selector]) -> Result<Vec<(Selector, StoredKey)>, StorageError>;
    /// Stores a use before it is answered, and takes the key out of its plan.
    async fn store_use(&self, key_id: &str, used_at: DateTime<Utc>, actor: &Actor) -> Result<UseOutcome, StorageError>;
    /// Stores the metadata of an ACTIVE key whose revision is still that of `key`.
    async fn update(&self, key: &ApiKey, record: Record) -> Result<Change, StorageError>;
    /// Stores the successor and retires the old key, if it is still ACTIVE and unchanged.
    async fn rotate(&self, retirement: Retirement, successor: NewKey, record: Record) -> Result<Change, StorageError>;
    /// Ends an ACTIVE key whose revision is still `revision`, and destroys its secret material.
    async fn revoke(&self, key_id: &str, revision: i64, record: Record) -> Result<Change, StorageError>;
    /// Stores the rows that are new, in their order; answers each.
    async fn import(&self, rows: Vec<ImportCandidate>) -> Result<Vec<ImportOutcome>, StorageError>;
    /// Appends one audit event that accompanies no change.
    async fn audit(&self, event: NewAuditEvent) -> Result<(), StorageError>;
}
