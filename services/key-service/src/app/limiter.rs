//! Rate limits on the injected clock.

use std::hash::Hash;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};
use service_kit::clock::SharedClock;
use service_kit::time::to_micros;

/// The injected clock as the limiter reads it.
#[derive(Debug, Clone)]
struct LimiterClock(SharedClock);

impl Clock for LimiterClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        let micros = u64::try_from(to_micros(self.0.now())).unwrap_or_default();
        Nanos::from(Duration::from_micros(micros))
    }
}

/// So many a minute for each of many; each replica counts for itself. Of so many at most it knows who they are: what comes
/// beyond shares one budget.
pub(super) struct PerMinute<K: Clone + Hash + Eq> {
    /// By whom; `None`: all that there is no room for.
    limiter: RateLimiter<Option<K>, DashMapStateStore<Option<K>>, LimiterClock, NoOpMiddleware<Nanos>>,
    most: usize,
    clock: LimiterClock,
}

impl<K: Clone + Hash + Eq> std::fmt::Debug for PerMinute<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PerMinute")
    }
}

impl<K: Clone + Hash + Eq> PerMinute<K> {
    /// At most `per_minute` at once, and as many again each minute, for each of `most`.
    pub(super) fn new(per_minute: NonZeroU32, most: usize, clock: SharedClock) -> Self {
        let clock = LimiterClock(clock);
        let limiter = RateLimiter::new(Quota::per_minute(per_minute), DashMapStateStore::default(), clock.clone());
        Self { limiter, most, clock }
    }

    /// Counts one; the error says when the next may be.
    pub(super) fn admit(&self, who: K) -> Result<(), Duration> {
        let known = (self.limiter.len() < self.most).then_some(who);
        self.limiter.check_key(&known).map_err(|refused| refused.wait_time_from(self.clock.now()))
    }

    /// Forgets those who have not been counted for a while.
    pub(super) fn tidy(&self) {
        self.limiter.retain_recent();
        self.limiter.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use chrono::TimeDelta;
    use service_kit::clock::SimulatedClock;

    use super::*;

    #[test]
    fn those_there_is_no_room_for_share_a_budget_until_others_are_forgotten() {
        let clock = Arc::new(SimulatedClock::new("2026-01-10T12:00:00Z".parse().expect("an instant")));
        let limiter = PerMinute::new(NonZeroU32::new(2).expect("not zero"), 100, clock.clone());
        for who in 0..100 {
            limiter.admit(who).expect("the first of its own");
        }
        let admitted = (100..1_000).filter(|who| limiter.admit(*who).is_ok()).count();
        assert_eq!(admitted, 2);
        assert_eq!(limiter.limiter.len(), 101);
        clock.advance(TimeDelta::minutes(2));
        limiter.tidy();
        assert!((100..150).all(|who| limiter.admit(who).is_ok()), "each has its own again");
    }
}
