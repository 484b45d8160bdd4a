//! Identifiers: a prefix that tells the kind, then a UUIDv7 in hexadecimal, so that ids sort by time of creation.

use std::cell::Cell;
use std::fmt;
use std::ops::Range;
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

/// Makes the ids of calls that come without one.
#[derive(Debug)]
pub struct CallIds {
    server: [u8; 8],
}

/// The id of a call: 16 random digits of the server, then a count. It is text only where it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CallId {
    server: [u8; 8],
    count: u64,
}

/// Counts that a thread takes at once: one shared count would pass from processor to processor with every call.
const COUNTS_TAKEN: u64 = 1_024;
static NEXT_COUNT: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static COUNTS: Cell<Range<u64>> = const { Cell::new(0..0) };
}

impl CallIds {
    /// Ids of one server.
    pub fn new(entropy: &dyn Entropy) -> Self {
        let mut server = [0; 8];
        entropy.fill(&mut server);
        Self { server }
    }

    /// A new id.
    pub fn next(&self) -> CallId {
        let mut counts = COUNTS.take();
        let count = counts.next().unwrap_or_else(|| {
            let first = NEXT_COUNT.fetch_add(COUNTS_TAKEN, Ordering::Relaxed);
            counts = first + 1..first + COUNTS_TAKEN;
            first
        });
        COUNTS.set(counts);
        CallId { server: self.server, count }
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}{:016x}", u64::from_be_bytes(self.server), self.count)
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
    fn no_two_calls_have_the_same_id() {
        let servers = [CallIds::new(&SeededEntropy::new(1)), CallIds::new(&SeededEntropy::new(2))];
        let some = || servers.iter().flat_map(|ids| (0..3_000).map(|_| ids.next().to_string())).collect::<Vec<_>>();
        let ids: Vec<_> = std::thread::scope(|scope| {
            let threads = [scope.spawn(some), scope.spawn(some)];
            threads.into_iter().flat_map(|thread| thread.join().expect("a thread")).collect()
        });
        assert!(ids.iter().all(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())), "{:?}", ids[0]);
        assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), 12_000);
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
