//! Showing a secret to a logged-in person.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};
use serde_json::json;
use service_kit::clock::SharedClock;
use service_kit::time::to_micros;

use super::{Issued, KeyError, Keys, key_event};
use crate::app::Caller;
use crate::domain::key::ApiKeyState;

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

/// Bounds how many secrets one actor is shown. Each replica counts for itself.
#[derive(Debug)]
pub struct RevealLimiter {
    limiter: RateLimiter<String, DashMapStateStore<String>, LimiterClock, NoOpMiddleware<Nanos>>,
    clock: LimiterClock,
}

impl RevealLimiter {
    /// At most `per_minute` at once, and as many again each minute.
    pub fn new(per_minute: NonZeroU32, clock: SharedClock) -> Self {
        let clock = LimiterClock(clock);
        let limiter = RateLimiter::new(Quota::per_minute(per_minute), DashMapStateStore::default(), clock.clone());
        Self { limiter, clock }
    }

    /// Counts one reveal; the error says when the next may be.
    fn admit(&self, actor: &str) -> Result<(), Duration> {
        self.limiter.check_key(&actor.to_owned()).map_err(|refused| refused.wait_time_from(self.clock.now()))
    }

    /// Forgets the actors that have not revealed anything for a while.
    fn tidy(&self) {
        self.limiter.retain_recent();
        self.limiter.shrink_to_fit();
    }
}

impl Keys {
    /// Shows the secret of an ACTIVE key. It is shown only once the audit event is stored.
    pub async fn reveal(&self, caller: &Caller, key_id: &str) -> Result<Issued, KeyError> {
        let actor = caller.person()?;
        // Before the look-up, so that it bounds guessing at ids too.
        self.parts
            .reveals
            .admit(&actor.to_string())
            .map_err(|retry_after| KeyError::RevealRateLimited { retry_after })?;
        let now = self.now();
        let key = self.existing(key_id).await?;
        let state = key.state_at(now);
        if state != ApiKeyState::Active {
            return Err(KeyError::NotActive { key_id: key.key_id, state: state.as_str() });
        }
        let Some(sealed) = self.parts.store.sealed_secret(key_id).await? else {
            return Err(KeyError::NotRecoverable { key_id: key.key_id });
        };
        let secret = self.open(&sealed, key_id)?;
        let agency_id = &key.owner.agency_id;
        let event = key_event("key.revealed", agency_id, key_id, &actor, caller, now, json!({}));
        self.parts.store.audit(event).await?;
        Ok(Issued { key, secret: Some(secret) })
    }

    /// Forgets how much each actor has revealed, where that is of no consequence any more.
    pub fn tidy_reveals(&self) {
        self.parts.reveals.tidy();
    }
}
