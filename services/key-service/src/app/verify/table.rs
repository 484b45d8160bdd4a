//! The keys that were verified lately, and the uses of them that wait to be stored, in one place: a hit touches one
//! entry and writes the use where the key already is.
//!
//! A shard is a hash table of fixed-size slots behind a lock that is held for some hundred nanoseconds. What a key may
//! be used for and from where lies outside the slot, shared by the keys that have the same.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use hashbrown::HashTable;
use service_kit::time::{from_micros, to_micros};

use super::VerifiedKey;
use super::compact::{CompactOwner, Digits};
use crate::domain::key::{Limits, Networks, Presented, Scopes, Selector, StoredKey, VerifyCode};

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
/// No instant: later than all.
const NEVER: i64 = i64::MAX;
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

/// Scopes and networks, the same for many keys.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Grant {
    scopes: Scopes,
    networks: Networks,
}

/// All that a hit needs: 120 bytes.
struct Slot {
    selector: Selector,
    key: Digits,
    owner: CompactOwner,
    expires_at: i64,
    revoke_at: i64,
    /// A use as late as this is in the database.
    stored_at: i64,
    /// The latest use that was recorded here.
    marked_at: i64,
    /// `None`: neither scopes nor networks.
    grant: Option<Arc<Grant>>,
    /// The round of the shard in which the key's use began to wait, and its place among those that do.
    round: u32,
    place: u32,
}

impl Slot {
    fn judge(&self, presented: &Presented, now: DateTime<Utc>) -> VerifyCode {
        let instant = |micros: i64| (micros != NEVER).then(|| from_micros(micros));
        let limits = Limits {
            revoke_at: instant(self.revoke_at),
            expires_at: instant(self.expires_at),
            networks: self.grant.as_deref().map(|grant| &grant.networks),
            scopes: self.grant.as_deref().map(|grant| &grant.scopes),
        };
        limits.judge(presented, now)
    }

    fn used_at(&self) -> i64 {
        self.stored_at.max(self.marked_at)
    }
}

struct Shard {
    slots: HashTable<Slot>,
    uses: Vec<Use>,
    /// Counts how often the waiting uses were taken away.
    round: u32,
    /// A use at or before this instant is not taken into memory any more.
    taken_through: i64,
    /// Every use that was recorded here, at or before this instant, is in the database.
    stored_through: i64,
}

/// The keys in memory.
pub(super) struct KeyTable {
    shards: Box<[Mutex<Shard>]>,
    shard_slots: usize,
    grants: Mutex<HashSet<Arc<Grant>>>,
    /// Counts the changes that were heard of: what was read before one is not taken in after it.
    epoch: AtomicU64,
    waiting: AtomicUsize,
    max_waiting: usize,
}

impl KeyTable {
    /// An empty table for about `max_keys` keys and at most `max_waiting` uses; nothing at or before `opened_at` waits.
    pub(super) fn new(max_keys: usize, max_waiting: usize, opened_at: DateTime<Utc>) -> Self {
        let shards = max_keys.div_ceil(SHARD_LOAD).max(MIN_SHARDS);
        let load = max_keys.div_ceil(shards);
        let shard = || {
            Mutex::new(Shard {
                slots: HashTable::new(),
                uses: Vec::new(),
                round: 1,
                taken_through: to_micros(opened_at),
                stored_through: to_micros(opened_at),
            })
        };
        Self {
            shards: (0..shards).map(|_| shard()).collect(),
            shard_slots: (load + load / 16).clamp(1, SHARD_SLOTS),
            grants: Mutex::default(),
            epoch: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            max_waiting,
        }
    }

    /// Judges a presented secret and records its use, if the key is here and the stored use younger than `slack`.
    pub(super) fn hit(&self, selector: &Selector, presented: &Presented, now: DateTime<Utc>, slack: TimeDelta) -> Hit {
        let mut shard = self.shard(selector);
        let Shard { slots, uses, round, taken_through, stored_through } = &mut *shard;
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
        if !is_recent(slot.stored_at, used_at, slack) || used_at <= *taken_through {
            return Hit::Miss;
        }
        let waiting = if slot.round == *round { uses.get_mut(slot.place as usize) } else { None };
        if let Some(waiting) = waiting {
            waiting.used_at = waiting.used_at.max(used_at);
        } else {
            let Some(place) = self.push(uses, Use { key: slot.key, used_at }) else { return Hit::Miss };
            (slot.round, slot.place) = (*round, place);
        }
        slot.marked_at = slot.marked_at.max(used_at);
        let (key, owner, grant) = (slot.key, slot.owner.clone(), slot.grant.clone());
        drop(shard);
        let scopes = grant.map(|grant| grant.scopes.clone()).unwrap_or_default();
        Hit::Valid(VerifiedKey { key_id: key.key_id(), owner: owner.owner(), scopes, plan_id: None })
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
        let Shard { slots, uses, round, taken_through, .. } = &mut *shard;
        if !recent || used_at <= *taken_through {
            return false;
        }
        let Some(place) = self.push(uses, Use { key, used_at }) else { return false };
        if let Some(slot) = slots.find_mut(place_of(selector), |slot| slot.selector == *selector) {
            (slot.round, slot.place) = (*round, place);
            slot.marked_at = slot.marked_at.max(used_at);
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
            owner: CompactOwner::of(&key.owner),
            expires_at: key.expires_at.map_or(NEVER, to_micros),
            revoke_at: key.revoke_at.map_or(NEVER, to_micros),
            stored_at: key.last_used_at.map_or(UNUSED, to_micros),
            marked_at: UNUSED,
            grant: self.grant(key),
            round: 0,
            place: 0,
        };
        let mut shard = self.shard(&selector);
        // Under the lock: whoever hears of a change counts it first and then looks here.
        if self.epoch() != epoch {
            return;
        }
        let hash = place_of(&selector);
        if let Some(old) = shard.slots.find_mut(hash, |slot| slot.selector == selector) {
            // Uses that wait go on waiting, and a stored use never becomes an earlier one.
            let (marked_at, round, place) = (old.marked_at, old.round, old.place);
            let stored_at = slot.stored_at.max(old.stored_at);
            *old = Slot { stored_at, marked_at, round, place, ..slot };
            return;
        }
        if shard.slots.len() >= self.shard_slots {
            make_room(&mut shard.slots, hash);
        }
        shard.slots.insert_unique(hash, slot, |slot| place_of(&slot.selector));
    }

    /// Drops keys that have changed; uses of them that wait go on waiting.
    pub(super) fn forget(&self, selectors: &[Selector]) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        for selector in selectors {
            if let Ok(found) =
                self.shard(selector).slots.find_entry(place_of(selector), |slot| slot.selector == *selector)
            {
                found.remove();
            }
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
        shard.round = shard.round.wrapping_add(1).max(1);
        let uses = std::mem::take(&mut shard.uses);
        self.waiting.fetch_sub(uses.len(), Ordering::Relaxed);
        uses
    }

    /// Everything that was taken from a shard is in the database.
    pub(super) fn mark_stored(&self, shard: usize, through: i64) {
        let mut shard = lock(&self.shards[shard]);
        shard.stored_through = shard.stored_through.max(through);
    }

    /// Takes no use any more.
    pub(super) fn close(&self) {
        for shard in &self.shards {
            lock(shard).taken_through = NEVER;
        }
    }

    /// Keys in memory.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).slots.len()).sum()
    }

    /// Uses that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    fn push(&self, uses: &mut Vec<Use>, one: Use) -> Option<u32> {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.max_waiting {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        uses.push(one);
        u32::try_from(uses.len() - 1).ok()
    }

    fn shard(&self, selector: &Selector) -> MutexGuard<'_, Shard> {
        // Multiply and shift: the high bits of the product choose evenly among any number of shards.
        let spread = u128::from(half(selector, 8)) * self.shards.len() as u128;
        lock(&self.shards[(spread >> 64) as usize])
    }

    /// The grant of a key, the same one for all keys that have the same.
    fn grant(&self, key: &StoredKey) -> Option<Arc<Grant>> {
        let grant = Grant { scopes: key.scopes.clone(), networks: key.networks.clone() };
        if grant.scopes.as_slice().is_empty() && grant.networks.as_slice().is_empty() {
            return None;
        }
        let mut grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = grants.get(&grant) {
            return Some(known.clone());
        }
        // Before the set grows, what no key has any more goes.
        if grants.len() == grants.capacity() {
            grants.retain(|grant| Arc::strong_count(grant) > 1);
        }
        let grant = Arc::new(grant);
        grants.insert(grant.clone());
        Some(grant)
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

/// Removes the entry used longest ago among a few.
fn make_room(slots: &mut HashTable<Slot>, random: u64) {
    let skip = (random >> 32) as usize % slots.len().saturating_sub(SAMPLE).max(1);
    let oldest = slots.iter().skip(skip).take(SAMPLE).min_by_key(|slot| slot.used_at()).map(|slot| slot.selector);
    if let Some(oldest) = oldest
        && let Ok(found) = slots.find_entry(place_of(&oldest), |slot| slot.selector == oldest)
    {
        found.remove();
    }
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
    use crate::domain::key::{ApiKeyState, Owner};

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
        assert_eq!(size_of::<Slot>(), 120);
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
        assert_eq!(table.grants.lock().unwrap().len(), 1);
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
