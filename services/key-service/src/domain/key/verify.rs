//! Whether a presented secret may be used: a pure decision over what the database holds.

use std::net::IpAddr;

use chrono::{DateTime, Utc};
use subtle::ConstantTimeEq;

use super::{ApiKeyState, Hash, Networks, Owner, Scopes};

/// What became of a presented secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerifyCode {
    /// The key may be used.
    Valid,
    /// No key has this secret.
    NotFound,
    /// No key can have this secret.
    Malformed,
    /// The key was revoked, or its overlap has run out.
    Revoked,
    /// The key's own expiry has passed.
    Expired,
    /// A sweep deleted the key.
    DeletedBySweep,
    /// The key lacks a required scope.
    InsufficientScope,
    /// The source lies in none of the key's networks.
    IpNotAllowed,
}

impl VerifyCode {
    /// Every code, in the order of the enum.
    pub const ALL: [Self; 8] = [
        Self::Valid,
        Self::NotFound,
        Self::Malformed,
        Self::Revoked,
        Self::Expired,
        Self::DeletedBySweep,
        Self::InsufficientScope,
        Self::IpNotAllowed,
    ];

    /// The code as metrics name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::NotFound => "not_found",
            Self::Malformed => "malformed",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
            Self::DeletedBySweep => "deleted_by_sweep",
            Self::InsufficientScope => "insufficient_scope",
            Self::IpNotAllowed => "ip_not_allowed",
        }
    }
}

/// What a look-up finds: all that a decision needs, and nothing else.
#[derive(Clone)]
pub struct StoredKey {
    /// `key_…`.
    pub key_id: String,
    /// Who owns the key.
    pub owner: Owner,
    /// The state as stored.
    pub state: ApiKeyState,
    /// The keyed hash; `None` in tombstones.
    pub secret_hash: Option<Hash>,
    /// What the key may be used for.
    pub scopes: Scopes,
    /// From where the key may be used.
    pub networks: Networks,
    /// When the key came into being.
    pub created_at: DateTime<Utc>,
    /// The stored last use.
    pub last_used_at: Option<DateTime<Utc>>,
    /// From this instant on the key does not verify.
    pub expires_at: Option<DateTime<Utc>>,
    /// From this instant on the key is revoked.
    pub revoke_at: Option<DateTime<Utc>>,
    /// When a sweep deleted the key.
    pub deleted_at: Option<DateTime<Utc>>,
}

impl std::fmt::Debug for StoredKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoredKey").field("key_id", &self.key_id).field("state", &self.state).finish_non_exhaustive()
    }
}

/// What was presented, beside the secret.
#[derive(Debug, Clone, Default)]
pub struct Presented {
    /// Scopes that the key must all have.
    pub required_scopes: Scopes,
    /// Where the request came from.
    pub source_ip: Option<IpAddr>,
}

/// What restricts the use of an ACTIVE key.
#[derive(Debug, Clone, Copy)]
pub struct Limits<'a> {
    /// From this instant on the key is revoked.
    pub revoke_at: Option<DateTime<Utc>>,
    /// From this instant on the key does not verify.
    pub expires_at: Option<DateTime<Utc>>,
    /// From where the key may be used; `None`: from everywhere.
    pub networks: Option<&'a Networks>,
    /// What the key may be used for; `None`: no scope.
    pub scopes: Option<&'a Scopes>,
}

impl Limits<'_> {
    /// Whether an ACTIVE key may be used at `now` for what was presented.
    pub fn judge(&self, presented: &Presented, now: DateTime<Utc>) -> VerifyCode {
        let required = &presented.required_scopes;
        if self.revoke_at.is_some_and(|revoke_at| revoke_at <= now) {
            VerifyCode::Revoked
        } else if self.expires_at.is_some_and(|expires_at| expires_at <= now) {
            VerifyCode::Expired
        } else if !self.networks.is_none_or(|networks| networks.admit(presented.source_ip)) {
            VerifyCode::IpNotAllowed
        } else if !self.scopes.map_or_else(|| required.as_slice().is_empty(), |scopes| scopes.cover(required)) {
            VerifyCode::InsufficientScope
        } else {
            VerifyCode::Valid
        }
    }
}

/// Decides about a key that a selector found, for a secret whose keyed hash is `hash`.
///
/// The selector of a tombstone is 128 bits of the keyed hash and enough to tell what became of it; a living key is
/// compared whole, in constant time.
pub fn decide(key: &StoredKey, hash: &Hash, presented: &Presented, now: DateTime<Utc>) -> VerifyCode {
    match key.state {
        ApiKeyState::Deleted => return VerifyCode::DeletedBySweep,
        ApiKeyState::Revoked => return VerifyCode::Revoked,
        ApiKeyState::Active => {}
    }
    let same = key.secret_hash.as_ref().is_some_and(|stored| bool::from(stored.ct_eq(hash)));
    if !same {
        return VerifyCode::NotFound;
    }
    let limits = Limits {
        revoke_at: key.revoke_at,
        expires_at: key.expires_at,
        networks: Some(&key.networks),
        scopes: Some(&key.scopes),
    };
    limits.judge(presented, now)
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use service_kit::violations::Violations;

    use super::*;

    const HASH: Hash = [7; 32];

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp_micros(1_790_000_000_000_000).unwrap()
    }

    fn key() -> StoredKey {
        StoredKey {
            key_id: "key_1".into(),
            owner: Owner { agency_id: "agy_1".into(), location_id: None },
            state: ApiKeyState::Active,
            secret_hash: Some(HASH),
            scopes: Scopes::from_stored(vec!["read".into()]),
            networks: Networks::default(),
            created_at: now() - TimeDelta::days(1),
            last_used_at: None,
            expires_at: None,
            revoke_at: None,
            deleted_at: None,
        }
    }

    fn code(key: &StoredKey) -> VerifyCode {
        decide(key, &HASH, &Presented::default(), now())
    }

    #[test]
    fn all_codes_stand_at_their_places() {
        assert!(VerifyCode::ALL.iter().enumerate().all(|(place, code)| *code as usize == place));
    }

    #[test]
    fn expiry_and_overlap_end_on_their_microsecond() {
        for (offset, expired, revoked) in [
            (-1, VerifyCode::Expired, VerifyCode::Revoked),
            (0, VerifyCode::Expired, VerifyCode::Revoked),
            (1, VerifyCode::Valid, VerifyCode::Valid),
        ] {
            let at = Some(now() + TimeDelta::microseconds(offset));
            assert_eq!(code(&StoredKey { expires_at: at, ..key() }), expired, "expiry {offset} µs");
            assert_eq!(code(&StoredKey { revoke_at: at, ..key() }), revoked, "overlap {offset} µs");
        }
    }

    #[test]
    fn ended_keys_say_how_they_ended_without_their_hash() {
        let tombstone = |state| StoredKey { state, secret_hash: None, ..key() };
        assert_eq!(code(&tombstone(ApiKeyState::Revoked)), VerifyCode::Revoked);
        assert_eq!(code(&tombstone(ApiKeyState::Deleted)), VerifyCode::DeletedBySweep);
        assert_eq!(code(&tombstone(ApiKeyState::Active)), VerifyCode::NotFound);
    }

    #[test]
    fn every_bit_of_the_hash_counts() {
        for bit in 0..256 {
            let mut other = HASH;
            other[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decide(&key(), &other, &Presented::default(), now()), VerifyCode::NotFound);
        }
    }

    #[test]
    fn scopes_and_networks_restrict() {
        let mut faults = Violations::default();
        let networks = Networks::parse(&["192.0.2.0/24".into()], "n", &mut faults);
        let key = StoredKey { networks, ..key() };
        let ask = |ip: &str, scopes: &[&str]| {
            let required_scopes = Scopes::from_stored(scopes.iter().map(|scope| (*scope).to_owned()).collect());
            decide(&key, &HASH, &Presented { required_scopes, source_ip: ip.parse().ok() }, now())
        };
        assert_eq!(ask("192.0.2.1", &["read"]), VerifyCode::Valid);
        assert_eq!(ask("192.0.2.1", &["read", "write"]), VerifyCode::InsufficientScope);
        assert_eq!(ask("192.0.3.1", &["read"]), VerifyCode::IpNotAllowed);
        assert_eq!(ask("", &[]), VerifyCode::IpNotAllowed);
    }
}
