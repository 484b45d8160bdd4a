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

/// So many a minute for each of many; each replica counts for itself.
pub(super) struct PerMinute<K: Clone + Hash + Eq> {
    limiter: RateLimiter<K, DashMapStateStore<K>, LimiterClock, NoOpMiddleware<Nanos>>,
    clock: LimiterClock,
}

impl<K: Clone + Hash + Eq> std::fmt::Debug for PerMinute<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PerMinute")
    }
}

impl<K: Clone + Hash + Eq> PerMinute<K> {
    /// At most `per_minute` at once, and as many again each minute.
    pub(super) fn new(per_minute: NonZeroU32, clock: SharedClock) -> Self {
        let clock = LimiterClock(clock);
        let limiter = RateLimiter::new(Quota::per_minute(per_minute), DashMapStateStore::default(), clock.clone());
        Self { limiter, clock }
    }

    /// Counts one; the error says when the next may be.
    pub(super) fn admit(&self, who: &K) -> Result<(), Duration> {
        self.limiter.check_key(who).map_err(|refused| refused.wait_time_from(self.clock.now()))
    }

    /// How many are remembered.
    pub(super) fn len(&self) -> usize {
        self.limiter.len()
    }

    /// Forgets those who have not been counted for a while.
    pub(super) fn tidy(&self) {
        self.limiter.retain_recent();
        self.limiter.shrink_to_fit();
    }
}
