//! The key itself, without its secret.

use chrono::{DateTime, Utc};

use super::{Networks, Scopes};

/// The account that owns a key: an agency, or one of its locations.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    /// The agency, `agy_…`; also of a location.
    pub agency_id: String,
    /// The location, `loc_…`; `None`: the agency itself owns the key.
    pub location_id: Option<String>,
}

/// The life of a key. A key never returns to an earlier state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ApiKeyState {
    /// The key verifies, unless it has expired or its overlap has run out.
    Active,
    /// A person ended the key, or its overlap after a rotation has run out.
    Revoked,
    /// A sweep deleted the key.
    Deleted,
}

impl ApiKeyState {
    /// The number that stands for the state in the database.
    pub const fn code(self) -> i16 {
        match self {
            Self::Active => 1,
            Self::Revoked => 2,
            Self::Deleted => 3,
        }
    }

    /// The state that `code` stands for.
    pub const fn from_code(code: i16) -> Option<Self> {
        match code {
            1 => Some(Self::Active),
            2 => Some(Self::Revoked),
            3 => Some(Self::Deleted),
            _ => None,
        }
    }

    /// The state's name in errors and audit events.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Revoked => "REVOKED",
            Self::Deleted => "DELETED",
        }
    }
}

/// The deletion that is announced for a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingDeletion {
    /// The plan that lists the key.
    pub plan_id: String,
    /// When the key will be deleted if nobody uses it.
    pub delete_at: DateTime<Utc>,
}

/// A key without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// `key_…`.
    pub key_id: String,
    /// Who owns the key.
    pub owner: Owner,
    /// A name for people; empty: none.
    pub display_name: String,
    /// The first characters of the secret; empty: not known.
    pub display_prefix: String,
    /// The state as stored; see [`ApiKey::state_at`].
    pub state: ApiKeyState,
    /// What the key may be used for.
    pub scopes: Scopes,
    /// From where the key may be used.
    pub networks: Networks,
    /// When the key came into being.
    pub created_at: DateTime<Utc>,
    /// The stored last use.
    pub last_used_at: Option<DateTime<Utc>>,
    /// From this instant on the key does not verify.
    pub expires_at: Option<DateTime<Utc>>,
    /// When the key was revoked, or when its overlap ends.
    pub revoke_at: Option<DateTime<Utc>>,
    /// When a sweep deleted the key.
    pub deleted_at: Option<DateTime<Utc>>,
    /// The deletion that is announced.
    pub pending_deletion: Option<PendingDeletion>,
    /// The key that a rotation issued in place of this one.
    pub successor_id: Option<String>,
    /// The adopter's own name for an imported key.
    pub external_reference: Option<String>,
    /// Whether the sealed secret is kept.
    pub sealed: bool,
    /// Counts the changes of the key's metadata.
    pub revision: i64,
}

impl ApiKey {
    /// The state at `now`: a rotated key is revoked from the end of its overlap on, whether or not that is stored yet.
    pub fn state_at(&self, now: DateTime<Utc>) -> ApiKeyState {
        match (self.state, self.revoke_at) {
            (ApiKeyState::Active, Some(revoke_at)) if revoke_at <= now => ApiKeyState::Revoked,
            (state, _) => state,
        }
    }

    /// Whether the key has run past its own expiry at `now`.
    pub fn is_expired_at(&self, now: DateTime<Utc>) -> bool {
        self.expires_at.is_some_and(|expires_at| expires_at <= now)
    }

    /// Whether the secret can be shown at `now`.
    pub fn is_recoverable_at(&self, now: DateTime<Utc>) -> bool {
        self.sealed && self.state_at(now) == ApiKeyState::Active
    }

    /// Guards an update against a change in between.
    pub fn etag(&self) -> String {
        self.revision.to_string()
    }
}
