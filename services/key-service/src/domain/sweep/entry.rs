//! One key in a lot, and the gate before its deletion.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

/// The life of an entry. Only PLANNED is ever left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EntryState {
    /// The key will be deleted with its lot.
    Planned,
    /// The key left the lot.
    Rescued,
    /// The key was deleted.
    Deleted,
    /// The key waits for the next quarter.
    Spared,
}

impl EntryState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Planned, Self::Rescued, Self::Deleted, Self::Spared];
}

/// Why an entry left its lot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RescueCause {
    /// The key was used.
    Used,
    /// A person revoked the key.
    Revoked,
    /// The key was rotated.
    Rotated,
}

impl RescueCause {
    /// Every cause.
    pub const ALL: [Self; 3] = [Self::Used, Self::Revoked, Self::Rotated];

    /// The cause as one word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Used => "used",
            Self::Revoked => "revoked",
            Self::Rotated => "rotated",
        }
    }
}

/// One key in a lot, with the evidence as it was when the plan was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The agency that owns the key, itself or through a location.
    pub agency_id: String,
    /// The location that owns the key; none: the agency itself.
    pub location_id: Option<String>,
    /// The key.
    pub key_id: String,
    /// Its name for people.
    pub display_name: String,
    /// The first characters of its secret.
    pub display_prefix: String,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// Its last use; none: never used.
    pub last_used_at: Option<DateTime<Utc>>,
    /// What became of it.
    pub state: EntryState,
    /// Why it left.
    pub cause: Option<RescueCause>,
    /// When it left or was deleted.
    pub ended_at: Option<DateTime<Utc>>,
}

impl Entry {
    /// Whole days that the key will have been idle at `delete_at`.
    #[must_use]
    pub fn idle_days(&self, delete_at: DateTime<Utc>) -> i64 {
        (delete_at - effective_last_use(self.created_at, self.last_used_at)).num_days()
    }
}

/// The later of creation and last use: a key never used counts from its creation.
#[must_use]
pub fn effective_last_use(created_at: DateTime<Utc>, last_used_at: Option<DateTime<Utc>>) -> DateTime<Utc> {
    last_used_at.map_or(created_at, |used| used.max(created_at))
}

/// What the database says of a planned key at the moment of its deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFacts {
    /// Whether the key is ACTIVE.
    pub active: bool,
    /// Whether an end was set for it by a rotation.
    pub ending: bool,
    /// The owning agency.
    pub agency_id: String,
    /// The owning location.
    pub location_id: Option<String>,
    /// Its effective last use.
    pub last_use: DateTime<Utc>,
}

/// Why a key is not deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryBlock {
    /// The entry has left the lot already.
    NotPlanned,
    /// The key is no longer ACTIVE.
    NotActive,
    /// The key was rotated and ends by itself.
    Rotated,
    /// The key has another owner than the one that was told.
    OwnerChanged,
    /// The key was used too late.
    Used,
    /// The key may have been used too late: a replica died without storing what it had seen.
    InDoubt,
}

impl EntryBlock {
    /// The cause that admins are told; none where the key is only spared.
    #[must_use]
    pub fn rescue_cause(self) -> Option<RescueCause> {
        match self {
            Self::NotActive => Some(RescueCause::Revoked),
            Self::Rotated => Some(RescueCause::Rotated),
            Self::Used => Some(RescueCause::Used),
            Self::NotPlanned | Self::OwnerChanged | Self::InDoubt => None,
        }
    }

    /// The block as one word for the audit.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotPlanned => "not_planned",
            Self::NotActive => "not_active",
            Self::Rotated => "rotated",
            Self::OwnerChanged => "owner_changed",
            Self::Used => "used",
            Self::InDoubt => "usage_in_doubt",
        }
    }
}

/// Whether the key of `entry` may be deleted: `Ok`, or the first cause against it.
///
/// `cutoff` is the latest effective last use that is idle enough; `slack` is counted against the sweep where a
/// replica's uses may be missing.
///
/// # Errors
/// The cause against the deletion.
pub fn entry_gate(
    state: EntryState,
    entry: (&str, Option<&str>),
    key: &KeyFacts,
    cutoff: DateTime<Utc>,
    slack: TimeDelta,
) -> Result<(), EntryBlock> {
    if state != EntryState::Planned {
        Err(EntryBlock::NotPlanned)
    } else if !key.active {
        Err(EntryBlock::NotActive)
    } else if key.ending {
        Err(EntryBlock::Rotated)
    } else if entry != (key.agency_id.as_str(), key.location_id.as_deref()) {
        Err(EntryBlock::OwnerChanged)
    } else if key.last_use > cutoff {
        Err(EntryBlock::Used)
    } else if key.last_use > cutoff - slack {
        Err(EntryBlock::InDoubt)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cutoff() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).unwrap()
    }

    fn key() -> KeyFacts {
        KeyFacts {
            active: true,
            ending: false,
            agency_id: "agy_1".into(),
            location_id: Some("loc_1".into()),
            last_use: cutoff(),
        }
    }

    fn gate(state: EntryState, key: &KeyFacts, slack: TimeDelta) -> Result<(), EntryBlock> {
        entry_gate(state, ("agy_1", Some("loc_1")), key, cutoff(), slack)
    }

    #[test]
    fn each_conjunct_stops_the_deletion() {
        let tick = TimeDelta::microseconds(1);
        let planned = EntryState::Planned;
        assert_eq!(gate(planned, &key(), TimeDelta::zero()), Ok(()));
        for state in [EntryState::Rescued, EntryState::Deleted, EntryState::Spared] {
            assert_eq!(gate(state, &key(), TimeDelta::zero()), Err(EntryBlock::NotPlanned));
        }
        let table = [
            (KeyFacts { active: false, ..key() }, EntryBlock::NotActive),
            (KeyFacts { ending: true, ..key() }, EntryBlock::Rotated),
            (KeyFacts { agency_id: "agy_2".into(), ..key() }, EntryBlock::OwnerChanged),
            (KeyFacts { location_id: None, ..key() }, EntryBlock::OwnerChanged),
            (KeyFacts { location_id: Some("loc_2".into()), ..key() }, EntryBlock::OwnerChanged),
            (KeyFacts { last_use: cutoff() + tick, ..key() }, EntryBlock::Used),
        ];
        for (facts, block) in table {
            assert_eq!(gate(planned, &facts, TimeDelta::zero()), Err(block));
        }
    }

    #[test]
    fn slack_counts_against_the_sweep() {
        let hour = TimeDelta::hours(1);
        let tick = TimeDelta::microseconds(1);
        let edge = KeyFacts { last_use: cutoff() - hour, ..key() };
        assert_eq!(gate(EntryState::Planned, &edge, hour), Ok(()));
        let past = KeyFacts { last_use: cutoff() - hour + tick, ..key() };
        assert_eq!(gate(EntryState::Planned, &past, hour), Err(EntryBlock::InDoubt));
        assert_eq!(gate(EntryState::Planned, &past, TimeDelta::zero()), Ok(()));
    }

    #[test]
    fn every_block_has_its_word_and_the_cause_that_admins_are_told() {
        let table = [
            (EntryBlock::NotPlanned, "not_planned", None),
            (EntryBlock::NotActive, "not_active", Some(RescueCause::Revoked)),
            (EntryBlock::Rotated, "rotated", Some(RescueCause::Rotated)),
            (EntryBlock::OwnerChanged, "owner_changed", None),
            (EntryBlock::Used, "used", Some(RescueCause::Used)),
            (EntryBlock::InDoubt, "usage_in_doubt", None),
        ];
        for (block, word, cause) in table {
            assert_eq!((block.as_str(), block.rescue_cause()), (word, cause));
        }
        assert_eq!(RescueCause::ALL.map(RescueCause::as_str), ["used", "revoked", "rotated"]);
    }

    #[test]
    fn idle_days_are_whole_ones_since_creation_or_last_use() {
        let created_at = cutoff() - TimeDelta::days(400);
        let entry = |last_used_at| Entry {
            agency_id: "agy_1".into(),
            location_id: None,
            key_id: "key_1".into(),
            display_name: String::new(),
            display_prefix: String::new(),
            created_at,
            last_used_at,
            state: EntryState::Planned,
            cause: None,
            ended_at: None,
        };
        assert_eq!(entry(None).idle_days(cutoff()), 400);
        let tick = TimeDelta::microseconds(1);
        let used = entry(Some(cutoff() - TimeDelta::days(91) + tick));
        assert_eq!((used.idle_days(cutoff()), used.idle_days(cutoff() + tick)), (90, 91));
    }

    #[test]
    fn a_key_never_used_counts_from_its_creation() {
        let created = cutoff();
        assert_eq!(effective_last_use(created, None), created);
        assert_eq!(effective_last_use(created, Some(created - TimeDelta::days(1))), created);
        let later = created + TimeDelta::days(1);
        assert_eq!(effective_last_use(created, Some(later)), later);
    }
}
