//! The time, passed and never fetched.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures::future::BoxFuture;
use tokio::sync::watch;

use crate::time::truncate;

/// Tells the time in microseconds, and waits for an instant.
pub trait Clock: Send + Sync + Debug {
    /// The current instant, cut to the microsecond.
    fn now(&self) -> DateTime<Utc>;

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
        truncate(Utc::now())
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
}

impl SimulatedClock {
    /// A clock that stands at `start`.
    pub fn new(start: DateTime<Utc>) -> Self {
        Self { now: watch::Sender::new(truncate(start)) }
    }

    /// Moves the clock to `at` and wakes who waited for it. An earlier instant moves it backwards.
    pub fn advance_to(&self, at: DateTime<Utc>) {
        self.now.send_replace(truncate(at));
    }

    /// Moves the clock on by `by`.
    pub fn advance(&self, by: TimeDelta) {
        self.advance_to(self.now() + by);
    }
}

impl Clock for SimulatedClock {
    fn now(&self) -> DateTime<Utc> {
        *self.now.borrow()
    }

    fn sleep_until(&self, at: DateTime<Utc>) -> BoxFuture<'_, ()> {
        let mut changes = self.now.subscribe();
        Box::pin(async move {
            // The sender lives as long as `self`, so waiting cannot fail.
            let _ = changes.wait_for(|now| *now >= at).await;
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

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
}
