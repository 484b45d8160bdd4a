use sea_orm::EntityTrait;
use service_kit::both_databases;

use super::*;
use crate::app::sweep::{BatchOrder, BatchOutcome, SweepJobs};
use crate::domain::sweep::{LotBlock, PlanState};
use crate::storage::sweep::entities::receipts;

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
    BatchOrder { plan_id, agency_id: "agy_1".into(), delete_at, slack, limit: 100 }
}

both_databases! {
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
        let done = house.store.delete_batch(&house.lease().await, &order, d()).await.unwrap();
        assert_eq!(done, BatchOutcome::Done { deleted: 2, kept: 0, closed: false });
        // The process dies here; another one comes up.
        let tick = house.another_sweeper().tick(d()).await.unwrap();
        assert_eq!((tick.keys_deleted, tick.lots_executed), (3, 1));
        assert_eq!(house.plan().await.counts, counted(0, 0, 5, 0));
    }

    async fn a_key_used_without_its_rescue_survives(db: TestDatabase) {
        let house = ready(db, &["key_1", "key_2", "key_3"], 100).await;
        house.set("key_2", api_keys::Column::LastUsedAt, to_micros(idle() + TICK)).await;
        let done = house.store.delete_batch(&house.lease().await, &order(&house, TimeDelta::zero()).await, d()).await.unwrap();
        assert_eq!(done, BatchOutcome::Done { deleted: 2, kept: 1, closed: true });
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
        let done = house.store.delete_batch(&house.lease().await, &order(&house, TimeDelta::zero()).await, d()).await.unwrap();
        assert_eq!(done, BatchOutcome::Done { deleted: 1, kept: 4, closed: true });
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
        let done = house.store.delete_batch(&house.lease().await, &order(&house, hour).await, d()).await.unwrap();
        assert_eq!(done, BatchOutcome::Done { deleted: 1, kept: 1, closed: true });
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
        let early = house.store.delete_batch(&house.lease().await, &order, d() - TICK).await.unwrap();
        assert_eq!(early, BatchOutcome::Blocked(vec![LotBlock::NotYet { delete_at: d() }]));
        let late = d() + TimeDelta::days(14);
        assert!(matches!(house.store.delete_batch(&house.lease().await, &order, late + TICK).await.unwrap(), BatchOutcome::Blocked(_)));
        let moved = BatchOrder { delete_at: d() - TimeDelta::hours(1), ..order.clone() };
        assert!(matches!(house.store.delete_batch(&house.lease().await, &moved, d()).await.unwrap(), BatchOutcome::Blocked(_)));
        receipts::Entity::delete_many().filter(receipts::Column::Stage.eq(3)).exec(&house.db).await.unwrap();
        let unreceipted = house.store.delete_batch(&house.lease().await, &order, d()).await.unwrap();
        assert_eq!(unreceipted, BatchOutcome::Blocked(vec![LotBlock::ReceiptMissing(Stage::D1)]));
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
