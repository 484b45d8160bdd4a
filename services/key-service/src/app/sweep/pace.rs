//! How much goes into one transaction of the deletion, and how many of them into one activation.

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

/// What is left then is for the next activation, which looks anew at the clocks, at the uses of all replicas and at what else is due.
const LONGEST: Duration = Duration::from_secs(60);

/// Measures batches, says how large the next one may be, when it is time to tell how far it is, and when to stop.
#[derive(Debug)]
pub(super) struct Pace {
    most: u32,
    next: u32,
    begun: Duration,
    spoke: Duration,
}

impl Pace {
    /// No batch has more than `most` entries; the deletion begins at this moment of the time lived.
    pub(super) fn new(most: u32, begun: Duration) -> Self {
        Self { most, next: FIRST.min(most), begun, spoke: begun }
    }

    /// Entries of the next batch.
    pub(super) fn entries(&self) -> u32 {
        self.next
    }

    /// A batch of so many entries took so long. The next grows to twice its size at most, and shrinks at once.
    pub(super) fn note(&mut self, entries: u64, took: Duration) {
        if entries == 0 {
            return;
        }
        let entry = (took.as_micros() / u128::from(entries)).max(1);
        let fits = u32::try_from(TARGET.as_micros() / entry).unwrap_or(u32::MAX);
        self.next = fits.min(self.next.saturating_mul(2)).max(LEAST).min(self.most);
    }

    /// Whether, at this moment of the time lived, there is time for another batch.
    pub(super) fn goes_on(&self, lived: Duration) -> bool {
        lived.saturating_sub(self.begun) < LONGEST
    }

    /// Whether, at this moment of the time lived, the deletion has gone on for a while since this was last true.
    pub(super) fn is_time_to_speak(&mut self, lived: Duration) -> bool {
        let due = lived.saturating_sub(self.spoke) >= SPEAK_EVERY;
        if due {
            self.spoke = lived;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_grow_while_they_are_quick_and_shrink_at_once() {
        let mut pace = Pace::new(1_000, Duration::ZERO);
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
        let mut pace = Pace::new(1_000, Duration::from_secs(100));
        let told: Vec<_> = (101..=125).filter(|at| pace.is_time_to_speak(Duration::from_secs(*at))).collect();
        assert_eq!(told, [110, 120]);
    }

    #[test]
    fn a_long_deletion_goes_on_in_the_next_activation() {
        let pace = Pace::new(1_000, Duration::from_secs(100));
        assert!(pace.goes_on(Duration::from_millis(159_999)));
        assert!(!pace.goes_on(Duration::from_secs(160)));
    }

    #[test]
    fn an_installation_may_want_fewer() {
        let mut pace = Pace::new(2, Duration::ZERO);
        assert_eq!(pace.entries(), 2);
        pace.note(2, Duration::from_secs(60));
        assert_eq!(pace.entries(), 2);
    }
}
