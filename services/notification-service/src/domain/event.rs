//! The events of key-service's sweep plans.

use chrono::{DateTime, TimeDelta, Utc};

use super::ids::{AgencyId, KeyId, PlanId};
use super::plan::{Entry, HoldReason, RescueCause};

/// One event of the history.
#[derive(Clone, Debug, PartialEq)]
pub struct SweepEvent {
    /// Position in the history, from 1 without gaps.
    pub sequence: i64,
    /// When it happened.
    pub happened_at: DateTime<Utc>,
    /// The plan it belongs to.
    pub plan_id: PlanId,
    /// What happened.
    pub payload: Payload,
}

impl SweepEvent {
    /// What tells this event from one of another history in the same place. Kept in the database: its words must not change.
    pub fn mark(&self) -> String {
        let kind = match self.payload {
            Payload::PlanPublished { .. } => "plan_published",
            Payload::PlanEntries(_) => "plan_entries",
            Payload::PlanSealed { .. } => "plan_sealed",
            Payload::EntryRescued { .. } => "entry_rescued",
            Payload::LotRescheduled { .. } => "lot_rescheduled",
            Payload::LotHeld { .. } => "lot_held",
            Payload::LotReleased { .. } => "lot_released",
            Payload::LotExecuted { .. } => "lot_executed",
            Payload::LotDeferred { .. } => "lot_deferred",
            Payload::PlanCompleted => "plan_completed",
            Payload::PlanCancelled { .. } => "plan_cancelled",
        };
        format!("{} {} {kind}", self.plan_id, self.happened_at.timestamp_micros())
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Payload {
    /// A plan begins; its entries follow.
    PlanPublished {
        /// When its lots will be deleted unless a later event moves one.
        delete_at: DateTime<Utc>,
        /// Keys unused since this instant are listed.
        idle_since_at: DateTime<Utc>,
        /// After this instant no lot is deleted any more.
        last_delete_at: DateTime<Utc>,
        /// How long before its mark a stage may begin.
        stage_window: TimeDelta,
    },
    /// A chunk of its entries.
    PlanEntries(Vec<Entry>),
    /// All entries were sent: notices may go out.
    PlanSealed {
        /// Keys listed.
        entry_count: i64,
        /// Lots, one for each impacted agency.
        lot_count: i64,
    },
    /// A key left its lot.
    EntryRescued {
        /// The lot's agency.
        agency_id: AgencyId,
        /// The key.
        key_id: KeyId,
        /// Why.
        cause: RescueCause,
        /// When.
        rescued_at: DateTime<Utc>,
    },
    /// A lot's deletion moved later.
    LotRescheduled {
        /// The lot's agency.
        agency_id: AgencyId,
        /// When it will be deleted.
        delete_at: DateTime<Utc>,
    },
    /// A lot is held.
    LotHeld {
        /// The lot's agency.
        agency_id: AgencyId,
        /// Why.
        hold_reason: HoldReason,
        /// Why, in words.
        reason: String,
    },
    /// A hold ended.
    LotReleased {
        /// The lot's agency.
        agency_id: AgencyId,
    },
    /// A lot was closed by deletion.
    LotExecuted {
        /// The lot's agency.
        agency_id: AgencyId,
        /// Keys deleted.
        deleted_count: i64,
        /// When.
        executed_at: DateTime<Utc>,
    },
    /// A lot waits for the next quarter.
    LotDeferred {
        /// The lot's agency.
        agency_id: AgencyId,
        /// Why, in words.
        reason: String,
    },
    /// The plan's last lot was closed.
    PlanCompleted,
    /// The plan was ended.
    PlanCancelled {
        /// Why, in words.
        reason: String,
    },
}
