//! Showing a secret to a logged-in person.

use std::num::NonZeroU32;

use serde_json::json;
use service_kit::clock::SharedClock;

use super::{Issued, KeyError, Keys, key_event};
use crate::app::Caller;
use crate::app::limiter::PerMinute;
use crate::domain::key::ApiKeyState;

/// Actors that are remembered, some 15 MB. More are named by nobody who means well.
const MAX_ACTORS: usize = 100_000;

/// Bounds how many secrets one actor is shown. Each replica counts for itself.
#[derive(Debug)]
pub struct RevealLimiter(PerMinute<String>);

impl RevealLimiter {
    /// At most `per_minute` at once, and as many again each minute.
    pub fn new(per_minute: NonZeroU32, clock: SharedClock) -> Self {
        Self(PerMinute::new(per_minute, MAX_ACTORS, clock))
    }
}

impl Keys {
    /// Shows the secret of an ACTIVE key. It is shown only once the audit event is stored.
    pub async fn reveal(&self, caller: &Caller, key_id: &str) -> Result<Issued, KeyError> {
        let actor = caller.person()?;
        // Before the look-up, so that it bounds guessing at ids too.
        self.parts
            .reveals
            .0
            .admit(actor.to_string())
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
        self.parts.reveals.0.tidy();
    }
}
