use key_service::app::audit::AuditFilter;
use service_kit::both_databases;
use service_kit::page::Page;

use crate::support::{World, admin, start};

async fn first_broken(world: &World) -> Option<i64> {
    world.audit.verify(None).await.unwrap().first_broken
}

both_databases! {
    async fn what_was_done_is_listed_in_order_and_proven(db: TestDatabase) {
        let world = World::new(&db).await;
        let empty = world.audit.verify(None).await.unwrap();
        assert_eq!((empty.first_broken, empty.checked), (None, 0));
        let (a, b, c, d) = tokio::join!(world.generate(""), world.generate(""), world.generate(""), world.generate(""));
        world.keys.reveal(&admin(), &a.key.key_id).await.unwrap();
        drop((b, c, d));
        let proof = world.audit.verify(None).await.unwrap();
        assert_eq!((proof.first_broken, proof.checked, proof.head.sequence), (None, 5, 5));

        let (mut sequences, mut cursor) = (Vec::new(), None);
        loop {
            let page = Page { size: 2, cursor };
            let (events, next) = world.audit.list(&AuditFilter::default(), &page).await.unwrap().unwrap();
            assert!(events.iter().all(|event| event.actor == "user/usr_1" && event.request_id == "call-1"));
            sequences.extend(events.into_iter().map(|event| event.sequence));
            cursor = next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(sequences, [1, 2, 3, 4, 5]);
        let filter = AuditFilter { agency_id: Some("agy_1".into()), until: Some(start()), ..AuditFilter::default() };
        let none = world.audit.list(&filter, &Page { size: 10, cursor: None }).await.unwrap().unwrap();
        assert!(none.0.is_empty());
        assert!(world.audit.list(&filter, &Page { size: 10, cursor: Some("x".into()) }).await.unwrap().is_none());
    }

    async fn a_changed_event_is_found(db: TestDatabase) {
        let world = World::new(&db).await;
        for _ in 0..6 {
            world.generate("").await;
        }
        world.execute("UPDATE audit_events SET actor = 'user/usr_2' WHERE sequence = 3").await;
        assert_eq!(first_broken(&world).await, Some(3));
        world.execute("UPDATE audit_events SET actor = 'user/usr_1' WHERE sequence = 3").await;
        assert_eq!(first_broken(&world).await, None);
        world.execute("DELETE FROM audit_events WHERE sequence = 4").await;
        assert_eq!(first_broken(&world).await, Some(4));
    }

    async fn a_cut_tail_is_found(db: TestDatabase) {
        let world = World::new(&db).await;
        for _ in 0..3 {
            world.generate("").await;
        }
        world.execute("DELETE FROM audit_events WHERE sequence = 3").await;
        assert_eq!(first_broken(&world).await, Some(3));
        world.execute("DELETE FROM audit_events").await;
        assert_eq!(first_broken(&world).await, Some(1));
    }
}
