//! What other replicas changed.
//!
//! The audit is written in the transaction of each change, in the order of commitment and without gaps: so it is also
//! the log that tells a replica which of the keys it holds in memory are no longer as they were. It is read when a
//! notification says so, and once a second all the same. What is in memory is good for an answer only while the last
//! reading that succeeded began less than [`MAX_STALENESS`] ago.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use service_kit::clock::SharedClock;
use service_kit::time::to_micros;

use super::refusals::Refusals;
use super::table::KeyTable;
use crate::app::StorageError;
use crate::domain::key::Selector;

/// A change is seen by every replica within 5 s: this, and a second for an answer that is on its way already.
pub const MAX_STALENESS: Duration = Duration::from_secs(4);

/// Changes applied at once.
const PAGE: u32 = 10_000;

/// A change that concerns verification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyChange {
    /// Its place in the log.
    pub sequence: i64,
    /// What finds the key that changed.
    pub selector: Selector,
    /// Whether a secret that no key had may have one now.
    pub imported: bool,
}

/// The log of changes.
#[async_trait]
pub trait ChangeLog: Send + Sync + 'static {
    /// The place of the last change.
    async fn last_change(&self) -> Result<i64, StorageError>;
    /// At most `limit` changes behind `after` up to `through` that concern verification, in order.
    async fn changes(&self, after: i64, through: i64, limit: u32) -> Result<Vec<KeyChange>, StorageError>;
}

/// Keeps what is in memory in step with the database.
pub struct ChangeFollower {
    log: Arc<dyn ChangeLog>,
    clock: SharedClock,
    table: Arc<KeyTable>,
    refusals: Arc<Refusals>,
    /// One reading at a time; the place in the log, none before the first.
    position: tokio::sync::Mutex<Option<i64>>,
    /// Microseconds of lived time at which the last reading that succeeded began.
    read_lived: AtomicU64,
    /// Microseconds of lived time, and unix microseconds, until which memory is trusted. Either may be read a moment before
    /// the other: each is right for itself.
    trusted_lived: AtomicU64,
    trusted_until: AtomicI64,
}

impl std::fmt::Debug for ChangeFollower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChangeFollower").finish_non_exhaustive()
    }
}

impl ChangeFollower {
    pub(super) fn new(
        log: Arc<dyn ChangeLog>,
        clock: SharedClock,
        table: Arc<KeyTable>,
        refusals: Arc<Refusals>,
    ) -> Self {
        let read_lived = AtomicU64::new(micros(clock.lived()));
        Self {
            log,
            clock,
            table,
            refusals,
            position: tokio::sync::Mutex::new(None),
            read_lived,
            trusted_lived: AtomicU64::new(0),
            trusted_until: AtomicI64::new(i64::MIN),
        }
    }

    /// Reads the log to its end and forgets what changed; answers how many changes that were.
    ///
    /// # Errors
    /// When the database fails: what is in memory is then trusted for a little while yet.
    pub async fn catch_up(&self) -> Result<u64, StorageError> {
        let mut position = self.position.lock().await;
        let (lived, at) = (self.clock.lived(), self.clock.now());
        let last = self.log.last_change().await?;
        let mut heard = 0;
        // Nothing is in memory before the first reading, so nothing in it can be older.
        let mut after = position.unwrap_or(last);
        while after < last {
            let page = self.log.changes(after, last, PAGE).await?;
            after = if page.len() < PAGE as usize { last } else { page.last().map_or(last, |change| change.sequence) };
            if !page.is_empty() {
                self.forget(&page);
                heard += page.len() as u64;
            }
            // What was applied stays applied, whatever becomes of the next page.
            *position = Some(after);
        }
        *position = Some(last);
        self.read_lived.store(micros(lived), Ordering::SeqCst);
        self.trusted_lived.store(micros(lived + MAX_STALENESS), Ordering::SeqCst);
        self.trusted_until.store(to_micros(at).saturating_add_unsigned(micros(MAX_STALENESS)), Ordering::SeqCst);
        Ok(heard)
    }

    /// For how long a change elsewhere may have gone unseen.
    pub fn lag(&self) -> Duration {
        self.clock.lived().saturating_sub(Duration::from_micros(self.read_lived.load(Ordering::SeqCst)))
    }

    /// Makes one's own change known at once; if that fails, nothing in memory is trusted until a reading succeeds.
    pub async fn own_change(&self) {
        if let Err(error) = self.catch_up().await {
            tracing::warn!(%error, "a change was stored but could not be read back: memory is not trusted until it can");
            self.trusted_lived.store(0, Ordering::SeqCst);
        }
    }

    /// Whether what is in memory is good for an answer at `now`. Both clocks must say so: one may stand still while the
    /// machine sleeps, the other can be set.
    pub(super) fn is_fresh(&self, now: DateTime<Utc>) -> bool {
        micros(self.clock.lived()) < self.trusted_lived.load(Ordering::SeqCst)
            && to_micros(now) < self.trusted_until.load(Ordering::SeqCst)
    }

    fn forget(&self, changes: &[KeyChange]) {
        let selectors: Vec<_> = changes.iter().map(|change| change.selector).collect();
        self.table.forget(&selectors);
        if changes.iter().any(|change| change.imported) {
            self.refusals.clear();
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
