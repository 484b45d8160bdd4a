//! Verification comes first: a sweep that goes on for minutes leaves it most of the machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::ports::LocalUses;

/// While keys are verified, a sweep works for an eighth of the time: nobody waits for its end, and a caller waits for each answer. Fewer
/// than one call in a hundred then meet its work.
const REST: u32 = 7;

/// However long a transaction took: it may have waited instead of worked.
const LONGEST: Duration = Duration::from_secs(1);

/// Rests between the transactions of a sweep while this process verifies keys.
pub(super) struct Rest {
    uses: Arc<dyn LocalUses>,
    end: CancellationToken,
    verified: AtomicU64,
}

impl Rest {
    /// Rests end at once when `end` is cancelled.
    pub(super) fn new(uses: Arc<dyn LocalUses>, end: CancellationToken) -> Self {
        Self { uses, end, verified: AtomicU64::new(0) }
    }

    /// Rests after a transaction that took so long, if keys were verified since this was last called. It is the machine that
    /// rests, so that its own time counts, whatever a clock shows.
    pub(super) async fn after(&self, took: Duration) {
        let verified = self.uses.verified();
        if self.verified.swap(verified, Ordering::Relaxed) != verified && !took.is_zero() {
            let _: Option<()> = self.end.run_until_cancelled(sleep((took * REST).min(LONGEST))).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use tokio::time::Instant;

    use super::*;

    #[derive(Default)]
    struct Verified(AtomicU64);

    #[async_trait]
    impl LocalUses for Verified {
        async fn flush(&self) {}

        fn verified(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_sweep_rests_only_while_keys_are_verified() {
        let (uses, end) = (Arc::new(Verified::default()), CancellationToken::new());
        let rest = Rest::new(uses.clone(), end.clone());
        let rested = async |took| {
            let begun = Instant::now();
            rest.after(Duration::from_millis(took)).await;
            begun.elapsed().as_millis()
        };
        assert_eq!(rested(80).await, 0, "nothing was verified");
        uses.0.store(7, Ordering::Relaxed);
        assert_eq!(rested(80).await, 560);
        assert_eq!(rested(80).await, 0, "nothing was verified since");
        uses.0.store(8, Ordering::Relaxed);
        assert_eq!(rested(60_000).await, 1_000, "it waited rather than worked");
        uses.0.store(9, Ordering::Relaxed);
        end.cancel();
        assert_eq!(rested(80).await, 0, "the process ends");
    }
}
