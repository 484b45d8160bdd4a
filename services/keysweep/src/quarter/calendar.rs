//! The calendar of a played quarter, computed apart from the services: what is compared must not come from one source.

use chrono::{DateTime, Datelike, Days, Months, NaiveDate, NaiveTime, TimeDelta, Utc};

use crate::quarter::facts::Stage;

/// A key unused for this long is deleted.
pub(crate) const IDLE: TimeDelta = TimeDelta::days(90);
/// How long before its mark a stage's notices may go out.
pub(crate) const WINDOW: TimeDelta = TimeDelta::hours(6);
/// A banner stands for this long before a deletion.
pub(crate) const BANNER: TimeDelta = TimeDelta::hours(24);
/// A lot that would be deleted later than this after the sweep waits for the next quarter.
pub(crate) const LATEST: TimeDelta = TimeDelta::days(14);
/// The smallest step of every clock here.
pub(crate) const TICK: TimeDelta = TimeDelta::microseconds(1);

/// How long before a deletion the notices of a stage must be out.
pub(crate) fn lead(stage: Stage) -> TimeDelta {
    match stage {
        Stage::D15 => TimeDelta::days(15),
        Stage::D7 => TimeDelta::days(7),
        Stage::D1 => TimeDelta::days(1),
    }
}

/// The first sweep after `now` that can still be planned: until a day before.
pub(crate) fn next_sweep(now: DateTime<Utc>) -> DateTime<Utc> {
    let today = now.date_naive();
    let first_of_month = today.checked_sub_days(Days::new(u64::from(today.day0()))).unwrap_or(today);
    let to_quarter = (3 - first_of_month.month0() % 3) % 3;
    let mut sweep = midnight(first_of_month + Months::new(to_quarter));
    while now > sweep - lead(Stage::D1) {
        sweep = midnight(sweep.date_naive() + Months::new(3));
    }
    sweep
}

/// The instant at which a day begins.
pub(crate) fn midnight(day: NaiveDate) -> DateTime<Utc> {
    day.and_time(NaiveTime::MIN).and_utc()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_sweep_is_the_first_that_can_still_be_planned() {
        let at = |text: &str| text.parse::<DateTime<Utc>>().expect("an instant");
        assert_eq!(next_sweep(at("2026-11-22T12:00:00Z")), at("2027-01-01T00:00:00Z"));
        assert_eq!(next_sweep(at("2026-12-31T00:00:00Z")), at("2027-01-01T00:00:00Z"));
        assert_eq!(next_sweep(at("2026-12-31T00:00:00.000001Z")), at("2027-04-01T00:00:00Z"));
        assert_eq!(next_sweep(at("2027-01-01T00:00:00Z")), at("2027-04-01T00:00:00Z"));
        assert_eq!(next_sweep(at("2027-02-28T00:00:00Z")), at("2027-04-01T00:00:00Z"));
    }
}
