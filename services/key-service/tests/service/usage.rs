use chrono::{DateTime, TimeDelta, Utc};
use key_service::app::verify::{UsageRecorder, UsageStore};
use key_service::storage::entities::usage_writers;
use sea_orm::EntityTrait;
use service_kit::both_databases;
use service_kit::testing::Kind;
use service_kit::time::to_micros;

use key_service::domain::key::VerifyCode;

use crate::support::{BOUNDS, MICRO, SLACK, World, start, text};

async fn writer(world: &World) -> usage_writers::Model {
    usage_writers::Entity::find_by_id("rep_1").one(&world.db).await.unwrap().unwrap()
}

both_databases! {
    async fn a_batch_stores_each_use_unless_a_later_one_stands(db: TestDatabase) {
        let world = World::new(&db).await;
        let mut ids = Vec::new();
        for _ in 0..5 {
            ids.push(world.generate("").await.key.key_id);
        }
        let at = |minutes| start() + TimeDelta::minutes(minutes);
        let uses: Vec<(String, DateTime<Utc>)> = ids.iter().cloned().zip((1..).map(at)).collect();
        world.store.store_uses(&uses).await.unwrap();
        world.execute(&format!("UPDATE api_keys SET state = 2 WHERE id = '{}'", ids[0])).await;
        let again: Vec<_> = ids.iter().cloned().map(|id| (id, at(3))).collect();
        world.store.store_uses(&again).await.unwrap();
        let mut stored = Vec::new();
        for id in &ids {
            stored.push(world.row(id).await.last_used_at.unwrap());
        }
        assert_eq!(stored, [1, 3, 3, 4, 5].map(|minutes| to_micros(at(minutes))));
        // A use of an unknown key and an empty batch do no harm.
        world.store.store_uses(&[("key_none".into(), at(1))]).await.unwrap();
        world.store.store_uses(&[]).await.unwrap();
    }

    async fn batches_of_any_size_are_stored_whole(db: TestDatabase) {
        let world = World::new(&db).await;
        insert_keys(&world, &db.kind, 2_500).await;
        let used_at = start() + TimeDelta::seconds(1);
        let uses: Vec<_> = (0..2_500).map(|n| (format!("key_{n:05}"), used_at)).collect();
        world.store.store_uses(&uses).await.unwrap();
        assert_eq!(world.count(&format!("api_keys WHERE last_used_at = {}", to_micros(used_at))).await, 2_500);
    }

    async fn flushes_of_two_replicas_at_once_keep_the_latest(db: TestDatabase) {
        let world = World::new(&db).await;
        let mut ids = Vec::new();
        for _ in 0..40 {
            ids.push(world.generate("").await.key.key_id);
        }
        let uses = |minutes, backwards: bool| {
            let at = start() + TimeDelta::minutes(minutes);
            let mut uses: Vec<_> = ids.iter().cloned().map(|id| (id, at)).collect();
            if backwards {
                uses.reverse();
            }
            uses
        };
        let (early, late) = (uses(1, false), uses(2, true));
        let (a, b) = tokio::join!(world.store.store_uses(&early), world.store.store_uses(&late));
        assert!(a.is_ok() && b.is_ok());
        assert_eq!(world.count(&format!("api_keys WHERE last_used_at = {}", to_micros(start() + TimeDelta::minutes(2)))).await, 40);
    }

    async fn large_flushes_of_two_replicas_at_once_never_deadlock(db: TestDatabase) {
        let world = World::new(&db).await;
        insert_keys(&world, &db.kind, 2_000).await;
        for round in 0..10 {
            // Each replica sorts by key in its own way: the statement has to bring both into one order.
            let uses = |at: i64| {
                let used_at = start() + TimeDelta::seconds(at);
                (0..2_000).map(|n| (format!("key_{n:05}"), used_at)).collect::<Vec<_>>()
            };
            let (forth, mut back) = (uses(2 * round + 1), uses(2 * round + 2));
            back.reverse();
            let (a, b) = tokio::join!(world.store.store_uses(&forth), world.store.store_uses(&back));
            a.unwrap();
            b.unwrap();
        }
        assert_eq!(world.count(&format!("api_keys WHERE last_used_at = {}", to_micros(start() + TimeDelta::seconds(20)))).await, 2_000);
    }

    async fn a_replica_says_through_when_its_uses_are_stored(db: TestDatabase) {
        let world = World::new(&db).await;
        let opened = writer(&world).await;
        assert_eq!((opened.started_at, opened.flushed_through_at, opened.closed_at), (to_micros(start()), to_micros(start()), None));
        world.clock.advance(TimeDelta::milliseconds(999));
        world.usage.flush().await.unwrap();
        assert_eq!(writer(&world).await.flushed_through_at, to_micros(start()));
        world.clock.advance(TimeDelta::milliseconds(1));
        world.usage.flush().await.unwrap();
        assert_eq!(writer(&world).await.flushed_through_at, to_micros(start() + TimeDelta::seconds(1)));
        let issued = world.generate("").await;
        world.code(&text(&issued)).await;
        world.clock.advance(TimeDelta::milliseconds(5));
        assert_eq!(world.code(&text(&issued)).await, VerifyCode::Valid);
        world.usage.close().await.unwrap();
        let closed = writer(&world).await;
        let last = to_micros(start() + TimeDelta::milliseconds(1_005));
        assert!(closed.closed_at.is_some());
        assert_eq!((world.row(&issued.key.key_id).await.last_used_at, closed.flushed_through_at), (Some(last), last));
        // What comes after is stored before it is answered.
        world.clock.advance(TimeDelta::milliseconds(5));
        assert_eq!(world.code(&text(&issued)).await, VerifyCode::Valid);
        assert_eq!(world.row(&issued.key.key_id).await.last_used_at, Some(last + 5_000));
    }

    async fn a_replica_that_has_reported_nothing_for_the_slack_lets_no_use_wait(db: TestDatabase) {
        let world = World::new(&db).await;
        let issued = world.generate("").await;
        let second = TimeDelta::seconds(1);
        let used = async |at: DateTime<Utc>| {
            world.clock.advance_to(at);
            assert_eq!(world.code(&text(&issued)).await, VerifyCode::Valid);
            world.row(&issued.key.key_id).await.last_used_at
        };
        let first = start() + SLACK - second;
        assert_eq!(used(first).await, Some(to_micros(first)), "the first use of a key is stored");
        assert_eq!(used(start() + SLACK).await, Some(to_micros(first)), "the next one waits");
        // As far as the sweep can tell, this replica died when it opened, and lost uses of one slack at most.
        let later = start() + SLACK + MICRO;
        assert_eq!(used(later).await, Some(to_micros(later)));
        world.usage.flush().await.unwrap();
        assert_eq!(used(later + second).await, Some(to_micros(later)), "it has reported: uses wait again");
    }

    async fn a_replica_whose_row_is_gone_does_not_pretend(db: TestDatabase) {
        let world = World::new(&db).await;
        let other = UsageRecorder::open(world.store.clone(), world.clock.clone(), "rep_9".into(), BOUNDS).await.unwrap();
        world.execute("DELETE FROM usage_writers WHERE replica_id = 'rep_9'").await;
        world.clock.advance(TimeDelta::seconds(2));
        assert!(other.flush().await.is_err());
    }
}

/// Keys `key_00000` and on, without secrets.
async fn insert_keys(world: &World, kind: &Kind, count: i32) {
    let now = to_micros(start());
    for chunk in (0..count).collect::<Vec<_>>().chunks(500) {
        let rows: Vec<_> = chunk
            .iter()
            .map(|n| format!("('key_{n:05}', 'agy_1', '', '', '[]', '[]', {now}, 1, {}, 1)", selector(kind, *n)))
            .collect();
        world
            .execute(&format!(
                "INSERT INTO api_keys (id, agency_id, display_name, display_prefix, scopes, allowed_cidrs, created_at, state, \
                 selector, revision) VALUES {}",
                rows.join(",")
            ))
            .await;
    }
}

fn selector(kind: &Kind, number: i32) -> String {
    match kind {
        Kind::Sqlite => format!("X'{number:032x}'"),
        Kind::Postgres => format!("'\\x{number:032x}'::bytea"),
    }
}
