use chrono::TimeDelta;
use key_service::app::figures::{FigureKeeper, FiguresStore, KeyCounts};
use key_service::app::keys::{Revoke, Rotate};
use key_service::domain::key::Overlap;
use service_kit::both_databases;
use service_kit::clock::Clock;
use service_kit::violations::Violations;

use crate::support::{World, admin};

async fn rotate(world: &World, key_id: &str, overlap: TimeDelta) {
    let overlap = Overlap::parse(overlap, "overlap", &mut Violations::default());
    let command = Rotate { key_id: key_id.to_owned(), overlap, request_id: String::new() };
    world.keys.rotate(&admin(), &command).await.unwrap();
}

async fn revoke(world: &World, key_id: &str) {
    let command = Revoke { key_id: key_id.to_owned(), reason: String::new(), request_id: String::new() };
    world.keys.revoke(&admin(), &command).await.unwrap();
}

both_databases! {
    async fn keys_are_counted_once_and_then_followed_through_all_that_becomes_of_them(db: TestDatabase) {
        let world = World::new(&db).await;
        let keeper = FigureKeeper::new(world.store.clone());
        assert_eq!(keeper.figures().await.unwrap().keys, KeyCounts::default());
        let mut keys = Vec::new();
        for _ in 0..6 {
            keys.push(world.generate("").await.key.key_id);
        }
        world.import("imported-secret-of-some-length").await;
        // One counts from the beginning, the other from here.
        let later = FigureKeeper::new(world.store.clone());
        assert_eq!(later.figures().await.unwrap().keys, KeyCounts { active: 7, revoked: 0, deleted: 0 });
        rotate(&world, &keys[0], TimeDelta::zero()).await;
        rotate(&world, &keys[1], TimeDelta::days(1)).await;
        revoke(&world, &keys[2]).await;
        world.keys.reveal(&admin(), &keys[3]).await.unwrap();
        for keeper in [&keeper, &later] {
            assert_eq!(keeper.figures().await.unwrap().keys, KeyCounts { active: 7, revoked: 2, deleted: 0 });
        }
        world.clock.advance(TimeDelta::days(1));
        world.upkeep.end_overlaps(world.clock.now()).await.unwrap();
        let (counted, place) = world.store.count_keys().await.unwrap();
        assert_eq!(counted, KeyCounts { active: 6, revoked: 3, deleted: 0 });
        assert_eq!(place, world.audit.verify(None).await.unwrap().head.sequence);
        for keeper in [&keeper, &later] {
            assert_eq!(keeper.figures().await.unwrap().keys, counted);
        }
    }
}
