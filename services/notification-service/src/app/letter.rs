//! What the email of a stage says, and the port that puts it into words.

use chrono::{DateTime, Utc};

use crate::domain::ids::{KeyId, LocationId};

use super::ports::ClaimedDelivery;

/// What a letter says beside its keys, fixed when the stage was dispatched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LetterFacts {
    /// The agency's name.
    pub agency_name: String,
    /// The agency's IANA time zone.
    pub time_zone: String,
    /// When the keys will be deleted.
    pub delete_at: DateTime<Utc>,
    /// Keys unused since this instant are listed.
    pub idle_since_at: DateTime<Utc>,
    /// How many keys it is about.
    pub key_count: i64,
    /// The keys are those that had not left the lot when this event was applied.
    pub as_of_sequence: i64,
}

/// One key of a letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LetterEntry {
    /// The key.
    pub key_id: KeyId,
    /// The location that owns it; `None` for the agency.
    pub location_id: Option<LocationId>,
    /// The location's name; empty where it is not known.
    pub location_name: String,
    /// The key's name; may be empty.
    pub display_name: String,
    /// The first characters of its secret; may be empty.
    pub display_prefix: String,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// Its last use.
    pub last_used_at: Option<DateTime<Utc>>,
}

/// Why a letter could not be written.
#[derive(Debug, thiserror::Error)]
pub enum LetterError {
    /// The recipient's address is none that mail can be sent to.
    #[error("the address is not one that mail can be sent to: {0}")]
    Address(String),
    /// A fault of this program.
    #[error("the letter could not be written: {0}")]
    Fault(String),
}

/// Writes letters.
pub trait LetterWriter: Send + Sync {
    /// Begins a letter to one person.
    fn begin(&self, facts: &LetterFacts, to: &ClaimedDelivery) -> Result<Box<dyn LetterDraft>, LetterError>;
}

/// A letter that takes its keys in pages, so that the longest need not stand in memory twice.
pub trait LetterDraft: Send {
    /// Adds keys, in the order of (location, key), the agency's own first.
    fn add(&mut self, entries: &[LetterEntry]) -> Result<(), LetterError>;
    /// The whole MIME message.
    fn finish(self: Box<Self>) -> Result<Vec<u8>, LetterError>;
}
