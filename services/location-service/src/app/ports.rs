//! What the use cases need of the world. Each method that writes is one transaction.

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use secrecy::SecretString;
use service_kit::actor::Actor;
use service_kit::idempotency;
use service_kit::keyring::Sealed;
use service_kit::violations::Violations;

use super::Call;
use super::listing::Window;
use crate::domain::resources::{Agency, Location};
use crate::domain::security::Choice;
use crate::domain::user::{RoleLevel, RoleType, User};

/// Why the store did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It does not answer; worth a retry.
    #[error("the database does not answer: {0}")]
    Unavailable(String),
    /// Two writers met; worth repeating the whole use case at once.
    #[error("another writer was faster")]
    Conflict,
    /// Anything else.
    #[error("the database failed: {0}")]
    Internal(String),
}

/// Names a mutation that its caller may repeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MutationKey {
    /// The method.
    pub method: &'static str,
    /// Within which the request id is unique: the agency, or empty for the installation.
    pub scope: String,
    /// The caller's id.
    pub request_id: String,
    /// Digest of the request's contents.
    pub fingerprint: [u8; 32],
}

/// What is remembered of a mutation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recalled {
    /// Nothing.
    New,
    /// It made the resource with this id.
    Replay(String),
    /// Its request id was used for other contents.
    Reused,
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is stored.
    Stored,
    /// The same mutation was stored before, and made the resource with this id.
    Replayed(String),
    /// The request id was used for other contents.
    RequestReused,
    /// The resource is not at the revision that the write started from.
    Stale,
    /// Another user of the agency has the email address.
    EmailTaken,
}

/// One entry of the service's audit, never changed once written.
#[derive(Clone, Debug)]
pub struct AuditEvent {
    /// `aud_…`; an entry whose id is there already is not written again.
    pub id: String,
    /// When.
    pub occurred_at: DateTime<Utc>,
    /// Who.
    pub actor: Actor,
    /// What, such as `security.opted_out`.
    pub action: &'static str,
    /// In which agency.
    pub agency_id: String,
    /// On which location. `None`: on the agency.
    pub location_id: Option<String>,
    /// The call's id.
    pub call_id: String,
    /// The facts, without secrets.
    pub detail: serde_json::Value,
}

/// A location with the sealed copy of its key, if there is one.
#[derive(Clone, Debug)]
pub struct StoredLocation {
    /// The location.
    pub location: Location,
    /// Its key, sealed.
    pub sealed_key: Option<Sealed>,
}

/// Which locations to list.
#[derive(Clone, Copy, Debug)]
pub struct LocationFilter<'a> {
    /// Of this agency.
    pub agency_id: &'a str,
    /// Whether deleted ones are listed too.
    pub show_deleted: bool,
    /// In this country. Empty: all.
    pub country: &'a str,
    /// In this state. Empty: all.
    pub state: &'a str,
}

/// Which users to list.
#[derive(Clone, Copy, Debug)]
pub struct UserFilter<'a> {
    /// Of this agency.
    pub agency_id: &'a str,
    /// Who list this location.
    pub location_id: Option<&'a str>,
    /// Who have this address.
    pub email: Option<&'a str>,
    /// Who have this type of role.
    pub role_type: Option<RoleType>,
    /// Who have this level of role.
    pub role_level: Option<RoleLevel>,
}

/// A person to tell about keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipient {
    /// The user.
    pub user_id: String,
    /// Where it reads mail.
    pub email: String,
    /// Its first name.
    pub first_name: String,
    /// Its last name.
    pub last_name: String,
    /// Whether it manages the agency.
    pub agency_admin: bool,
    /// Those of the asked locations that it manages as its own; sorted.
    pub location_ids: Vec<String>,
}

/// Everybody to tell about keys of an agency and some of its locations, in one consistent reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipients {
    /// The agency's name.
    pub agency_name: String,
    /// The agency's time zone.
    pub agency_time_zone: String,
    /// The people, by id.
    pub recipients: Vec<Recipient>,
    /// Id and name of each asked location that is the agency's, by id.
    pub location_names: Vec<(String, String)>,
}

/// What was asked before.
#[async_trait]
pub trait RequestLog: Send + Sync {
    /// Looks a mutation up.
    async fn recall(&self, key: &MutationKey, now: DateTime<Utc>) -> Result<Recalled, StoreError>;
    /// Remembers `id` for the mutation unless one is remembered already: then that is answered. Never `New`.
    async fn reserve(&self, key: &MutationKey, id: &str, now: DateTime<Utc>) -> Result<Recalled, StoreError>;
    /// Forgets the mutations before `before`; answers how many.
    async fn purge_requests(&self, before: DateTime<Utc>) -> Result<u64, StoreError>;
    /// Writes an entry of the audit.
    async fn audit(&self, event: &AuditEvent) -> Result<(), StoreError>;
}

/// Agencies and their choices.
#[async_trait]
pub trait AgencyStore: Send + Sync {
    /// One agency.
    async fn agency(&self, id: &str) -> Result<Option<Agency>, StoreError>;
    /// One page of the agencies.
    async fn agencies(&self, window: &Window) -> Result<Vec<Agency>, StoreError>;
    /// Stores a new agency.
    async fn insert_agency(&self, agency: &Agency, key: Option<&MutationKey>) -> Result<Written, StoreError>;
    /// Stores a changed agency over the revision before its own.
    async fn update_agency(&self, agency: &Agency, key: Option<&MutationKey>) -> Result<Written, StoreError>;
    /// What the agency has chosen about its security.
    async fn choice(&self, agency_id: &str) -> Result<Option<Choice>, StoreError>;
    /// Stores a choice with its audit; one that turns the setting on destroys every sealed key of the agency with it.
    async fn choose(
        &self,
        agency_id: &str,
        choice: &Choice,
        audit: &AuditEvent,
        key: Option<&MutationKey>,
    ) -> Result<Written, StoreError>;
}

/// Locations and the sealed copies of their keys.
#[async_trait]
pub trait LocationStore: Send + Sync {
    /// One location, also a deleted one.
    async fn location(&self, id: &str) -> Result<Option<StoredLocation>, StoreError>;
    /// One page of an agency's locations.
    async fn locations(&self, filter: LocationFilter<'_>, window: &Window) -> Result<Vec<StoredLocation>, StoreError>;
    /// Stores a new location. Its sealed key is kept only if the agency is still opted out when this commits.
    async fn insert_location(
        &self,
        stored: &StoredLocation,
        audit: Option<&AuditEvent>,
        key: Option<&MutationKey>,
    ) -> Result<Written, StoreError>;
    /// Stores a changed location over the revision before its own; where it is deleted now, its sealed key is destroyed.
    async fn update_location(&self, location: &Location, key: Option<&MutationKey>) -> Result<Written, StoreError>;
    /// Those of the ids that are locations of the agency and not deleted.
    async fn live_locations(&self, agency_id: &str, ids: &[String]) -> Result<Vec<String>, StoreError>;
}

/// Users.
#[async_trait]
pub trait UserStore: Send + Sync {
    /// One user, also a deleted one.
    async fn user(&self, id: &str) -> Result<Option<User>, StoreError>;
    /// One page of an agency's users, without deleted ones.
    async fn users(&self, filter: UserFilter<'_>, window: &Window) -> Result<Vec<User>, StoreError>;
    /// Stores a new user.
    async fn insert_user(&self, user: &User, key: Option<&MutationKey>) -> Result<Written, StoreError>;
    /// Stores a changed user over the revision before its own; one that is deleted now frees its email address.
    async fn update_user(&self, user: &User, key: Option<&MutationKey>) -> Result<Written, StoreError>;
    /// Everybody to tell. `None`: there is no such agency.
    async fn recipients(&self, agency_id: &str, location_ids: &[String]) -> Result<Option<Recipients>, StoreError>;
}

/// Everything the use cases keep.
pub trait Store: RequestLog + AgencyStore + LocationStore + UserStore {}

impl<T: RequestLog + AgencyStore + LocationStore + UserStore> Store for T {}

/// What key to generate, and in whose name.
#[derive(Clone, Debug)]
pub struct KeyOrder {
    /// The person who asks.
    pub actor: Actor,
    /// The agency.
    pub agency_id: String,
    /// The location that will own the key. `None`: the agency will.
    pub location_id: Option<String>,
    /// A name for people.
    pub display_name: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// When it stops verifying.
    pub expires_at: Option<DateTime<Utc>>,
    /// From where it may be used.
    pub allowed_cidrs: Vec<String>,
    /// Makes the order repeatable; never empty.
    pub request_id: String,
}

/// A key that has come into being.
#[derive(Clone, Debug)]
pub struct GeneratedKey {
    /// `key_…`.
    pub key_id: String,
    /// A name for people.
    pub display_name: String,
    /// The secret's first characters.
    pub display_prefix: String,
    /// When it was generated.
    pub created_at: DateTime<Utc>,
    /// When it stops verifying.
    pub expires_at: Option<DateTime<Utc>>,
    /// What it may do.
    pub scopes: Vec<String>,
    /// The secret.
    pub secret: SecretString,
}

/// Why key-service generated no key, or none that we know of.
#[derive(Debug, thiserror::Error)]
pub enum KeyServiceError {
    /// It cannot be reached in time.
    #[error("key-service cannot be reached")]
    Unavailable {
        /// When a retry is worth it.
        retry_after: Duration,
    },
    /// It finds fields at fault.
    #[error("key-service finds fields at fault: {0}")]
    Invalid(Violations),
    /// The request id stands for another order.
    #[error("{}", idempotency::REUSED)]
    RequestIdReused,
    /// An answer that it should not give us.
    #[error("{0}")]
    Unexpected(String),
}

/// The one call to key-service.
#[async_trait]
pub trait KeyGenerator: Send + Sync {
    /// Generates a key, or answers the one that the same request id generated within 24 h.
    async fn generate(&self, call: &Call, order: &KeyOrder) -> Result<GeneratedKey, KeyServiceError>;
}
