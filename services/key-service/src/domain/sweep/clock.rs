//! Whether this process's clock may be trusted with a deletion.

use chrono::{DateTime, TimeDelta, Utc};

/// A clock further than this off the database's is wrong, or the database's is: nobody can tell which.
pub const MAX_OFFSET: TimeDelta = TimeDelta::seconds(10);

/// Why a lot whose time has come by the clock waits all the same: the clock is `ahead` of the time that has really passed,
/// and by that the lot's time has not come.
#[must_use]
pub fn clock_wait(delete_at: DateTime<Utc>, now: DateTime<Utc>, ahead: TimeDelta) -> Option<String> {
    (delete_at <= now && delete_at > now - ahead).then(|| {
        let seconds = ahead.num_seconds();
        format!("the clock was set forward by {seconds} s: until they have passed, or the service was started anew")
    })
}

/// Why nothing is planned or deleted by a clock that stands `offset` before (+) or behind (−) the database's, told to within
/// `uncertainty`: it may be more than [`MAX_OFFSET`] off.
#[must_use]
pub fn offset_wait(offset: TimeDelta, uncertainty: TimeDelta) -> Option<String> {
    (offset.abs() + uncertainty > MAX_OFFSET).then(|| {
        let seconds = |span: TimeDelta| span.as_seconds_f64();
        format!("the clock is {:+.1} s (± {:.1} s) off the database's", seconds(offset), seconds(uncertainty))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lot_waits_while_only_a_clock_set_forward_says_that_its_time_has_come() {
        let (hour, tick) = (TimeDelta::hours(1), TimeDelta::microseconds(1));
        let d = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let waits = |delete_at, ahead| clock_wait(delete_at, d, ahead).is_some();
        assert!(!waits(d, TimeDelta::zero()));
        assert!(waits(d, tick));
        assert!(!waits(d + tick, hour), "its time has not come by any clock");
        assert!(waits(d - hour + tick, hour));
        assert!(!waits(d - hour, hour), "the time has really passed");
        let words = clock_wait(d, d, hour).unwrap();
        assert!(words.starts_with("the clock was set forward by 3600 s"), "{words}");
    }

    #[test]
    fn a_clock_waits_only_beyond_ten_seconds() {
        let (tick, none) = (TimeDelta::microseconds(1), TimeDelta::zero());
        assert_eq!(offset_wait(MAX_OFFSET, none), None);
        assert_eq!(offset_wait(-MAX_OFFSET, none), None);
        assert_eq!(
            offset_wait(MAX_OFFSET + tick, none).as_deref(),
            Some("the clock is +10.0 s (± 0.0 s) off the database's")
        );
        assert!(offset_wait(-MAX_OFFSET - tick, none).is_some());
        assert!(offset_wait(MAX_OFFSET, tick).is_some(), "in doubt it waits");
        assert!(offset_wait(none, MAX_OFFSET + tick).is_some(), "a reading that took too long tells nothing");
    }
}
