//! The keys that were verified lately, and the uses of them that wait to be stored, in one place: a hit touches one
//! entry and writes the use where the key already is.
//!
//! A shard is a hash table of fixed-size slots behind a lock that is held for some hundred nanoseconds. What few keys have,
//! such as scopes or an expiry, lies outside the slot, shared by the keys that have the same.

use std::collections::HashSet;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use hashbrown::HashTable;
use service_kit::time::to_micros;

use super::VerifiedKey;
use super::compact::{CompactOwner, Digits};
use crate::domain::key::{Limits, Networks, Owner, Presented, Scopes, Selector, StoredKey, VerifyCode};

/// A hash table of 1,024 buckets takes this many entries before it doubles.
const SHARD_SLOTS: usize = 896;
/// A shard's usual load at most, so that hardly one is full before all are.
const SHARD_LOAD: usize = 840;
/// So many threads seldom meet in one shard.
const MIN_SHARDS: usize = 16;
/// Entries among which the one used longest ago makes room.
const SAMPLE: usize = 8;
/// Replicas' clocks may differ by this much.
const CLOCK_SKEW: TimeDelta = TimeDelta::seconds(10);
/// No instant: earlier than all.
const UNUSED: i64 = i64::MIN;

/// What the table says of a presented secret.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Hit {
    /// Nothing that could be answered from memory.
    Miss,
    /// The key may not be used so.
    Refused(VerifyCode),
    /// The key may be used, and the use is recorded.
    Valid(VerifiedKey),
}

/// A use that waits to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Use {
    pub(super) key: Digits,
    /// Unix microseconds.
    pub(super) used_at: i64,
}

/// What is not the same for nearly all keys.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
struct Terms {
    /// An owner that the slot has no room for.
    owner: Option<Owner>,
    scopes: Scopes,
    networks: Networks,
    expires_at: Option<DateTime<Utc>>,
    revoke_at: Option<DateTime<Utc>>,
}

/// All that a hit needs: 96 bytes.
struct Slot {
    selector: Selector,
    key: Digits,
    owner: CompactOwner,
    /// A use as late as this is in the database.
    stored_at: i64,
    /// The latest use that was recorded here.
    marked_at: i64,
    /// `None`: none but the owner, which the slot has.
    terms: Option<Arc<Terms>>,
    /// The round of the shard in which the key's use began to wait: it does while that round lasts.
    round: u32,
}

impl Slot {
    fn judge(&self, presented: &Presented, now: DateTime<Utc>) -> VerifyCode {
        let terms = self.terms.as_deref();
        let limits = Limits {
            revoke_at: terms.and_then(|terms| terms.revoke_at),
            expires_at: terms.and_then(|terms| terms.expires_at),
            networks: terms.map(|terms| &terms.networks),
            scopes: terms.map(|terms| &terms.scopes),
        };
        limits.judge(presented, now)
    }

    fn used_at(&self) -> i64 {
        self.stored_at.max(self.marked_at)
    }
}

struct Shard {
    slots: HashTable<Slot>,
    /// Uses that wait of keys that are not among the slots.
    apart: Vec<Use>,
    /// Uses that wait in all.
    waiting: usize,
    /// Keys found valid here that are not in the metrics yet: a count that all calls share would pass from processor to
    /// processor with every one.
    valid: u64,
    /// Counts how often the waiting uses were taken away.
    round: u32,
    /// A use at or before this instant is not taken into memory any more.
    taken_through: i64,
    /// Every use that was recorded here, at or before this instant, is in the database.
    stored_through: i64,
}

impl Shard {
    /// Removes a key; its use, if one waits, goes on waiting.
    fn remove(&mut self, selector: &Selector) {
        if let Ok(found) = self.slots.find_entry(place_of(selector), |slot| slot.selector == *selector) {
            let (slot, _) = found.remove();
            if slot.round == self.round {
                self.apart.push(Use { key: slot.key, used_at: slot.marked_at });
            }
        }
    }

    /// Removes the key used longest ago among a few.
    fn make_room(&mut self, random: u64) {
        let skip = (random >> 32) as usize % self.slots.len().saturating_sub(SAMPLE).max(1);
        let sample = self.slots.iter().skip(skip).take(SAMPLE);
        if let Some(oldest) = sample.min_by_key(|slot| slot.used_at()).map(|slot| slot.selector) {
            self.remove(&oldest);
        }
    }
}

/// The keys in memory.
pub(super) struct KeyTable {
    shards: Box<[Mutex<Shard>]>,
    shard_slots: usize,
    terms: Mutex<HashSet<Arc<Terms>>>,
    /// Counts the changes that were heard of: what was read before one is not taken in after it.
    epoch: AtomicU64,
    waiting: AtomicUsize,
    max_waiting: usize,
    /// The database was told that every use at or before this instant is stored, in unix microseconds.
    reported_through: AtomicI64,
}

impl KeyTable {
    /// An empty table for about `max_keys` keys and at most `max_waiting` uses; nothing at or before `opened_at` waits.
    pub(super) fn new(max_keys: usize, max_waiting: usize, opened_at: DateTime<Utc>) -> Self {
        let shards = max_keys.div_ceil(SHARD_LOAD).max(MIN_SHARDS);
        let load = max_keys.div_ceil(shards);
        let shard = || {
            Mutex::new(Shard {
                slots: HashTable::new(),
                apart: Vec::new(),
                waiting: 0,
                valid: 0,
                round: 1,
                taken_through: to_micros(opened_at),
                stored_through: to_micros(opened_at),
            })
        };
        Self {
            shards: (0..shards).map(|_| shard()).collect(),
            shard_slots: (load + load / 16).clamp(1, SHARD_SLOTS),
            terms: Mutex::default(),
            epoch: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            max_waiting,
            reported_through: AtomicI64::new(to_micros(opened_at)),
        }
    }

    /// Judges a presented secret and records its use, if the key is here and the stored use younger than `slack`.
    pub(super) fn hit(&self, selector: &Selector, presented: &Presented, now: DateTime<Utc>, slack: TimeDelta) -> Hit {
        let mut shard = self.shard(selector);
        let Shard { slots, waiting, valid, round, taken_through, stored_through, .. } = &mut *shard;
        // The selector is 128 bits of a keyed hash: nobody can come closer to one by timing.
        let Some(slot) = slots.find_mut(place_of(selector), |slot| slot.selector == *selector) else {
            return Hit::Miss;
        };
        let code = slot.judge(presented, now);
        if code != VerifyCode::Valid {
            return Hit::Refused(code);
        }
        if slot.marked_at <= *stored_through {
            slot.stored_at = slot.used_at();
        }
        let used_at = to_micros(now);
        if !is_recent(slot.stored_at, used_at, slack) || used_at <= *taken_through || self.is_mute(used_at, slack) {
            return Hit::Miss;
        }
        if slot.round != *round {
            if !self.may_wait() {
                return Hit::Miss;
            }
            slot.round = *round;
            *waiting += 1;
        }
        slot.marked_at = slot.marked_at.max(used_at);
        *valid += 1;
        // Copied while the shard is locked: many keys share their terms, and counting who holds them costs more.
        let terms = slot.terms.as_deref();
        let (named, scopes) = terms.map(|terms| (terms.owner.clone(), terms.scopes.clone())).unwrap_or_default();
        let (key, owner) = (slot.key, slot.owner);
        drop(shard);
        let owner = named.unwrap_or_else(|| owner.owner());
        Hit::Valid(VerifiedKey { key_id: key.key_id(), owner, scopes, plan_id: None })
    }

    /// Records the use of a key whose stored use is `stored_at`, whether or not the key is here; `false`: it must be
    /// stored before it is answered.
    pub(super) fn record(
        &self,
        selector: &Selector,
        key: Digits,
        stored_at: Option<DateTime<Utc>>,
        now: DateTime<Utc>,
        slack: TimeDelta,
    ) -> bool {
        let used_at = to_micros(now);
        let recent = stored_at.is_some_and(|stored_at| is_recent(to_micros(stored_at), used_at, slack));
        let mut shard = self.shard(selector);
        let Shard { slots, apart, waiting, round, taken_through, .. } = &mut *shard;
        if !recent || used_at <= *taken_through || self.is_mute(used_at, slack) {
            return false;
        }
        let slot = slots.find_mut(place_of(selector), |slot| slot.selector == *selector);
        let waits = slot.as_ref().is_some_and(|slot| slot.round == *round);
        if !waits {
            if !self.may_wait() {
                return false;
            }
            *waiting += 1;
        }
        match slot {
            Some(slot) => (slot.round, slot.marked_at) = (*round, slot.marked_at.max(used_at)),
            None => apart.push(Use { key, used_at }),
        }
        true
    }

    /// A use that was stored before it was answered.
    pub(super) fn stored(&self, selector: &Selector, used_at: DateTime<Utc>) {
        let mut shard = self.shard(selector);
        if let Some(slot) = shard.slots.find_mut(place_of(selector), |slot| slot.selector == *selector) {
            slot.stored_at = slot.stored_at.max(to_micros(used_at));
        }
    }

    /// What [`KeyTable::insert`] wants to know of the time before its key was read.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// Takes in a living key as it was read in `epoch`, unless a change was heard of since.
    pub(super) fn insert(&self, epoch: u64, selector: Selector, key: &StoredKey) {
        let Some(digits) = Digits::of_key(&key.key_id) else { return };
        let slot = Slot {
            selector,
            key: digits,
            owner: CompactOwner::of(&key.owner).unwrap_or(CompactOwner::NIL),
            stored_at: key.last_used_at.map_or(UNUSED, to_micros),
            marked_at: UNUSED,
            terms: self.terms(key),
            round: 0,
        };
        let mut shard = self.shard(&selector);
        // Under the lock: whoever hears of a change counts it first and then looks here.
        if self.epoch() != epoch {
            return;
        }
        let hash = place_of(&selector);
        if let Some(old) = shard.slots.find_mut(hash, |slot| slot.selector == selector) {
            // Uses that wait go on waiting, and a stored use never becomes an earlier one.
            let stored_at = slot.stored_at.max(old.stored_at);
            *old = Slot { stored_at, marked_at: old.marked_at, round: old.round, ..slot };
            return;
        }
        if shard.slots.len() >= self.shard_slots {
            shard.make_room(hash);
        }
        shard.slots.insert_unique(hash, slot, |slot| place_of(&slot.selector));
    }

    /// Drops keys that have changed; uses of them that wait go on waiting.
    pub(super) fn forget(&self, selectors: &[Selector]) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        for selector in selectors {
            self.shard(selector).remove(selector);
        }
    }

    /// Number of shards, each of which is emptied of its uses by [`KeyTable::take`].
    pub(super) fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Takes the waiting uses of one shard away; from now on it takes none at or before `through`.
    pub(super) fn take(&self, shard: usize, through: i64) -> Vec<Use> {
        let mut shard = lock(&self.shards[shard]);
        shard.taken_through = shard.taken_through.max(through);
        if shard.waiting == 0 {
            return Vec::new();
        }
        self.waiting.fetch_sub(std::mem::take(&mut shard.waiting), Ordering::Relaxed);
        let mut uses = std::mem::take(&mut shard.apart);
        let marked = shard.slots.iter().filter(|slot| slot.round == shard.round);
        uses.extend(marked.map(|slot| Use { key: slot.key, used_at: slot.marked_at }));
        shard.round = shard.round.wrapping_add(1).max(1);
        uses
    }

    /// Everything that was taken from a shard is in the database.
    pub(super) fn mark_stored(&self, shard: usize, through: i64) {
        let mut shard = lock(&self.shards[shard]);
        shard.stored_through = shard.stored_through.max(through);
    }

    /// The database was told that every use at or before this instant is stored.
    pub(super) fn reported(&self, through: i64) {
        self.reported_through.fetch_max(through, Ordering::Relaxed);
    }

    /// Whether the database has heard nothing for the slack: then no use waits. So what a replica loses when it dies lies within the slack
    /// of its last report, by which the sweep judges it.
    fn is_mute(&self, used_at: i64, slack: TimeDelta) -> bool {
        let heard = self.reported_through.load(Ordering::Relaxed);
        used_at.saturating_sub(heard) > slack.num_microseconds().unwrap_or(i64::MAX)
    }

    /// Takes no use any more.
    pub(super) fn close(&self) {
        for shard in &self.shards {
            lock(shard).taken_through = i64::MAX;
        }
    }

    /// How many keys were found valid here since this was last asked.
    pub(super) fn take_valid(&self) -> u64 {
        self.shards.iter().map(|shard| std::mem::take(&mut lock(shard).valid)).sum()
    }

    /// Keys in memory.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).slots.len()).sum()
    }

    /// Uses that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Counts one use more among those that wait, if one more may.
    fn may_wait(&self) -> bool {
        let room = self.waiting.fetch_add(1, Ordering::Relaxed) < self.max_waiting;
        if !room {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        room
    }

    fn shard(&self, selector: &Selector) -> MutexGuard<'_, Shard> {
        // Multiply and shift: the high bits of the product choose evenly among any number of shards.
        let spread = u128::from(half(selector, 8)) * self.shards.len() as u128;
        lock(&self.shards[(spread >> 64) as usize])
    }

    /// The terms of a key, the same ones for all keys that have the same.
    fn terms(&self, key: &StoredKey) -> Option<Arc<Terms>> {
        let terms = Terms {
            owner: CompactOwner::of(&key.owner).is_none().then(|| key.owner.clone()),
            scopes: key.scopes.clone(),
            networks: key.networks.clone(),
            expires_at: key.expires_at,
            revoke_at: key.revoke_at,
        };
        if terms == Terms::default() {
            return None;
        }
        let mut all = self.terms.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(&terms) {
            return Some(known.clone());
        }
        // Before the set grows, what no key has any more goes.
        if all.len() == all.capacity() {
            all.retain(|terms| Arc::strong_count(terms) > 1);
        }
        let terms = Arc::new(terms);
        all.insert(terms.clone());
        Some(terms)
    }
}

impl std::fmt::Debug for KeyTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyTable").field("shards", &self.shards.len()).finish_non_exhaustive()
    }
}

/// A stored use from the future says that the clock was set back: then nothing follows from its age.
fn is_recent(stored_at: i64, now: i64, slack: TimeDelta) -> bool {
    let ages = -CLOCK_SKEW.num_microseconds().unwrap_or_default()..slack.num_microseconds().unwrap_or_default();
    ages.contains(&now.saturating_sub(stored_at))
}

/// A selector is as random as a hash can be.
fn place_of(selector: &Selector) -> u64 {
    half(selector, 0)
}

fn half(selector: &Selector, from: usize) -> u64 {
    let mut half = [0; 8];
    half.copy_from_slice(&selector.as_bytes()[from..from + 8]);
    u64::from_le_bytes(half)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use service_kit::violations::Violations;

    use super::*;
    use crate::domain::key::ApiKeyState;

    const SLACK: TimeDelta = TimeDelta::hours(1);

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp_micros(1_790_000_000_000_000).unwrap()
    }

    fn selector(key: u64) -> Selector {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&key.to_le_bytes());
        Selector::of(&hash)
    }

    fn key(number: u64) -> StoredKey {
        StoredKey {
            key_id: format!("key_{number:032x}"),
            owner: Owner { agency_id: format!("agy_{:032x}", number % 7), location_id: None },
            state: ApiKeyState::Active,
            secret_hash: None,
            scopes: Scopes::from_stored(vec!["read".into()]),
            networks: Networks::default(),
            created_at: now() - TimeDelta::days(1),
            last_used_at: Some(now() - TimeDelta::minutes(1)),
            expires_at: None,
            revoke_at: None,
            deleted_at: None,
        }
    }

    fn hit(table: &KeyTable, number: u64) -> Hit {
        table.hit(&selector(number), &Presented::default(), now(), SLACK)
    }

    fn table(max_keys: usize) -> KeyTable {
        KeyTable::new(max_keys, 1_000_000, now() - TimeDelta::minutes(1))
    }

    #[test]
    fn a_slot_is_as_small_as_the_documentation_says() {
        assert_eq!(size_of::<Slot>(), 96);
    }

    #[test]
    fn a_hit_is_the_key_as_it_was_read() {
        let table = table(100);
        table.insert(table.epoch(), selector(5), &key(5));
        let Hit::Valid(found) = hit(&table, 5) else { panic!("a miss") };
        let stored = key(5);
        assert_eq!((found.key_id, found.owner, found.scopes), (stored.key_id, stored.owner, stored.scopes));
        assert_eq!(hit(&table, 6), Hit::Miss);
    }

    #[test]
    fn each_key_found_valid_is_counted_once() {
        let table = table(100);
        table.insert(table.epoch(), selector(1), &key(1));
        for number in [1, 1, 2, 1] {
            hit(&table, number);
        }
        assert_eq!((table.take_valid(), table.take_valid()), (3, 0));
    }

    #[test]
    fn expiry_overlap_scopes_and_networks_hold_in_memory_too() {
        let table = table(100);
        let micro = TimeDelta::microseconds(1);
        let networks = Networks::parse(&["192.0.2.0/24".into()], "n", &mut Violations::default());
        let limited = StoredKey { networks, ..key(1) };
        table.insert(table.epoch(), selector(1), &limited);
        let ask = |ip: &str, scopes: &[&str]| {
            let required_scopes = Scopes::from_stored(scopes.iter().map(|scope| (*scope).to_owned()).collect());
            table.hit(&selector(1), &Presented { required_scopes, source_ip: ip.parse().ok() }, now(), SLACK)
        };
        assert!(matches!(ask("192.0.2.9", &["read"]), Hit::Valid(_)));
        assert_eq!(ask("192.0.3.9", &["read"]), Hit::Refused(VerifyCode::IpNotAllowed));
        assert_eq!(ask("192.0.2.9", &["pay"]), Hit::Refused(VerifyCode::InsufficientScope));
        for (offset, expired, revoked) in [
            (-micro, VerifyCode::Expired, VerifyCode::Revoked),
            (TimeDelta::zero(), VerifyCode::Expired, VerifyCode::Revoked),
        ] {
            table.insert(table.epoch(), selector(2), &StoredKey { expires_at: Some(now() + offset), ..key(2) });
            table.insert(table.epoch(), selector(3), &StoredKey { revoke_at: Some(now() + offset), ..key(3) });
            assert_eq!((hit(&table, 2), hit(&table, 3)), (Hit::Refused(expired), Hit::Refused(revoked)));
        }
        table.insert(table.epoch(), selector(2), &StoredKey { expires_at: Some(now() + micro), ..key(2) });
        assert!(matches!(hit(&table, 2), Hit::Valid(_)));
    }

    #[test]
    fn what_was_read_before_a_change_is_not_taken_in_after_it() {
        let table = table(100);
        let epoch = table.epoch();
        table.forget(&[selector(1)]);
        table.insert(epoch, selector(1), &key(1));
        assert_eq!(hit(&table, 1), Hit::Miss);
        table.insert(table.epoch(), selector(1), &key(1));
        assert!(matches!(hit(&table, 1), Hit::Valid(_)));
        table.forget(&[selector(1)]);
        assert_eq!(hit(&table, 1), Hit::Miss);
    }

    #[test]
    fn a_stored_use_as_old_as_the_slack_or_from_the_future_is_no_hit() {
        let table = table(100);
        let micro = TimeDelta::microseconds(1);
        for (number, age, valid) in
            [(1, SLACK - micro, true), (2, SLACK, false), (3, -CLOCK_SKEW, true), (4, -CLOCK_SKEW - micro, false)]
        {
            let last_used_at = Some(now() - age);
            table.insert(table.epoch(), selector(number), &StoredKey { last_used_at, ..key(number) });
            assert_eq!(matches!(hit(&table, number), Hit::Valid(_)), valid, "{number}");
        }
        table.insert(table.epoch(), selector(5), &StoredKey { last_used_at: None, ..key(5) });
        assert_eq!(hit(&table, 5), Hit::Miss);
    }

    #[test]
    fn memory_is_bounded_and_keeps_what_is_used() {
        let table = table(2_000);
        let favourite = 7;
        for number in 0..20_000 {
            table.insert(table.epoch(), selector(number), &key(number));
            let last_used_at = Some(now());
            table.insert(table.epoch(), selector(favourite), &StoredKey { last_used_at, ..key(favourite) });
            assert!(matches!(hit(&table, favourite), Hit::Valid(_)));
        }
        assert!((1_600..=2_300).contains(&table.len()), "{}", table.len());
        assert_eq!(table.terms.lock().unwrap().len(), 1);
    }

    #[test]
    fn the_configured_number_of_keys_fits() {
        let table = table(100_000);
        for number in 0..100_000 {
            table.insert(table.epoch(), selector(number), &key(number));
        }
        assert!(table.len() > 99_000, "{}", table.len());
    }
}
