use sea_orm::{ConnectionTrait, DbBackend, EntityTrait, Statement};
use service_kit::both_databases;
use service_kit::rows::{Column, Rows};
use service_kit::testing::Kind;

use super::*;
use crate::app::sweep::{BatchOrder, LotOrder, LotOutcome, SweepJobError, SweepJobs};
use crate::domain::sweep::{LotBlock, PlanState};
use crate::storage::sweep::codes::Coded;
use crate::storage::sweep::entities::receipts;
use crate::storage::sweep::{closing, deletion, gate};

/// A house whose only lot may be deleted at D.
pub(super) async fn ready(db: TestDatabase, keys: &[&str], batch: u32) -> House {
    let house = House::with(db, small_batches(batch)).await;
    for id in keys {
        house.key(id, None).await;
    }
    house.tick_at(plan_time()).await;
    house.deliver_through("agy_1", Stage::D1).await;
    house.clock.advance_to(d());
    house
}

pub(super) async fn order(house: &House, slack: TimeDelta) -> BatchOrder {
    let plan_id = house.plan().await.plan.plan_id;
    let delete_at = from_micros(house.lot_row("agy_1").await.delete_at);
    BatchOrder { plan_id, lots: vec![LotOrder { agency_id: "agy_1".into(), delete_at, slack }], limit: 100 }
}

/// Deletes the next batch of the only lot of an order.
pub(super) async fn delete(house: &House, order: &BatchOrder, now: DateTime<Utc>) -> LotOutcome {
    let mut outcomes = house.store.delete_batch(&house.lease().await, order, now).await.unwrap();
    assert_eq!(outcomes.len(), 1);
    outcomes.pop().unwrap()
}

/// Two keys of each of these agencies, and then some of a last one, whose lots may all be deleted at D.
async fn several(db: TestDatabase, agencies: &[&str], last: &str, keys_of_last: usize, batch: u32) -> House {
    let house = House::with(db, small_batches(batch)).await;
    for agency in agencies {
        for number in 1..=2 {
            house.key_of(&format!("key_{number}_{agency}"), agency, None, None).await;
        }
    }
    for number in 1..=keys_of_last {
        house.key_of(&format!("key_{number}_{last}"), last, Some("loc_1"), None).await;
    }
    house.tick_at(plan_time()).await;
    for agency in agencies.iter().chain([&last]) {
        let plan_id = house.plan().await.plan.plan_id;
        let rows = Stage::ALL.map(|stage| receipts::ActiveModel {
            plan_id: Set(plan_id.clone()),
            agency_id: Set((*agency).to_owned()),
            stage: Set(stage.code()),
            delivered_at: Set(to_micros(d() - stage.lead())),
            acknowledged_at: Set(to_micros(d() - stage.lead())),
            in_app_count: Set(1),
            emails_accepted: Set(1),
        });
        receipts::Entity::insert_many(rows).exec_without_returning(&house.db).await.unwrap();
    }
    house.clock.advance_to(d());
    house
}

/// Lets a minute pass after each batch.
struct Slow(Arc<SimulatedClock>);

#[async_trait]
impl LocalUses for Slow {
    async fn flush(&self) {}

    fn verified(&self) -> u64 {
        self.0.advance(TimeDelta::minutes(1));
        0
    }
}

both_databases! {
    async fn a_long_deletion_looks_at_everything_anew_now_and_then(db: TestDatabase) {
        let house = ready(db, &["key_1", "key_2", "key_3", "key_4", "key_5"], 2).await;
        let parts = house.parts(house.clock.clone(), "rep_other", 9);
        let slow = Sweeper::new(SweeperParts { usage: Arc::new(Slow(house.clock.clone())), ..parts });
        for (deleted, completed) in [(2, 0), (2, 0), (1, 1)] {
            let tick = slow.tick(house.clock.now()).await.unwrap();
            assert_eq!((tick.keys_deleted, tick.plans_completed), (deleted, completed));
        }
    }

    async fn a_clock_set_forward_deletes_nothing_until_the_time_has_passed(db: TestDatabase) {
        let house = ready(db, &["key_1"], 10).await;
        house.clock.set_to(d() - TimeDelta::days(1));
        house.sweeper.tick(d() - TimeDelta::days(1)).await.unwrap();
        house.clock.set_to(d() + TimeDelta::hours(2));
        let tick = house.sweeper.tick(house.clock.now()).await.unwrap();
        assert_eq!((tick.keys_deleted, tick.waits.len()), (0, 1));
        let waits = house.lot("agy_1").await.waits_for;
        assert!(waits.iter().any(|wait| wait.contains("set forward")), "{waits:?}");
        assert_eq!(house.tick_at(d() + TimeDelta::hours(23)).await.keys_deleted, 0, "a day has not passed");
        assert_eq!(house.tick_at(d() + TimeDelta::hours(26)).await.keys_deleted, 1);
    }

    async fn a_process_started_after_an_absence_has_seen_no_jump(db: TestDatabase) {
        let house = ready(db, &["key_1"], 10).await;
        house.clock.set_to(d() + TimeDelta::days(3));
        let started_anew = house.another_sweeper();
        assert_eq!(started_anew.tick(house.clock.now()).await.unwrap().keys_deleted, 1);
    }

    async fn a_quarter_ends_with_tombstones(db: TestDatabase) {
        let house = ready(db, &["key_1", "key_2", "key_3", "key_4", "key_5"], 2).await;
        assert_eq!(house.tick_at(d() - TICK).await.work(), 0);
        let tick = house.tick_at(d()).await;
        assert_eq!((tick.keys_deleted, tick.lots_executed, tick.plans_completed), (5, 1, 1));
        for id in ["key_1", "key_5"] {
            let row = house.key_row(id).await;
            assert_eq!((row.state, row.deleted_at, row.revision), (3, Some(to_micros(d())), 2));
            assert_eq!((row.secret_hash, row.sealed_secret), (None, None));
            assert_eq!(row.selector.len(), 16, "what finds the tombstone stays");
            let entry = house.entry(id).await;
            assert_eq!((entry.state, entry.ended_at), (DELETED, Some(to_micros(d()))));
        }
        let view = house.plan().await;
        assert_eq!((view.plan.state, view.plan.completed_at), (PlanState::Completed, Some(d())));
        assert_eq!(view.counts, counted(0, 0, 5, 0));
        let events = house.events().await;
        assert!(matches!(events[3], EventPayload::LotExecuted { deleted_count: 5, rescued_count: 0, .. }));
        assert!(matches!(events[4], EventPayload::PlanCompleted { deleted_count: 5, rescued_count: 0, spared_count: 0 }));
        assert_eq!(house.tick_at(d() + TICK).await.work(), 0);
        assert_eq!(house.use_key("key_1").await.unwrap(), None, "a deleted key is not used");
    }

    async fn after_a_crash_between_batches_the_next_activation_continues(db: TestDatabase) {
        let house = ready(db, &["key_1", "key_2", "key_3", "key_4", "key_5"], 2).await;
        let order = BatchOrder { limit: 2, ..order(&house, TimeDelta::zero()).await };
        let done = delete(&house, &order, d()).await;
        assert_eq!(done, LotOutcome::Done { deleted: 2, kept: 0, closed: false });
        // The process dies here; another one comes up.
        let tick = house.another_sweeper().tick(d()).await.unwrap();
        assert_eq!((tick.keys_deleted, tick.lots_executed), (3, 1));
        assert_eq!(house.plan().await.counts, counted(0, 0, 5, 0));
    }

    /// One lot's gate is shut, one key of another was used, and the last lot has more than fits.
    async fn several_lots_go_in_one_batch_each_by_its_own_gate(db: TestDatabase) {
        let house = several(db, &["agy_1", "agy_2", "agy_3"], "agy_4", 4, 100).await;
        let plan_id = house.plan().await.plan.plan_id;
        let lot = |agency: &str| LotOrder { agency_id: agency.into(), delete_at: d(), slack: TimeDelta::zero() };
        let lots = ["agy_1", "agy_2", "agy_3", "agy_4"].map(lot).to_vec();
        let order = BatchOrder { plan_id: plan_id.clone(), lots, limit: 6 };
        house.set("key_1_agy_3", api_keys::Column::LastUsedAt, to_micros(idle() + TICK)).await;
        let shut = receipts::Entity::delete_many()
            .filter(receipts::Column::AgencyId.eq("agy_2"))
            .filter(receipts::Column::Stage.eq(Stage::D7.code()));
        shut.exec(&house.db).await.unwrap();

        let done = house.store.delete_batch(&house.lease().await, &order, d()).await.unwrap();
        assert_eq!(done, [
            LotOutcome::Done { deleted: 2, kept: 0, closed: true },
            LotOutcome::Blocked(vec![LotBlock::ReceiptMissing(Stage::D7)]),
            LotOutcome::Done { deleted: 1, kept: 1, closed: true },
            LotOutcome::Done { deleted: 2, kept: 0, closed: false },
        ]);
        for (key, state) in [
            ("key_1_agy_1", 3), ("key_2_agy_1", 3), ("key_1_agy_2", 1), ("key_2_agy_2", 1), ("key_1_agy_3", 1), ("key_2_agy_3", 3),
            ("key_1_agy_4", 3), ("key_2_agy_4", 3), ("key_3_agy_4", 1), ("key_4_agy_4", 1),
        ] {
            assert_eq!(house.key_state(key).await, state, "{key}");
        }
        let rest = BatchOrder { lots: vec![lot("agy_4")], ..order };
        assert_eq!(delete(&house, &rest, d()).await, LotOutcome::Done { deleted: 2, kept: 0, closed: true });
        assert_eq!(house.plan().await.counts, counted(2, 1, 7, 0));
        assert_eq!(house.event_names().await[3..], ["entry_rescued", "lot_executed", "lot_executed", "lot_executed"]);
        assert_eq!(house.audited().await.iter().filter(|action| *action == "key.deleted").count(), 7);
    }

    /// Whatever a batch takes: whole lots, the end of one, parts of a large one.
    async fn every_lot_is_closed_once_however_batches_cut_them(db: TestDatabase) {
        let house = several(db, &["agy_1", "agy_2", "agy_3", "agy_4"], "agy_5", 7, 3).await;
        let tick = house.tick_at(d()).await;
        assert_eq!((tick.keys_deleted, tick.lots_executed, tick.plans_completed), (15, 5, 1));
        let names = house.event_names().await;
        assert_eq!(names.iter().filter(|name| *name == "lot_executed").count(), 5);
        assert_eq!(house.audited().await.iter().filter(|action| *action == "key.deleted").count(), 15);
    }

    async fn after_a_crash_between_batches_of_several_lots_nothing_is_done_twice(db: TestDatabase) {
        let house = several(db, &["agy_1", "agy_2"], "agy_3", 3, 4).await;
        let plan_id = house.plan().await.plan.plan_id;
        let lot = |agency: &str| LotOrder { agency_id: agency.into(), delete_at: d(), slack: TimeDelta::zero() };
        let order = BatchOrder { plan_id, lots: vec![lot("agy_1"), lot("agy_2")], limit: 3 };
        let done = house.store.delete_batch(&house.lease().await, &order, d()).await.unwrap();
        assert!(matches!(done[1], LotOutcome::Done { deleted: 1, kept: 0, closed: false }), "{done:?}");
        // The process dies here; another one comes up.
        let tick = house.another_sweeper().tick(d()).await.unwrap();
        assert_eq!((tick.keys_deleted, tick.lots_executed, tick.plans_completed), (4, 2, 1));
        assert_eq!(house.plan().await.counts, counted(0, 0, 7, 0));
        assert_eq!(house.audited().await.iter().filter(|action| *action == "key.deleted").count(), 7);
    }

    /// What is deleted of a lot stays so, whatever ends the rest of it.
    async fn a_lot_that_is_cancelled_halfway_spares_the_rest(db: TestDatabase) {
        let house = ready(db, &["key_1", "key_2", "key_3", "key_4", "key_5"], 2).await;
        let order = BatchOrder { limit: 2, ..order(&house, TimeDelta::zero()).await };
        delete(&house, &order, d()).await;
        assert_eq!(house.plan().await.counts, counted(3, 0, 2, 0));
        assert_eq!(house.lot("agy_1").await.counts, counted(3, 0, 2, 0));
        house.service.cancel_plan(&order.plan_id, operator("enough")).await.unwrap();
        assert_eq!(house.plan().await.counts, counted(0, 0, 2, 3));
        for (id, state) in [("key_1", DELETED), ("key_2", DELETED), ("key_3", SPARED), ("key_5", SPARED)] {
            assert_eq!(house.entry_state(id).await, state, "{id}");
        }
        assert_eq!(house.tick_at(d() + TICK).await.work(), 0);
    }

    /// Begun anew, a lot passes over what it deleted before.
    async fn a_deleted_key_is_neither_deleted_again_nor_let_go(db: TestDatabase) {
        let house = ready(db, &["key_1", "key_2", "key_3"], 2).await;
        let order = BatchOrder { limit: 2, ..order(&house, TimeDelta::zero()).await };
        delete(&house, &order, d()).await;
        let anew = lots::Entity::update_many().col_expr(lots::Column::SweptThrough, Expr::value(""));
        anew.exec(&house.db).await.unwrap();
        let done = delete(&house, &order, d() + TICK).await;
        assert_eq!(done, LotOutcome::Done { deleted: 1, kept: 0, closed: true });
        assert_eq!(house.plan().await.counts, counted(0, 0, 3, 0));
        assert_eq!(house.key_row("key_1").await.deleted_at, Some(to_micros(d())));
        assert_eq!(house.audited().await.iter().filter(|action| *action == "key.deleted").count(), 3);
        assert!(!house.audited().await.contains(&"key.rescued".to_owned()));
    }

    async fn a_key_used_without_its_rescue_survives(db: TestDatabase) {
        let house = ready(db, &["key_1", "key_2", "key_3"], 100).await;
        house.set("key_2", api_keys::Column::LastUsedAt, to_micros(idle() + TICK)).await;
        let done = delete(&house, &order(&house, TimeDelta::zero()).await, d()).await;
        assert_eq!(done, LotOutcome::Done { deleted: 2, kept: 1, closed: true });
        assert_eq!(house.key_state("key_2").await, 1);
        assert!(house.key_row("key_2").await.secret_hash.is_some());
        let entry = house.entry("key_2").await;
        assert_eq!((entry.state, entry.cause), (RESCUED, Some(1)));
        assert_eq!(house.event_names().await[3..], ["entry_rescued", "lot_executed"]);
    }

    async fn keys_that_ended_or_changed_hands_are_let_go(db: TestDatabase) {
        let keys = ["key_edge", "key_gone", "key_moved", "key_revoked", "key_rotated"];
        let house = ready(db, &keys, 100).await;
        house.set("key_edge", api_keys::Column::LastUsedAt, to_micros(idle())).await;
        house.set("key_moved", api_keys::Column::LocationId, "loc_2").await;
        house.set("key_revoked", api_keys::Column::State, 2_i16).await;
        house.set("key_rotated", api_keys::Column::RevokeAt, to_micros(d())).await;
        api_keys::Entity::delete_by_id("key_gone").exec(&house.db).await.unwrap();
        let done = delete(&house, &order(&house, TimeDelta::zero()).await, d()).await;
        assert_eq!(done, LotOutcome::Done { deleted: 1, kept: 4, closed: true });
        for (id, state, cause) in [
            ("key_edge", DELETED, None), ("key_moved", SPARED, None), ("key_revoked", RESCUED, Some(2)),
            ("key_rotated", RESCUED, Some(3)), ("key_gone", RESCUED, Some(2)),
        ] {
            let entry = house.entry(id).await;
            assert_eq!((entry.state, entry.cause), (state, cause), "{id}");
        }
        assert!(house.audited().await.contains(&"key.spared".to_owned()));
    }

    async fn slack_spares_keys_in_doubt(db: TestDatabase) {
        let house = ready(db, &["key_1", "key_2"], 100).await;
        let hour = TimeDelta::hours(1);
        house.set("key_1", api_keys::Column::LastUsedAt, to_micros(idle() - hour + TICK)).await;
        house.set("key_2", api_keys::Column::LastUsedAt, to_micros(idle() - hour)).await;
        let done = delete(&house, &order(&house, hour).await, d()).await;
        assert_eq!(done, LotOutcome::Done { deleted: 1, kept: 1, closed: true });
        assert_eq!((house.key_state("key_1").await, house.entry_state("key_1").await), (1, SPARED));
        assert_eq!(house.key_state("key_2").await, 3);
    }

    async fn deletion_waits_for_unflushed_usage(db: TestDatabase) {
        let house = ready(db, &["key_1"], 100).await;
        house.writer("rep_me", idle()).await;
        let tick = house.tick_at(d()).await;
        assert_eq!((tick.keys_deleted, tick.waits.len()), (0, 1));
        assert_eq!(house.lot("agy_1").await.waits_for, ["usage not flushed by replica rep_me"]);
        usage_writers::Entity::update_many()
            .col_expr(usage_writers::Column::FlushedThroughAt, Expr::value(to_micros(d())))
            .exec(&house.db).await.unwrap();
        assert!(house.lot("agy_1").await.waits_for.is_empty());
        assert_eq!(house.tick_at(d() + TICK).await.keys_deleted, 1);
    }

    async fn a_batch_asks_the_gate_again(db: TestDatabase) {
        let house = ready(db, &["key_1"], 100).await;
        let order = order(&house, TimeDelta::zero()).await;
        let early = delete(&house, &order, d() - TICK).await;
        assert_eq!(early, LotOutcome::Blocked(vec![LotBlock::NotYet { delete_at: d() }]));
        let late = d() + TimeDelta::days(14);
        assert!(matches!(delete(&house, &order, late + TICK).await, LotOutcome::Blocked(_)));
        let mut moved = order.clone();
        moved.lots[0].delete_at = d() - TimeDelta::hours(1);
        assert!(matches!(delete(&house, &moved, d()).await, LotOutcome::Blocked(_)));
        receipts::Entity::delete_many().filter(receipts::Column::Stage.eq(3)).exec(&house.db).await.unwrap();
        let unreceipted = delete(&house, &order, d()).await;
        assert_eq!(unreceipted, LotOutcome::Blocked(vec![LotBlock::ReceiptMissing(Stage::D1)]));
        assert_eq!(house.key_state("key_1").await, 1);
    }

    async fn a_lot_whose_entries_all_left_closes_at_its_time(db: TestDatabase) {
        let house = House::new(db).await;
        house.key("key_1", None).await;
        house.tick_at(plan_time()).await;
        house.use_key("key_1").await.unwrap();
        assert_eq!(house.tick_at(d() - TICK).await.lots_executed, 0);
        assert_eq!(house.tick_at(d()).await.lots_executed, 1, "no receipt is needed to delete nothing");
        let events = house.events().await;
        assert!(events.iter().any(|event| matches!(event, EventPayload::LotExecuted { deleted_count: 0, rescued_count: 1, .. })));
        assert_eq!(house.plan().await.plan.state, PlanState::Completed);
    }

    async fn large_lots_go_batch_after_batch(db: TestDatabase) {
        let breaker = Breaker { max_percent: 100, max_keys: 1 };
        let house = House::with(db, SweepPolicy { breaker, delete_batch: 500, ..SweepPolicy::default() }).await;
        let row = |n: usize| key_row(&format!("key_{n:05}"), "agy_1", None, idle(), None);
        house.insert((0..1_500).map(row).collect()).await;
        house.tick_at(plan_time()).await;
        house.deliver_through("agy_1", Stage::D1).await;
        for n in (0..1_500).step_by(100) {
            house.use_key(&format!("key_{n:05}")).await.unwrap();
        }
        let tick = house.tick_at(d()).await;
        assert_eq!((tick.keys_deleted, tick.lots_executed), (1_485, 1));
        assert_eq!(house.plan().await.counts, counted(0, 15, 1_485, 0));
    }
}

/// An entry may leave its lot after the deletion has read it and before it has its key; the key's row does not tell.
#[tokio::test]
#[cfg_attr(keysweep_no_postgres, ignore = "left out: no PostgreSQL server is installed")]
async fn a_key_whose_entry_leaves_meanwhile_is_not_deleted() {
    let house = ready(TestDatabase::new(Kind::Postgres), &["key_1", "key_2"], 100).await;
    let order = order(&house, TimeDelta::zero()).await;
    let lease = house.lease().await;
    let leaving = begin_write(&house.db).await.unwrap();
    leaving.execute_unprepared("SELECT 1 FROM api_keys WHERE id = 'key_2' FOR UPDATE").await.unwrap();
    leaving.execute_unprepared("UPDATE sweep_entries SET state = 2, cause = 1 WHERE key_id = 'key_2'").await.unwrap();
    let left = async {
        let waits = "SELECT COUNT(*) AS n FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
        let waiting = Statement::from_string(DbBackend::Postgres, waits);
        loop {
            let row = house.db.query_one_raw(waiting.clone()).await.unwrap().unwrap();
            if row.try_get::<i64>("", "n").unwrap() > 0 {
                break leaving.commit().await.unwrap();
            }
            tokio::task::yield_now().await;
        }
    };
    let (deleted, ()) = tokio::join!(house.store.delete_batch(&lease, &order, d()), left);
    assert!(matches!(deleted, Err(SweepJobError::Storage(StorageError::Conflict(_)))), "{deleted:?}");
    assert_eq!((house.key_state("key_1").await, house.key_state("key_2").await), (1, 1));
    assert_eq!(delete(&house, &order, d()).await, LotOutcome::Done { deleted: 1, kept: 0, closed: true });
    assert_eq!((house.key_state("key_2").await, house.entry_state("key_2").await), (1, RESCUED));
}

/// A batch costs what it holds, not what the plan or the table does.
#[tokio::test]
async fn a_batch_looks_up_in_indexes_of_sqlite_what_it_names() {
    let house = House::new(TestDatabase::new(Kind::Sqlite)).await;
    let of = |columns: [&'static str; 4]| {
        let rows = Rows::new("t").column("plan_id", Column::Text(Vec::new()));
        columns
            .into_iter()
            .fold(rows, |rows, name| rows.column(name, Column::Text(Vec::new())))
            .relation(DbBackend::Sqlite, 3)
            .0
    };
    let stretches = of(["agency_id", "idle_since", "first_key", "last_key"]);
    let lots = of(["agency_id", "a", "b", "c"]);
    let entries = of(["agency_id", "key_id", "a", "b"]);
    for (sql, tables) in [
        (deletion::PLANNED_OF_LOT.to_owned(), 2),
        (deletion::planned(&lots), 2),
        (gate::deletion(&gate::conditions(), &stretches), 6),
        (deletion::marking(&entries), 1),
        (closing::counting(&lots), 1),
    ] {
        let explained = Statement::from_string(DbBackend::Sqlite, format!("EXPLAIN QUERY PLAN {sql}"));
        let plan = house.db.query_all_raw(explained).await.unwrap();
        let plan: Vec<String> = plan.iter().map(|row| row.try_get("", "detail").unwrap()).collect();
        let of = |verb: &str| plan.iter().filter(|step| step.starts_with(verb)).collect::<Vec<_>>();
        let (scans, searches) = (of("SCAN "), of("SEARCH "));
        // The rows given, and what the deletion made of them before it looks further.
        let small = |step: &&String| {
            step.starts_with("SCAN json_each") || (tables == 6 && ["SCAN t", "SCAN e"].contains(&step.as_str()))
        };
        assert!(scans.iter().all(small), "{plan:#?}");
        let exact = |step: &&String| step.contains("agency_id=?") || step.contains("(id=?)");
        assert_eq!(searches.iter().filter(|step| exact(step)).count(), tables, "{plan:#?}");
        assert_eq!(searches.len(), tables, "{plan:#?}");
    }
}

/// Else PostgreSQL writes each tombstone into every index of the keys.
#[tokio::test]
#[cfg_attr(keysweep_no_postgres, ignore = "left out: no PostgreSQL server is installed")]
async fn no_index_of_keys_names_what_a_deletion_or_a_use_changes() {
    let house = House::new(TestDatabase::new(Kind::Postgres)).await;
    let sql = "SELECT indexdef FROM pg_indexes WHERE tablename = 'api_keys'";
    let rows = house.db.query_all_raw(Statement::from_string(DbBackend::Postgres, sql)).await.unwrap();
    assert!(rows.len() > 3);
    for row in rows {
        let index: String = row.try_get_by_index(0).unwrap();
        for column in ["state", "secret_hash", "sealed_secret", "deleted_at", "revision", "last_used_at"] {
            assert!(!index.contains(column), "{index}");
        }
    }
}
