//! The stores on real databases: what the whole way cannot show.

mod support;

use chrono::{DateTime, TimeDelta, Utc};
use notification_service::app::ports::*;
use notification_service::domain::delivery::Verdict;
use notification_service::domain::event::{Payload, SweepEvent};
use notification_service::domain::ids::{AgencyId, LocationId};
use notification_service::domain::plan::{Entry, HoldReason, Owner, RescueCause};
use notification_service::domain::recipient::{AgencyFacts, Reach, Recipient, RecipientChunk};
use notification_service::domain::stage::Stage;
use notification_service::storage::{Migrator, Store};
use sea_orm::{ConnectionTrait, DatabaseConnection};
use service_kit::both_databases;
use service_kit::entropy::SeededEntropy;
use service_kit::ids::IdGenerator;
use service_kit::testing::TestDatabase;
use support::{at, deletion, due};

struct Fixture {
    db: DatabaseConnection,
    store: Store,
}

async fn fixture(db: &TestDatabase) -> Fixture {
    let db = service_kit::db::connect(&db.config()).await.expect("connected");
    service_kit::db::migrate::<Migrator>(&db).await.expect("migrated");
    let ids = IdGenerator::new(std::sync::Arc::new(SeededEntropy::new(1)));
    Fixture { store: Store::new(db.clone(), ids, "keysweep.example".into()), db }
}

fn owner(location: &str) -> Owner {
    Owner { agency_id: "agy_1".into(), location_id: (!location.is_empty()).then(|| LocationId::from(location)) }
}

fn entry(location: &str, key: &str) -> Entry {
    Entry {
        key_id: key.into(),
        owner: owner(location),
        display_name: key.to_owned(),
        display_prefix: String::new(),
        created_at: at("2024-01-01T00:00:00Z"),
        last_used_at: None,
        idle_days: 100,
    }
}

fn events(payloads: Vec<Payload>) -> Vec<SweepEvent> {
    let numbered = payloads.into_iter().zip(1..);
    numbered
        .map(|(payload, sequence)| SweepEvent {
            sequence,
            happened_at: at("2025-12-16T12:00:00Z"),
            plan_id: "plan_1".into(),
            payload,
        })
        .collect()
}

fn rescued(key: &str) -> Payload {
    Payload::EntryRescued {
        agency_id: "agy_1".into(),
        key_id: key.into(),
        cause: RescueCause::Used,
        rescued_at: at("2025-12-20T00:00:00Z"),
    }
}

fn published() -> Vec<Payload> {
    vec![
        Payload::PlanPublished {
            delete_at: deletion(),
            idle_since_at: deletion() - TimeDelta::days(90),
            last_delete_at: deletion() + TimeDelta::days(14),
            stage_window: TimeDelta::hours(6),
        },
        Payload::PlanEntries(vec![entry("", "key_1"), entry("loc_1", "key_2")]),
        Payload::PlanEntries(vec![entry("loc_2", "key_3")]),
        Payload::PlanSealed { entry_count: 3, lot_count: 1 },
    ]
}

fn history() -> Vec<SweepEvent> {
    let agency_id = AgencyId::from("agy_1");
    let mut all = published();
    all.extend([
        rescued("key_2"),
        Payload::LotRescheduled { agency_id: agency_id.clone(), delete_at: deletion() + TimeDelta::days(2) },
        Payload::LotRescheduled { agency_id: agency_id.clone(), delete_at: deletion() + TimeDelta::days(1) },
        Payload::LotHeld { agency_id: agency_id.clone(), hold_reason: HoldReason::Operator, reason: "wait".into() },
        Payload::LotReleased { agency_id: agency_id.clone() },
        rescued("key_3"),
        Payload::LotExecuted { agency_id, deleted_count: 1, executed_at: deletion() + TimeDelta::days(2) },
        Payload::PlanCompleted,
    ]);
    events(all)
}

/// The projection's tables as text, in the order of their keys.
async fn projection(db: &DatabaseConnection) -> Vec<String> {
    let mut rows = Vec::new();
    let columns = [
        (
            "plans",
            "plan_id || ' ' || state || ' ' || delete_at || ' ' || sealed_sequence || ' ' || closed_sequence || ' ' || entry_count || ' ' || lot_count",
        ),
        (
            "lots",
            "plan_id || ' ' || agency_id || ' ' || state || ' ' || delete_at || ' ' || entry_count || ' ' || live_count || ' ' || closed_sequence",
        ),
        (
            "entries",
            "plan_id || ' ' || agency_id || ' ' || key_id || ' ' || location_id || ' ' || coalesce(left_sequence, 0) || ' ' || coalesce(left_at, 0) || ' ' || coalesce(left_cause, 0)",
        ),
    ];
    for (table, text) in columns {
        let sql = format!("SELECT {text} AS line FROM {table} ORDER BY line");
        let found =
            db.query_all_raw(sea_orm::Statement::from_string(db.get_database_backend(), sql)).await.expect("rows");
        rows.extend(found.iter().map(|row| row.try_get::<String>("", "line").expect("a line")));
    }
    rows
}

fn stage() -> StageId {
    StageId { plan_id: "plan_1".into(), agency_id: "agy_1".into(), stage: Stage::D15 }
}

fn admin(user: &str) -> RecipientChunk {
    let one = Recipient {
        user_id: user.into(),
        email: format!("{user}@acme.example"),
        first_name: "Ada".into(),
        last_name: String::new(),
        reach: Reach::WholeLot,
    };
    RecipientChunk {
        agency: Some(AgencyFacts { name: "Acme".into(), time_zone: "UTC".into() }),
        recipients: vec![one],
        locations: Vec::new(),
    }
}

const MINUTE: TimeDelta = TimeDelta::minutes(1);

async fn dispatched(f: &Fixture, now: DateTime<Utc>) {
    f.store.apply(events(published()), now).await.expect("applied");
    assert_eq!(f.store.claim_due("me", now, now + MINUTE, 10).await.expect("claimed"), [stage()]);
    f.store.collect("me", vec![(stage(), admin("usr_a"))]).await.expect("collected");
    let published = f.store.publish(&[stage()], "me", now).await.expect("published").remove(0);
    assert_eq!(published, Published::Dispatched { in_app: 1, emails: 1 });
}

both_databases! {
    async fn a_replay_gives_the_same_projection(db: TestDatabase) {
        let f = fixture(&db).await;
        let now = at("2025-12-16T12:00:00Z");
        // One by one, with each event said twice; then all at once, into an empty database.
        for event in history() {
            let sequence = event.sequence;
            f.store.apply(vec![event.clone()], now).await.expect("applied");
            assert_eq!(f.store.apply(vec![event], now).await.expect("passed over"), sequence);
        }
        let first = projection(&f.db).await;
        assert_eq!(first.len(), 5);
        for table in ["entries", "lots", "plans"] {
            f.db.execute_unprepared(&format!("DELETE FROM {table}")).await.expect("emptied");
        }
        f.db.execute_unprepared("UPDATE heads SET applied_sequence = 0").await.expect("reset");
        f.store.apply(history(), now + TimeDelta::days(40)).await.expect("applied");
        assert_eq!(projection(&f.db).await, first);
        assert!(first.iter().any(|line| line.contains(&(deletion() + TimeDelta::days(2)).timestamp_micros().to_string())), "the later instant stands");
    }

    async fn a_gap_is_refused_whole(db: TestDatabase) {
        let f = fixture(&db).await;
        let now = due(15);
        let mut all = events(published());
        all.remove(1);
        let refused = f.store.apply(all, now).await;
        assert!(matches!(refused, Err(ApplyError::Gap { expected: 2, sequence: 3 })), "{refused:?}");
        assert_eq!(f.store.cursor().await.expect("a cursor").sequence, 0, "none of the batch is applied");
        let foreign = f.store.apply(events(vec![rescued("key_1")]), now).await;
        assert!(matches!(foreign, Err(ApplyError::Unfit { sequence: 1, .. })), "{foreign:?}");
        let miscounted = [Payload::PlanSealed { entry_count: 4, lot_count: 1 }];
        let mut short = published();
        short.truncate(3);
        short.extend(miscounted);
        assert!(matches!(f.store.apply(events(short), now).await, Err(ApplyError::Unfit { sequence: 4, .. })));
    }

    async fn nothing_is_due_before_the_plan_is_sealed_or_its_window_opens(db: TestDatabase) {
        let f = fixture(&db).await;
        let claim = async |now: DateTime<Utc>| f.store.claim_due("me", now, now + MINUTE, 10).await.expect("claimed").len();
        let mut all = events(published());
        let sealed = all.split_off(3);
        f.store.apply(all, due(15)).await.expect("applied");
        assert_eq!(claim(due(15)).await, 0);
        f.store.apply(sealed, due(15)).await.expect("applied");
        assert_eq!(claim(due(15) - TimeDelta::microseconds(1)).await, 0);
        assert_eq!(claim(due(15)).await, 1);
        assert_eq!(claim(due(15)).await, 0, "it is claimed");
        assert_eq!(claim(due(15) + MINUTE).await, 1, "its lease has run out");
    }

    async fn two_at_once_tell_once(db: TestDatabase) {
        let f = fixture(&db).await;
        let now = due(15);
        f.store.apply(events(published()), now).await.expect("applied");
        let (a, b) = tokio::join!(f.store.claim_due("a", now, now + MINUTE, 10), f.store.claim_due("b", now, now + MINUTE, 10));
        let (a, b) = (a.expect("claimed").len(), b.expect("claimed").len());
        assert_eq!(a + b, 1);
        let owner = if a == 1 { "a" } else { "b" };
        // Both believe that it is theirs: the lease says whose it is.
        let collect = async |owner: &str, user: &str| f.store.collect(owner, vec![(stage(), admin(user))]).await.expect("collected");
        assert!(collect("me", "usr_z").await.is_empty(), "it is another's");
        assert_eq!(collect(owner, "usr_a").await, [stage()]);
        let id = [stage()];
        let (a, b) = tokio::join!(f.store.publish(&id, "a", now), f.store.publish(&id, "b", now));
        let outcomes = [a.expect("published").remove(0), b.expect("published").remove(0)];
        assert_eq!(outcomes.iter().filter(|o| matches!(o, Published::Dispatched { .. })).count(), 1, "{outcomes:?}");
        assert_eq!(InboxStore::list(&f.store, &"usr_a".into(), false, None, 10).await.expect("an inbox").notifications.len(), 1);
    }

    /// Of four lots one is another's, one has nobody to tell, and one has an admin of a location with one of its two keys.
    async fn several_stages_are_told_at_once_each_what_is_its_own(db: TestDatabase) {
        let f = fixture(&db).await;
        let now = due(15);
        let of = |agency: &str, location: &str, key: &str| {
            let mut entry = entry(location, key);
            entry.owner.agency_id = agency.into();
            entry
        };
        let entries = vec![
            of("agy_1", "", "key_1"), of("agy_2", "", "key_2"), of("agy_3", "", "key_3"), of("agy_4", "", "key_4"), of("agy_4", "loc_4", "key_5"),
        ];
        let mut payloads = published();
        payloads.truncate(1);
        payloads.extend([Payload::PlanEntries(entries), Payload::PlanSealed { entry_count: 5, lot_count: 4 }]);
        f.store.apply(events(payloads), now).await.expect("applied");
        let all = ["agy_1", "agy_2", "agy_3", "agy_4"].map(|agency| StageId { agency_id: agency.into(), ..stage() });
        assert_eq!(f.store.claim_due("other", now, now + MINUTE, 10).await.expect("claimed").len(), 4);
        for id in all.iter().filter(|id| id.agency_id.as_str() != "agy_2") {
            f.store.release(id, "other").await.expect("released");
        }
        assert_eq!(f.store.claim_due("me", now, now + MINUTE, 10).await.expect("claimed").len(), 3);

        let mut of_four = admin("usr_4");
        let local = Reach::Locations(vec!["loc_4".into()]);
        of_four.recipients.push(Recipient { reach: local, ..admin("usr_local").recipients.remove(0) });
        let chunks = [admin("usr_1"), admin("usr_2"), RecipientChunk::default(), of_four];
        let ours = f.store.collect("me", all.iter().cloned().zip(chunks).collect()).await.expect("collected");
        assert_eq!(ours, [all[0].clone(), all[2].clone(), all[3].clone()]);
        let published = f.store.publish(&all, "me", now).await.expect("published");
        assert_eq!(published, [
            Published::Dispatched { in_app: 1, emails: 1 },
            Published::NotDue,
            Published::Undeliverable { reason: HoldReason::NoAgencyAdmin, news: true },
            Published::Dispatched { in_app: 2, emails: 1 },
        ]);
        for (user, keys) in [("usr_1", vec![1]), ("usr_2", vec![]), ("usr_4", vec![2]), ("usr_local", vec![1])] {
            let inbox = InboxStore::list(&f.store, &user.into(), false, None, 10).await.expect("an inbox").notifications;
            assert_eq!(inbox.iter().map(|told| told.key_count).collect::<Vec<_>>(), keys, "{user}");
        }
        let again = f.store.publish(&all, "me", now).await.expect("published");
        assert!(again.iter().all(|one| *one == Published::NotDue), "{again:?}");
    }

    async fn the_next_stage_waits_for_what_the_receipt_brought_about(db: TestDatabase) {
        let f = fixture(&db).await;
        let now = due(15);
        dispatched(&f, now).await;
        let mine = DeliveryStore::claim(&f.store, "me", now, now + MINUTE, 10).await.expect("claimed");
        DeliveryStore::record(&f.store, "me", &[(mine[0].clone(), Verdict::Accepted { reply: "250 ok".into() })], now).await.expect("recorded");
        let owed = f.store.owed(10).await.expect("owed");
        assert_eq!(owed[0].news, StageNews::Delivered { delivered_at: now, in_app: 1, emails: 1 });
        ReceiptStore::record(&f.store, vec![(owed[0].clone(), ReceiptAnswer::Recorded)], 5, now).await.expect("recorded");
        let later = due(7) + MINUTE;
        assert!(f.store.claim_due("me", later, later + MINUTE, 10).await.expect("claimed").is_empty(), "event 5 is not applied");
        let moved = Payload::LotRescheduled { agency_id: "agy_1".into(), delete_at: deletion() + TimeDelta::days(1) };
        let event = SweepEvent { sequence: 5, happened_at: now, plan_id: "plan_1".into(), payload: moved };
        f.store.apply(vec![event], now).await.expect("applied");
        assert!(f.store.claim_due("me", later, later + MINUTE, 10).await.expect("claimed").is_empty(), "it moved");
        let later = later + TimeDelta::days(1);
        assert_eq!(f.store.claim_due("me", later, later + MINUTE, 10).await.expect("claimed")[0].stage, Stage::D7);
    }

    async fn a_lost_attempt_is_made_again_and_its_late_word_ignored(db: TestDatabase) {
        let f = fixture(&db).await;
        let now = due(15);
        dispatched(&f, now).await;
        let first = DeliveryStore::claim(&f.store, "dead", now, now + MINUTE, 10).await.expect("claimed");
        assert!(DeliveryStore::claim(&f.store, "me", now, now + MINUTE, 10).await.expect("claimed").is_empty());
        let later = now + MINUTE;
        let second = DeliveryStore::claim(&f.store, "me", later, later + MINUTE, 10).await.expect("claimed");
        assert_eq!((first[0].attempt, second[0].attempt), (1, 2));
        assert_eq!(first[0].message_id, second[0].message_id);
        let failed = Verdict::Failed { reply: "550".into() };
        DeliveryStore::record(&f.store, "dead", &[(first[0].clone(), failed)], later).await.expect("passed over");
        assert!(f.store.owed(10).await.expect("owed").is_empty());
        DeliveryStore::record(&f.store, "me", &[(second[0].clone(), Verdict::Accepted { reply: "250".into() })], later).await.expect("recorded");
        assert_eq!(f.store.owed(10).await.expect("owed").len(), 1);
    }

    async fn what_was_told_stays_as_it_was(db: TestDatabase) {
        let f = fixture(&db).await;
        let now = due(15);
        dispatched(&f, now).await;
        let event = SweepEvent { sequence: 5, happened_at: now, plan_id: "plan_1".into(), payload: rescued("key_2") };
        f.store.apply(vec![event], now).await.expect("applied");
        let facts = f.store.letters(&[stage()]).await.expect("read").remove(&stage()).expect("facts");
        assert_eq!((facts.key_count, facts.as_of_sequence, facts.agency_name.as_str()), (3, 4, "Acme"));
        let mut listed = Vec::new();
        loop {
            let page = f.store.letter_entries(&stage(), facts.as_of_sequence, listed.last(), 2).await.expect("a page");
            let end = page.len() < 2;
            listed.extend(page);
            if end {
                break;
            }
        }
        assert_eq!(listed.iter().map(|entry| entry.key_id.as_str()).collect::<Vec<_>>(), ["key_1", "key_2", "key_3"]);
        let inbox = InboxStore::list(&f.store, &"usr_a".into(), false, None, 10).await.expect("an inbox").notifications;
        assert_eq!(inbox[1].keys.iter().map(|key| key.left_at.is_some()).collect::<Vec<_>>(), [false, true, false]);
    }

    async fn migrations_go_both_ways(db: TestDatabase) {
        use sea_orm_migration::MigratorTrait;
        let f = fixture(&db).await;
        Migrator::down(&f.db, None).await.expect("down");
        Migrator::up(&f.db, None).await.expect("up");
        assert_eq!(f.store.cursor().await.expect("a cursor").sequence, 0);
    }
}
