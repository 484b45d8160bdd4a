//! Secrets that were refused lately: those that no key has, and those of keys that have ended.

use std::sync::atomic::{AtomicU64, Ordering};

use chrono::{DateTime, Utc};
use quick_cache::sync::Cache;

use crate::domain::key::{Selector, VerifyCode};

/// Why a secret was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: VerifyCode,
    pub(super) deleted_at: Option<DateTime<Utc>>,
}

/// A bounded number of them, apart from the keys: whoever guesses displaces guesses.
pub(super) struct Refusals {
    cache: Cache<Selector, Refusal>,
    epoch: AtomicU64,
}

impl Refusals {
    pub(super) fn new(max: usize) -> Self {
        Self { cache: Cache::new(max), epoch: AtomicU64::new(0) }
    }

    pub(super) fn get(&self, selector: &Selector) -> Option<Refusal> {
        self.cache.get(selector)
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// Takes in a refusal as it was read in `epoch`, unless an import was heard of since.
    pub(super) fn insert(&self, epoch: u64, selector: Selector, refusal: Refusal) {
        self.cache.insert(selector, refusal);
        // Afterwards: whoever hears of an import counts it first and then clears.
        if self.epoch() != epoch {
            self.cache.remove(&selector);
        }
    }

    /// Forgets all of them: a secret that no key had may have one now.
    pub(super) fn clear(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.cache.clear();
    }
}
