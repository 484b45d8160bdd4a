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
