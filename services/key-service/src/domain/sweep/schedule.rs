//! When sweeps happen, and what of them an operator may set.

use chrono::{DateTime, Datelike, TimeDelta, TimeZone, Utc};
use thiserror::Error;

use super::lot::Stage;
use super::plan::Breaker;

/// Days without use after which a key is deleted, by the published policy.
pub const IDLE_DAYS: i64 = 90;

/// Days after D for which late notices may move a lot. Past them the next sweep's own dates come near, so the lot waits.
pub const LAST_DELETE_DAYS: i64 = 14;

/// The day and hour (UTC) in January, April, July and October at which deletion begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cadence {
    day: u32,
    hour: u32,
}

/// A day or hour that does not exist in every quarter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CadenceError {
    /// Only days 1 to 28 exist in every month.
    #[error("the day of the sweep must be 1 to 28")]
    Day,
    /// Hours are 0 to 23.
    #[error("the hour of the sweep must be 0 to 23")]
    Hour,
}

impl Cadence {
    /// The given day (1 to 28) and hour (0 to 23, UTC) of each quarter's first month.
    ///
    /// # Errors
    /// When either does not exist in every quarter.
    pub fn new(day: u32, hour: u32) -> Result<Self, CadenceError> {
        if !(1..=28).contains(&day) {
            return Err(CadenceError::Day);
        }
        if hour > 23 {
            return Err(CadenceError::Hour);
        }
        Ok(Self { day, hour })
    }

    /// The first deletion instant strictly after `now`.
    #[must_use]
    pub fn next_sweep(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        let quarter = i64::from(now.year()) * 4 + i64::from(now.month0() / 3);
        let this = self.of_quarter(quarter);
        if this > now { this } else { self.of_quarter(quarter + 1) }
    }

    /// The deletion instant of a quarter counted from year 0. The day and hour were checked, so it exists; outside chrono's range
    /// of years it is the end of time, for which nothing is ever due.
    fn of_quarter(&self, quarter: i64) -> DateTime<Utc> {
        let year = i32::try_from(quarter.div_euclid(4)).unwrap_or(i32::MAX);
        let month = u32::try_from(quarter.rem_euclid(4)).unwrap_or(0) * 3 + 1;
        Utc.with_ymd_and_hms(year, month, self.day, self.hour, 0, 0).single().unwrap_or(DateTime::<Utc>::MAX_UTC)
    }
}

impl Default for Cadence {
    fn default() -> Self {
        Self { day: 1, hour: 0 }
    }
}

/// What an operator sets of the sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SweepPolicy {
    /// When deletion begins, each quarter.
    pub cadence: Cadence,
    /// How long before its mark the notices of a stage may begin to go out.
    pub stage_window: TimeDelta,
    /// The size of a plan that needs an operator's word.
    pub breaker: Breaker,
    /// How much older than the true last use a stored one may be.
    pub recording_slack: TimeDelta,
    /// Entries deleted in one transaction at most.
    pub delete_batch: u32,
    /// How long a replica that sweeps keeps others from it after its last sign of life.
    pub lease: TimeDelta,
    /// How long events of ended plans are kept at least; none: for ever.
    pub event_retention: Option<TimeDelta>,
}

impl Default for SweepPolicy {
    fn default() -> Self {
        Self {
            cadence: Cadence::default(),
            stage_window: TimeDelta::hours(6),
            breaker: Breaker::default(),
            recording_slack: TimeDelta::hours(1),
            delete_batch: 1_000,
            lease: TimeDelta::seconds(15),
            event_retention: None,
        }
    }
}

impl SweepPolicy {
    /// The deletion instant for which a plan is to be made now, if there is one.
    ///
    /// From D − 15 d − window on. Late, after an outage, still as long as a notice sent now leaves its 15 days before the last
    /// date; later the keys wait for the next quarter.
    #[must_use]
    pub fn plan_due(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let delete_at = self.cadence.next_sweep(now);
        let from = delete_at - Stage::D15.lead() - self.stage_window;
        (now >= from && now <= planning_closes_at(delete_at)).then_some(delete_at)
    }
}

/// The last instant at which the plan for `delete_at` can still be made.
#[must_use]
pub fn planning_closes_at(delete_at: DateTime<Utc>) -> DateTime<Utc> {
    last_delete_at(delete_at) - Stage::D15.lead()
}

/// The last instant at which a lot of the plan for `delete_at` may be deleted.
#[must_use]
pub fn last_delete_at(delete_at: DateTime<Utc>) -> DateTime<Utc> {
    delete_at + TimeDelta::days(LAST_DELETE_DAYS)
}

/// Keys last used at or before this instant have been idle long enough at `delete_at`.
#[must_use]
pub fn idle_since(delete_at: DateTime<Utc>) -> DateTime<Utc> {
    delete_at - TimeDelta::days(IDLE_DAYS)
}

/// The first full hour at or after `at`.
#[must_use]
pub fn ceil_to_hour(at: DateTime<Utc>) -> DateTime<Utc> {
    const HOUR: i64 = 3_600_000_000;
    let micros = at.timestamp_micros();
    let past = micros.rem_euclid(HOUR);
    if past == 0 { at } else { at + TimeDelta::microseconds(HOUR - past) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TICK: TimeDelta = TimeDelta::microseconds(1);

    fn at(y: i32, m: u32, d: u32, h: u32) -> DateTime<Utc> {
        Utc.with_ymd_and_hms(y, m, d, h, 0, 0).unwrap()
    }

    fn cadences() -> Vec<Cadence> {
        [(1, 0), (28, 23), (15, 6)].map(|(d, h)| Cadence::new(d, h).unwrap()).to_vec()
    }

    #[test]
    fn every_quarter_from_2025_to_2125_has_its_sweep() {
        for cadence in cadences() {
            let mut previous = None;
            for year in 2025..=2125 {
                for month in [1, 4, 7, 10] {
                    let d = at(year, month, cadence.day, cadence.hour);
                    assert_eq!(cadence.next_sweep(d - TICK), d);
                    assert!(cadence.next_sweep(d) > d, "at D the next one is a quarter away");
                    if let Some(before) = previous {
                        assert_eq!(cadence.next_sweep(before), d);
                        let days = (d - before).num_days();
                        assert!((90..=92).contains(&days), "{days} days to {d}");
                    }
                    previous = Some(d);
                }
            }
        }
    }

    #[test]
    fn planning_opens_and_closes_on_the_microsecond_in_every_quarter() {
        for cadence in cadences() {
            let policy = SweepPolicy { cadence, ..SweepPolicy::default() };
            for year in 2025..=2125 {
                for month in [1, 4, 7, 10] {
                    let d = at(year, month, cadence.day, cadence.hour);
                    let opens = d - TimeDelta::days(15) - TimeDelta::hours(6);
                    assert_eq!(policy.plan_due(opens - TICK), None);
                    assert_eq!(policy.plan_due(opens), Some(d));
                    assert_eq!(policy.plan_due(d - TimeDelta::days(1)), Some(d));
                    assert_eq!(policy.plan_due(d - TimeDelta::days(1) + TICK), None);
                    assert_eq!(policy.plan_due(d), None);
                }
            }
        }
    }

    #[test]
    fn idle_since_counts_leap_days() {
        assert_eq!(idle_since(at(2028, 4, 1, 0)), at(2028, 1, 2, 0));
        assert_eq!(idle_since(at(2027, 4, 1, 0)), at(2027, 1, 1, 0));
        assert_eq!(idle_since(at(2100, 4, 1, 0)), at(2100, 1, 1, 0), "2100 is no leap year");
        assert_eq!(last_delete_at(at(2028, 1, 1, 0)), at(2028, 1, 15, 0));
    }

    #[test]
    fn a_cadence_exists_in_every_quarter() {
        assert_eq!(Cadence::new(0, 0), Err(CadenceError::Day));
        assert_eq!(Cadence::new(29, 0), Err(CadenceError::Day));
        assert_eq!(Cadence::new(1, 24), Err(CadenceError::Hour));
    }

    #[test]
    fn hours_are_rounded_up_only() {
        let hour = at(2026, 1, 1, 7);
        assert_eq!(ceil_to_hour(hour), hour);
        assert_eq!(ceil_to_hour(hour + TICK), at(2026, 1, 1, 8));
        assert_eq!(ceil_to_hour(hour - TICK), hour);
        let before_epoch = at(1969, 12, 31, 23) + TICK;
        assert_eq!(ceil_to_hour(before_epoch), at(1970, 1, 1, 0));
    }

    proptest! {
        #[test]
        fn the_next_sweep_is_after_now_and_at_most_a_quarter_away(
            secs in 1_735_689_600i64..4_922_000_000, day in 1u32..=28, hour in 0u32..=23,
        ) {
            let now = DateTime::from_timestamp(secs, 0).unwrap();
            let d = Cadence::new(day, hour).unwrap().next_sweep(now);
            prop_assert!(d > now);
            prop_assert!(d - now <= TimeDelta::days(92));
            prop_assert!(matches!(d.month(), 1 | 4 | 7 | 10));
        }

        #[test]
        fn a_plan_that_is_due_leaves_the_first_notice_its_lead(secs in 1_735_689_600i64..4_922_000_000) {
            let now = DateTime::from_timestamp(secs, 0).unwrap();
            if let Some(d) = SweepPolicy::default().plan_due(now) {
                prop_assert!(now + Stage::D15.lead() <= last_delete_at(d));
                prop_assert!(now < d);
            }
        }
    }
}
