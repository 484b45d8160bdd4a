use sea_orm::ConnectionTrait;
use service_kit::both_databases;

use super::deleting::ready;
use super::*;
use crate::app::sweep::LotOrder;
use crate::storage::sweep::codes::Coded;
use crate::storage::sweep::deletion::{Stretch, delete_keys};
use crate::storage::sweep::gate::{About, Condition, conditions};

/// A condition, and what may befall a key that was ready to be deleted at [`d`], as SQL: after each of them this condition alone
/// keeps the key.
type Mishaps = (About, &'static str, Vec<String>);

/// Every condition of the deletion, in its order.
fn mishaps() -> Vec<Mishaps> {
    let (d, idle) = (to_micros(d()), to_micros(idle()));
    let (key, entry) = ("UPDATE api_keys SET", "UPDATE sweep_entries SET");
    let (lot, receipts) = ("UPDATE sweep_lots SET", "UPDATE sweep_receipts SET");
    let mut all = vec![
        (About::Key, "active", [2, 3].map(|state| format!("{key} state = {state}")).to_vec()),
        (About::Key, "not rotated", vec![format!("{key} revoke_at = {}", d + 1)]),
        (
            About::Key,
            "idle",
            vec![
                format!("{key} last_used_at = {}", idle + 1),
                format!("{key} created_at = {}", idle + 1),
                format!("{key} created_at = {}, last_used_at = {}", idle + 1, idle - 1),
            ],
        ),
        (About::Key, "of the entry", vec![format!("{entry} key_id = 'key_2'")]),
        (About::Key, "same agency", vec![format!("{key} agency_id = 'agy_2'")]),
        (
            About::Key,
            "same location",
            vec![format!("{key} location_id = 'loc_2'"), format!("{key} location_id = NULL")],
        ),
        (About::Entry, "of the plan", vec![format!("{entry} plan_id = 'plan_2'")]),
        (About::Entry, "of the lot", vec![format!("{key} agency_id = 'agy_2'; {entry} agency_id = 'agy_2'")]),
        (
            About::Entry,
            "of the batch",
            ["key_0", "key_3"].map(|other| format!("{key} id = '{other}'; {entry} key_id = '{other}'")).to_vec(),
        ),
        (About::Entry, "planned", [RESCUED, DELETED, SPARED].map(|state| format!("{entry} state = {state}")).to_vec()),
        (About::Lot, "of the plan", vec![format!("{lot} plan_id = 'plan_2'; {receipts} plan_id = 'plan_2'")]),
        (About::Lot, "of the agency", vec![format!("{lot} agency_id = 'agy_2'; {receipts} agency_id = 'agy_2'")]),
        (About::Lot, "open", [2, 3, 4, 5].map(|state| format!("{lot} state = {state}")).to_vec()),
        (About::Lot, "not held", [1, 2, 3].map(|reason| format!("{lot} hold_reason = {reason}")).to_vec()),
        (About::Lot, "due", vec![format!("{lot} delete_at = {}", d + 1)]),
        (About::Lot, "not overdue", vec![format!("{lot} last_delete_at = {}", d - 1)]),
        (
            About::Lot,
            "idle at its instant",
            vec![format!("{lot} delete_at = {}; {receipts} delivered_at = delivered_at - 1", d - 1)],
        ),
    ];
    for stage in Stage::ALL {
        for (name, change) in [
            ("of the plan", "plan_id = 'plan_2'"),
            ("of the agency", "agency_id = 'agy_2'"),
            ("of the stage", "stage = 9"),
            ("in time", "delivered_at = delivered_at + 1"),
        ] {
            let mishap = format!("{receipts} {change} WHERE stage = {}", stage.code());
            all.push((About::Receipt(stage), name, vec![mishap]));
        }
    }
    all
}

/// How many keys the deletion takes under these conditions once `mishap` was executed; the database stays as it is.
async fn deletes(house: &House, slack: TimeDelta, mishap: &str, conditions: Vec<Condition>) -> usize {
    let plan_id = house.plan().await.plan.plan_id;
    let lot = LotOrder { agency_id: "agy_1".into(), delete_at: d(), slack };
    let tx = begin_write(&house.db).await.unwrap();
    tx.execute_unprepared(mishap).await.unwrap();
    let stretch = Stretch { lot: &lot, first_key: "key_1", last_key: "key_2" };
    let deleted = delete_keys(&tx, &plan_id, &[stretch], conditions, d()).await.unwrap();
    tx.rollback().await.unwrap();
    deleted.len()
}

both_databases! {
    /// Leaves out one condition of the statement after the other. Without it a key goes that it alone had kept: none of them can be
    /// lost or bent unnoticed.
    async fn each_condition_of_the_deletion_alone_keeps_a_key(db: TestDatabase) {
        let house = ready(db, &["key_1"], 100).await;
        let zero = TimeDelta::zero();
        assert_eq!(deletes(&house, zero, "", conditions()).await, 1);
        let last = format!("UPDATE sweep_lots SET last_delete_at = {}", to_micros(d()));
        assert_eq!(deletes(&house, zero, &last, conditions()).await, 1, "at the last instant");

        let known: Vec<_> = mishaps().into_iter().map(|(about, name, _)| (about, name)).collect();
        let asked: Vec<_> = conditions().into_iter().map(|condition| (condition.about, condition.name)).collect();
        assert_eq!(known, asked, "the statement has conditions that no test knows, or has lost some");
        for (about, name, mishaps) in mishaps() {
            let without = || {
                let left = conditions().into_iter();
                left.filter(|condition| (condition.about, condition.name) != (about, name)).collect()
            };
            for mishap in mishaps {
                let of = format!("{about:?} {name:?} after {mishap}");
                assert_eq!(deletes(&house, zero, &mishap, conditions()).await, 0, "a key went: {of}");
                assert_eq!(deletes(&house, zero, &mishap, without()).await, 1, "another one kept it: {of}");
            }
        }
    }

    /// The cutoff of the statement counts the slack, and never a negative one.
    async fn the_deletion_counts_the_slack(db: TestDatabase) {
        let house = ready(db, &["key_1"], 100).await;
        let hour = TimeDelta::hours(1);
        for (slack, last_use, deleted) in [
            (hour, idle() - hour, 1),
            (hour, idle() - hour + TICK, 0),
            (-hour, idle(), 1),
            (-hour, idle() + TICK, 0),
        ] {
            let used = format!("UPDATE api_keys SET last_used_at = {}", to_micros(last_use));
            assert_eq!(deletes(&house, slack, &used, conditions()).await, deleted, "{slack}, {last_use}");
        }
    }
}
