//! Verification: may this secret be used now? And the recording of the use.
//!
//! A typo is refused by its checksum. A key that was verified lately is answered from memory, while memory is known to be in
//! step with the database; everything else is one indexed read.

mod changes;
mod compact;
mod counters;
mod flight;
mod guesses;
mod refusals;
mod table;
mod uses;

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use service_kit::actor::Actor;
use service_kit::clock::SharedClock;
use service_kit::keyring::KeyRing;

use self::compact::Digits;
use self::counters::Counters;
use self::flight::Flights;
use self::guesses::{Guesses, Leave};
use self::refusals::{Refusal, Refusals};
use self::table::{Hit, KeyTable};
use super::keys::{Attempt, KeyStore, UseOutcome, decide};
use super::sweep::EventSignal;
use super::{KeyError, StorageError};
use crate::domain::key::{
    ApiKeyState, Hash, Owner, Presented, Scopes, Secret, SecretShape, Selector, StoredKey, VerifyCode,
    decide as decide_code,
};

pub use changes::{ChangeFollower, ChangeLog, KeyChange, MAX_STALENESS};
pub use guesses::GuessSettings;
pub use uses::{MemoryBounds, UsageRecorder, UsageStore};

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

    fn valid(key: VerifiedKey) -> Self {
        Self { code: VerifyCode::Valid, key: Some(key), deleted_at: None }
    }
}

/// An answer, and whether it is counted already.
enum Answer {
    /// A valid key that the table found, and counted.
    Remembered(VerifiedKey),
    /// Everything else.
    Found(Verification),
}

impl From<Verification> for Answer {
    fn from(verification: Verification) -> Self {
        Self::Found(verification)
    }
}

/// What verification works with.
pub struct VerifierParts {
    /// Keys in the database.
    pub store: Arc<dyn KeyStore>,
    /// What other replicas change.
    pub changes: Arc<dyn ChangeLog>,
    /// Peppers.
    pub ring: Arc<KeyRing>,
    /// The time.
    pub clock: SharedClock,
    /// Keys in memory, and their uses.
    pub usage: Arc<UsageRecorder>,
    /// Wakes the subscribers of plans.
    pub events: EventSignal,
    /// A use may wait in memory only while the stored one is younger than this.
    pub recording_slack: TimeDelta,
    /// Secrets that no key has, or an ended one, that are kept in memory.
    pub max_refusals: usize,
    /// How guessing is slowed.
    pub guesses: GuessSettings,
}

/// Tells whether secrets may be used.
pub struct Verifier {
    store: Arc<dyn KeyStore>,
    ring: Arc<KeyRing>,
    clock: SharedClock,
    events: EventSignal,
    slack: TimeDelta,
    table: Arc<KeyTable>,
    refusals: Arc<Refusals>,
    changes: Arc<ChangeFollower>,
    flights: Flights,
    guesses: Guesses,
    counters: Counters,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("slack", &self.slack).finish_non_exhaustive()
    }
}

/// What a presented secret is looked up by: one selector and hash for each pepper, the current one first. None: no key can
/// have it.
type Proofs = Vec<(Selector, Hash)>;

impl Verifier {
    /// Begins to verify, with nothing in memory.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn open(parts: VerifierParts) -> Result<Self, StorageError> {
        let table = parts.usage.table.clone();
        let refusals = Arc::new(Refusals::new(parts.max_refusals));
        let changes = ChangeFollower::new(parts.changes, parts.clock.clone(), table.clone(), refusals.clone());
        changes.catch_up().await?;
        Ok(Self {
            store: parts.store,
            ring: parts.ring,
            events: parts.events,
            slack: parts.recording_slack,
            table,
            refusals,
            changes: Arc::new(changes),
            flights: Flights::default(),
            guesses: Guesses::new(parts.guesses, parts.clock.clone()),
            clock: parts.clock,
            counters: Counters::new(),
        })
    }

    /// What keeps this replica's memory in step.
    pub fn changes(&self) -> Arc<ChangeFollower> {
        self.changes.clone()
    }

    /// Forgets the sources that have presented nothing bad for a while.
    pub fn tidy(&self) {
        self.guesses.tidy();
    }

    /// Tells whether a secret may be used now; when it may, the use is recorded before the answer.
    ///
    /// # Errors
    /// When the database is needed and fails, or the source presents too many bad secrets.
    pub async fn verify(&self, secret: &Secret, presented: &Presented) -> Result<Verification, KeyError> {
        let answer = match self.remember(secret, presented)? {
            Ok(answer) => answer,
            // Boxed, so that a hit carries no room for all that a look-up needs.
            Err(proofs) => Box::pin(self.find(&proofs, presented)).await?,
        };
        match answer {
            // Counted where it was found.
            Answer::Remembered(key) => Ok(Verification::valid(key)),
            Answer::Found(verification) => {
                self.counters.answered(verification.code);
                Ok(verification)
            }
        }
    }

    /// The answer from the keys in memory, or what else the secret is to be looked up by: by nothing, if no key can have it.
    fn remember(&self, secret: &Secret, presented: &Presented) -> Result<Result<Answer, Proofs>, KeyError> {
        let mut proofs = Vec::new();
        if secret.shape() == SecretShape::Malformed {
            return Ok(Err(proofs));
        }
        let now = self.clock.now();
        let digest = secret.digest();
        // The current pepper finds nearly every key, and a hit needs no other.
        for version in self.ring.peppers() {
            let hash = self.ring.hmac(version, digest.as_bytes());
            let hash = hash.ok_or_else(|| KeyError::Internal(format!("the key ring lacks pepper {version}")))?;
            let selector = Selector::of(&hash);
            if let Some(found) = self.recall(&selector, presented, now) {
                return Ok(Ok(found));
            }
            proofs.push((selector, hash));
        }
        Ok(Err(proofs))
    }

    /// The answer about a secret that no key in memory has.
    async fn find(&self, proofs: &Proofs, presented: &Presented) -> Result<Answer, KeyError> {
        let leave = self.guesses.leave(presented.source_ip).await;
        let answer = if proofs.is_empty() {
            Verification::refused(VerifyCode::Malformed).into()
        } else if let Some(refusal) = self.recall_refusal(proofs, self.clock.now()) {
            refusal.into()
        } else {
            self.look_up(proofs, presented).await?
        };
        self.unless_slowed(leave, answer)
    }

    /// A bad secret from a source that has presented too many is refused; everything else is answered.
    fn unless_slowed(&self, leave: Leave<'_>, answer: Answer) -> Result<Answer, KeyError> {
        match (leave, &answer) {
            (Leave::Slowed(_, retry_after), Answer::Found(found))
                if matches!(found.code, VerifyCode::NotFound | VerifyCode::Malformed) =>
            {
                self.counters.throttled.increment(1);
                Err(KeyError::GuessesThrottled { retry_after })
            }
            _ => Ok(answer),
        }
    }

    /// The answer from memory, the use recorded, while memory is in step with the database.
    fn recall(&self, selector: &Selector, presented: &Presented, now: DateTime<Utc>) -> Option<Answer> {
        if !self.changes.is_fresh(now) {
            return None;
        }
        match self.table.hit(selector, presented, now, self.slack) {
            Hit::Miss => None,
            Hit::Refused(code) => {
                self.counters.hits.increment(1);
                Some(Verification::refused(code).into())
            }
            Hit::Valid(key) => Some(Answer::Remembered(key)),
        }
    }

    fn recall_refusal(&self, proofs: &Proofs, now: DateTime<Utc>) -> Option<Verification> {
        if !self.changes.is_fresh(now) {
            return None;
        }
        let refusal = self.refusals.get(&proofs.first()?.0)?;
        self.counters.refusals.increment(1);
        Some(Verification { code: refusal.code, key: None, deleted_at: refusal.deleted_at })
    }

    /// One look-up at a time for each secret: who waited finds in memory what the one before found.
    async fn look_up(&self, proofs: &Proofs, presented: &Presented) -> Result<Answer, KeyError> {
        let Some((first, _)) = proofs.first() else {
            return Err(KeyError::Internal("the key ring has no pepper".to_owned()));
        };
        let flight = self.flights.join(*first);
        let look = async || {
            // Anew: the wait may have been long, and a use is recorded as of its answer.
            let now = self.clock.now();
            let recalled = proofs.iter().find_map(|(selector, _)| self.recall(selector, presented, now));
            if let Some(found) = recalled.or_else(|| self.recall_refusal(proofs, now).map(Answer::Found)) {
                return Ok(found);
            }
            self.counters.misses.increment(1);
            decide(|| self.try_look_up(proofs, presented, now)).await.map(Answer::Found)
        };
        flight.turn(look).await
    }

    async fn try_look_up(
        &self,
        proofs: &Proofs,
        presented: &Presented,
        now: DateTime<Utc>,
    ) -> Result<Attempt<Verification>, KeyError> {
        // Before the reading: what changes while it is under way keeps it out of memory.
        let (epoch, refusal_epoch) = (self.table.epoch(), self.refusals.epoch());
        let selectors: Vec<_> = proofs.iter().map(|(selector, _)| *selector).collect();
        let found = self.store.find(&selectors).await?;
        let decided = found.into_iter().find_map(|(selector, key)| {
            let (_, hash) = proofs.iter().find(|(candidate, _)| *candidate == selector)?;
            let code = decide_code(&key, hash, presented, now);
            (code != VerifyCode::NotFound).then_some((selector, code, key))
        });
        let refuse = |code, deleted_at| {
            if let Some((first, _)) = proofs.first() {
                self.refusals.insert(refusal_epoch, *first, Refusal { code, deleted_at });
            }
            Ok(Attempt::Done(Verification { code, key: None, deleted_at }))
        };
        let Some((selector, code, key)) = decided else { return refuse(VerifyCode::NotFound, None) };
        if key.state != ApiKeyState::Active {
            return refuse(code, key.deleted_at);
        }
        self.table.insert(epoch, selector, &key);
        if code != VerifyCode::Valid {
            return Ok(Attempt::Done(Verification::refused(code)));
        }
        let Some(plan_id) = self.record_use(&selector, &key, now).await? else {
            return Ok(Attempt::Stale);
        };
        let key = VerifiedKey { key_id: key.key_id, owner: key.owner, scopes: key.scopes, plan_id };
        Ok(Attempt::Done(Verification::valid(key)))
    }

    /// Records a use: in memory while the stored one is younger than the slack, else in the database before the answer.
    /// A planned key has been idle for months, so that its use is always of the second kind. `None`: the key has ended
    /// meanwhile.
    async fn record_use(
        &self,
        selector: &Selector,
        key: &StoredKey,
        now: DateTime<Utc>,
    ) -> Result<Option<Option<String>>, KeyError> {
        let digits = Digits::of_key(&key.key_id);
        if digits.is_some_and(|digits| self.table.record(selector, digits, key.last_used_at, now, self.slack)) {
            return Ok(Some(None));
        }
        let actor = Actor::ApiKey(key.key_id.clone());
        match self.store.store_use(&key.key_id, now, &actor).await? {
            UseOutcome::Stored { plan_id } => {
                self.table.stored(selector, now);
                if plan_id.is_some() {
                    self.events.bump();
                }
                Ok(Some(plan_id))
            }
            UseOutcome::Ended => Ok(None),
        }
    }
}
