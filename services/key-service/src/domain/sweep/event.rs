//! What is published of a plan's history.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::entry::RescueCause;
use super::lot::{HoldReason, Stage};

/// Most entries in one chunk of a published plan.
pub const CHUNK_ENTRIES: u32 = 1_000;

/// A stretch of a plan's entries in the order of (agency, key), both ends included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRange {
    /// Agency and key of the first entry.
    pub first: (String, String),
    /// Agency and key of the last entry.
    pub last: (String, String),
}

/// What happened. Stored as JSON; a subscriber reads each of them for ever, so fields are only ever added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventPayload {
    /// A plan begins; its entries follow.
    PlanPublished {
        /// D.
        delete_at: DateTime<Utc>,
        /// Keys last used at or before this instant are listed.
        idle_since: DateTime<Utc>,
        /// After it nothing is deleted any more.
        last_delete_at: DateTime<Utc>,
        /// How long before its mark a stage's notices may begin.
        stage_window_ms: i64,
    },
    /// A chunk of entries, read from the plan when it is sent: their evidence never changes.
    PlanEntries(KeyRange),
    /// All entries were named.
    PlanSealed {
        /// Keys listed.
        entry_count: i64,
        /// Impacted agencies.
        lot_count: i64,
    },
    /// A key left its lot.
    EntryRescued {
        /// The lot's agency.
        agency_id: String,
        /// The key.
        key_id: String,
        /// Why.
        cause: RescueCause,
        /// When.
        rescued_at: DateTime<Utc>,
    },
    /// A lot's deletion moved later.
    LotRescheduled {
        /// The lot's agency.
        agency_id: String,
        /// When it was to be deleted.
        previous_delete_at: DateTime<Utc>,
        /// When it will be.
        delete_at: DateTime<Utc>,
        /// The stage whose late receipt moved it.
        stage: Stage,
    },
    /// A lot is held.
    LotHeld {
        /// The lot's agency.
        agency_id: String,
        /// Why.
        hold_reason: HoldReason,
        /// In words.
        reason: String,
    },
    /// A hold ended.
    LotReleased {
        /// The lot's agency.
        agency_id: String,
        /// In words.
        reason: String,
    },
    /// A lot was closed.
    LotExecuted {
        /// The lot's agency.
        agency_id: String,
        /// Keys deleted.
        deleted_count: i64,
        /// Keys that had left.
        rescued_count: i64,
        /// When.
        executed_at: DateTime<Utc>,
    },
    /// A lot waits for the next quarter.
    LotDeferred {
        /// The lot's agency.
        agency_id: String,
        /// Why.
        reason: String,
    },
    /// The plan's last lot was closed.
    PlanCompleted {
        /// Keys deleted.
        deleted_count: i64,
        /// Keys that left.
        rescued_count: i64,
        /// Keys spared.
        spared_count: i64,
    },
    /// The plan was ended.
    PlanCancelled {
        /// Why.
        reason: String,
    },
}

impl EventPayload {
    /// A plan begins.
    #[must_use]
    pub fn published(plan: &super::plan::Plan) -> Self {
        Self::PlanPublished {
            delete_at: plan.delete_at,
            idle_since: plan.idle_since,
            last_delete_at: plan.last_delete_at,
            stage_window_ms: plan.stage_window.num_milliseconds(),
        }
    }

    /// How long before its mark a stage's notices may begin, for a plan that begins.
    #[must_use]
    pub fn stage_window(stage_window_ms: i64) -> TimeDelta {
        TimeDelta::try_milliseconds(stage_window_ms).unwrap_or_default()
    }
}

/// An event about to be appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// The plan it belongs to.
    pub plan_id: String,
    /// What happened.
    pub payload: EventPayload,
}

/// An event of the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    /// Position: from 1, without gaps, in the order of commitment.
    pub sequence: i64,
    /// When it happened.
    pub occurred_at: DateTime<Utc>,
    /// The plan it belongs to.
    pub plan_id: String,
    /// What happened.
    pub payload: EventPayload,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_read_in_milliseconds() {
        assert_eq!(EventPayload::stage_window(21_600_001), TimeDelta::hours(6) + TimeDelta::milliseconds(1));
        assert_eq!(EventPayload::stage_window(i64::MIN), TimeDelta::zero(), "no span of time");
    }
}
