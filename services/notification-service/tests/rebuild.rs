//! The projection made anew, and histories that are not ours.

mod support;

use chrono::TimeDelta;
use keysweep_proto::key::v1::sweep_event::Payload;
use keysweep_proto::key::v1::{LotHeld, LotReleased, LotRescheduled, SweepEvent};
use keysweep_proto::notification::v1::SubscriptionFault;
use notification_service::rebuild_command::rebuild;
use sea_orm::{ConnectionTrait, DatabaseConnection, FromQueryResult, JsonValue, Statement};
use service_kit::both_databases;
use service_kit::clock::Clock;
use service_kit::testing::TestDatabase;
use service_kit::time::to_proto;
use support::{World, deletion, due, told};

const PLAN: &str = "plan_1";
const KEYS: [(&str, &str, &str); 4] =
    [("agy_1", "", "key_1"), ("agy_1", "loc_1", "key_2"), ("agy_1", "loc_2", "key_3"), ("agy_2", "", "key_4")];

async fn database(world: &World) -> DatabaseConnection {
    service_kit::db::connect(&world.config.database).await.expect("connected")
}

/// Every row of these tables, in a fixed order.
async fn rows(db: &DatabaseConnection, tables: &[&str]) -> Vec<String> {
    let mut all = Vec::new();
    for table in tables {
        let statement = Statement::from_string(db.get_database_backend(), format!("SELECT * FROM {table}"));
        let found = JsonValue::find_by_statement(statement).all(db).await.expect("rows");
        let mut lines: Vec<_> = found.into_iter().map(|row| format!("{table} {row}")).collect();
        lines.sort();
        all.extend(lines);
    }
    all
}

const PROJECTION: [&str; 4] = ["plans", "lots", "entries", "heads"];
const KEPT: [&str; 7] =
    ["stages", "stage_recipients", "notice_scopes", "location_names", "notifications", "deliveries", "send_books"];

/// A service after the first notice and with every kind of event that moves a lot.
async fn moved(db: &TestDatabase) -> World {
    let world = World::start(db).await;
    world.peer.admin("agy_1", "usr_a", "a@acme.example");
    world.peer.location_admin("agy_1", "usr_l", &["loc_1"]);
    world.peer.admin("agy_2", "usr_z", "z@zeta.example");
    world.peer.plan(PLAN, world.clock.now(), deletion(), &KEYS);
    world.settle().await;
    world.advance_to(due(15)).await;
    let now = world.clock.now();
    let agency = || "agy_1".to_owned();
    world.peer.rescue(PLAN, now, "agy_1", "key_3");
    let later = Some(to_proto(deletion() + TimeDelta::days(1)));
    let rescheduled = LotRescheduled { agency_id: agency(), delete_time: later, ..Default::default() };
    world.peer.event(PLAN, now, Payload::LotRescheduled(rescheduled));
    let held = LotHeld { agency_id: agency(), hold_reason: 1, reason: "wait".into() };
    world.peer.event(PLAN, now, Payload::LotHeld(held));
    world.peer.event(PLAN, now, Payload::LotReleased(LotReleased { agency_id: agency(), reason: "go".into() }));
    world.settle().await;
    world
}

/// What the admin of the first agency is told in the whole quarter.
fn whole() -> Vec<(String, i64)> {
    told(&[("D15", 3), ("RESCUED", 1), ("RESCHEDULED", 2), ("D7", 2), ("D1", 2)])
}

async fn finish(world: &World) {
    world.advance_to(due(7)).await;
    world.advance_to(due(7) + TimeDelta::days(1)).await;
    world.advance_to(due(1)).await;
    world.advance_to(due(1) + TimeDelta::days(1)).await;
    assert_eq!(world.told("usr_a").await, whole());
    assert_eq!(world.told("usr_z").await, told(&[("D15", 1), ("D7", 1), ("D1", 1)]));
    for to in ["a@acme.example", "z@zeta.example"] {
        assert_eq!(world.smtp.taken(to).len(), 1, "{to}");
    }
}

async fn fault(world: &World, expected: SubscriptionFault) {
    let subscription = world.until(|subscription| subscription.fault() != SubscriptionFault::Unspecified).await;
    assert_eq!(subscription.fault(), expected, "{}", subscription.last_error);
    assert!(!subscription.connected && !subscription.last_error.is_empty());
}

/// The same events of another plan.
fn of_another(mut events: Vec<SweepEvent>) -> Vec<SweepEvent> {
    events.iter_mut().for_each(|event| event.plan_id = "plan_of_another".into());
    events
}

both_databases! {
    async fn a_rebuilt_projection_is_the_same_and_nothing_is_told_twice(db: TestDatabase) {
        let mut world = moved(&db).await;
        let db = database(&world).await;
        let (projection, kept) = (rows(&db, &PROJECTION).await, rows(&db, &KEPT).await);
        assert_eq!(projection.len(), 1 + 2 + 4 + 1);
        for damage in [
            "DELETE FROM entries WHERE key_id = 'key_2'",
            "UPDATE entries SET left_sequence = NULL, left_at = NULL",
            "UPDATE lots SET live_count = 7, delete_at = delete_at - 86400000000",
            "UPDATE plans SET state = 3",
        ] {
            db.execute_unprepared(damage).await.expect("damaged");
        }
        assert_ne!(rows(&db, &PROJECTION).await, projection);
        // The service runs meanwhile.
        let done = rebuild(world.config.clone(), &world.deps).await.expect("rebuilt");
        assert_eq!((done.projected.plans, done.projected.lots, done.projected.entries), (1, 2, 4));
        assert_eq!((done.projected.cursor, done.cursor_before), (world.peer.head(), world.peer.head()));
        assert_eq!(rows(&db, &PROJECTION).await, projection);
        assert_eq!(rows(&db, &KEPT).await, kept);
        finish(&world).await;
        world.stop().await;
    }

    async fn events_that_were_not_applied_are_left_to_the_service(db: TestDatabase) {
        let mut world = moved(&db).await;
        world.stop().await;
        let head = world.peer.head();
        world.peer.rescue(PLAN, world.clock.now(), "agy_1", "key_2");
        let done = rebuild(world.config.clone(), &world.deps).await.expect("rebuilt");
        assert_eq!((done.projected.cursor, done.cursor_before), (head, head));
        world.restart().await;
        world.settle().await;
        let expected = told(&[("D15", 3), ("RESCUED", 1), ("RESCHEDULED", 2), ("RESCUED", 1)]);
        assert_eq!(world.told("usr_a").await, expected);
        world.stop().await;
    }

    async fn what_cannot_be_rebuilt_stays_as_it_was(db: TestDatabase) {
        let mut world = moved(&db).await;
        world.stop().await;
        let db = database(&world).await;
        let all = [PROJECTION.as_slice(), KEPT.as_slice()].concat();
        let before = rows(&db, &all).await;
        world.peer.forget_events(2);
        let refused = rebuild(world.config.clone(), &world.deps).await.expect_err("the first event is gone");
        assert!(format!("{refused:#}").contains("begins at event 3"), "{refused:#}");
        world.peer.forget_events(0);
        let whole = world.peer.replace_history(Vec::new());
        let mut gap = whole.clone();
        gap[2].sequence = 9;
        world.peer.replace_history(gap);
        rebuild(world.config.clone(), &world.deps).await.expect_err("an event is missing");
        world.config.key_service.endpoint = "http://127.0.0.1:1".into();
        rebuild(world.config.clone(), &world.deps).await.expect_err("key-service is down");
        assert_eq!(rows(&db, &all).await, before);
    }

    async fn a_new_service_begins_with_the_first_plan_that_is_kept(db: TestDatabase) {
        let mut earlier = moved(&db).await;
        earlier.stop().await;
        let first = earlier.peer.replace_history(Vec::new());
        let fresh = TestDatabase::new(db.kind);
        let mut world = World::start(&fresh).await;
        let numbered = first.into_iter().map(|event| SweepEvent { sequence: event.sequence + 40, ..event }).collect();
        world.peer.replace_history(numbered);
        let subscription = world.until(|subscription| subscription.applied_sequence > 40).await;
        assert_eq!(subscription.fault(), SubscriptionFault::Unspecified);
        world.stop().await;
    }

    async fn an_empty_database_has_nothing_to_rebuild(db: TestDatabase) {
        let mut world = World::start(&db).await;
        let done = rebuild(world.config.clone(), &world.deps).await.expect("rebuilt");
        assert_eq!((done.projected, done.cursor_before), Default::default());
        world.stop().await;
    }

    async fn a_history_that_ends_before_the_cursor_is_named(db: TestDatabase) {
        let mut world = moved(&db).await;
        world.stop().await;
        let whole = world.peer.replace_history(Vec::new());
        // One event short the peer cannot tell by the cursor, and two short it refuses it.
        for short in [1, 2] {
            world.peer.replace_history(whole[..whole.len() - short].to_vec());
            world.restart().await;
            fault(&world, SubscriptionFault::CursorAhead).await;
            assert_eq!(world.subscription().await.expect("the service").applied_sequence, whole.len() as i64);
            world.stop().await;
        }
        // The history comes back: it goes on where it was.
        world.peer.replace_history(whole);
        world.restart().await;
        world.settle().await;
        let subscription = world.until(|subscription| subscription.connected).await;
        assert_eq!((subscription.fault(), subscription.lag_events), (SubscriptionFault::Unspecified, 0));
        finish(&world).await;
        world.stop().await;
    }

    async fn another_history_is_named_and_taken_over_by_a_rebuild_alone(db: TestDatabase) {
        let mut world = moved(&db).await;
        world.stop().await;
        let db = database(&world).await;
        let before = rows(&db, &PROJECTION).await;
        let whole = world.peer.replace_history(Vec::new());
        let mut other = of_another(whole.clone());
        other.truncate(other.len() - 1);
        let more = of_another(whole.clone()).pop().expect("an event");
        other.extend([more.clone(), SweepEvent { sequence: more.sequence + 1, ..more }]);
        world.peer.replace_history(other);
        world.restart().await;
        fault(&world, SubscriptionFault::OtherHistory).await;
        assert_eq!(rows(&db, &PROJECTION).await, before, "nothing of it is applied");
        let done = rebuild(world.config.clone(), &world.deps).await.expect("rebuilt");
        assert_eq!((done.projected.plans, done.projected.cursor), (1, whole.len() as i64));
        let projection = rows(&db, &["plans"]).await;
        assert!(projection[0].contains("plan_of_another"), "{projection:?}");
        world.restart().await;
        let subscription = world.until(|subscription| subscription.applied_sequence == world.peer.head()).await;
        assert_eq!(subscription.fault(), SubscriptionFault::Unspecified);
        // What people were told stays readable.
        assert_eq!(world.told("usr_z").await[0], ("D15".to_owned(), 1));
        world.stop().await;
    }
}
