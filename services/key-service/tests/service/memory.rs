//! What is answered from memory, and when it no longer is.

use std::net::IpAddr;

use chrono::TimeDelta;
use key_service::app::keys::{KeyChanges, Revoke, Rotate, Update};
use key_service::app::verify::MAX_STALENESS;
use key_service::app::{KeyError, StorageError};
use key_service::domain::key::{Overlap, Presented, Scopes, Secret, VerifyCode};
use service_kit::both_databases;

use crate::support::{GUESSES, MICRO, Setting, World, admin, text};

fn staleness() -> TimeDelta {
    TimeDelta::from_std(MAX_STALENESS).unwrap()
}

struct Held {
    key_id: String,
    secret: String,
}

/// Two replicas on one database.
async fn replicas(db: &service_kit::testing::TestDatabase) -> (World, World) {
    (World::new(db).await, World::with(db, Setting { seed: 2, ..Setting::default() }).await)
}

/// A key that both replicas hold in memory.
async fn held_by_both(one: &World, other: &World) -> Held {
    let issued = one.generate("").await;
    let secret = text(&issued);
    for world in [one, other] {
        world.clock.advance(TimeDelta::milliseconds(1));
        assert_eq!(world.code(&secret).await, VerifyCode::Valid);
        world.verifier.changes().catch_up().await.unwrap();
        assert_eq!(world.code(&secret).await, VerifyCode::Valid);
    }
    Held { key_id: issued.key.key_id, secret }
}

both_databases! {
    async fn a_key_in_memory_is_answered_without_the_database_until_the_bound(db: TestDatabase) {
        let world = World::new(&db).await;
        let issued = world.generate("").await;
        let secret = text(&issued);
        world.code(&secret).await;
        world.clock.advance(TimeDelta::seconds(1));
        world.verifier.changes().catch_up().await.unwrap();
        world.db.close_by_ref().await.unwrap();
        world.clock.advance(staleness() - MICRO);
        assert_eq!(world.code(&secret).await, VerifyCode::Valid);
        world.clock.advance(MICRO);
        let stale = world.verifier.verify(&Secret::new(secret.as_str()), &Presented::default()).await;
        assert!(matches!(stale, Err(KeyError::Storage(StorageError::Unavailable(_)))), "{stale:?}");
    }

    async fn a_clock_that_is_set_back_does_not_make_memory_fresh(db: TestDatabase) {
        let world = World::new(&db).await;
        let secret = text(&world.generate("").await);
        world.code(&secret).await;
        world.clock.advance(TimeDelta::seconds(1));
        world.verifier.changes().catch_up().await.unwrap();
        world.code(&secret).await;
        world.db.close_by_ref().await.unwrap();
        let heard = service_kit::clock::Clock::now(&*world.clock);
        world.clock.advance(staleness());
        world.clock.set_to(heard + MICRO);
        let stale = world.verifier.verify(&Secret::new(secret.as_str()), &Presented::default()).await;
        assert!(matches!(stale, Err(KeyError::Storage(_))), "{stale:?}");
    }

    async fn a_revocation_is_seen_here_at_once_and_elsewhere_as_soon_as_it_is_heard_of(db: TestDatabase) {
        let (one, other) = replicas(&db).await;
        let held = held_by_both(&one, &other).await;
        let revoke = Revoke { key_id: held.key_id.clone(), reason: "lost".into(), request_id: String::new() };
        one.keys.revoke(&admin(), &revoke).await.unwrap();
        assert_eq!(one.code(&held.secret).await, VerifyCode::Revoked);
        assert_eq!(other.code(&held.secret).await, VerifyCode::Valid);
        assert_eq!(other.verifier.changes().catch_up().await.unwrap(), 1);
        assert_eq!(other.code(&held.secret).await, VerifyCode::Revoked);
    }

    async fn a_rotation_without_overlap_and_an_update_are_heard_of(db: TestDatabase) {
        let (one, other) = replicas(&db).await;
        let (rotated, updated) = (held_by_both(&one, &other).await, held_by_both(&one, &other).await);
        let rotate = Rotate { key_id: rotated.key_id, overlap: Overlap::NONE, request_id: String::new() };
        one.keys.rotate(&admin(), &rotate).await.unwrap();
        let changes = KeyChanges { scopes: Some(Scopes::from_stored(vec!["other".into()])), ..KeyChanges::default() };
        let update = Update { key_id: updated.key_id, etag: String::new(), changes, request_id: String::new() };
        one.keys.update(&admin(), &update).await.unwrap();
        other.verifier.changes().catch_up().await.unwrap();
        for world in [&one, &other] {
            assert_eq!(world.code(&rotated.secret).await, VerifyCode::Revoked);
            let read = Presented { required_scopes: Scopes::from_stored(vec!["read".into()]), source_ip: None };
            let answer = world.verifier.verify(&Secret::new(updated.secret.as_str()), &read).await.unwrap();
            assert_eq!(answer.code, VerifyCode::InsufficientScope);
        }
    }

    async fn a_deleted_key_is_refused_by_a_replica_that_held_it(db: TestDatabase) {
        let (one, other) = replicas(&db).await;
        let held = held_by_both(&one, &other).await;
        // As the sweep leaves it, without waiting a quarter.
        one.execute(&format!("UPDATE api_keys SET state = 3, secret_hash = NULL, deleted_at = 1 WHERE id = '{}'", held.key_id)).await;
        // Nobody has used it for as long as deletion takes: memory is no answer then, heard of or not.
        other.clock.advance(TimeDelta::days(90));
        other.verifier.changes().catch_up().await.unwrap();
        assert_eq!(other.code(&held.secret).await, VerifyCode::DeletedBySweep);
    }

    async fn an_unknown_secret_is_refused_from_memory_until_it_is_imported(db: TestDatabase) {
        let (one, other) = replicas(&db).await;
        let secret = "sk_live_4eC39HqLyjWDarjtT1zdp7dc";
        for world in [&one, &other] {
            assert_eq!(world.code(secret).await, VerifyCode::NotFound);
        }
        one.import(secret).await;
        assert_eq!(one.code(secret).await, VerifyCode::Valid);
        assert_eq!(other.code(secret).await, VerifyCode::NotFound);
        other.verifier.changes().catch_up().await.unwrap();
        assert_eq!(other.code(secret).await, VerifyCode::Valid);
    }

    async fn a_thousand_callers_of_one_cold_key_make_one_look_up(db: TestDatabase) {
        let world = World::new(&db).await;
        let secret = text(&world.generate("").await);
        world.clock.advance(TimeDelta::seconds(1));
        world.verifier.changes().catch_up().await.unwrap();
        let before = world.look_ups();
        let codes = futures::future::join_all((0..1_000).map(|_| world.code(&secret))).await;
        assert!(codes.iter().all(|code| *code == VerifyCode::Valid));
        assert_eq!(world.look_ups() - before, 1);
    }

    async fn a_source_of_many_bad_secrets_is_slowed_and_its_good_ones_are_not(db: TestDatabase) {
        let world = World::new(&db).await;
        let good = text(&world.generate("").await);
        let from = |ip: &str| Presented { source_ip: Some(ip.parse::<IpAddr>().unwrap()), ..Presented::default() };
        let guess = async |number: u32, ip: &str| {
            let secret = Secret::new(format!("sk_live_guess_number_{number}"));
            world.verifier.verify(&secret, &from(ip)).await
        };
        for number in 0..GUESSES {
            assert_eq!(guess(number, "192.0.2.1").await.unwrap().code, VerifyCode::NotFound);
        }
        let refused = guess(99, "192.0.2.1").await;
        assert!(matches!(refused, Err(KeyError::GuessesThrottled { .. })), "{refused:?}");
        // A secret in memory, a typo, another source, the same one written otherwise, and one that does not say.
        assert!(guess(99, "192.0.2.1").await.is_err());
        assert!(world.verifier.verify(&Secret::new("ksw_agy_typo"), &from("192.0.2.1")).await.is_err());
        assert!(guess(99, "::ffff:192.0.2.1").await.is_err());
        assert_eq!(guess(99, "192.0.2.2").await.unwrap().code, VerifyCode::NotFound);
        let unsaid = world.verifier.verify(&Secret::new("sk_live_guess_number_1"), &Presented::default()).await;
        assert_eq!(unsaid.unwrap().code, VerifyCode::NotFound);
        // Cold, then from memory.
        for _ in 0..2 * GUESSES {
            let answer = world.verifier.verify(&Secret::new(good.as_str()), &from("192.0.2.1")).await.unwrap();
            assert_eq!(answer.code, VerifyCode::Valid);
        }
        world.clock.advance(TimeDelta::minutes(1));
        assert_eq!(guess(99, "192.0.2.1").await.unwrap().code, VerifyCode::NotFound);
    }

    async fn an_ipv6_network_is_one_source(db: TestDatabase) {
        let world = World::new(&db).await;
        let guess = async |ip: String| {
            let presented = Presented { source_ip: ip.parse().ok(), ..Presented::default() };
            world.verifier.verify(&Secret::new(format!("guess-{ip}")), &presented).await
        };
        for host in 0..GUESSES {
            assert!(guess(format!("2001:db8:0:1::{host:x}")).await.is_ok());
        }
        assert!(guess("2001:db8:0:1:ffff::1".into()).await.is_err());
        assert!(guess("2001:db8:0:2::1".into()).await.is_ok());
    }
}
