//! Storing the uses that wait in memory.
//!
//! A replica says in the database through which instant all its uses are stored. So that this is never untrue, a use
//! at or before the instant through which uses were taken away is not taken into memory any more: its caller stores it
//! before it answers. So does the caller of a use that comes more than the slack after that instant: whatever a replica loses,
//! it loses within the slack of what it has said.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use service_kit::clock::SharedClock;
use service_kit::time::{from_micros, to_micros};

use super::counters::Counters;
use super::table::{KeyTable, Use};
use crate::app::StorageError;
use crate::app::sweep::LocalUses;

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

/// How much is kept in memory.
#[derive(Debug, Clone, Copy)]
pub struct MemoryBounds {
    /// Keys, about.
    pub max_keys: usize,
    /// Keys whose uses wait.
    pub max_waiting: usize,
    /// Keys whose uses are stored by one activation of the job; what is over waits for the next.
    pub flush_max_keys: usize,
}

/// Stores uses in batches.
pub struct UsageRecorder {
    store: Arc<dyn UsageStore>,
    clock: SharedClock,
    replica_id: String,
    flush_max_keys: usize,
    pub(super) table: Arc<KeyTable>,
    counters: Counters,
    /// Keys found valid in memory, as far as they are in the metrics.
    verified: AtomicU64,
    /// One flush at a time, so that what one could not store is stored before more is taken.
    flushing: tokio::sync::Mutex<Progress>,
}

struct Progress {
    /// What the database was told.
    reported: DateTime<Utc>,
    /// Where the next bounded flush goes on.
    next_shard: usize,
    /// For each shard the instant, in unix microseconds, through which its uses are stored.
    through: Vec<i64>,
    /// Uses that were taken and are not known to be stored.
    taken: Vec<Use>,
    /// The shards that they were taken from, and the instants through which.
    taken_from: Vec<(usize, i64)>,
}

impl std::fmt::Debug for UsageRecorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UsageRecorder").field("replica_id", &self.replica_id).finish_non_exhaustive()
    }
}

impl UsageRecorder {
    /// Starts to record as the replica `replica_id`.
    ///
    /// # Errors
    /// When the database cannot be told.
    pub async fn open(
        store: Arc<dyn UsageStore>,
        clock: SharedClock,
        replica_id: String,
        bounds: MemoryBounds,
    ) -> Result<Self, StorageError> {
        let now = clock.now();
        store.open_writer(&replica_id, now).await?;
        let table = Arc::new(KeyTable::new(bounds.max_keys, bounds.max_waiting, now));
        let progress = Progress {
            reported: now,
            next_shard: 0,
            through: vec![to_micros(now); table.shards()],
            taken: Vec::new(),
            taken_from: Vec::new(),
        };
        let flush_max_keys = bounds.flush_max_keys;
        let (counters, flushing) = (Counters::new(), tokio::sync::Mutex::new(progress));
        let verified = AtomicU64::new(0);
        Ok(Self { store, clock, replica_id, flush_max_keys, table, counters, verified, flushing })
    }

    /// This replica's name in the database.
    pub fn replica_id(&self) -> &str {
        &self.replica_id
    }

    /// Keys in memory, and how many of their uses wait.
    pub fn load(&self) -> (usize, usize) {
        (self.table.len(), self.table.waiting())
    }

    /// How far back the instant lies through which all uses are stored.
    pub async fn lag(&self) -> TimeDelta {
        let through = self.flushing.lock().await.through.iter().copied().min().map(from_micros);
        through.map_or_else(TimeDelta::zero, |through| self.clock.now() - through)
    }

    /// Puts the keys that were found valid in memory since the last call into the metrics; answers how many there were since the
    /// process was started.
    pub fn count(&self) -> u64 {
        let new = self.table.take_valid();
        self.counters.remembered(new);
        self.verified.fetch_add(new, Ordering::Relaxed) + new
    }

    /// Stores every use that was recorded before the call, and says so; answers how many keys' that were.
    ///
    /// # Errors
    /// When the database fails; nothing is lost.
    pub async fn flush(&self) -> Result<u64, StorageError> {
        self.flush_up_to(usize::MAX).await
    }

    /// Stores what waits, up to the configured number of keys; the next call goes on where this one ended.
    ///
    /// # Errors
    /// When the database fails; nothing is lost.
    pub async fn flush_some(&self) -> Result<u64, StorageError> {
        self.flush_up_to(self.flush_max_keys).await
    }

    /// Stores everything and records no more. What comes after is stored before it is answered.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn close(&self) -> Result<(), StorageError> {
        self.table.close();
        self.flush().await?;
        self.store.close_writer(&self.replica_id, self.clock.now()).await
    }

    async fn flush_up_to(&self, max_keys: usize) -> Result<u64, StorageError> {
        let mut progress = self.flushing.lock().await;
        let mut stored = self.store_taken(&mut progress).await?;
        let now = to_micros(self.clock.now());
        for _ in 0..progress.through.len() {
            let shard = progress.next_shard;
            // A clock that was set back promises nothing anew.
            let through = now.max(progress.through[shard]);
            let uses = self.table.take(shard, through);
            progress.taken.extend(uses);
            progress.taken_from.push((shard, through));
            progress.next_shard = (shard + 1) % progress.through.len();
            if progress.taken.len() >= max_keys {
                break;
            }
        }
        stored += self.store_taken(&mut progress).await?;
        let through = progress.through.iter().copied().min().map(from_micros).unwrap_or_default();
        if stored > 0 || through - progress.reported >= REPORT_EVERY {
            self.store.report_flushed(&self.replica_id, through).await?;
            progress.reported = through;
            self.table.reported(to_micros(through));
        }
        Ok(stored)
    }

    async fn store_taken(&self, progress: &mut Progress) -> Result<u64, StorageError> {
        // The latest use of each key last, so that it is the one that is kept.
        progress.taken.sort_unstable();
        let mut uses: Vec<(String, DateTime<Utc>)> = Vec::with_capacity(progress.taken.len());
        for (place, one) in progress.taken.iter().enumerate() {
            if progress.taken.get(place + 1).is_none_or(|next| next.key != one.key) {
                uses.push((one.key.key_id(), from_micros(one.used_at)));
            }
        }
        if !uses.is_empty() {
            self.store.store_uses(&uses).await?;
        }
        progress.taken.clear();
        for (shard, through) in std::mem::take(&mut progress.taken_from) {
            progress.through[shard] = through;
            self.table.mark_stored(shard, through);
        }
        Ok(uses.len() as u64)
    }
}

#[async_trait]
impl LocalUses for UsageRecorder {
    async fn flush(&self) {
        if let Err(error) = Self::flush(self).await {
            tracing::warn!(%error, "uses could not be stored before the sweep looked at them");
        }
    }

    fn verified(&self) -> u64 {
        self.count()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use proptest::prelude::*;
    use service_kit::clock::{Clock, SimulatedClock};

    use super::*;
    use crate::app::verify::compact::Digits;
    use crate::app::verify::table::Hit;
    use crate::domain::key::{ApiKeyState, Networks, Owner, Presented, Scopes, Selector, StoredKey, VerifyCode};

    const SLACK: TimeDelta = TimeDelta::seconds(5);

    /// What the database would hold.
    #[derive(Default)]
    struct Stored {
        fails: AtomicBool,
        uses: Mutex<HashMap<String, DateTime<Utc>>>,
        through: Mutex<Option<DateTime<Utc>>>,
    }

    impl Stored {
        fn answer(&self) -> Result<(), StorageError> {
            match self.fails.load(Ordering::SeqCst) {
                true => Err(StorageError::Unavailable("down".into())),
                false => Ok(()),
            }
        }

        fn of(&self, key: usize) -> Option<DateTime<Utc>> {
            self.uses.lock().unwrap().get(&key_id(key)).copied()
        }
    }

    #[async_trait]
    impl UsageStore for Stored {
        async fn open_writer(&self, _: &str, now: DateTime<Utc>) -> Result<(), StorageError> {
            *self.through.lock().unwrap() = Some(now);
            Ok(())
        }
        async fn store_uses(&self, uses: &[(String, DateTime<Utc>)]) -> Result<(), StorageError> {
            self.answer()?;
            for (key, used_at) in uses {
                let mut stored = self.uses.lock().unwrap();
                let stored = stored.entry(key.clone()).or_insert(*used_at);
                *stored = (*stored).max(*used_at);
            }
            Ok(())
        }
        async fn report_flushed(&self, _: &str, through: DateTime<Utc>) -> Result<(), StorageError> {
            self.answer()?;
            *self.through.lock().unwrap() = Some(through);
            Ok(())
        }
        async fn close_writer(&self, _: &str, _: DateTime<Utc>) -> Result<(), StorageError> {
            Ok(())
        }
    }

    fn key_id(key: usize) -> String {
        format!("key_{key:032x}")
    }

    fn selector(key: usize) -> Selector {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&key.to_le_bytes());
        Selector::of(&hash)
    }

    struct World {
        stored: Arc<Stored>,
        clock: Arc<SimulatedClock>,
        recorder: UsageRecorder,
    }

    impl World {
        async fn new(max_keys: usize, max_waiting: usize, flush_max_keys: usize) -> Self {
            let stored = Arc::new(Stored::default());
            let clock = Arc::new(SimulatedClock::new(DateTime::UNIX_EPOCH + TimeDelta::days(20_000)));
            let bounds = MemoryBounds { max_keys, max_waiting, flush_max_keys };
            let recorder = UsageRecorder::open(stored.clone(), clock.clone(), "rep_1".into(), bounds).await.unwrap();
            clock.advance(TimeDelta::milliseconds(1));
            Self { stored, clock, recorder }
        }

        /// A verification as the use case makes it: from memory, or else over the database. `false`: it fails.
        fn verify(&self, key: usize) -> bool {
            let (table, now) = (&self.recorder.table, self.clock.now());
            if let Hit::Valid(_) = table.hit(&selector(key), &Presented::default(), now, SLACK) {
                return true;
            }
            let Ok(()) = self.stored.answer() else { return false };
            let last_used_at = self.stored.of(key);
            table.insert(table.epoch(), selector(key), &stored_key(key, last_used_at));
            let digits = Digits::of_key(&key_id(key)).unwrap();
            if !table.record(&selector(key), digits, last_used_at, now, SLACK) {
                let mut uses = self.stored.uses.lock().unwrap();
                let stored = uses.entry(key_id(key)).or_insert(now);
                *stored = (*stored).max(now);
                table.stored(&selector(key), now);
            }
            true
        }
    }

    fn stored_key(key: usize, last_used_at: Option<DateTime<Utc>>) -> StoredKey {
        StoredKey {
            key_id: key_id(key),
            owner: Owner { agency_id: "agy_1".into(), location_id: None },
            state: ApiKeyState::Active,
            secret_hash: None,
            scopes: Scopes::default(),
            networks: Networks::default(),
            created_at: DateTime::UNIX_EPOCH,
            last_used_at,
            expires_at: None,
            revoke_at: None,
            deleted_at: None,
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Verify(usize),
        Flush,
        FlushSome,
        Advance(i64),
        Back(i64),
        Fail(bool),
        Forget(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0..40_usize).prop_map(Step::Verify),
            1 => Just(Step::Flush),
            2 => Just(Step::FlushSome),
            4 => (0..3_000_000_i64).prop_map(Step::Advance),
            1 => (0..1_000_000_i64).prop_map(Step::Back),
            1 => any::<bool>().prop_map(Step::Fail),
            1 => (0..40_usize).prop_map(Step::Forget),
        ]
    }

    proptest! {
        /// If the process died after any step, no key that was answered would have a stored use older than the slack, and what
        /// was reported as stored would be.
        #[test]
        fn a_death_at_any_point_loses_no_more_than_the_slack(
            steps in proptest::collection::vec(step(), 1..200),
            max_keys in 1..40_usize,
            max_waiting in 1..40_usize,
            flush_max_keys in 1..10_usize,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let world = World::new(max_keys, max_waiting, flush_max_keys).await;
                let mut answered: HashMap<usize, DateTime<Utc>> = HashMap::new();
                for step in steps {
                    match step {
                        Step::Verify(key) => if world.verify(key) {
                            let now = world.clock.now();
                            let latest = answered.entry(key).or_insert(now);
                            *latest = (*latest).max(now);
                        },
                        Step::Flush => { let _: Result<_, _> = world.recorder.flush().await; }
                        Step::FlushSome => { let _: Result<_, _> = world.recorder.flush_some().await; }
                        Step::Advance(by) => world.clock.advance(TimeDelta::microseconds(by)),
                        Step::Back(by) => world.clock.set_to(world.clock.now() - TimeDelta::microseconds(by)),
                        Step::Fail(fails) => world.stored.fails.store(fails, Ordering::SeqCst),
                        Step::Forget(key) => world.recorder.table.forget(&[selector(key)]),
                    }
                    prop_assert!(world.recorder.table.waiting() <= max_waiting);
                    let through = world.stored.through.lock().unwrap().unwrap();
                    for (key, at) in &answered {
                        let stored = world.stored.of(*key);
                        prop_assert!(stored.is_some_and(|stored| stored > *at - SLACK), "{key}: {at} but {stored:?}");
                        prop_assert!(*at > through || stored >= Some(*at), "{key}: {at} is through {through}, but {stored:?}");
                        prop_assert!(*at <= through + SLACK || stored >= Some(*at), "{key}: {at} is long after {through}, but {stored:?}");
                    }
                }
                world.stored.fails.store(false, Ordering::SeqCst);
                world.recorder.close().await.unwrap();
                for (key, at) in &answered {
                    prop_assert!(world.stored.of(*key) >= Some(*at));
                }
                Ok(())
            })?;
        }
    }

    #[tokio::test]
    async fn uses_of_one_key_wait_once_and_the_latest_is_stored() {
        let world = World::new(10, 10, 10).await;
        assert!(world.verify(1));
        world.clock.advance(TimeDelta::milliseconds(5));
        assert!(world.verify(1));
        world.clock.advance(TimeDelta::milliseconds(5));
        assert!(world.verify(1));
        assert_eq!(world.recorder.load(), (1, 1));
        world.clock.advance(TimeDelta::seconds(1));
        let last = world.clock.now() - TimeDelta::seconds(1);
        assert_eq!(world.recorder.flush().await.unwrap(), 1);
        assert_eq!(world.stored.of(1), Some(last));
    }

    #[tokio::test]
    async fn a_bounded_flush_goes_on_where_it_ended_and_reports_only_what_all_have_reached() {
        let world = World::new(1_000_000, 10_000, 100).await;
        for key in 0..1_000 {
            assert!(world.verify(key));
        }
        world.clock.advance(TimeDelta::seconds(1));
        for key in 0..1_000 {
            assert!(world.verify(key));
        }
        let opened = world.stored.through.lock().unwrap().unwrap();
        world.clock.advance(TimeDelta::seconds(1));
        let first = world.recorder.flush_some().await.unwrap();
        assert!((100..1_000).contains(&first), "{first}");
        assert_eq!(*world.stored.through.lock().unwrap(), Some(opened));
        let mut stored = first;
        while stored < 1_000 {
            world.clock.advance(TimeDelta::seconds(1));
            stored += world.recorder.flush_some().await.unwrap();
        }
        world.recorder.flush().await.unwrap();
        assert_eq!(*world.stored.through.lock().unwrap(), Some(world.clock.now()));
    }

    #[tokio::test]
    async fn a_refused_use_is_not_recorded() {
        let world = World::new(10, 10, 10).await;
        assert!(world.verify(1));
        world.clock.advance(TimeDelta::milliseconds(1));
        let scoped = Presented { required_scopes: Scopes::from_stored(vec!["pay".into()]), source_ip: None };
        let hit = world.recorder.table.hit(&selector(1), &scoped, world.clock.now(), SLACK);
        assert_eq!((hit, world.recorder.load().1), (Hit::Refused(VerifyCode::InsufficientScope), 0));
    }
}
