//! Verification: may this secret be used now? And the recording of the use.
//!
//! A typo is refused by its checksum. A key that was verified lately is answered from memory, while memory is known to be in
//! step with the database; everything else is one indexed read.

mod changes;
mod compact;
mod flight;
mod guesses;
mod refusals;
mod table;
mod uses;

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use metrics::Counter;
use service_kit::actor::Actor;
use service_kit::clock::SharedClock;
use service_kit::keyring::KeyRing;

use self::compact::Digits;
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
use crate::metrics::{VERIFICATION_LOOKUPS, VERIFICATIONS, VERIFICATIONS_THROTTLED};

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

/// What a presented secret is looked up by: one selector and hash for each pepper, the current one first.
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
        let verification = self.answer(secret, presented).await?;
        self.counters.answered(verification.code);
        Ok(verification)
    }

    async fn answer(&self, secret: &Secret, presented: &Presented) -> Result<Verification, KeyError> {
        if secret.shape() == SecretShape::Malformed {
            let leave = self.guesses.leave(presented.source_ip).await;
            return self.unless_slowed(leave, Verification::refused(VerifyCode::Malformed));
        }
        let now = self.clock.now();
        let digest = secret.digest();
        // The current pepper finds nearly every key, and a hit needs no other.
        let mut looked_at: Proofs = Vec::new();
        for version in self.ring.peppers() {
            let hash = self.ring.hmac(version, digest.as_bytes());
            let hash = hash.ok_or_else(|| KeyError::Internal(format!("the key ring lacks pepper {version}")))?;
            let selector = Selector::of(&hash);
            if let Some(found) = self.recall(&selector, presented, now) {
                self.counters.hits.increment(1);
                return Ok(found);
            }
            looked_at.push((selector, hash));
        }
        let leave = self.guesses.leave(presented.source_ip).await;
        if let Some(refusal) = self.recall_refusal(&looked_at, now) {
            self.counters.refusals.increment(1);
            return self.unless_slowed(leave, refusal);
        }
        self.counters.misses.increment(1);
        let found = self.look_up(&looked_at, presented).await?;
        self.unless_slowed(leave, found)
    }

    /// A bad secret from a source that has presented too many is refused; everything else is answered.
    fn unless_slowed(&self, leave: Leave<'_>, found: Verification) -> Result<Verification, KeyError> {
        match leave {
            Leave::Slowed(_, retry_after) if matches!(found.code, VerifyCode::NotFound | VerifyCode::Malformed) => {
                self.counters.throttled.increment(1);
                Err(KeyError::GuessesThrottled { retry_after })
            }
            _ => Ok(found),
        }
    }

    /// The answer from memory, the use recorded, while memory is in step with the database.
    fn recall(&self, selector: &Selector, presented: &Presented, now: DateTime<Utc>) -> Option<Verification> {
        if !self.changes.is_fresh(now) {
            return None;
        }
        match self.table.hit(selector, presented, now, self.slack) {
            Hit::Miss => None,
            Hit::Refused(code) => Some(Verification::refused(code)),
            Hit::Valid(key) => Some(Verification::valid(key)),
        }
    }

    fn recall_refusal(&self, proofs: &Proofs, now: DateTime<Utc>) -> Option<Verification> {
        if !self.changes.is_fresh(now) {
            return None;
        }
        let refusal = self.refusals.get(&proofs.first()?.0)?;
        Some(Verification { code: refusal.code, key: None, deleted_at: refusal.deleted_at })
    }

    /// One look-up at a time for each secret: who waited finds in memory what the one before found.
    async fn look_up(&self, proofs: &Proofs, presented: &Presented) -> Result<Verification, KeyError> {
        let Some((first, _)) = proofs.first() else {
            return Err(KeyError::Internal("the key ring has no pepper".to_owned()));
        };
        let flight = self.flights.join(*first);
        let look = async || {
            // Anew: the wait may have been long, and a use is recorded as of its answer.
            let now = self.clock.now();
            let recalled = proofs.iter().find_map(|(selector, _)| self.recall(selector, presented, now));
            if let Some(found) = recalled.or_else(|| self.recall_refusal(proofs, now)) {
                return Ok(found);
            }
            decide(|| self.try_look_up(proofs, presented, now)).await
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

/// Handles of the counters: looking one up by its labels costs more than a hit.
struct Counters {
    answers: [Counter; VerifyCode::ALL.len()],
    hits: Counter,
    refusals: Counter,
    misses: Counter,
    throttled: Counter,
}

impl Counters {
    fn new() -> Self {
        let looked_up = |from: &'static str| metrics::counter!(VERIFICATION_LOOKUPS.name, "from" => from);
        Self {
            answers: VerifyCode::ALL.map(|code| metrics::counter!(VERIFICATIONS.name, "code" => code.as_str())),
            hits: looked_up("keys"),
            refusals: looked_up("refusals"),
            misses: looked_up("database"),
            throttled: metrics::counter!(VERIFICATIONS_THROTTLED.name),
        }
    }

    fn answered(&self, code: VerifyCode) {
        if let Some(counter) = self.answers.get(code as usize) {
            counter.increment(1);
        }
    }
}
