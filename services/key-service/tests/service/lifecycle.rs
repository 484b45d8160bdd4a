//! Rotation, revocation and updates.

use chrono::TimeDelta;
use key_service::app::KeyError;
use key_service::app::keys::{KeyChanges, KeyFilter, Revoke, Rotate, Update};
use key_service::domain::key::{ApiKeyState, Overlap, Scopes, VerifyCode};
use service_kit::both_databases;
use service_kit::page::Page;
use service_kit::violations::Violations;

use crate::support::{MICRO, Setting, World, admin, caller, order, start, text};

fn rotate(key_id: &str, overlap: TimeDelta, request_id: &str) -> Rotate {
    let overlap = Overlap::parse(overlap, "overlap", &mut Violations::default());
    Rotate { key_id: key_id.into(), overlap, request_id: request_id.into() }
}

fn revoke(key_id: &str, request_id: &str) -> Revoke {
    Revoke { key_id: key_id.into(), reason: "leaked".into(), request_id: request_id.into() }
}

fn rename(key_id: &str, name: &str, etag: &str, request_id: &str) -> Update {
    let changes = KeyChanges { display_name: Some(name.into()), ..KeyChanges::default() };
    Update { key_id: key_id.into(), etag: etag.into(), changes, request_id: request_id.into() }
}

async fn listed(world: &World, state: ApiKeyState) -> usize {
    let filter = KeyFilter { state: Some(state), ..KeyFilter::default() };
    world.keys.list(&filter, &Page { size: 100, cursor: None }).await.unwrap().0.len()
}

both_databases! {
    async fn both_secrets_verify_until_the_overlap_ends(db: TestDatabase) {
        let world = World::new(&db).await;
        let old = world.generate("").await;
        let week = TimeDelta::days(7);
        let rotated = world.keys.rotate(&admin(), &rotate(&old.key.key_id, week, "")).await.unwrap();
        let (old_secret, new_secret) = (text(&old), text(&rotated.successor));
        assert_eq!(rotated.retired.revoke_at, Some(start() + week));
        assert_eq!(rotated.retired.successor_id, Some(rotated.successor.key.key_id.clone()));
        assert_eq!(rotated.successor.key.scopes, old.key.scopes);
        world.clock.advance_to(start() + week - MICRO);
        assert_eq!((world.code(&old_secret).await, world.code(&new_secret).await), (VerifyCode::Valid, VerifyCode::Valid));
        assert_eq!(world.upkeep.end_overlaps(start() + week - MICRO).await.unwrap(), 0);
        world.clock.advance_to(start() + week);
        assert_eq!((world.code(&old_secret).await, world.code(&new_secret).await), (VerifyCode::Revoked, VerifyCode::Valid));
        // Also before the job has made it final.
        assert_eq!((listed(&world, ApiKeyState::Active).await, listed(&world, ApiKeyState::Revoked).await), (1, 1));
        assert_eq!(world.upkeep.end_overlaps(start() + week).await.unwrap(), 1);
        assert_eq!(world.upkeep.end_overlaps(start() + week).await.unwrap(), 0);
        let row = world.row(&old.key.key_id).await;
        assert!(row.state == 2 && row.secret_hash.is_none() && row.sealed_secret.is_none());
        assert_eq!(world.code(&old_secret).await, VerifyCode::Revoked);
        assert_eq!(world.actions(&old.key.key_id).await, ["key.generated", "key.rotated", "key.overlap_ended"]);
        let rotation = world.detail(&old.key.key_id, "key.rotated").await;
        let expected = serde_json::json!({
            "successor_key_id": rotated.successor.key.key_id, "revoke_time": "2026-11-25T11:06:40Z",
            "origin": { "peer": "192.0.2.7:4711" },
        });
        assert_eq!(rotation, expected);
    }

    async fn a_rotation_repeated_is_one_successor_with_its_secret(db: TestDatabase) {
        for (seed, recoverable) in [(1, true), (2, false)] {
            let world = World::with(&db, Setting { recoverable, seed, ..Setting::default() }).await;
            let old = world.generate("").await.key.key_id;
            let before = world.count("api_keys").await;
            let command = rotate(&old, TimeDelta::hours(1), "rot-1");
            let admin = admin();
            let (a, b, c) = tokio::join!(
                world.keys.rotate(&admin, &command),
                world.keys.rotate(&admin, &command),
                world.keys.rotate(&admin, &command)
            );
            let later = world.keys.rotate(&admin, &command).await.unwrap();
            for rotated in [a.unwrap(), b.unwrap(), c.unwrap()] {
                assert_eq!(text(&rotated.successor), text(&later.successor));
                assert_eq!(rotated.retired, later.retired);
            }
            assert_eq!(world.count("api_keys").await, before + 1);
            let other = rotate(&old, TimeDelta::hours(2), "rot-1");
            assert!(matches!(world.keys.rotate(&admin, &other).await, Err(KeyError::RequestIdReused)));
            world.execute("DELETE FROM requests").await;
        }
    }

    async fn of_two_rotations_at_once_one_wins(db: TestDatabase) {
        let world = World::new(&db).await;
        let old = world.generate("").await.key.key_id;
        let (command, admin) = (rotate(&old, TimeDelta::zero(), ""), admin());
        let (a, b) = tokio::join!(world.keys.rotate(&admin, &command), world.keys.rotate(&admin, &command));
        let (won, lost) = if a.is_ok() { (a, b) } else { (b, a) };
        let successor = won.unwrap().successor.key.key_id;
        assert!(matches!(lost, Err(KeyError::AlreadyRotated { successor_key_id, .. }) if successor_key_id == successor));
        assert_eq!(world.count("api_keys").await, 2);
        assert!(world.row(&old).await.secret_hash.is_none());
    }

    async fn revocation_is_at_once_and_final(db: TestDatabase) {
        let world = World::new(&db).await;
        let issued = world.generate("").await;
        let key_id = &issued.key.key_id;
        world.keys.rotate(&admin(), &rotate(key_id, TimeDelta::days(3), "")).await.unwrap();
        world.clock.advance(TimeDelta::hours(1));
        let (command, admin) = (revoke(key_id, "rev-1"), admin());
        let (a, b) = tokio::join!(world.keys.revoke(&admin, &command), world.keys.revoke(&admin, &command));
        assert_eq!(a.unwrap(), b.unwrap());
        assert_eq!(world.code(&text(&issued)).await, VerifyCode::Revoked);
        let row = world.row(key_id).await;
        assert!(row.secret_hash.is_none() && row.sealed_secret.is_none());
        // Later revocations change nothing, under any id.
        world.clock.advance(TimeDelta::hours(1));
        let again = world.keys.revoke(&admin, &revoke(key_id, "")).await.unwrap();
        assert_eq!(again.revoke_at, Some(start() + TimeDelta::hours(1)));
        assert_eq!(world.actions(key_id).await, ["key.generated", "key.rotated", "key.revoked"]);
        let mut other = command.clone();
        other.reason.clear();
        assert!(matches!(world.keys.revoke(&admin, &other).await, Err(KeyError::RequestIdReused)));
        assert!(matches!(
            world.keys.update(&admin, &rename(key_id, "x", "", "")).await,
            Err(KeyError::NotActive { state: "REVOKED", .. })
        ));
        world.execute("UPDATE api_keys SET state = 3").await;
        assert!(matches!(world.keys.revoke(&admin, &revoke(key_id, "")).await, Err(KeyError::NotActive { state: "DELETED", .. })));
    }

    async fn an_etag_guards_against_lost_updates(db: TestDatabase) {
        let world = World::new(&db).await;
        let key = world.generate("").await.key;
        let admin = admin();
        let (one, two) = (rename(&key.key_id, "one", &key.etag(), ""), rename(&key.key_id, "two", &key.etag(), ""));
        let (a, b) = tokio::join!(world.keys.update(&admin, &one), world.keys.update(&admin, &two));
        let (won, lost) = if a.is_ok() { (a, b) } else { (b, a) };
        assert!(matches!(lost, Err(KeyError::EtagMismatch { .. })));
        let won = won.unwrap();
        assert_eq!(world.keys.get(&key.key_id).await.unwrap(), won);
        assert_ne!(won.etag(), key.etag());
        // Without an etag both go through, one after the other.
        let (one, two) = (rename(&key.key_id, "three", "", ""), rename(&key.key_id, "four", "", ""));
        let (a, b) = tokio::join!(world.keys.update(&admin, &one), world.keys.update(&admin, &two));
        assert!(a.is_ok() && b.is_ok());
        assert_eq!(world.row(&key.key_id).await.revision, 4);
    }

    async fn an_update_repeated_changes_once(db: TestDatabase) {
        let world = World::new(&db).await;
        let key_id = world.generate("").await.key.key_id;
        let command = Update {
            changes: KeyChanges { scopes: Some(Scopes::default()), expires_at: Some(None), ..KeyChanges::default() },
            ..rename(&key_id, "", "", "u-1")
        };
        let service = caller("");
        let (a, b) = tokio::join!(world.keys.update(&service, &command), world.keys.update(&service, &command));
        assert_eq!(a.unwrap(), b.unwrap());
        assert_eq!(world.row(&key_id).await.revision, 2);
        assert!(matches!(world.keys.update(&service, &rename(&key_id, "x", "", "u-1")).await, Err(KeyError::RequestIdReused)));
        let past = Update {
            changes: KeyChanges { expires_at: Some(Some(start())), ..KeyChanges::default() },
            ..rename(&key_id, "", "", "u-2")
        };
        assert!(matches!(world.keys.update(&service, &past).await, Err(KeyError::Invalid(_))));
        assert_eq!((world.row(&key_id).await.revision, world.count("requests").await), (2, 1));
        assert!(matches!(world.keys.update(&caller("api-key/key_1"), &command).await, Err(KeyError::ActorNotAllowed { .. })));
    }

    async fn a_stolen_key_ends_none(db: TestDatabase) {
        let world = World::new(&db).await;
        let key_id = world.generate("").await.key.key_id;
        for actor in ["api-key/key_1", "service/x"] {
            let thief = caller(actor);
            assert!(matches!(world.keys.revoke(&thief, &revoke(&key_id, "")).await, Err(KeyError::ActorNotAllowed { .. })));
            let rotation = world.keys.rotate(&thief, &rotate(&key_id, TimeDelta::zero(), "")).await;
            assert!(matches!(rotation, Err(KeyError::ActorNotAllowed { .. })));
        }
        assert!(matches!(world.keys.revoke(&caller(""), &revoke(&key_id, "")).await, Err(KeyError::ActorRequired)));
        let missing = world.keys.revoke(&admin(), &revoke("key_none", "")).await;
        assert!(matches!(missing, Err(KeyError::NotFound { .. })));
        assert_eq!(world.count("audit_events").await, 1);
    }

    async fn lists_are_filtered_and_paged(db: TestDatabase) {
        let world = World::new(&db).await;
        for number in 0..25 {
            let mut order = order("");
            order.spec.owner.agency_id = format!("agy_{}", number % 2);
            order.spec.owner.location_id = (number % 5 == 0).then(|| "loc_9".to_owned());
            world.keys.generate(&admin(), &order).await.unwrap();
            world.clock.advance(TimeDelta::seconds(1));
        }
        let all = async |filter: KeyFilter| {
            let (mut ids, mut cursor) = (Vec::new(), None);
            loop {
                let (keys, next) = world.keys.list(&filter, &Page { size: 4, cursor }).await.unwrap();
                assert!(keys.len() <= 4);
                ids.extend(keys.into_iter().map(|key| key.key_id));
                cursor = next;
                if cursor.is_none() {
                    return ids;
                }
            }
        };
        let every = all(KeyFilter::default()).await;
        assert!(every.len() == 25 && every.is_sorted());
        assert_eq!(all(KeyFilter { agency_id: Some("agy_0".into()), ..KeyFilter::default() }).await.len(), 13);
        assert_eq!(all(KeyFilter { location_id: Some("loc_9".into()), ..KeyFilter::default() }).await.len(), 5);
        // Created at second 10, used later: idle since the later of the two.
        world.execute(&format!("UPDATE api_keys SET last_used_at = created_at + 5000000 WHERE id = '{}'", every[10])).await;
        let idle = |at| all(KeyFilter { idle_since: Some(at), ..KeyFilter::default() });
        assert_eq!(idle(start() + TimeDelta::seconds(10)).await.len(), 10);
        assert_eq!(idle(start() + TimeDelta::seconds(15)).await.len(), 16);
        assert_eq!(idle(start() + TimeDelta::seconds(15) - MICRO).await.len(), 14);
        assert_eq!(idle(start() - MICRO).await.len(), 0);
    }
}
