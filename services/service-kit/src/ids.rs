//! Identifiers: a prefix that tells the kind, then a UUIDv7 in hexadecimal, so that ids sort by time of creation.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::entropy::SharedEntropy;

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
