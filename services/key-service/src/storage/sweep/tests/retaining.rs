//! The history's age: what may go, and what subscribers are told then.

use service_kit::both_databases;
use service_kit::notify::listen;
use service_kit::testing::Kind;
use tokio_util::sync::CancellationToken;

use super::leading::only_the_holder;
use super::*;
use crate::app::sweep::{Subscription, SweepError, SweepFeed, SweepJobs};
use crate::domain::sweep::PlanState;
use crate::storage::sweep::codes::Coded;
use crate::storage::sweep::entities::{head, plans};
use crate::storage::sweep::outbox::SWEEP_EVENTS;

/// After a quarter whose plan has five events, the last at D.
async fn ended(db: TestDatabase, event_retention: Option<TimeDelta>) -> House {
    let house = House::with(db, SweepPolicy { event_retention, ..SweepPolicy::default() }).await;
    house.key("key_1", None).await;
    house.tick_at(plan_time()).await;
    house.deliver_through("agy_1", Stage::D1).await;
    house.tick_at(d()).await;
    assert_eq!(house.plan().await.plan.state, PlanState::Completed);
    assert_eq!(house.events().await.len(), 5);
    house
}

async fn sequences(house: &House) -> Vec<i64> {
    let rows = events::Entity::find().order_by_asc(events::Column::Sequence).all(&house.db).await.unwrap();
    rows.into_iter().map(|row| row.sequence).collect()
}

async fn passed(house: &House, name: &str, sequence: i64) {
    house.store.note_subscriber(name, sequence, house.clock.now()).await.unwrap();
}

/// A history made by hand: the plan of each event, by its letter; the plans in `ended` have ended.
async fn made(house: &House, history: &str, ended: &str) {
    let letters: std::collections::BTreeSet<char> = history.chars().collect();
    for (letter, n) in letters.into_iter().zip(1..) {
        let state = if ended.contains(letter) { PlanState::Completed } else { PlanState::Open };
        let plan = plans::ActiveModel {
            plan_id: Set(letter.to_string()),
            delete_at: Set(n),
            idle_since_at: Set(0),
            last_delete_at: Set(0),
            stage_window_ms: Set(0),
            state: Set(state.code()),
            state_reason: Set(String::new()),
            created_at: Set(0),
            confirmed_at: Set(None),
            published_at: Set(Some(0)),
            completed_at: Set(None),
            entry_count: Set(0),
            lot_count: Set(0),
            active_key_count: Set(0),
        };
        plans::Entity::insert(plan).exec_without_returning(&house.db).await.unwrap();
    }
    let rows = history.chars().zip(1..).map(|(letter, sequence)| events::ActiveModel {
        sequence: Set(sequence),
        occurred_at: Set(sequence),
        plan_id: Set(letter.to_string()),
        payload: Set("{}".to_owned()),
    });
    events::Entity::insert_many(rows).exec_without_returning(&house.db).await.unwrap();
}

both_databases! {
    async fn events_are_kept_for_ever_unless_told_otherwise(db: TestDatabase) {
        let house = ended(db, None).await;
        assert_eq!(house.tick_at(d() + TimeDelta::days(10_000)).await.events_removed, 0);
        assert_eq!(house.events().await.len(), 5);
    }

    async fn old_events_of_an_ended_plan_go_once_all_have_passed_them(db: TestDatabase) {
        let kept = TimeDelta::days(120);
        let house = ended(db, Some(kept)).await;
        passed(&house, "slow", 4).await;
        passed(&house, "quick", 5).await;
        house.tick_at(d() + kept).await;
        assert_eq!(sequences(&house).await, [1, 2, 3, 4, 5], "the last is 120 days old, and no older");
        let looked = d() + kept + TimeDelta::hours(1);
        house.tick_at(looked).await;
        assert_eq!(sequences(&house).await, [1, 2, 3, 4, 5], "one subscriber has not passed the last");
        passed(&house, "slow", 5).await;
        assert_eq!(house.tick_at(looked + TimeDelta::minutes(59)).await.events_removed, 0, "it looks once an hour");
        // The next plan begins meanwhile.
        house.key_of("key_2", "agy_2", None, Some(idle())).await;
        let next = house.service.next_sweep() - TimeDelta::days(15);
        let tick = house.tick_at(next).await;
        assert_eq!((tick.plans_made, tick.events_removed), (1, 5));
        let held = sequences(&house).await;
        assert_eq!(held[0], 6);
        let history = house.store.history().await.unwrap();
        assert_eq!((history.first, Some(&history.head)), (6, held.last()));

        let subscribe = |after| house.service.subscribe("new", after, "");
        for after in [0, 5] {
            let place = subscribe(after).await.unwrap();
            assert_eq!(place, Subscription { history_id: history.id.clone(), after: 5, head: history.head }, "{after}");
        }
        assert_eq!(subscribe(6).await.unwrap().after, 6);
        assert!(matches!(subscribe(4).await, Err(SweepError::CursorExpired { first: 6 })));
        assert!(matches!(subscribe(history.head + 1).await, Err(SweepError::CursorAhead { .. })));
        let other = house.service.subscribe("new", 6, "his_other").await;
        assert!(matches!(other, Err(SweepError::OtherHistory { history_id }) if history_id == history.id));
        assert!(house.service.subscribe("new", 6, &history.id).await.is_ok());
    }

    async fn removal_goes_in_batches_and_the_history_never_begins_within_a_plan(db: TestDatabase) {
        let house = ended(db, None).await;
        let lease = house.lease().await;
        let forget = |before| house.store.forget_events(&lease, before, 2);
        assert_eq!(forget(d()).await.unwrap(), 0, "the last event is not older than this");
        assert_eq!(forget(d() + TICK).await.unwrap(), 2);
        assert_eq!((sequences(&house).await, house.store.history().await.unwrap().first), (vec![3, 4, 5], 6));
        assert!(matches!(house.service.subscribe("late", 2, "").await, Err(SweepError::CursorExpired { first: 6 })));
        // The rest goes, whatever the age asked for now.
        assert_eq!(forget(idle()).await.unwrap(), 2);
        assert_eq!(forget(idle()).await.unwrap(), 1);
        assert_eq!(forget(d() + TICK).await.unwrap(), 0);
        assert_eq!(house.store.history().await.unwrap().head, 5);
        assert_eq!(house.service.subscribe("new", 0, "").await.unwrap().after, 5);
    }

    async fn a_lost_lease_removes_nothing(db: TestDatabase) {
        let house = ended(db, None).await;
        let forget = async |lease: &Lease| house.store.forget_events(lease, d() + TICK, 9).await;
        assert_eq!(only_the_holder(&house, "forget_events", forget).await, 5);
    }

    async fn only_whole_plans_that_have_ended_go(db: TestDatabase) {
        let house = House::new(db).await;
        house.tick_at(plan_time() - TimeDelta::days(1)).await;
        for (history, over, left) in [
            ("AAB", "A", "B"), ("AB", "", "AB"), ("ABA", "A", "ABA"), ("ABA", "AB", ""), ("ABAB", "A", "ABAB"),
            ("AABCB", "AB", "BCB"), ("AABCBC", "ABC", ""), ("ABBAC", "AB", "C"), ("ABCA", "ABC", ""),
        ] {
            for table in ["sweep_plans", "sweep_events"] {
                let db = &house.db;
                sea_orm::ConnectionTrait::execute_unprepared(db, &format!("DELETE FROM {table}")).await.unwrap();
            }
            head::Entity::update_many().col_expr(head::Column::FirstSequence, Expr::value(1_i64)).exec(&house.db).await.unwrap();
            made(&house, history, over).await;
            let lease = house.lease().await;
            while house.store.forget_events(&lease, plan_time(), 2).await.unwrap() > 0 {}
            let rows = events::Entity::find().order_by_asc(events::Column::Sequence).all(&house.db).await.unwrap();
            assert_eq!(rows.into_iter().map(|row| row.plan_id).collect::<String>(), left, "{history}, ended: {over}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(keysweep_no_postgres, ignore = "left out: no PostgreSQL server is installed")]
async fn a_committed_event_wakes_the_listeners_of_other_replicas() {
    let database = TestDatabase::new(Kind::Postgres);
    let config = database.config();
    let house = House::new(database).await;
    house.key("key_1", None).await;
    let (signal, stop) = (EventSignal::new(), CancellationToken::new());
    let mut heard = signal.listen();
    let listener = tokio::spawn({
        let stop = stop.clone();
        async move { listen(&config, SWEEP_EVENTS, stop, || signal.bump()).await }
    });
    let mut wait = async || tokio::time::timeout(std::time::Duration::from_secs(30), heard.changed()).await;
    wait().await.expect("it listens").unwrap();
    house.tick_at(plan_time()).await;
    wait().await.expect("the plan is heard of").unwrap();
    house.use_key("key_1").await.unwrap();
    wait().await.expect("and the rescue").unwrap();
    stop.cancel();
    listener.await.unwrap();
}
