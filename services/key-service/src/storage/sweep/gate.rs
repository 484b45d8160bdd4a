//! The gate as the database is asked for it: the conditions of the one statement that deletes keys, each with its name.
//!
//! They repeat what `lot_gate` and `entry_gate` decide, on what the database holds at that moment. They are a list, so that a
//! test can leave out each in turn and see that it alone kept a key.

use super::codes::Coded;
use super::sql::{IDLE_MICROS, last_use};
use crate::domain::sweep::{EntryState, LotState, Stage};

/// The deletion: `$1` the instant of it. No index names what it changes: the tombstone stays in its page.
const DELETION: &str =
    "UPDATE api_keys SET state = 3, secret_hash = NULL, sealed_secret = NULL, deleted_at = $1, revision = revision + 1";

/// What a condition is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum About {
    /// The lot `l` of a stretch `t`.
    Lot,
    /// The lot's receipt of a stage, `r`.
    Receipt(Stage),
    /// An entry `e` of a stretch `t` whose lot may be deleted.
    Entry,
    /// The key, `api_keys`, of such an entry `e`.
    Key,
}

/// One condition of the deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Condition {
    /// What it is about.
    pub(super) about: About,
    /// What it asks, in words.
    pub(super) name: &'static str,
    sql: String,
}

impl Condition {
    fn new(about: About, name: &'static str, sql: &str) -> Self {
        Self { about, name, sql: sql.to_owned() }
    }
}

/// Every condition under which a key is deleted: `$2` is the plan, a stretch `t` has the lot's agency, the latest last use that is idle
/// enough for it, and its first and last key.
pub(super) fn conditions() -> Vec<Condition> {
    use About::{Entry, Key, Lot};
    let new = Condition::new;
    let (planned, open) = (EntryState::Planned.code(), LotState::Open.code());
    let mut all = vec![
        new(Key, "active", "api_keys.state = 1"),
        new(Key, "not rotated", "api_keys.revoke_at IS NULL"),
        new(Key, "idle", &format!("{} <= e.idle_since", last_use("api_keys"))),
        new(Key, "of the entry", "api_keys.id = e.key_id"),
        // The owner is compared so that no index of it can serve: each key is found by its id, never among all of its agency.
        new(Key, "same agency", "e.agency_id IS NOT DISTINCT FROM api_keys.agency_id"),
        new(Key, "same location", "e.location_id IS NOT DISTINCT FROM api_keys.location_id"),
        new(Entry, "of the plan", "e.plan_id = $2"),
        new(Entry, "of the lot", "e.agency_id = t.agency_id"),
        new(Entry, "of the batch", "e.key_id BETWEEN t.first_key AND t.last_key"),
        new(Entry, "planned", &format!("e.state = {planned}")),
        new(Lot, "of the plan", "l.plan_id = $2"),
        new(Lot, "of the agency", "l.agency_id = t.agency_id"),
        new(Lot, "open", &format!("l.state = {open}")),
        new(Lot, "not held", "l.hold_reason IS NULL"),
        new(Lot, "due", "l.delete_at <= $1"),
        new(Lot, "not overdue", "l.last_delete_at >= $1"),
        new(Lot, "idle at its instant", &format!("t.idle_since <= l.delete_at - {IDLE_MICROS}")),
    ];
    all.extend(receipts("l"));
    all
}

/// The conditions for the receipts of the lot that `alias` names: one of each stage, with its lead.
fn receipts(alias: &str) -> impl Iterator<Item = Condition> + use<'_> {
    Stage::ALL.into_iter().flat_map(move |stage| {
        let new = |name, sql: &str| Condition::new(About::Receipt(stage), name, sql);
        let lead = stage.lead().num_seconds() * 1_000_000;
        [
            new("of the plan", &format!("r.plan_id = {alias}.plan_id")),
            new("of the agency", &format!("r.agency_id = {alias}.agency_id")),
            new("of the stage", &format!("r.stage = {}", stage.code())),
            new("in time", &format!("r.delivered_at <= {alias}.delete_at - {lead}")),
        ]
    })
}

/// Whether the lot that `alias` names has the receipts of all stages, each with its lead.
pub(super) fn receipted(alias: &str) -> String {
    all_receipted(&receipts(alias).collect::<Vec<_>>())
}

/// The statement that deletes under these conditions and answers the keys it deleted. `stretches` is the relation `t`.
///
/// Each lot is asked once, each entry is found in its lot, and each key by its id, in the order of the ids. SQLite takes a CROSS JOIN
/// for that order.
pub(super) fn deletion(conditions: &[Condition], stretches: &str) -> String {
    format!(
        "WITH open AS MATERIALIZED (SELECT t.* FROM {stretches} CROSS JOIN sweep_lots l WHERE {} AND {}), \
         planned AS MATERIALIZED (SELECT e.key_id, e.agency_id, e.location_id, t.idle_since \
         FROM open t CROSS JOIN sweep_entries e WHERE {} ORDER BY e.key_id) \
         {DELETION} FROM planned AS e WHERE {} RETURNING id",
        all_of(conditions, About::Lot),
        all_receipted(conditions),
        all_of(conditions, About::Entry),
        all_of(conditions, About::Key),
    )
}

fn all_receipted(conditions: &[Condition]) -> String {
    let exists =
        |stage| format!("EXISTS (SELECT 1 FROM sweep_receipts r WHERE {})", all_of(conditions, About::Receipt(stage)));
    Stage::ALL.map(exists).join(" AND ")
}

fn all_of(conditions: &[Condition], about: About) -> String {
    let of: Vec<_> = conditions
        .iter()
        .filter(|condition| condition.about == about)
        .map(|condition| condition.sql.as_str())
        .collect();
    of.join(" AND ")
}
