//! What one activation of the sweep did.

use serde::Serialize;

use crate::domain::sweep::HoldReason;

/// What a replica was in one activation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SweepStanding {
    /// Another replica sweeps: nothing was done.
    #[default]
    Following,
    /// It sweeps.
    Leading,
    /// It swept until another replica turned out to have taken over: from then on nothing was written.
    LeaseLost,
    /// Its clock is too far off the database's: nothing was done.
    ClockOff,
}

/// What one activation did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SweepTick {
    /// Whether this replica sweeps.
    pub standing: SweepStanding,
    /// Whether it took the lease in this activation.
    pub lease_taken: bool,
    /// Microseconds that its clock is ahead of the database's; none: the database has no clock of its own.
    pub clock_offset_us: Option<i64>,
    /// Plans made, also those that await confirmation.
    pub plans_made: u64,
    /// Milliseconds that making a plan took.
    pub plan_ms: u64,
    /// Confirmed plans published.
    pub plans_published: u64,
    /// Plans never confirmed in time.
    pub plans_cancelled: u64,
    /// Plans whose last lot is closed.
    pub plans_completed: u64,
    /// Entries found to have left.
    pub entries_kept: u64,
    /// Keys deleted.
    pub keys_deleted: u64,
    /// Milliseconds that the longest batch of the deletion took, and so held its locks.
    pub longest_batch_ms: u64,
    /// Lots closed with nothing more to delete.
    pub lots_executed: u64,
    /// Lots that wait for the next quarter.
    pub lots_deferred: u64,
    /// Events removed for their age.
    pub events_removed: u64,
    /// Lots that are held, by reason, while a plan is open.
    pub lots_held: Vec<(HoldReason, i64)>,
    /// What was due and could not be done, in words.
    pub waits: Vec<String>,
}

impl SweepTick {
    /// Units of work done; 0: nothing was due.
    #[must_use]
    pub fn work(&self) -> u64 {
        self.plans_made
            + self.plans_published
            + self.plans_cancelled
            + self.plans_completed
            + self.entries_kept
            + self.keys_deleted
            + self.lots_executed
            + self.lots_deferred
            + self.events_removed
    }
}
