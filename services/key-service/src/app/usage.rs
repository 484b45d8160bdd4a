//! Uses that wait in memory for their turn to be stored.
//!
//! A replica says in the database through which instant all its uses are stored. So that this is never untrue, a use
//! at or before the last such instant is not taken into memory any more: its caller stores it before it answers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use service_kit::clock::SharedClock;

use super::StorageError;
use super::sweep::UsageFlush;

/// An idle replica says so this often at most.
const REPORT_EVERY: TimeDelta = TimeDelta::seconds(1);

/// Uses in the database, and what each replica says of its own.
#[async_trait]
pub trait UsageStore: Send + Sync + 'static {
    /// A replica starts: everything through `now` is stored, for it has recorded nothing yet.
    async fn open_writer(&self, replica_id: &str, now: DateTime<Utc>) -> Result<(), StorageError>;
    /// Stores uses, each unless a later one is stored already; sorted by key.
    async fn store_uses(&self, uses: &[(String, DateTime<Utc>)]) -> Result<(), StorageError>;
    /// Every use of the replica through this instant is stored.
    async fn report_flushed(&self, replica_id: &str, through: DateTime<Utc>) -> Result<(), StorageError>;
    /// The replica has stored everything and records no more.
    async fn close_writer(&self, replica_id: &str, now: DateTime<Utc>) -> Result<(), StorageError>;
}

/// Records uses in memory, one instant a key, and stores them in batches.
pub struct UsageRecorder {
    store: Arc<dyn UsageStore>,
    clock: SharedClock,
    replica_id: String,
    capacity: usize,
    buffer: Mutex<Buffer>,
    /// One flush at a time, so that what one could not store is back before the next reports.
    flushing: tokio::sync::Mutex<Reported>,
}

struct Buffer {
    uses: HashMap<String, DateTime<Utc>>,
    /// Uses through this instant are stored or on their way to the database.
    through: DateTime<Utc>,
    closed: bool,
}

struct Reported(DateTime<Utc>);

impl std::fmt::Debug for UsageRecorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UsageRecorder").field("replica_id", &self.replica_id).finish_non_exhaustive()
    }
}

impl UsageRecorder {
    /// Starts to record as the replica `replica_id`, with at most `capacity` keys waiting.
    pub async fn open(
        store: Arc<dyn UsageStore>,
        clock: SharedClock,
        replica_id: String,
        capacity: usize,
    ) -> Result<Self, StorageError> {
        let now = clock.now();
        store.open_writer(&replica_id, now).await?;
        let buffer = Buffer { uses: HashMap::new(), through: now, closed: false };
        Ok(Self {
            store,
            clock,
            replica_id,
            capacity,
            buffer: Mutex::new(buffer),
            flushing: tokio::sync::Mutex::new(Reported(now)),
        })
    }

    /// This replica's name in the database.
    pub fn replica_id(&self) -> &str {
        &self.replica_id
    }

    /// Takes a use into memory; `false`: it must be stored before it is answered.
    pub fn record(&self, key_id: &str, used_at: DateTime<Utc>) -> bool {
        let mut buffer = self.lock();
        if buffer.closed || used_at <= buffer.through {
            return false;
        }
        if let Some(waiting) = buffer.uses.get_mut(key_id) {
            *waiting = used_at.max(*waiting);
            return true;
        }
        let room = buffer.uses.len() < self.capacity;
        if room {
            buffer.uses.insert(key_id.to_owned(), used_at);
        }
        room
    }

    /// Stores what was recorded before the call, and says so; answers how many uses that were.
    pub async fn flush(&self) -> Result<u64, StorageError> {
        let mut reported = self.flushing.lock().await;
        let (mut uses, through) = {
            let mut buffer = self.lock();
            buffer.through = buffer.through.max(self.clock.now());
            (std::mem::take(&mut buffer.uses).into_iter().collect::<Vec<_>>(), buffer.through)
        };
        if uses.is_empty() && through - reported.0 < REPORT_EVERY {
            return Ok(0);
        }
        uses.sort_unstable();
        if !uses.is_empty()
            && let Err(error) = self.store.store_uses(&uses).await
        {
            self.take_back(uses);
            return Err(error);
        }
        self.store.report_flushed(&self.replica_id, through).await?;
        reported.0 = through;
        Ok(uses.len() as u64)
    }

    /// Stores everything and records no more. What comes after is stored before it is answered.
    pub async fn close(&self) -> Result<(), StorageError> {
        self.lock().closed = true;
        self.flush().await?;
        self.store.close_writer(&self.replica_id, self.clock.now()).await
    }

    fn take_back(&self, uses: Vec<(String, DateTime<Utc>)>) {
        let mut buffer = self.lock();
        for (key_id, used_at) in uses {
            let waiting = buffer.uses.entry(key_id).or_insert(used_at);
            *waiting = used_at.max(*waiting);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl UsageFlush for UsageRecorder {
    async fn flush(&self) {
        if let Err(error) = Self::flush(self).await {
            tracing::warn!(%error, "uses could not be stored before the sweep looked at them");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use service_kit::clock::{Clock, SimulatedClock};

    use super::*;

    #[derive(Default)]
    struct Memory {
        fails: AtomicBool,
        stored: Mutex<Vec<(String, DateTime<Utc>)>>,
        through: Mutex<Option<DateTime<Utc>>>,
    }

    #[async_trait]
    impl UsageStore for Memory {
        async fn open_writer(&self, _: &str, now: DateTime<Utc>) -> Result<(), StorageError> {
            *self.through.lock().unwrap() = Some(now);
            Ok(())
        }
        async fn store_uses(&self, uses: &[(String, DateTime<Utc>)]) -> Result<(), StorageError> {
            if self.fails.load(Ordering::SeqCst) {
                return Err(StorageError::Unavailable("down".into()));
            }
            self.stored.lock().unwrap().extend_from_slice(uses);
            Ok(())
        }
        async fn report_flushed(&self, _: &str, through: DateTime<Utc>) -> Result<(), StorageError> {
            *self.through.lock().unwrap() = Some(through);
            Ok(())
        }
        async fn close_writer(&self, _: &str, _: DateTime<Utc>) -> Result<(), StorageError> {
            Ok(())
        }
    }

    async fn recorder(capacity: usize) -> (Arc<Memory>, Arc<SimulatedClock>, UsageRecorder) {
        let store = Arc::new(Memory::default());
        let clock = Arc::new(SimulatedClock::new(DateTime::UNIX_EPOCH + TimeDelta::days(20_000)));
        let recorder = UsageRecorder::open(store.clone(), clock.clone(), "rep_1".into(), capacity).await.unwrap();
        clock.advance(TimeDelta::seconds(1));
        (store, clock, recorder)
    }

    #[tokio::test]
    async fn uses_of_one_key_are_stored_as_the_latest() {
        let (store, clock, recorder) = recorder(10).await;
        let now = clock.now();
        assert!(recorder.record("key_1", now) && recorder.record("key_1", now - TimeDelta::milliseconds(5)));
        clock.advance(TimeDelta::seconds(1));
        assert_eq!(recorder.flush().await.unwrap(), 1);
        assert_eq!(*store.stored.lock().unwrap(), [("key_1".to_owned(), now)]);
    }

    #[tokio::test]
    async fn what_is_reported_as_stored_is_never_taken_into_memory_again() {
        let (store, clock, recorder) = recorder(10).await;
        recorder.flush().await.unwrap();
        let through = store.through.lock().unwrap().unwrap();
        assert_eq!(through, clock.now());
        assert!(!recorder.record("key_1", through - TimeDelta::microseconds(1)));
        assert!(!recorder.record("key_1", through));
        assert!(recorder.record("key_1", through + TimeDelta::microseconds(1)));
    }

    #[tokio::test]
    async fn a_failed_flush_loses_nothing_and_reports_nothing() {
        let (store, clock, recorder) = recorder(10).await;
        let before = store.through.lock().unwrap().unwrap();
        assert!(recorder.record("key_1", clock.now()));
        store.fails.store(true, Ordering::SeqCst);
        assert!(recorder.flush().await.is_err());
        assert_eq!(store.through.lock().unwrap().unwrap(), before);
        store.fails.store(false, Ordering::SeqCst);
        assert_eq!(recorder.flush().await.unwrap(), 1);
        assert_eq!(store.through.lock().unwrap().unwrap(), clock.now());
    }

    #[tokio::test]
    async fn memory_is_bounded_and_a_closed_recorder_takes_nothing() {
        let (store, clock, recorder) = recorder(2).await;
        let now = clock.now();
        assert!(recorder.record("key_1", now) && recorder.record("key_2", now) && !recorder.record("key_3", now));
        assert!(recorder.record("key_2", now));
        recorder.close().await.unwrap();
        assert_eq!(store.stored.lock().unwrap().len(), 2);
        assert!(!recorder.record("key_1", now + TimeDelta::days(1)));
    }
}
