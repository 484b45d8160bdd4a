//! What should be: notes of what was done and answered, and the rules told naively. Shares no code with the product. Instants are unix
//! microseconds.

use std::collections::{BTreeMap, HashMap};

pub(super) const MINUTE: i64 = 60_000_000;
pub(super) const HOUR: i64 = 60 * MINUTE;
pub(super) const DAY: i64 = 24 * HOUR;
/// Midnight of 2027-01-01: when the quarter's deletion begins.
pub(super) const D: i64 = 1_798_761_600_000_000;
/// Keys used later than this are not deleted at [`D`].
pub(super) const CUTOFF: i64 = D - 90 * DAY;
/// Nothing is deleted after it.
pub(super) const LAST: i64 = D + 14 * DAY;
/// What a process that dies may have lost.
pub(super) const SLACK: i64 = HOUR;
/// Days before the deletion by which the notices of each stage are due.
pub(super) const LEADS: [i64; 3] = [15 * DAY, 7 * DAY, DAY];

#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) id: String,
    pub(super) secret: String,
    pub(super) agency: String,
    /// The latest of its creation, the use it was imported with, and every answer VALID.
    pub(super) last_use: i64,
    /// From this instant on it is revoked.
    pub(super) ends: Option<i64>,
    pub(super) successor: bool,
    pub(super) expires: Option<i64>,
    pub(super) deleted: Option<i64>,
    /// When it was last changed, in time that has passed.
    pub(super) changed: Option<std::time::Duration>,
}

impl Key {
    pub(super) fn code(&self, now: i64) -> &'static str {
        match self {
            Self { deleted: Some(_), .. } => "deleted_by_sweep",
            Self { ends: Some(ends), .. } if *ends <= now => "revoked",
            Self { expires: Some(expires), .. } if *expires <= now => "expired",
            _ => "valid",
        }
    }

    /// Whether it lives and nobody has set an end for it.
    pub(super) fn endless(&self) -> bool {
        self.deleted.is_none() && self.ends.is_none()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    Operator,
    Nobody,
}

#[derive(Debug, Clone)]
pub(super) struct Lot {
    pub(super) delete_at: i64,
    pub(super) receipts: [Option<i64>; 3],
    pub(super) hold: Option<Hold>,
    pub(super) closed: bool,
}

impl Lot {
    pub(super) fn new() -> Self {
        Self { delete_at: D, receipts: [None; 3], hold: None, closed: false }
    }

    /// A receipt that was recorded.
    pub(super) fn told(&mut self, stage: usize, at: i64) {
        if self.closed || self.receipts[stage].is_some() {
            return;
        }
        self.receipts[stage] = Some(at);
        if self.hold == Some(Hold::Nobody) {
            self.hold = None;
        }
        let due = at + LEADS[stage];
        if due > self.delete_at {
            let mut hour = due / HOUR * HOUR;
            if hour < due {
                hour += HOUR;
            }
            if hour > LAST {
                self.close();
            } else {
                self.delete_at = hour;
            }
        }
    }

    /// A report that nobody can be told, which was recorded.
    pub(super) fn nobody(&mut self, stage: usize) {
        if !self.closed && self.receipts[stage].is_none() && self.hold.is_none() {
            self.hold = Some(Hold::Nobody);
        }
    }

    pub(super) fn close(&mut self) {
        self.closed = true;
        self.hold = None;
    }

    /// Whether every notice went out in time for a deletion at this instant, and nobody holds the lot.
    pub(super) fn may_go(&self, at: i64) -> bool {
        self.hold.is_none()
            && (self.delete_at..=LAST).contains(&at)
            && (0..3).all(|stage| self.receipts[stage].is_some_and(|told| told + LEADS[stage] <= self.delete_at))
    }
}

#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) keys: Vec<Key>,
    /// By agency, once the plan is published.
    pub(super) lots: BTreeMap<String, Lot>,
    pub(super) cancelled: bool,
    /// How far each process knows its clock to have been set forward since it came up.
    pub(super) ahead: [i64; 2],
}

impl Model {
    pub(super) fn used(&mut self, key: usize, now: i64) {
        let key = &mut self.keys[key];
        key.last_use = key.last_use.max(now);
    }

    pub(super) fn clock_was_set(&mut self, by: i64) {
        for ahead in &mut self.ahead {
            *ahead = (*ahead + by).max(0);
        }
    }

    pub(super) fn by_id(&self) -> HashMap<&str, &Key> {
        self.keys.iter().map(|key| (key.id.as_str(), key)).collect()
    }
}

/// What a subscriber makes of the events, one after the other.
#[derive(Debug, Default)]
pub(super) struct Projection {
    pub(super) sequence: i64,
    /// By agency: when it is deleted, and in which state it is.
    pub(super) lots: BTreeMap<String, (i64, &'static str)>,
    pub(super) rescued: Vec<String>,
    pub(super) plan: &'static str,
}

impl Projection {
    /// Applies the event of this sequence; `agencies` are those of the plan.
    pub(super) fn apply(&mut self, sequence: i64, payload: &serde_json::Value, agencies: &[String]) {
        assert_eq!(sequence, self.sequence + 1, "a gap in the history");
        self.sequence = sequence;
        let Some((name, of)) = payload.as_object().and_then(|object| object.iter().next()) else {
            panic!("an event without a name: {payload}")
        };
        let text = |field: &str| of[field].as_str().unwrap_or_default().to_owned();
        let lot = self.lots.get_mut(&text("agency_id"));
        match name.as_str() {
            "plan_published" => {
                assert_eq!(self.plan, "", "published twice");
                self.plan = "open";
                self.lots =
                    agencies.iter().map(|agency| (agency.clone(), (micros(&text("delete_at")), "open"))).collect();
            }
            "plan_entries" | "plan_sealed" => {}
            "entry_rescued" => {
                assert!(!self.rescued.contains(&text("key_id")), "rescued twice");
                self.rescued.push(text("key_id"));
            }
            "lot_rescheduled" => {
                let lot = lot.unwrap();
                let (from, to) = (micros(&text("previous_delete_at")), micros(&text("delete_at")));
                assert!(lot.0 == from && to > from, "a deletion moved earlier");
                lot.0 = to;
            }
            "lot_held" => lot.unwrap().1 = "held",
            "lot_released" => lot.unwrap().1 = "open",
            "lot_executed" | "lot_deferred" => {
                let lot = lot.unwrap();
                assert!(lot.1 == "open" || lot.1 == "held", "closed twice");
                lot.1 = if name == "lot_executed" { "executed" } else { "deferred" };
            }
            "plan_completed" => self.plan = "completed",
            "plan_cancelled" => {
                self.plan = "cancelled";
                self.lots
                    .values_mut()
                    .filter(|lot| lot.1 == "open" || lot.1 == "held")
                    .for_each(|lot| lot.1 = "cancelled");
            }
            other => panic!("an unknown event {other}"),
        }
    }
}

fn micros(text: &str) -> i64 {
    chrono::DateTime::parse_from_rfc3339(text).unwrap().timestamp_micros()
}
