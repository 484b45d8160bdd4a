//! Agencies and locations as they are kept.

use chrono::{DateTime, TimeDelta, Utc};

use super::profile::Profile;

/// A customer of the platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agency {
    /// `agy_…`.
    pub id: String,
    /// Its business.
    pub profile: Profile,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
    /// Counts its changes, from 1.
    pub revision: i64,
}

/// A sub-account of one agency.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// `loc_…`.
    pub id: String,
    /// The agency that owns it.
    pub agency_id: String,
    /// Its business.
    pub profile: Profile,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
    /// When it was deleted. `None`: it is not.
    pub deleted_at: Option<DateTime<Utc>>,
    /// Counts its changes, from 1.
    pub revision: i64,
}

/// How long a deleted location can be brought back.
const UNDELETE_WITHIN: TimeDelta = TimeDelta::days(30);

impl Location {
    /// Whether it is deleted, and not for too long to be brought back.
    pub fn can_be_undeleted(&self, now: DateTime<Utc>) -> bool {
        self.deleted_at.is_some_and(|deleted_at| now - deleted_at < UNDELETE_WITHIN)
    }
}

/// The opaque text by which a caller names the revision it has read.
pub fn etag(revision: i64) -> String {
    format!("r{revision}")
}

/// What binds a location's sealed key to the place it belongs to: a copy moved elsewhere does not open.
pub fn seal_binding(agency_id: &str, location_id: &str) -> Vec<u8> {
    // Ids hold no line break, so no two pairs share a text.
    format!("keysweep/location-key/v1\n{agency_id}\n{location_id}").into_bytes()
}
