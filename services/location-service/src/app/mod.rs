//! The use cases: each reads the time once, decides by the policy and the domain's rules, and leaves one transaction to a port.

mod agencies;
pub mod error;
mod generation;
pub mod listing;
mod locations;
pub mod policy;
pub mod ports;
mod security;
mod users;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use serde::Serialize;
use service_kit::actor::Actor;
use service_kit::clock::SharedClock;
use service_kit::entropy::SharedEntropy;
use service_kit::ids::{self, IdGenerator};
use service_kit::keyring::KeyRing;
use service_kit::page::Page;
use service_kit::violations::Violations;
use sha2::{Digest, Sha256};

use crate::domain::resources::etag;
use error::{AppError, Resource};
use policy::{Action, Caller, Refusal};
use ports::{KeyGenerator, MutationKey, Recalled, Store, Written};

pub use agencies::{ListAgencies, UpdateAgency};
pub use generation::GenerateKey;
pub use locations::{CreateLocation, ListLocations, LocationView, UpdateLocation};
pub use security::ChooseSecurity;
pub use users::{CreateUser, ListUsers, UpdateUser, UserApi};

/// What travels with a call beside its message.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// Who it is made for. `None`: the trusted caller acts for itself.
    pub actor: Option<Actor>,
    /// The call's own id, for the log and the audit.
    pub call_id: String,
    /// The W3C trace context, passed on.
    pub traceparent: Option<String>,
    /// When the caller gives up.
    pub deadline: Option<tokio::time::Instant>,
}

impl Call {
    /// The actor as the audit names it.
    fn actor(&self) -> Actor {
        self.actor.clone().unwrap_or_else(Actor::local_service)
    }
}

/// One page of a list.
#[derive(Clone, Debug)]
pub struct Listed<T> {
    /// The page's items.
    pub items: Vec<T>,
    /// Cursor of the next page. `None`: this was the last.
    pub next: Option<String>,
}

/// The use cases, over their ports.
pub struct App {
    store: Arc<dyn Store>,
    keys: Arc<dyn KeyGenerator>,
    ring: KeyRing,
    clock: SharedClock,
    entropy: SharedEntropy,
    ids: IdGenerator,
}

/// Two writers who keep meeting give way to a caller's retry after this many rounds.
const ATTEMPTS: usize = 8;

impl App {
    /// The use cases over the given ports.
    pub fn new(
        store: Arc<dyn Store>,
        keys: Arc<dyn KeyGenerator>,
        ring: KeyRing,
        clock: SharedClock,
        entropy: SharedEntropy,
    ) -> Self {
        Self { store, keys, ring, clock, ids: IdGenerator::new(entropy.clone()), entropy }
    }

    fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    /// Finds out who is behind a call's actor.
    async fn caller(&self, call: &Call) -> Result<Caller, AppError> {
        Ok(match &call.actor {
            None => Caller::Nobody,
            Some(actor @ Actor::Service(_)) => Caller::Service(actor.clone()),
            Some(actor @ Actor::ApiKey(_)) => Caller::ApiClient(actor.clone()),
            Some(actor @ Actor::User(id)) => {
                let user = if ids::is_id(crate::domain::USER_ID, id) { self.store.user(id).await? } else { None };
                match user {
                    Some(user) if user.deleted_at.is_none() => Caller::Person(Box::new(user)),
                    _ => Caller::Stranger(actor.clone()),
                }
            }
        })
    }

    /// The answer of an earlier call under the same request id: the id of what it made.
    async fn recall(&self, key: Option<&MutationKey>, now: DateTime<Utc>) -> Result<Option<String>, AppError> {
        let Some(key) = key else { return Ok(None) };
        match self.store.recall(key, now).await? {
            Recalled::New => Ok(None),
            Recalled::Replay(id) => Ok(Some(id)),
            Recalled::Reused => Err(AppError::RequestIdReused),
        }
    }

    /// Remembers a mutation that found nothing to change: repeated later, it is not to undo what came in between.
    async fn remember(&self, key: Option<&MutationKey>, id: &str, now: DateTime<Utc>) -> Result<(), AppError> {
        let Some(key) = key else { return Ok(()) };
        match self.store.reserve(key, id, now).await? {
            Recalled::New | Recalled::Replay(_) => Ok(()),
            Recalled::Reused => Err(AppError::RequestIdReused),
        }
    }
}

/// `Ok` if the policy lets the caller do this in the agency; what it may not see is missing.
///
/// Who calls must be found out before what the call is about: a resource that is missing then costs the same statements as
/// one that is hidden.
fn permit(
    caller: &Caller,
    call: &Call,
    action: Action<'_>,
    agency_id: &str,
    (kind, id): (Resource, &str),
) -> Result<(), AppError> {
    policy::decide(caller, action, agency_id).map_err(|refusal| match refusal {
        Refusal::ActorRequired => AppError::ActorRequired,
        Refusal::NotAllowed { required } => AppError::ActorNotAllowed { actor: call.actor().to_string(), required },
        Refusal::Hidden => AppError::not_found(kind, id),
    })
}

/// Repeats what met another writer, each time from a fresh reading.
async fn retrying<'a, T>(attempt: impl Fn() -> BoxFuture<'a, Result<T, AppError>>) -> Result<T, AppError> {
    for _ in 1..ATTEMPTS {
        match attempt().await {
            Err(AppError::Contended) => tokio::task::yield_now().await,
            done => return done,
        }
    }
    attempt().await
}

/// `None` once stored, the resource's id where another call under the same request id was first.
fn written(outcome: Written) -> Result<Option<String>, AppError> {
    match outcome {
        Written::Stored => Ok(None),
        Written::Replayed(id) => Ok(Some(id)),
        Written::RequestReused => Err(AppError::RequestIdReused),
        Written::Stale => Err(AppError::Contended),
        Written::EmailTaken => Err(AppError::EmailTaken),
    }
}

/// The key under which a mutation is remembered. `None`: the caller gave no request id, or one that will be refused as a
/// fault of its own.
fn mutation_key(
    method: &'static str,
    scope: &str,
    request_id: &str,
    contents: &impl Serialize,
) -> Result<Option<MutationKey>, AppError> {
    let mut faults = Violations::default();
    faults.check_request_id("request_id", request_id);
    if request_id.is_empty() || !faults.is_empty() {
        return Ok(None);
    }
    let contents =
        serde_json::to_vec(contents).map_err(|e| AppError::Internal(format!("cannot digest a request: {e}")))?;
    let fingerprint = Sha256::digest(&contents).into();
    Ok(Some(MutationKey { method, scope: scope.to_owned(), request_id: request_id.to_owned(), fingerprint }))
}

/// `Ok` if the caller read this revision, or did not say which.
fn check_etag(given: &str, revision: i64, kind: Resource, id: &str) -> Result<(), AppError> {
    if given.is_empty() || given == etag(revision) {
        Ok(())
    } else {
        Err(AppError::EtagMismatch { kind, id: id.to_owned() })
    }
}

/// The fields that a mask names: every one for `*`, none for those that are unknown, which are faults.
fn masked<F: Copy>(paths: &[String], all: &[F], named: impl Fn(&str) -> Option<F>, faults: &mut Violations) -> Vec<F> {
    if paths.iter().any(|path| path == "*") {
        return all.to_vec();
    }
    for unknown in paths.iter().filter(|path| named(path).is_none()).take(FAULTS_SHOWN) {
        faults.push("update_mask", format!("names no field that can be changed: {}", shown(unknown)));
    }
    paths.iter().filter_map(|path| named(path)).collect()
}

/// The most items of one list that are named as faults: an error travels in headers, which are small.
const FAULTS_SHOWN: usize = 10;

/// A caller's text as an error can repeat it.
fn shown(text: &str) -> String {
    text.chars().filter(char::is_ascii_graphic).take(64).collect()
}

/// `Err` where the id that a call is about is missing, with all other faults of its request: nobody can say who may make it.
fn named(id: &str, field: &str, faults: &mut Violations) -> Result<(), AppError> {
    if !id.is_empty() {
        return Ok(());
    }
    faults.push(field, "is required");
    Err(std::mem::take(faults).into())
}

/// What a page may weigh: half of what clients take unless told otherwise (4 MiB).
const PAGE_BYTES: usize = 2 * 1024 * 1024;
/// What a resource weighs beside its texts: times, etag and the names of fields.
const RESOURCE_BYTES: usize = 200;

/// Cuts what was read, one more than asked for, to the page; a page of heavy items holds fewer than it could.
fn listed<T>(
    mut items: Vec<T>,
    page: &Page,
    cursor: impl Fn(&T) -> String,
    text_bytes: impl Fn(&T) -> usize,
) -> Listed<T> {
    let mut bytes = 0;
    let fitting = items
        .iter()
        .take(page.size as usize)
        .take_while(|item| {
            let first = bytes == 0;
            bytes += RESOURCE_BYTES + text_bytes(item);
            first || bytes <= PAGE_BYTES
        })
        .count();
    let more = items.len() > fitting;
    items.truncate(fitting);
    let next = items.last().filter(|_| more).map(cursor);
    Listed { items, next }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_cut_by_number_and_weight() {
        let cut = |count: usize, size: u32, weight: usize| {
            let items: Vec<_> = (0..count).map(|i| i.to_string()).collect();
            let page = Page { size, cursor: None };
            let listed = listed(items, &page, String::clone, |_| weight);
            (listed.items.len(), listed.next)
        };
        assert_eq!(cut(0, 5, 0), (0, None));
        assert_eq!(cut(5, 5, 0), (5, None));
        assert_eq!(cut(6, 5, 0), (5, Some("4".to_owned())));
        assert_eq!(cut(6, 5, PAGE_BYTES), (1, Some("0".to_owned())));
        assert_eq!(cut(6, 6, PAGE_BYTES / 2 - RESOURCE_BYTES), (2, Some("1".to_owned())));
        assert_eq!(cut(1, 5, PAGE_BYTES), (1, None));
    }
}
