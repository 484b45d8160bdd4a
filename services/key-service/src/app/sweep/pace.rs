//! How much goes into one transaction of the deletion.

use std::time::Duration;

/// What a batch should take. Calls that meet its locks wait for as long, and it may turn out slower than those before by half and more:
/// well below the 250 ms that none may hold its locks.
const TARGET: Duration = Duration::from_millis(80);

/// Where nothing is known yet: small enough for a slow disk.
const FIRST: u32 = 200;

/// With fewer entries a transaction costs more than they do.
const LEAST: u32 = 20;

/// How often a long deletion says how far it is.
const SPEAK_EVERY: Duration = Duration::from_secs(10);

/// Measures batches, says how large the next one may be, and when it is time to tell how far it is.
#[derive(Debug)]
pub(super) struct Pace {
    most: u32,
    next: u32,
    worked: Duration,
}

impl Pace {
    /// No batch has more than `most` entries.
    pub(super) fn new(most: u32) -> Self {
        Self { most, next: FIRST.min(most), worked: Duration::ZERO }
    }

    /// Entries of the next batch.
    pub(super) fn entries(&self) -> u32 {
        self.next
    }

    /// A batch of so many entries took so long. The next grows to twice its size at most, and shrinks at once.
    pub(super) fn note(&mut self, entries: u64, took: Duration) {
        self.worked += took;
        if entries == 0 {
            return;
        }
        let entry = (took.as_micros() / u128::from(entries)).max(1);
        let fits = u32::try_from(TARGET.as_micros() / entry).unwrap_or(u32::MAX);
        self.next = fits.min(self.next.saturating_mul(2)).max(LEAST).min(self.most);
    }

    /// Whether batches have worked for a while since this was last true.
    pub(super) fn is_time_to_speak(&mut self) -> bool {
        let due = self.worked >= SPEAK_EVERY;
        if due {
            self.worked = Duration::ZERO;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_grow_while_they_are_quick_and_shrink_at_once() {
        let mut pace = Pace::new(1_000);
        assert_eq!(pace.entries(), 200);
        pace.note(200, Duration::from_millis(8));
        assert_eq!(pace.entries(), 400);
        pace.note(400, Duration::from_millis(16));
        pace.note(800, Duration::from_millis(32));
        assert_eq!(pace.entries(), 1_000, "as many as are allowed");
        pace.note(1_000, Duration::from_millis(400));
        assert_eq!(pace.entries(), 200, "a batch took five times as long as it should");
        pace.note(200, Duration::from_secs(60));
        assert_eq!(pace.entries(), 20, "never so few that it gets nowhere");
        pace.note(0, Duration::from_secs(60));
        assert_eq!(pace.entries(), 20, "a batch without entries says nothing of them");
        pace.note(20, Duration::ZERO);
        assert_eq!(pace.entries(), 40);
    }

    #[test]
    fn it_is_time_to_speak_now_and_then() {
        let mut pace = Pace::new(1_000);
        let told: Vec<_> =
            (0..12).map(|_| (pace.note(100, Duration::from_secs(2)), pace.is_time_to_speak()).1).collect();
        assert_eq!(told.iter().enumerate().filter(|(_, told)| **told).map(|(at, _)| at).collect::<Vec<_>>(), [4, 9]);
    }

    #[test]
    fn an_installation_may_want_fewer() {
        let mut pace = Pace::new(2);
        assert_eq!(pace.entries(), 2);
        pace.note(2, Duration::from_secs(60));
        assert_eq!(pace.entries(), 2);
    }
}
