//! Identifiers: a prefix that tells the kind, then a UUIDv7 in hexadecimal, so that ids sort by time of creation.

use std::sync::atomic::{AtomicU64, Ordering};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::entropy::{Entropy, SharedEntropy};

/// Makes identifiers from the time and randomness it is given.
#[derive(Clone, Debug)]
pub struct IdGenerator {
    entropy: SharedEntropy,
}

impl IdGenerator {
    /// A generator that draws from `entropy`.
    pub fn new(entropy: SharedEntropy) -> Self {
        Self { entropy }
    }

    /// A new id such as `key_0190…`: `prefix`, ending in `_`, and 32 hexadecimal digits.
    pub fn next(&self, prefix: &str, now: DateTime<Utc>) -> String {
        let mut random = [0; 10];
        self.entropy.fill(&mut random);
        let millis = u64::try_from(now.timestamp_millis()).unwrap_or(0);
        let uuid = uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid();
        format!("{prefix}{}", uuid.simple())
    }
}

/// Makes the ids of calls that come without one: 16 random digits of the process, then a count.
#[derive(Debug)]
pub struct CallIds {
    process: String,
    count: AtomicU64,
}

impl CallIds {
    /// Ids of this process.
    pub fn new(entropy: &dyn Entropy) -> Self {
        let mut random = [0; 8];
        entropy.fill(&mut random);
        Self { process: hex::encode(random), count: AtomicU64::new(0) }
    }

    /// A new id, 32 hexadecimal digits.
    pub fn next(&self) -> String {
        let mut digits = [0; 16];
        let count = self.count.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let mut id = String::with_capacity(32);
        id.push_str(&self.process);
        if hex::encode_to_slice(count, &mut digits).is_ok() {
            id.extend(digits.map(char::from));
        }
        id
    }
}

/// Whether `text` is an id of the kind that `prefix` names.
pub fn is_id(prefix: &str, text: &str) -> bool {
    text.strip_prefix(prefix).is_some_and(|rest| {
        rest.len() == 32
            && rest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
            && Uuid::try_parse(rest).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::SeededEntropy;
    use crate::time::from_micros;
    use std::sync::Arc;

    #[test]
    fn calls_of_two_processes_have_different_ids() {
        let (one, other) = (CallIds::new(&SeededEntropy::new(1)), CallIds::new(&SeededEntropy::new(2)));
        let ids = [one.next(), one.next(), other.next(), other.next()];
        assert!(ids.iter().all(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())), "{ids:?}");
        assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), 4);
    }

    #[test]
    fn ids_sort_by_time_and_are_recognised() {
        let ids = IdGenerator::new(Arc::new(SeededEntropy::new(7)));
        let early = ids.next("key_", from_micros(1_700_000_000_000_000));
        let late = ids.next("key_", from_micros(1_700_000_000_001_000));
        assert!(early < late);
        assert!(is_id("key_", &early));
        assert!(!is_id("loc_", &early));
        assert!(!is_id("key_", &early.to_uppercase()));
        assert!(!is_id("key_", "key_"));
    }
}
