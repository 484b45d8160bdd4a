//! How many emails may be begun: a rate and a number a day, counted over all replicas.

use chrono::{DateTime, TimeDelta, Utc};
use service_kit::time::{from_micros, to_micros};

/// The limits; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendLimits {
    /// Emails begun a second at most.
    pub per_second: u32,
    /// Emails a UTC day at most.
    pub per_day: u32,
}

/// What was begun already, by whichever replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendBook {
    /// The day that is counted, in days since 1970.
    pub day: i64,
    /// Emails begun on it.
    pub day_count: i64,
    /// When the next email may be begun under the rate.
    pub next_slot_at: DateTime<Utc>,
}

/// Emails that may be begun: the first at once or after a wait, the others one gap apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// How many.
    pub count: u64,
    /// How long the first waits.
    pub wait: TimeDelta,
    /// How long each further one waits for the one before.
    pub gap: TimeDelta,
}

/// Which limit puts emails off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendLimit {
    /// The rate.
    PerSecond,
    /// The number a day.
    PerDay,
}

impl SendLimit {
    /// All limits.
    pub const ALL: [Self; 2] = [Self::PerSecond, Self::PerDay];

    /// The name, as in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::PerSecond => "per_second",
            Self::PerDay => "per_day",
        }
    }
}

/// That a limit puts emails off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deferral {
    /// Which.
    pub limit: SendLimit,
    /// Until when, if nothing else is begun before.
    pub until: DateTime<Utc>,
}

const DAY_S: i64 = 86_400;
const SECOND_US: i64 = 1_000_000;
/// Turns are given out this far ahead: far enough that a batch is worth its transaction, so near that a replica which dies
/// with them wastes little.
const AHEAD: TimeDelta = TimeDelta::seconds(1);

/// By how much the clocks of two replicas may differ.
const SKEW: TimeDelta = TimeDelta::minutes(1);

fn day_of(at: DateTime<Utc>) -> i64 {
    at.timestamp().div_euclid(DAY_S)
}

impl SendLimits {
    /// Whether there is any.
    pub fn is_none(self) -> bool {
        self.per_second == 0 && self.per_day == 0
    }

    /// Enters up to `wanted` emails into the book, as many as the limits allow at `now`.
    pub fn grant(self, book: &mut SendBook, wanted: u64, now: DateTime<Utc>) -> Grant {
        book.turn_to(now);
        let count = wanted.min(self.left_today(book));
        let Some(gap) = self.gap() else {
            book.day_count = book.day_count.saturating_add_unsigned(count);
            return Grant { count, wait: TimeDelta::zero(), gap: TimeDelta::zero() };
        };
        let first = book.first_slot(now);
        let room = to_micros(now + AHEAD) - to_micros(first);
        let slots = room.max(0).unsigned_abs().div_ceil(gap.num_microseconds().unwrap_or(SECOND_US).unsigned_abs());
        let count = count.min(slots);
        book.day_count = book.day_count.saturating_add_unsigned(count);
        if count > 0 {
            book.next_slot_at = first + gap * i32::try_from(count).unwrap_or(i32::MAX);
        }
        Grant { count, wait: first - now, gap }
    }

    /// The limit that puts a further email off at `now`.
    pub fn deferral(self, book: &SendBook, now: DateTime<Utc>) -> Option<Deferral> {
        let mut book = *book;
        book.turn_to(now);
        if self.left_today(&book) == 0 {
            let until = from_micros((book.day + 1).saturating_mul(DAY_S * SECOND_US));
            return Some(Deferral { limit: SendLimit::PerDay, until });
        }
        self.gap()?;
        let until = book.first_slot(now);
        (until >= now + AHEAD).then_some(Deferral { limit: SendLimit::PerSecond, until })
    }

    fn left_today(self, book: &SendBook) -> u64 {
        match self.per_day {
            0 => u64::MAX,
            limit => (i64::from(limit) - book.day_count).max(0).unsigned_abs(),
        }
    }

    fn gap(self) -> Option<TimeDelta> {
        let rate = i64::from(self.per_second);
        (rate > 0).then(|| TimeDelta::microseconds((SECOND_US + rate - 1) / rate))
    }
}

impl SendBook {
    /// Takes back emails that were begun at `then` and never reached the mail server.
    pub fn give_back(&mut self, count: u64, then: DateTime<Utc>) {
        if self.day == day_of(then) {
            self.day_count = self.day_count.saturating_sub_unsigned(count).max(0);
        }
    }

    /// Turns the page when a new day has begun. Around midnight replicas may differ by a moment: one that is still in the day
    /// before counts on the new one.
    fn turn_to(&mut self, now: DateTime<Utc>) {
        let today = day_of(now);
        if today != self.day && today != self.day - 1 {
            (self.day, self.day_count) = (today, 0);
        }
    }

    /// The next turn. One that lies far ahead was left by a clock that has been set back since.
    fn first_slot(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        if self.next_slot_at > now + SKEW { now } else { self.next_slot_at.max(now) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn book() -> SendBook {
        SendBook { day: 0, day_count: 0, next_slot_at: DateTime::UNIX_EPOCH }
    }

    fn noon() -> DateTime<Utc> {
        from_micros(1_767_268_800 * SECOND_US)
    }

    #[test]
    fn without_limits_everything_goes_at_once() {
        let grant = SendLimits::default().grant(&mut book(), 500, noon());
        assert_eq!((grant.count, grant.wait), (500, TimeDelta::zero()));
        assert_eq!(SendLimits::default().deferral(&book(), noon()), None);
    }

    #[test]
    fn a_second_gives_out_its_turns_once() {
        let limits = SendLimits { per_second: 50, per_day: 0 };
        let (mut book, now) = (book(), noon());
        let first = limits.grant(&mut book, 30, now);
        assert_eq!((first.count, first.wait, first.gap), (30, TimeDelta::zero(), TimeDelta::milliseconds(20)));
        let second = limits.grant(&mut book, 30, now);
        assert_eq!((second.count, second.wait), (20, TimeDelta::milliseconds(600)));
        assert_eq!(limits.grant(&mut book, 30, now).count, 0);
        let deferral = limits.deferral(&book, now).expect("put off");
        assert_eq!((deferral.limit, deferral.until), (SendLimit::PerSecond, now + TimeDelta::seconds(1)));
        assert_eq!(limits.grant(&mut book, 30, now + TimeDelta::milliseconds(40)).count, 2);
        assert_eq!(limits.grant(&mut book, 30, now - SKEW / 2).count, 0, "a replica whose clock is behind");
        assert_eq!(limits.grant(&mut book, 30, now - TimeDelta::days(1)).count, 30, "a clock that was set back");
    }

    #[test]
    fn a_day_ends_at_midnight_to_the_microsecond_and_only_once() {
        let limits = SendLimits { per_second: 0, per_day: 10 };
        let (mut book, midnight) = (book(), noon() + TimeDelta::hours(12));
        let tick = TimeDelta::microseconds(1);
        assert_eq!(limits.grant(&mut book, 7, midnight - tick).count, 7);
        assert_eq!(limits.grant(&mut book, 7, midnight - tick).count, 3);
        let deferral = limits.deferral(&book, midnight - tick).expect("put off");
        assert_eq!((deferral.limit, deferral.until), (SendLimit::PerDay, midnight));
        assert_eq!(limits.deferral(&book, midnight), None);
        assert_eq!(limits.grant(&mut book, 10, midnight).count, 10);
        assert_eq!(limits.grant(&mut book, 10, midnight - tick).count, 0, "a replica that is a moment behind");
        assert_eq!(limits.grant(&mut book, 10, midnight).count, 0);
    }

    #[test]
    fn what_never_reached_the_server_is_given_back_to_its_own_day() {
        let limits = SendLimits { per_second: 0, per_day: 10 };
        let (mut book, now) = (book(), noon());
        limits.grant(&mut book, 10, now);
        book.give_back(4, now);
        assert_eq!(limits.grant(&mut book, 10, now).count, 4);
        limits.grant(&mut book, 2, now + TimeDelta::days(1));
        book.give_back(10, now);
        assert_eq!(book.day_count, 2);
    }

    proptest! {
        #[test]
        fn no_day_and_no_second_gets_more_than_its_limit(
            per_second in 1u32..200,
            per_day in 1u32..500,
            asks in prop::collection::vec((0u64..90, 0i64..3_000_000), 1..60),
        ) {
            let limits = SendLimits { per_second, per_day };
            let (mut book, mut now, mut begun) = (book(), noon() + TimeDelta::hours(11), Vec::new());
            for (wanted, pass) in asks {
                now += TimeDelta::microseconds(pass * 100);
                let grant = limits.grant(&mut book, wanted, now);
                prop_assert!(grant.count <= wanted);
                begun.extend((0..grant.count).map(|n| now + grant.wait + grant.gap * n as i32));
                prop_assert!(begun.last().is_none_or(|last| *last < now + AHEAD + grant.gap));
            }
            prop_assert!(begun.is_sorted());
            for (i, at) in begun.iter().enumerate() {
                let within = begun[i..].iter().take_while(|other| **other - *at < TimeDelta::seconds(1)).count();
                prop_assert!(within <= per_second as usize, "{within} in a second");
            }
            // Turns begin up to a second after they were counted: a day may lend that much to the next one.
            prop_assert!(begun.len() as u64 <= 2 * u64::from(per_day));
        }
    }
}
