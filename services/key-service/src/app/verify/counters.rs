//! How verification is counted.

use metrics::Counter;

use crate::domain::key::VerifyCode;
use crate::metrics::{VERIFICATION_LOOKUPS, VERIFICATIONS, VERIFICATIONS_THROTTLED};

/// Handles of the counters: looking one up by its labels costs more than a hit.
pub(super) struct Counters {
    answers: [Counter; VerifyCode::ALL.len()],
    /// Answers from the keys in memory.
    pub(super) hits: Counter,
    /// Answers from the refusals in memory.
    pub(super) refusals: Counter,
    /// Questions to the database.
    pub(super) misses: Counter,
    /// Bad secrets from sources that present too many.
    pub(super) throttled: Counter,
}

impl Counters {
    pub(super) fn new() -> Self {
        let looked_up = |from: &'static str| metrics::counter!(VERIFICATION_LOOKUPS.name, "from" => from);
        Self {
            answers: VerifyCode::ALL.map(|code| metrics::counter!(VERIFICATIONS.name, "code" => code.as_str())),
            hits: looked_up("keys"),
            refusals: looked_up("refusals"),
            misses: looked_up("database"),
            throttled: metrics::counter!(VERIFICATIONS_THROTTLED.name),
        }
    }

    /// Counts an answer.
    pub(super) fn answered(&self, code: VerifyCode) {
        if let Some(counter) = self.answers.get(code as usize) {
            counter.increment(1);
        }
    }

    /// Counts valid keys that were found in memory.
    pub(super) fn remembered(&self, keys: u64) {
        self.hits.increment(keys);
        if let Some(counter) = self.answers.get(VerifyCode::Valid as usize) {
            counter.increment(keys);
        }
    }
}
