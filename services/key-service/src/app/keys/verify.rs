//! Verification: may this secret be used now? And the recording of the use.

use chrono::{DateTime, TimeDelta, Utc};
use service_kit::actor::Actor;

use super::{Attempt, KeyError, Keys, UseOutcome, decide};
use crate::domain::key::{
    Hash, Owner, Presented, Scopes, Secret, SecretShape, Selector, StoredKey, VerifyCode, decide as decide_code,
};

/// Replicas' clocks may differ by this much.
const CLOCK_SKEW: TimeDelta = TimeDelta::seconds(10);

/// The answer about a presented secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verification {
    /// Whether it may be used, or why not.
    pub code: VerifyCode,
    /// The key, when it may.
    pub key: Option<VerifiedKey>,
    /// When a sweep deleted the key, where one did.
    pub deleted_at: Option<DateTime<Utc>>,
}

/// A key that may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedKey {
    /// `key_…`.
    pub key_id: String,
    /// Who owns it.
    pub owner: Owner,
    /// All its scopes.
    pub scopes: Scopes,
    /// The plan that this use rescued it from.
    pub plan_id: Option<String>,
}

impl Verification {
    fn refused(code: VerifyCode) -> Self {
        Self { code, key: None, deleted_at: None }
    }
}

impl Keys {
    /// Tells whether a secret may be used now; when it may, the use is recorded before the answer.
    pub async fn verify(&self, secret: &Secret, presented: &Presented) -> Result<Verification, KeyError> {
        if secret.shape() == SecretShape::Malformed {
            return Ok(Verification::refused(VerifyCode::Malformed));
        }
        let digest = secret.digest();
        let mut hashes: Vec<(Selector, Hash)> = Vec::new();
        for version in self.parts.ring.peppers_newest_first() {
            let hash = self.hash(version, &digest)?;
            hashes.push((Selector::of(&hash), hash));
        }
        let now = self.now();
        decide(|| self.try_verify(&hashes, presented, now)).await
    }

    async fn try_verify(
        &self,
        hashes: &[(Selector, Hash)],
        presented: &Presented,
        now: DateTime<Utc>,
    ) -> Result<Attempt<Verification>, KeyError> {
        let selectors: Vec<_> = hashes.iter().map(|(selector, _)| *selector).collect();
        let found = self.parts.store.find(&selectors).await?;
        let decided = found.into_iter().find_map(|(selector, key)| {
            let (_, hash) = hashes.iter().find(|(candidate, _)| *candidate == selector)?;
            let code = decide_code(&key, hash, presented, now);
            (code != VerifyCode::NotFound).then_some((code, key))
        });
        let Some((code, key)) = decided else {
            return Ok(Attempt::Done(Verification::refused(VerifyCode::NotFound)));
        };
        if code != VerifyCode::Valid {
            return Ok(Attempt::Done(Verification { code, key: None, deleted_at: key.deleted_at }));
        }
        let Some(plan_id) = self.record_use(&key, now).await? else {
            return Ok(Attempt::Stale);
        };
        let key = VerifiedKey { key_id: key.key_id, owner: key.owner, scopes: key.scopes, plan_id };
        Ok(Attempt::Done(Verification { code, key: Some(key), deleted_at: None }))
    }

    /// Records a use: in memory while the stored one is younger than the slack, else in the database before the answer.
    /// A planned key has been idle for months, so that its use is always of the second kind. `None`: the key has ended
    /// meanwhile.
    async fn record_use(&self, key: &StoredKey, now: DateTime<Utc>) -> Result<Option<Option<String>>, KeyError> {
        // A stored use from the future says that the clock was set back: then nothing follows from its age.
        let ages = -CLOCK_SKEW..self.parts.settings.recording_slack;
        let recent = key.last_used_at.is_some_and(|used_at| ages.contains(&(now - used_at)));
        if recent && self.parts.usage.record(&key.key_id, now) {
            return Ok(Some(None));
        }
        let actor = Actor::ApiKey(key.key_id.clone());
        match self.parts.store.store_use(&key.key_id, now, &actor).await? {
            UseOutcome::Stored { plan_id } => {
                if plan_id.is_some() {
                    self.parts.events.bump();
                }
                Ok(Some(plan_id))
            }
            UseOutcome::Ended => Ok(None),
        }
    }
}
