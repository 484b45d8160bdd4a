//! The banner of the last day before a deletion.

use chrono::{DateTime, TimeDelta, Utc};

use super::ids::PlanId;
use super::plan::Owner;

/// For how long before the deletion the banner stands.
pub const STANDS: TimeDelta = TimeDelta::hours(24);

/// What stands above an account's pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Banner {
    /// The account.
    pub account: Owner,
    /// The plan.
    pub plan_id: PlanId,
    /// When its keys will be deleted.
    pub delete_at: DateTime<Utc>,
    /// Keys that will be deleted, at least 1.
    pub key_count: i64,
}

impl Banner {
    /// From when it stands.
    pub fn start_at(&self) -> DateTime<Utc> {
        self.delete_at - STANDS
    }
}

/// Whether a banner for a deletion at `delete_at` stands at `now`.
pub fn stands(delete_at: DateTime<Utc>, now: DateTime<Utc>) -> bool {
    delete_at - STANDS <= now && now < delete_at
}

/// The next instant after `now` at which a banner for a deletion at `delete_at` appears or goes.
pub fn next_change(delete_at: DateTime<Utc>, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    [delete_at - STANDS, delete_at].into_iter().find(|at| *at > now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use service_kit::time::from_micros;

    #[test]
    fn a_banner_stands_from_24_hours_before_until_the_deletion_to_the_microsecond() {
        let delete_at = from_micros(1_767_225_600_000_000);
        let tick = TimeDelta::microseconds(1);
        let start = delete_at - STANDS;
        assert!(!stands(delete_at, start - tick));
        assert!(stands(delete_at, start));
        assert!(stands(delete_at, delete_at - tick));
        assert!(!stands(delete_at, delete_at));
        assert_eq!(next_change(delete_at, start - tick), Some(start));
        assert_eq!(next_change(delete_at, start), Some(delete_at));
        assert_eq!(next_change(delete_at, delete_at), None);
    }
}
