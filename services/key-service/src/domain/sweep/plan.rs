//! One quarterly deletion.

use chrono::{DateTime, TimeDelta, Utc};

/// The life of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PlanState {
    /// Above the breaker's size: no lots yet, an operator must confirm or cancel it.
    AwaitingConfirmation,
    /// Published: its lots are announced and deleted.
    Open,
    /// Every lot is closed.
    Completed,
    /// Ended by an operator, or never confirmed in time.
    Cancelled,
}

impl PlanState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::AwaitingConfirmation, Self::Open, Self::Completed, Self::Cancelled];

    /// The state in words.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AwaitingConfirmation => "AWAITING_CONFIRMATION",
            Self::Open => "OPEN",
            Self::Completed => "COMPLETED",
            Self::Cancelled => "CANCELLED",
        }
    }
}

/// One quarterly deletion, as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// `plan_…`.
    pub plan_id: String,
    /// D, the first instant at which anything of the plan may be deleted.
    pub delete_at: DateTime<Utc>,
    /// Keys last used at or before this instant were listed.
    pub idle_since: DateTime<Utc>,
    /// After this instant nothing of the plan is deleted any more.
    pub last_delete_at: DateTime<Utc>,
    /// How long before its mark a stage's notices may begin.
    pub stage_window: TimeDelta,
    /// Where the plan stands.
    pub state: PlanState,
    /// What it waits for or why it ended; empty: nothing to say.
    pub state_reason: String,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When an operator let it go ahead; only for a plan that the breaker stopped.
    pub confirmed_at: Option<DateTime<Utc>>,
    /// When it was published.
    pub published_at: Option<DateTime<Utc>>,
    /// When its last lot was closed.
    pub completed_at: Option<DateTime<Utc>>,
    /// Keys listed.
    pub entry_count: i64,
    /// Impacted agencies.
    pub lot_count: i64,
    /// All ACTIVE keys when the plan was made.
    pub active_key_count: i64,
}

/// The size above which a plan waits for an operator: both limits must be passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Breaker {
    /// Share of all ACTIVE keys, in percent.
    pub max_percent: u32,
    /// Keys.
    pub max_keys: u64,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { max_percent: 25, max_keys: 1_000 }
    }
}

impl Breaker {
    /// Whether a plan of `listed` among `active` keys is too large to go ahead by itself.
    #[must_use]
    pub fn trips(&self, listed: u64, active: u64) -> bool {
        listed > self.max_keys && u128::from(listed) * 100 > u128::from(active) * u128::from(self.max_percent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_has_its_name() {
        let names = ["AWAITING_CONFIRMATION", "OPEN", "COMPLETED", "CANCELLED"];
        assert_eq!(PlanState::ALL.map(PlanState::as_str), names);
    }

    #[test]
    fn the_breaker_needs_both_limits_passed() {
        let breaker = Breaker::default();
        let table = [
            (0, 0, false),
            (1_000, 1_000, false),
            (1_001, 1_001, true),
            (1_001, 4_004, false),
            (1_001, 4_003, true),
            (2_500, 10_000, false),
            (2_501, 10_000, true),
            (u64::MAX, u64::MAX, true),
        ];
        for (listed, active, expected) in table {
            assert_eq!(breaker.trips(listed, active), expected, "{listed} of {active}");
        }
    }
}
