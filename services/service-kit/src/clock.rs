//! The time, passed and never fetched.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, TimeDelta, Utc};
use futures::future::BoxFuture;
use tokio::sync::watch;

use crate::time::{from_micros, truncate};

/// Tells the time in microseconds, and waits for an instant.
pub trait Clock: Send + Sync + Debug {
    /// The current instant, cut to the microsecond.
    fn now(&self) -> DateTime<Utc>;

    /// Time that has passed since some fixed instant, whatever the clock was set to meanwhile. On Linux the time counts for which
    /// the machine slept.
    fn lived(&self) -> Duration;

    /// What a database's clock shows in the world of this clock. None: the world is the real one, and the database is to be
    /// asked.
    fn database_now(&self) -> Option<DateTime<Utc>> {
        None
    }

    /// Waits until [`Clock::now`] has reached `at`; returns at once when it has already.
    fn sleep_until(&self, at: DateTime<Utc>) -> BoxFuture<'_, ()>;

    /// Waits until `by` has been lived through, whatever the clock is set to meanwhile.
    fn sleep(&self, by: Duration) -> BoxFuture<'_, ()>;
}

/// A clock that many tasks share.
pub type SharedClock = Arc<dyn Clock>;

/// The wall clock of the machine.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock;

/// The wall clock may be set while somebody waits, so it is looked at anew at least this often.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    fn now(&self) -> DateTime<Utc> {
        // Before 1970 no clock is right, and none is asked to tell by how much it is wrong.
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }

    fn lived(&self) -> Duration {
        // Else waking up would look like a clock that was set forward.
        #[cfg(target_os = "linux")]
        if let Ok(at) = nix::time::ClockId::CLOCK_BOOTTIME.now() {
            return at.into();
        }
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed()
    }

    fn sleep_until(&self, at: DateTime<Utc>) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            while let Ok(left) = (at - self.now()).to_std() {
                if left.is_zero() {
                    return;
                }
                tokio::time::sleep(left.min(LOOK_AGAIN)).await;
            }
        })
    }

    fn sleep(&self, by: Duration) -> BoxFuture<'_, ()> {
        Box::pin(tokio::time::sleep(by))
    }
}

/// A clock that stands still until it is moved.
#[derive(Debug)]
pub struct SimulatedClock {
    now: watch::Sender<DateTime<Utc>>,
    lived: Mutex<Duration>,
    database_lead: Mutex<TimeDelta>,
}

impl SimulatedClock {
    /// A clock that stands at `start`.
    pub fn new(start: DateTime<Utc>) -> Self {
        Self { now: watch::Sender::new(truncate(start)), lived: Mutex::default(), database_lead: Mutex::default() }
    }

    /// Lets time pass until `at` and wakes who waited for it. An earlier instant sets the clock back.
    pub fn advance_to(&self, at: DateTime<Utc>) {
        if let Ok(passed) = (truncate(at) - self.now()).to_std() {
            *self.lived.lock().unwrap_or_else(PoisonError::into_inner) += passed;
        }
        self.set_to(at);
    }

    /// Lets `by` pass.
    pub fn advance(&self, by: TimeDelta) {
        self.advance_to(self.now() + by);
    }

    /// Sets the clock without any time having passed.
    pub fn set_to(&self, at: DateTime<Utc>) {
        self.now.send_replace(truncate(at));
    }

    /// Sets the clocks of databases `lead` ahead of this one; they stand alike at first.
    pub fn set_database_lead(&self, lead: TimeDelta) {
        *self.database_lead.lock().unwrap_or_else(PoisonError::into_inner) = lead;
    }
}

impl Clock for SimulatedClock {
    fn now(&self) -> DateTime<Utc> {
        *self.now.borrow()
    }

    fn lived(&self) -> Duration {
        *self.lived.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn database_now(&self) -> Option<DateTime<Utc>> {
        Some(self.now() + *self.database_lead.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn sleep_until(&self, at: DateTime<Utc>) -> BoxFuture<'_, ()> {
        let mut changes = self.now.subscribe();
        Box::pin(async move {
            // The sender lives as long as `self`, so waiting cannot fail.
            let _ = changes.wait_for(|now| *now >= at).await;
        })
    }

    fn sleep(&self, by: Duration) -> BoxFuture<'_, ()> {
        let mut changes = self.now.subscribe();
        let until = self.lived().saturating_add(by);
        Box::pin(async move {
            // As above.
            let _ = changes.wait_for(|_| self.lived() >= until).await;
        })
    }
}

/// A clock that follows another process's, as far as that one tells its time: what this machine's is set to is then of no account.
/// Until something was heard it shows the machine's.
///
/// It is never behind the other clock by more than the machines' monotonic clocks drift apart between two messages, and ahead of it
/// by the time at most that passed between the question and the answer.
#[derive(Debug)]
pub struct FollowingClock {
    own: SharedClock,
    /// What the other clock showed when no time had been lived through.
    origin: Mutex<Option<DateTime<Utc>>>,
}

impl FollowingClock {
    /// Shows what `own` does until it hears of another.
    pub fn new(own: SharedClock) -> Self {
        Self { own, origin: Mutex::default() }
    }

    /// Whether it follows another clock.
    pub fn follows(&self) -> bool {
        self.origin().is_some()
    }

    /// How far the machine's clock is ahead of the one that is followed.
    pub fn own_lead(&self) -> Option<TimeDelta> {
        self.follows().then(|| self.own.now() - self.now())
    }

    /// The other clock showed `at` after it was asked, at `asked` of the time lived.
    pub fn answered(&self, asked: Duration, at: DateTime<Utc>) {
        *self.origin.lock().unwrap_or_else(PoisonError::into_inner) = at.checked_sub_signed(delta(asked));
    }

    /// The other clock showed `at` some while ago; answers how much later than that this one takes it to be.
    pub fn heard(&self, at: DateTime<Utc>) -> TimeDelta {
        let latest = at.checked_sub_signed(delta(self.own.lived()));
        let mut origin = self.origin.lock().unwrap_or_else(PoisonError::into_inner);
        let late = origin.zip(latest).map_or(TimeDelta::zero(), |(origin, latest)| origin - latest);
        // An answer is as old as it may be: what was told since then may show that it was older.
        *origin = (*origin).max(latest);
        late
    }

    fn origin(&self) -> Option<DateTime<Utc>> {
        *self.origin.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn delta(span: Duration) -> TimeDelta {
    TimeDelta::from_std(span).unwrap_or(TimeDelta::MAX)
}

impl Clock for FollowingClock {
    fn now(&self) -> DateTime<Utc> {
        let followed = self.origin().and_then(|origin| origin.checked_add_signed(delta(self.own.lived())));
        followed.map_or_else(|| self.own.now(), truncate)
    }

    fn lived(&self) -> Duration {
        self.own.lived()
    }

    fn database_now(&self) -> Option<DateTime<Utc>> {
        self.own.database_now()
    }

    fn sleep_until(&self, at: DateTime<Utc>) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            // What is heard meanwhile may move it.
            while let Ok(left) = (at - self.now()).to_std() {
                if left.is_zero() {
                    return;
                }
                self.own.sleep(left.min(LOOK_AGAIN)).await;
            }
        })
    }

    fn sleep(&self, by: Duration) -> BoxFuture<'_, ()> {
        self.own.sleep(by)
    }
}

/// Clocks are disciplined by small steps all the time; what is larger than this is a jump.
const JUMP: TimeDelta = TimeDelta::seconds(10);

/// Notices when a clock was set forward while the process lived: then less time has passed than the clock says.
///
/// A process that was not running has seen no jump, however long it was away. Setting the clock back takes the lead away.
#[derive(Debug)]
pub struct JumpWatch {
    clock: SharedClock,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    now: DateTime<Utc>,
    lived: Duration,
    ahead: TimeDelta,
}

impl JumpWatch {
    /// Watches `clock` from now on.
    pub fn new(clock: SharedClock) -> Self {
        let seen = Seen { now: clock.now(), lived: clock.lived(), ahead: TimeDelta::zero() };
        Self { clock, seen: Mutex::new(seen) }
    }

    /// The clock's [`Clock::lived`]: for measuring how long something takes.
    pub fn lived(&self) -> Duration {
        self.clock.lived()
    }

    /// How far the clock is ahead of the time that has passed since the watch began; zero where it never jumped. To be asked
    /// often: steps of up to ten seconds between two questions count as the discipline of the clock.
    pub fn ahead(&self) -> TimeDelta {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, lived) = (self.clock.now(), self.clock.lived());
        let passed = TimeDelta::from_std(lived.saturating_sub(seen.lived)).unwrap_or(TimeDelta::MAX);
        let step = (now - seen.now) - passed;
        if step.abs() > JUMP {
            seen.ahead = (seen.ahead + step).max(TimeDelta::zero());
            tracing::warn!(step_s = step.num_seconds(), ahead_s = seen.ahead.num_seconds(), "the clock jumped");
        }
        (seen.now, seen.lived) = (now, lived);
        seen.ahead
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn lived_time_passes_as_the_monotonic_clock_does() {
        let (before, lived) = (Instant::now(), SystemClock.lived());
        while before.elapsed() < Duration::from_millis(20) {}
        let passed = SystemClock.lived() - lived;
        assert!(passed >= Duration::from_millis(15), "{passed:?}");
    }

    #[tokio::test]
    async fn a_simulated_sleep_ends_exactly_when_the_clock_reaches_its_instant() {
        let start = crate::time::from_micros(1_000_000);
        let clock = SimulatedClock::new(start);
        let mut sleep = clock.sleep_until(start + TimeDelta::seconds(10));
        clock.advance(TimeDelta::seconds(10) - TimeDelta::microseconds(1));
        assert!((&mut sleep).now_or_never().is_none());
        clock.advance(TimeDelta::microseconds(1));
        assert!(sleep.now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_sleep_is_as_long_as_the_time_lived_whatever_the_clock_is_set_to() {
        let clock = SimulatedClock::new(crate::time::from_micros(0));
        let mut sleep = clock.sleep(Duration::from_secs(10));
        clock.set_to(clock.now() + TimeDelta::days(1));
        assert!((&mut sleep).now_or_never().is_none());
        clock.set_to(clock.now() - TimeDelta::days(9));
        clock.advance(TimeDelta::seconds(10));
        assert!(sleep.now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_clock_that_follows_another_shows_its_time_whatever_its_own_is_set_to() {
        let start = crate::time::from_micros(1_000_000_000_000);
        let (own, seconds) = (Arc::new(SimulatedClock::new(start)), TimeDelta::seconds);
        let clock = FollowingClock::new(own.clone());
        own.set_to(start - TimeDelta::hours(6));
        assert_eq!((clock.follows(), clock.own_lead(), clock.now()), (false, None, start - TimeDelta::hours(6)));
        let asked = clock.lived();
        own.advance(seconds(3));
        clock.answered(asked, start + seconds(1));
        assert_eq!(clock.now(), start + seconds(4), "the answer may be as old as the question");
        assert_eq!(clock.own_lead(), Some(-TimeDelta::hours(6) - seconds(1)));
        own.set_to(start + TimeDelta::days(20));
        own.advance(seconds(10));
        assert_eq!(clock.now(), start + seconds(14));

        assert_eq!(clock.heard(start + seconds(12)), seconds(2), "perhaps it was under way for so long");
        assert_eq!(clock.now(), start + seconds(14));
        clock.heard(start + seconds(15));
        assert_eq!(clock.now(), start + seconds(15), "it was behind");

        let mut sleep = clock.sleep_until(start + seconds(16));
        assert!((&mut sleep).now_or_never().is_none());
        own.advance(seconds(1));
        assert!(sleep.now_or_never().is_some());
    }

    #[test]
    fn a_clock_that_was_set_forward_is_ahead_until_it_is_set_back() {
        let start = crate::time::from_micros(0);
        let clock = Arc::new(SimulatedClock::new(start));
        let watch = JumpWatch::new(clock.clone());
        clock.advance(TimeDelta::days(90));
        assert_eq!(watch.ahead(), TimeDelta::zero());
        clock.set_to(clock.now() + JUMP);
        assert_eq!(watch.ahead(), TimeDelta::zero(), "a small step is no jump");
        clock.set_to(clock.now() + TimeDelta::days(2));
        assert_eq!(watch.ahead(), TimeDelta::days(2));
        clock.advance(TimeDelta::days(1));
        assert_eq!(watch.ahead(), TimeDelta::days(2), "time that passes keeps the lead");
        clock.set_to(clock.now() - TimeDelta::days(2));
        assert_eq!(watch.ahead(), TimeDelta::zero());
        clock.set_to(clock.now() - TimeDelta::days(5));
        assert_eq!(watch.ahead(), TimeDelta::zero(), "a clock behind is not ahead");
    }
}
