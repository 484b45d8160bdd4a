//! Rotation: when the old secret ends.

use chrono::{DateTime, TimeDelta, Utc};
use service_kit::violations::Violations;

use super::{ApiKey, ApiKeyState};

/// The longest overlap: time enough to roll a secret out everywhere, and no second life for it.
pub const MAX_OVERLAP: TimeDelta = TimeDelta::days(7);

/// Why a key cannot be rotated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RotationRefusal {
    /// It has ended; the state's name.
    NotActive(&'static str),
    /// It was rotated before, into this key.
    AlreadyRotated(String),
}

/// How long both secrets verify, checked to be 0 to 7 days.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overlap(TimeDelta);

impl Overlap {
    /// The old secret ends at once.
    pub const NONE: Self = Self(TimeDelta::zero());

    /// Checks an overlap; faults go to `faults` under `field`.
    pub fn parse(overlap: TimeDelta, field: &str, faults: &mut Violations) -> Self {
        if overlap < TimeDelta::zero() || overlap > MAX_OVERLAP {
            faults.push(field, "must be between 0 and 7 days");
        }
        Self(overlap)
    }

    /// The overlap in microseconds.
    pub fn micros(self) -> i64 {
        self.0.num_microseconds().unwrap_or(i64::MAX)
    }

    /// Whether the old secret ends at once.
    pub fn is_zero(self) -> bool {
        self.micros() == 0
    }
}

/// When the secret of `key`, rotated at `now`, ends.
pub fn rotate(key: &ApiKey, overlap: Overlap, now: DateTime<Utc>) -> Result<DateTime<Utc>, RotationRefusal> {
    if let (Some(successor), ApiKeyState::Active | ApiKeyState::Revoked) = (&key.successor_id, key.state) {
        return Err(RotationRefusal::AlreadyRotated(successor.clone()));
    }
    match key.state_at(now) {
        ApiKeyState::Active if key.is_expired_at(now) => Err(RotationRefusal::NotActive("EXPIRED")),
        ApiKeyState::Active => Ok(now + TimeDelta::microseconds(overlap.micros())),
        ended @ (ApiKeyState::Revoked | ApiKeyState::Deleted) => Err(RotationRefusal::NotActive(ended.as_str())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::key::{Networks, Owner, Scopes};

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp_micros(1_790_000_000_000_000).unwrap()
    }

    fn key() -> ApiKey {
        ApiKey {
            key_id: "key_1".into(),
            owner: Owner { agency_id: "agy_1".into(), location_id: None },
            display_name: String::new(),
            display_prefix: String::new(),
            state: ApiKeyState::Active,
            scopes: Scopes::default(),
            networks: Networks::default(),
            created_at: now(),
            last_used_at: None,
            expires_at: None,
            revoke_at: None,
            deleted_at: None,
            pending_deletion: None,
            successor_id: None,
            external_reference: None,
            sealed: true,
            revision: 1,
        }
    }

    #[test]
    fn an_overlap_lies_between_zero_and_seven_days() {
        let week = 7 * 86_400_000_000;
        for (micros, sound) in [(-1, false), (0, true), (1, true), (week, true), (week + 1, false)] {
            let mut faults = Violations::default();
            let overlap = Overlap::parse(TimeDelta::microseconds(micros), "overlap", &mut faults);
            assert_eq!(faults.is_empty(), sound, "{micros} µs");
            if sound {
                assert_eq!(rotate(&key(), overlap, now()), Ok(now() + TimeDelta::microseconds(micros)));
            }
        }
    }

    #[test]
    fn ended_expired_and_rotated_keys_are_not_rotated() {
        let overlap = Overlap(TimeDelta::zero());
        let refusal = |key: ApiKey| rotate(&key, overlap, now()).unwrap_err();
        let ended = |state| refusal(ApiKey { state, ..key() });
        assert_eq!(ended(ApiKeyState::Revoked), RotationRefusal::NotActive("REVOKED"));
        assert_eq!(ended(ApiKeyState::Deleted), RotationRefusal::NotActive("DELETED"));
        assert_eq!(refusal(ApiKey { expires_at: Some(now()), ..key() }), RotationRefusal::NotActive("EXPIRED"));
        assert_eq!(refusal(ApiKey { revoke_at: Some(now()), ..key() }), RotationRefusal::NotActive("REVOKED"));
        let rotated = ApiKey { successor_id: Some("key_2".into()), ..key() };
        assert_eq!(refusal(rotated), RotationRefusal::AlreadyRotated("key_2".into()));
    }
}
