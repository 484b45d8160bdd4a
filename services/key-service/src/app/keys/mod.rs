//! The use cases of keys.
//!
//! Each reads the clock once. What two callers may change at once is read, decided upon and stored under the condition
//! that it is still as it was read; otherwise the decision is made anew.

mod generate;
mod import;
mod read;
mod reveal;
mod revoke;
mod rotate;
mod store;
mod update;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde_json::Value;
use service_kit::actor::Actor;
use service_kit::clock::SharedClock;
use service_kit::entropy::SharedEntropy;
use service_kit::ids::IdGenerator;
use service_kit::keyring::{KeyRing, Sealed};

use super::sweep::EventSignal;
use super::verify::ChangeFollower;
use super::{Caller, KeyError, StorageError};
use crate::domain::audit::NewAuditEvent;
use crate::domain::key::{ApiKey, Secret, SecretDigest, Selector};

pub use generate::{Generate, Issued};
pub use import::{ImportTally, MAX_CHUNK_ROWS, RefusedRow};
pub use reveal::RevealLimiter;
pub use revoke::Revoke;
pub use rotate::{Rotate, Rotated};
pub use store::{
    Change, ImportCandidate, ImportOutcome, KeyFilter, KeyStore, Material, NewKey, Recall, Record, Repeated, Request,
    Retirement, UseOutcome,
};
pub use update::{KeyChanges, Update};

/// Kind of the ids of keys.
pub const KEY_PREFIX: &str = "key_";

/// What an installation decides about its keys.
#[derive(Debug, Clone, Copy)]
pub struct KeySettings {
    /// Whether secrets are kept sealed for `RevealKey`.
    pub recoverable: bool,
}

/// What the use cases of keys work with.
pub struct KeyParts {
    /// Keys in the database.
    pub store: Arc<dyn KeyStore>,
    /// Peppers and master keys.
    pub ring: Arc<KeyRing>,
    /// The time.
    pub clock: SharedClock,
    /// Randomness for secrets and nonces.
    pub entropy: SharedEntropy,
    /// Keeps the keys in memory in step with what is changed here.
    pub changes: Arc<ChangeFollower>,
    /// Bounds the reveals of each actor.
    pub reveals: RevealLimiter,
    /// Wakes the subscribers of plans.
    pub events: EventSignal,
    /// What the installation decides.
    pub settings: KeySettings,
}

/// The use cases of keys.
pub struct Keys {
    parts: KeyParts,
    ids: IdGenerator,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("settings", &self.parts.settings).finish_non_exhaustive()
    }
}

/// How often a decision is made anew when others keep changing the same key.
const MAX_ATTEMPTS: usize = 8;

/// What an attempt came to.
pub(super) enum Attempt<T> {
    Done(T),
    /// Somebody else was faster: decide anew.
    Stale,
}

impl Keys {
    /// The use cases over these parts.
    pub fn new(parts: KeyParts) -> Self {
        let ids = IdGenerator::new(parts.entropy.clone());
        Self { parts, ids }
    }

    fn now(&self) -> DateTime<Utc> {
        self.parts.clock.now()
    }

    /// The key, which must exist.
    async fn existing(&self, key_id: &str) -> Result<ApiKey, KeyError> {
        let key = self.parts.store.get(key_id).await?;
        key.ok_or_else(|| KeyError::NotFound { key_id: key_id.to_owned() })
    }

    /// Whether the same call was made before: `Some` is what it made.
    async fn repeated(&self, request: Option<&Request>, now: DateTime<Utc>) -> Result<Option<Repeated>, KeyError> {
        let Some(request) = request else { return Ok(None) };
        match self.parts.store.recall(request, now).await? {
            Recall::New => Ok(None),
            Recall::Repeated(repeated) => Ok(Some(repeated)),
            Recall::Reused => Err(KeyError::RequestIdReused),
        }
    }

    /// A change was stored: this replica verifies by it from now on, and subscribers hear of a key that left its plan.
    async fn changed(&self, rescued: bool) {
        self.parts.changes.own_change().await;
        if rescued {
            self.parts.events.bump();
        }
    }

    /// What finds and proves a secret under the current pepper.
    fn material(&self, digest: &SecretDigest, sealed: Option<Sealed>) -> Result<Material, KeyError> {
        let pepper_version = self.parts.ring.current_pepper();
        let hash = self.hash(pepper_version, digest)?;
        Ok(Material { selector: Selector::of(&hash), hash, pepper_version, sealed })
    }

    fn hash(&self, pepper_version: u32, digest: &SecretDigest) -> Result<[u8; 32], KeyError> {
        let hash = self.parts.ring.hmac(pepper_version, digest.as_bytes());
        hash.ok_or_else(|| KeyError::Internal(format!("the key ring lacks pepper {pepper_version}")))
    }

    fn seal(&self, secret: &Secret, key_id: &str) -> Result<Sealed, KeyError> {
        Ok(self.parts.ring.seal(secret.expose().as_bytes(), &seal_context(key_id), &*self.parts.entropy)?)
    }

    fn open(&self, sealed: &Sealed, key_id: &str) -> Result<Secret, KeyError> {
        let plain = self.parts.ring.open(sealed, &seal_context(key_id))?;
        let text =
            std::str::from_utf8(&plain).map_err(|_| KeyError::Internal("a sealed secret is no text".to_owned()))?;
        Ok(Secret::new(text))
    }
}

/// Binds a sealed secret to its key: moved to another row it does not open.
pub(crate) fn seal_context(key_id: &str) -> Vec<u8> {
    [b"keysweep/secret/v1/", key_id.as_bytes()].concat()
}

/// Makes attempts until one is done, as long as others being faster is all that goes wrong.
pub(super) async fn decide<T, F>(mut attempt: impl FnMut() -> F) -> Result<T, KeyError>
where
    F: Future<Output = Result<Attempt<T>, KeyError>>,
{
    for _ in 1..MAX_ATTEMPTS {
        match attempt().await {
            Ok(Attempt::Done(done)) => return Ok(done),
            Ok(Attempt::Stale) | Err(KeyError::Storage(StorageError::Conflict(_))) => {}
            Err(error) => return Err(error),
        }
    }
    match attempt().await? {
        Attempt::Done(done) => Ok(done),
        Attempt::Stale => Err(StorageError::Conflict("the key kept changing".to_owned()).into()),
    }
}

/// An audit event about a key.
fn key_event(
    action: &'static str,
    agency_id: &str,
    key_id: &str,
    actor: &Actor,
    caller: &Caller,
    now: DateTime<Utc>,
    detail: Value,
) -> NewAuditEvent {
    NewAuditEvent {
        occurred_at: now,
        actor: actor.clone(),
        action,
        agency_id: Some(agency_id.to_owned()),
        key_id: Some(key_id.to_owned()),
        plan_id: None,
        reason: String::new(),
        request_id: caller.call_id.clone(),
        origin: caller.origin.clone(),
        detail,
    }
}

/// The request to remember, if the caller gave it an id.
fn request(
    method: &'static str,
    agency_id: &str,
    request_id: &str,
    actor: &Actor,
    mut contents: Vec<Vec<u8>>,
) -> Option<Request> {
    // Another actor's repetition is another call: it must not be shown what the first was.
    contents.push(actor.to_string().into_bytes());
    (!request_id.is_empty()).then(|| Request {
        method,
        agency_id: agency_id.to_owned(),
        request_id: request_id.to_owned(),
        contents,
    })
}
