//! Audit events and the hash chain that makes a change or a gap among them visible.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use service_kit::actor::Actor;
use service_kit::time::to_micros;
use sha2::{Digest, Sha256};

/// Separates these digests from any other use of SHA-256 in keysweep, and names the encoding's version.
const CHAIN_DOMAIN: &[u8] = b"keysweep/audit/v1";

/// The hash that the first event follows: of a chain without events.
pub const GENESIS_HASH: [u8; 32] = [0; 32];

/// The actions after which a key verifies otherwise than before: replicas read them from the log to forget what they hold
/// in memory. A generated key is held by nobody yet; a planned one has been idle for months, so that its next use goes to the
/// database whatever is in memory.
pub const CHANGES_OF_VERIFICATION: [&str; 6] =
    ["key.deleted", KEY_IMPORTED, "key.overlap_ended", "key.revoked", "key.rotated", "key.updated"];

/// A key was imported, whose secret may have been presented before.
pub const KEY_IMPORTED: &str = "key.imported";

/// Where something was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The service that called, as its certificate names it; `None`: it showed none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
    /// The address that the call came from; `None`: it came from no call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<SocketAddr>,
}

impl Origin {
    fn is_unknown(&self) -> bool {
        self.caller.is_none() && self.peer.is_none()
    }
}

/// The member of an event's detail that tells its origin: there it is hashed like all else, and versions that know no origin read
/// and prove such events all the same.
const ORIGIN: &str = "origin";

/// Something that was done, not yet placed in the chain.
#[derive(Debug, Clone, PartialEq)]
pub struct NewAuditEvent {
    /// When it was done.
    pub occurred_at: DateTime<Utc>,
    /// Who it was done for.
    pub actor: Actor,
    /// What was done, such as `key.generated`.
    pub action: &'static str,
    /// The agency it concerns; `None`: none alone.
    pub agency_id: Option<String>,
    /// The key it concerns; `None`: none alone.
    pub key_id: Option<String>,
    /// The plan it concerns.
    pub plan_id: Option<String>,
    /// The reason the actor gave; empty: none was asked for.
    pub reason: String,
    /// The `x-request-id` of the call; empty: it came from no call.
    pub request_id: String,
    /// Where it was asked for.
    pub origin: Origin,
    /// Facts of the action, as a JSON object without secrets.
    pub detail: Value,
}

impl NewAuditEvent {
    /// The detail as it is stored: with the origin, if there is one.
    fn stored_detail(&mut self) -> String {
        if let (false, Value::Object(facts)) = (self.origin.is_unknown(), &mut self.detail) {
            facts.insert(ORIGIN.to_owned(), json!(self.origin));
        }
        self.detail.to_string()
    }
}

/// An event in its place in the chain, as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEvent {
    /// Position from 1, without gaps.
    pub sequence: i64,
    /// When it was done.
    pub occurred_at: DateTime<Utc>,
    /// Who it was done for, as text.
    pub actor: String,
    /// What was done.
    pub action: String,
    /// Empty: no agency alone.
    pub agency_id: String,
    /// Empty: no key alone.
    pub key_id: String,
    /// Empty: no plan.
    pub plan_id: String,
    /// Empty: none was asked for.
    pub reason: String,
    /// Empty: it came from no call.
    pub request_id: String,
    /// The JSON text exactly as it was hashed.
    pub detail: String,
    /// SHA-256 over the event before and this event's contents.
    pub hash: [u8; 32],
}

impl AuditEvent {
    /// Where it was asked for, as far as it was noted.
    pub fn origin(&self) -> Origin {
        let detail: Option<Value> = serde_json::from_str(&self.detail).ok();
        let origin = detail.and_then(|mut detail| serde_json::from_value(detail.get_mut(ORIGIN)?.take()).ok());
        origin.unwrap_or_default()
    }
}

/// The end of the chain: what the next event follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainHead {
    /// Position of the last event; 0: there is none.
    pub sequence: i64,
    /// Hash of the last event; [`GENESIS_HASH`] if there is none.
    pub hash: [u8; 32],
}

impl ChainHead {
    /// The head of a chain without events.
    pub const EMPTY: Self = Self { sequence: 0, hash: GENESIS_HASH };

    /// Places `event` behind this head and moves the head to it.
    pub fn append(&mut self, mut event: NewAuditEvent) -> AuditEvent {
        let detail = event.stored_detail();
        let mut placed = AuditEvent {
            sequence: self.sequence + 1,
            occurred_at: event.occurred_at,
            actor: event.actor.to_string(),
            action: event.action.to_owned(),
            agency_id: event.agency_id.unwrap_or_default(),
            key_id: event.key_id.unwrap_or_default(),
            plan_id: event.plan_id.unwrap_or_default(),
            reason: event.reason,
            request_id: event.request_id,
            detail,
            hash: GENESIS_HASH,
        };
        placed.hash = chain_hash(&self.hash, &placed);
        *self = Self { sequence: placed.sequence, hash: placed.hash };
        placed
    }

    /// Whether `event` follows this head; moves the head to it if so.
    pub fn follow(&mut self, event: &AuditEvent) -> bool {
        let follows = event.sequence == self.sequence + 1 && event.hash == chain_hash(&self.hash, event);
        if follows {
            *self = Self { sequence: event.sequence, hash: event.hash };
        }
        follows
    }
}

impl fmt::Display for ChainHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.sequence, hex::encode(self.hash))
    }
}

impl FromStr for ChainHead {
    type Err = MalformedHead;

    fn from_str(text: &str) -> Result<Self, MalformedHead> {
        let (sequence, hash) = text.split_once(':').ok_or(MalformedHead)?;
        let mut head = Self { sequence: sequence.parse().map_err(|_| MalformedHead)?, hash: GENESIS_HASH };
        hex::decode_to_slice(hash, &mut head.hash).map_err(|_| MalformedHead)?;
        Ok(head)
    }
}

/// A text that names no end of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be the number of an event, a colon, and its hash in hexadecimal")]
pub struct MalformedHead;

/// The hash of `event` behind an event with hash `previous`: every field with its length before it, so that no two
/// different events have the same encoding.
fn chain_hash(previous: &[u8; 32], event: &AuditEvent) -> [u8; 32] {
    let mut digest = Sha256::new();
    digest.update(CHAIN_DOMAIN);
    digest.update(previous);
    digest.update(event.sequence.to_be_bytes());
    digest.update(to_micros(event.occurred_at).to_be_bytes());
    for text in [
        &event.actor,
        &event.action,
        &event.agency_id,
        &event.key_id,
        &event.plan_id,
        &event.reason,
        &event.request_id,
        &event.detail,
    ] {
        digest.update((text.len() as u64).to_be_bytes());
        digest.update(text.as_bytes());
    }
    digest.finalize().into()
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use proptest::prelude::*;

    use super::*;

    fn event(key_id: &str, reason: &str) -> NewAuditEvent {
        NewAuditEvent {
            occurred_at: DateTime::from_timestamp(1_780_000_000, 123_456_000).unwrap(),
            actor: Actor::User("usr_1".into()),
            action: "key.generated",
            agency_id: Some("agy_1".into()),
            key_id: Some(key_id.into()),
            plan_id: None,
            reason: reason.into(),
            request_id: String::new(),
            origin: Origin::default(),
            detail: json!({"scopes": ["a", "b"]}),
        }
    }

    fn chain(count: usize) -> Vec<AuditEvent> {
        let mut head = ChainHead::EMPTY;
        (0..count).map(|number| head.append(event(&format!("key_{number}"), "because"))).collect()
    }

    fn first_break(events: &[AuditEvent]) -> Option<usize> {
        let mut head = ChainHead::EMPTY;
        events.iter().position(|event| !head.follow(event))
    }

    #[test]
    fn an_untouched_chain_is_whole() {
        assert_eq!(first_break(&chain(20)), None);
    }

    #[test]
    fn text_cannot_move_between_fields() {
        let mut one = ChainHead::EMPTY;
        let mut other = ChainHead::EMPTY;
        assert_ne!(one.append(event("key_1", "23")).hash, other.append(event("key_12", "3")).hash);
    }

    #[test]
    fn an_origin_is_part_of_what_is_hashed() {
        let origin = Origin { caller: Some("spiffe://a/gateway".into()), peer: "192.0.2.1:4000".parse().ok() };
        let mut head = ChainHead::EMPTY;
        let known = head.append(NewAuditEvent { origin: origin.clone(), ..event("key_1", "because") });
        assert_eq!(known.origin(), origin);
        assert_eq!(
            known.detail,
            r#"{"origin":{"caller":"spiffe://a/gateway","peer":"192.0.2.1:4000"},"scopes":["a","b"]}"#
        );
        let mut other = ChainHead::EMPTY;
        let unknown = other.append(event("key_1", "because"));
        assert_eq!((unknown.origin(), unknown.detail.as_str()), (Origin::default(), r#"{"scopes":["a","b"]}"#));
        let elsewhere = AuditEvent { detail: known.detail.replace("192.0.2.1", "192.0.2.2"), ..known };
        let mut again = ChainHead::EMPTY;
        assert!(!again.follow(&elsewhere));
    }

    #[test]
    fn an_end_that_was_noted_is_read_back() {
        let mut head = ChainHead::EMPTY;
        head.append(event("key_1", ""));
        assert_eq!(head.to_string().parse(), Ok(head));
        for text in ["", "1", "1:", "x:00", "1:00"] {
            assert_eq!(text.parse::<ChainHead>(), Err(MalformedHead), "{text}");
        }
    }

    #[test]
    fn the_encoding_does_not_change_between_releases() {
        let mut head = ChainHead::EMPTY;
        let hash = head.append(event("key_1", "because")).hash;
        assert_eq!(hex::encode(hash), "160b1a6530e9083fd69b348f5f1f9095e0c6860c9a228cb8c974c4e176206cc4");
    }

    proptest! {
        #[test]
        fn any_change_or_gap_is_seen(place in 0_usize..10, kind in 0_u8..8) {
            let mut events = chain(10);
            match kind {
                0 => events[place].reason.push('x'),
                1 => events[place].actor = "user/usr_2".into(),
                2 => events[place].occurred_at += TimeDelta::microseconds(1),
                3 => events[place].hash[7] ^= 1,
                4 => events[place].detail = "{}".into(),
                5 => events[place].key_id.clear(),
                6 => { events.remove(place); }
                _ => { let twin = events[place].clone(); events.insert(place, twin); }
            }
            let expected = match kind {
                6 if place == 9 => None,
                7 => Some(place + 1),
                _ => Some(place),
            };
            prop_assert_eq!(first_break(&events), expected);
        }
    }
}
