use chrono::TimeDelta;
use key_service::app::KeyError;
use key_service::app::keys::Generate;
use key_service::domain::key::VerifyCode;
use service_kit::both_databases;

use crate::support::{MICRO, Setting, World, admin, caller, order, start, text};

both_databases! {
    async fn the_same_id_twice_is_one_key_with_its_secret(db: TestDatabase) {
        let world = World::new(&db).await;
        let first = world.generate("r-1").await;
        let again = world.generate("r-1").await;
        assert_eq!((&first.key, text(&first)), (&again.key, text(&again)));
        assert_eq!((world.count("api_keys").await, world.count("audit_events").await), (1, 1));
        assert_eq!(world.code(&text(&again)).await, VerifyCode::Valid);
        assert_eq!(world.generate("r-2").await.key.owner, first.key.owner);
        assert_eq!(world.count("api_keys").await, 2);
    }

    async fn the_same_id_many_times_at_once_is_one_key(db: TestDatabase) {
        let world = World::new(&db).await;
        for round in 0..5 {
            let id = format!("r-{round}");
            let (a, b, c, d) =
                tokio::join!(world.generate(&id), world.generate(&id), world.generate(&id), world.generate(&id));
            let secrets = [&a, &b, &c, &d].map(text);
            assert!(secrets.iter().all(|secret| *secret == secrets[0]));
            assert_eq!(world.count("api_keys").await, round + 1);
        }
        assert!(world.audit.verify(None).await.unwrap().first_broken.is_none());
    }

    async fn calls_of_several_replicas_at_once_are_one_key(db: TestDatabase) {
        let one = World::new(&db).await;
        let other = World::with(&db, Setting { seed: 2, ..Setting::default() }).await;
        for round in 0..5 {
            let id = format!("r-{round}");
            let (a, b) = tokio::join!(one.generate(&id), other.generate(&id));
            assert_eq!(text(&a), text(&b));
        }
        assert_eq!(one.count("api_keys").await, 5);
    }

    async fn the_same_id_with_other_contents_is_refused(db: TestDatabase) {
        let world = World::new(&db).await;
        world.generate("r-1").await;
        let mut others = vec![order("r-1"); 5];
        others[0].spec.display_name.push('x');
        others[1].spec.owner.location_id = None;
        others[2].spec.scopes = Default::default();
        others[3].spec.expires_at = Some(start() + TimeDelta::days(1));
        others[4].spec.owner.location_id = Some("loc_2".into());
        for other in &others {
            assert!(matches!(world.keys.generate(&admin(), other).await, Err(KeyError::RequestIdReused)), "{other:?}");
        }
        let stranger = caller("user/usr_2");
        assert!(matches!(world.keys.generate(&stranger, &order("r-1")).await, Err(KeyError::RequestIdReused)));
        // Within another agency the id is another's.
        let mut elsewhere = order("r-1");
        elsewhere.spec.owner.agency_id = "agy_2".into();
        world.keys.generate(&admin(), &elsewhere).await.unwrap();
        assert_eq!(world.count("api_keys").await, 2);
    }

    async fn a_call_can_be_repeated_for_exactly_a_day(db: TestDatabase) {
        let world = World::new(&db).await;
        let day = TimeDelta::hours(24);
        let first = world.generate("r-1").await;
        world.clock.advance_to(start() + day - MICRO);
        world.upkeep.forget_requests(start() + day - MICRO).await.unwrap();
        assert_eq!(world.generate("r-1").await.key.key_id, first.key.key_id);
        world.clock.advance_to(start() + day);
        let second = world.generate("r-1").await;
        assert_ne!(second.key.key_id, first.key.key_id);
        assert_eq!(text(&world.generate("r-1").await), text(&second));
        assert_eq!(world.upkeep.forget_requests(start() + day + day + MICRO).await.unwrap(), 1);
        assert_eq!(world.count("requests").await, 0);
    }

    async fn an_installation_that_keeps_no_secrets_still_repeats_them_for_a_day(db: TestDatabase) {
        let world = World::with(&db, Setting { recoverable: false, ..Setting::default() }).await;
        let first = world.generate("r-1").await;
        assert_eq!(text(&world.generate("r-1").await), text(&first));
        let row = world.row(&first.key.key_id).await;
        assert!(row.sealed_secret.is_none() && row.master_version.is_none() && row.secret_hash.is_some());
        world.generate("").await;
        assert_eq!(world.count("requests").await, 1);
        world.upkeep.forget_requests(start() + TimeDelta::hours(24) + MICRO).await.unwrap();
        assert_eq!(world.count("requests WHERE payload IS NOT NULL").await, 0);
    }

    async fn a_repeated_call_whose_key_has_ended_shows_no_secret(db: TestDatabase) {
        for (seed, recoverable) in [(1, true), (2, false)] {
            let world = World::with(&db, Setting { recoverable, seed, ..Setting::default() }).await;
            let id = format!("r-{seed}");
            let key_id = world.generate(&id).await.key.key_id;
            let revoke = key_service::app::keys::Revoke { key_id: key_id.clone(), reason: String::new(), request_id: String::new() };
            world.keys.revoke(&admin(), &revoke).await.unwrap();
            let again = world.generate(&id).await;
            assert_eq!(again.key.key_id, key_id);
            assert!(again.secret.is_none());
        }
    }

    async fn a_refused_call_leaves_nothing_behind(db: TestDatabase) {
        let world = World::new(&db).await;
        let expiring = |offset| {
            let mut order = order("r-1");
            order.spec.expires_at = Some(start() + offset);
            order
        };
        for offset in [-MICRO, TimeDelta::zero()] {
            assert!(matches!(world.keys.generate(&admin(), &expiring(offset)).await, Err(KeyError::Invalid(_))));
        }
        assert_eq!((world.count("api_keys").await, world.count("requests").await), (0, 0));
        let sound: Generate = expiring(MICRO);
        let made = world.keys.generate(&admin(), &sound).await.unwrap();
        // The key has expired meanwhile; the call can be repeated all the same.
        world.clock.advance(TimeDelta::seconds(1));
        assert_eq!(world.keys.generate(&admin(), &sound).await.unwrap().key.key_id, made.key.key_id);
        assert_eq!(world.code(&text(&made)).await, VerifyCode::Expired);
    }

    async fn only_a_person_generates(db: TestDatabase) {
        let world = World::new(&db).await;
        for actor in ["api-key/key_1", "service/location-service"] {
            let refused = world.keys.generate(&caller(actor), &order("")).await;
            assert!(matches!(refused, Err(KeyError::ActorNotAllowed { .. })), "{actor}");
        }
        assert!(matches!(world.keys.generate(&caller(""), &order("")).await, Err(KeyError::ActorRequired)));
        assert_eq!(world.count("api_keys").await, 0);
    }
}
