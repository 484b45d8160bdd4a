use chrono::TimeDelta;
use key_service::app::KeyError;
use key_service::app::keys::{Revoke, Rotate};
use key_service::domain::key::{Networks, Overlap, Presented, Scopes, Secret, VerifyCode};
use service_kit::both_databases;
use service_kit::entropy::SeededEntropy;
use service_kit::time::to_micros;
use service_kit::violations::Violations;

use crate::support::{MICRO, SLACK, Setting, World, admin, order, owner, ring_text, start, text};

both_databases! {
    async fn a_use_is_stored_before_the_answer_unless_the_stored_one_is_younger_than_the_slack(db: TestDatabase) {
        let world = World::new(&db).await;
        let issued = world.generate("").await;
        let (key_id, secret) = (&issued.key.key_id, text(&issued));
        let mut stored = Vec::new();
        let first = start() + MICRO;
        // The second use waits in memory; a use as old as the slack does not.
        for at in [first, first + SLACK - MICRO, first + SLACK] {
            world.clock.advance_to(at);
            assert_eq!(world.code(&secret).await, VerifyCode::Valid);
            stored.push(world.row(key_id).await.last_used_at.unwrap());
        }
        assert_eq!(stored, [to_micros(first), to_micros(first), to_micros(first + SLACK)]);
    }

    async fn a_use_in_memory_is_stored_by_the_flush_and_never_turns_back(db: TestDatabase) {
        let world = World::new(&db).await;
        let issued = world.generate("").await;
        let (key_id, secret) = (&issued.key.key_id, text(&issued));
        world.code(&secret).await;
        world.clock.advance(TimeDelta::seconds(10));
        world.code(&secret).await;
        assert_eq!(world.row(key_id).await.last_used_at, Some(to_micros(start())));
        assert_eq!(world.usage.flush().await.unwrap(), 1);
        assert_eq!(world.row(key_id).await.last_used_at, Some(to_micros(start() + TimeDelta::seconds(10))));
        // At the instant that is reported as flushed, a use is stored at once.
        world.code(&secret).await;
        assert_eq!(world.usage.flush().await.unwrap(), 0);
    }

    async fn what_no_key_can_be_is_answered_without_the_database(db: TestDatabase) {
        let world = World::new(&db).await;
        let mut typo = text(&world.generate("").await);
        let last = if typo.pop() == Some('a') { 'b' } else { 'a' };
        typo.push(last);
        world.db.close_by_ref().await.unwrap();
        let long = "x".repeat(513);
        for secret in ["", "two words", "ksw_agy_short", typo.as_str(), long.as_str(), "ключ"] {
            assert_eq!(world.code(secret).await, VerifyCode::Malformed, "{secret:?}");
        }
        let foreign = world.verifier.verify(&Secret::new("sk_live_123"), &Presented::default()).await;
        assert!(matches!(foreign, Err(KeyError::Storage(_))));
    }

    async fn a_refusal_takes_the_same_statements_whatever_its_reason(db: TestDatabase) {
        let before = World::new(&db).await;
        let unknown = Secret::generate(&owner(), &SeededEntropy::new(9)).expose().to_owned();
        let revoked = before.generate("").await;
        let revoke = Revoke { key_id: revoked.key.key_id.clone(), reason: String::new(), request_id: String::new() };
        before.keys.revoke(&admin(), &revoke).await.unwrap();
        let swept = before.generate("").await;
        before.execute(&format!(
            "UPDATE api_keys SET state = 3, deleted_at = {}, secret_hash = NULL, sealed_secret = NULL WHERE id = '{}'",
            to_micros(start()), swept.key.key_id
        )).await;
        let mut order = order("");
        order.spec.expires_at = Some(start() + MICRO);
        let expired = before.keys.generate(&admin(), &order).await.unwrap();
        // With nothing in memory.
        let (world, statements) = World::watched(&db).await;
        world.clock.advance(MICRO);
        let mut seen = Vec::new();
        for (secret, code) in [
            (unknown, VerifyCode::NotFound),
            (text(&revoked), VerifyCode::Revoked),
            (text(&swept), VerifyCode::DeletedBySweep),
            (text(&expired), VerifyCode::Expired),
        ] {
            statements.lock().unwrap().clear();
            assert_eq!(world.code(&secret).await, code);
            seen.push(statements.lock().unwrap().clone());
        }
        assert_eq!(seen[0].len(), 1, "{seen:?}");
        assert!(seen.iter().all(|one| *one == seen[0]), "{seen:?}");
    }

    async fn expiry_scopes_and_networks_hold(db: TestDatabase) {
        let world = World::new(&db).await;
        let mut order = order("");
        order.spec.expires_at = Some(start() + TimeDelta::hours(1));
        order.spec.networks = Networks::parse(&["192.0.2.0/24".into()], "n", &mut Violations::default());
        let secret = text(&world.keys.generate(&admin(), &order).await.unwrap());
        let ask = async |ip: &str, scopes: &[&str]| {
            let required_scopes = Scopes::from_stored(scopes.iter().map(|scope| (*scope).to_owned()).collect());
            let presented = Presented { required_scopes, source_ip: ip.parse().ok() };
            world.verifier.verify(&Secret::new(secret.as_str()), &presented).await.unwrap()
        };
        let valid = ask("192.0.2.7", &["read"]).await;
        assert_eq!(valid.code, VerifyCode::Valid);
        assert_eq!(valid.key.unwrap().scopes, order.spec.scopes);
        assert_eq!(ask("192.0.2.7", &["read", "pay"]).await.code, VerifyCode::InsufficientScope);
        assert_eq!(ask("198.51.100.1", &[]).await.code, VerifyCode::IpNotAllowed);
        assert_eq!(ask("", &[]).await.code, VerifyCode::IpNotAllowed);
        world.clock.advance(TimeDelta::hours(1) - MICRO);
        assert_eq!(ask("192.0.2.7", &[]).await.code, VerifyCode::Valid);
        world.clock.advance(MICRO);
        assert_eq!(ask("192.0.2.7", &[]).await.code, VerifyCode::Expired);
        // Refused attempts are no uses.
        world.usage.flush().await.unwrap();
        let rows = world.count(&format!("api_keys WHERE last_used_at = {}", to_micros(start() + TimeDelta::hours(1) - MICRO))).await;
        assert_eq!(rows, 1);
    }

    async fn every_pepper_of_the_ring_still_finds_its_keys(db: TestDatabase) {
        let old_text = ring_text(1);
        let old = World::new(&db).await;
        let secret = text(&old.generate("").await);
        let newer = format!("{old_text}\n{}", ring_text(2).replace("version = 1", "version = 2"));
        let new = World::with(&db, Setting { ring: newer, seed: 2, ..Setting::default() }).await;
        assert_eq!(new.code(&secret).await, VerifyCode::Valid);
        let fresh = new.generate("").await;
        assert_eq!(new.row(&fresh.key.key_id).await.pepper_version, Some(2));
        assert_eq!((new.code(&text(&fresh)).await, old.code(&text(&fresh)).await), (VerifyCode::Valid, VerifyCode::NotFound));
    }

    async fn a_key_that_a_sweep_deleted_says_when(db: TestDatabase) {
        let world = World::new(&db).await;
        let issued = world.generate("").await;
        let deleted_at = start() + TimeDelta::days(100);
        world.execute(&format!(
            "UPDATE api_keys SET state = 3, deleted_at = {}, secret_hash = NULL, sealed_secret = NULL",
            to_micros(deleted_at)
        )).await;
        let answer = world.verifier.verify(issued.secret.as_ref().unwrap(), &Presented::default()).await.unwrap();
        assert_eq!((answer.code, answer.deleted_at, answer.key), (VerifyCode::DeletedBySweep, Some(deleted_at), None));
    }

    async fn a_use_takes_a_planned_key_out_of_its_plan(db: TestDatabase) {
        let world = World::new(&db).await;
        let (used, revoked, rotated) = (world.generate("").await, world.generate("").await, world.generate("").await);
        let delete_at = start() + TimeDelta::days(15);
        plan(&world, &[&used.key.key_id, &revoked.key.key_id, &rotated.key.key_id], to_micros(delete_at)).await;
        let pending = world.keys.get(&used.key.key_id).await.unwrap().pending_deletion.unwrap();
        assert_eq!((pending.plan_id.as_str(), pending.delete_at), ("plan_1", delete_at));

        let answer = world.verifier.verify(used.secret.as_ref().unwrap(), &Presented::default()).await.unwrap();
        assert_eq!(answer.key.unwrap().plan_id.as_deref(), Some("plan_1"));
        let revoke = Revoke { key_id: revoked.key.key_id.clone(), reason: String::new(), request_id: String::new() };
        world.keys.revoke(&admin(), &revoke).await.unwrap();
        let overlap = Overlap::parse(TimeDelta::days(1), "overlap", &mut Violations::default());
        let rotate = Rotate { key_id: rotated.key.key_id.clone(), overlap, request_id: String::new() };
        world.keys.rotate(&admin(), &rotate).await.unwrap();

        assert_eq!(world.count("sweep_entries WHERE state = 1").await, 0);
        assert_eq!(world.count("sweep_events").await, 3);
        assert_eq!(world.keys.get(&used.key.key_id).await.unwrap().pending_deletion, None);
        assert!(world.actions(&used.key.key_id).await.contains(&"key.rescued".to_owned()));
        assert!(world.audit.verify(None).await.unwrap().first_broken.is_none());
    }
}

/// An open plan with one lot that lists these keys.
async fn plan(world: &World, key_ids: &[&str], delete_at: i64) {
    world
        .execute(&format!(
            "INSERT INTO sweep_plans (plan_id, delete_at, idle_since_at, last_delete_at, stage_window_ms, state, state_reason, \
             created_at, entry_count, lot_count, active_key_count) VALUES ('plan_1', {delete_at}, 0, {delete_at}, 1, 2, '', 0, 3, 1, 3)"
        ))
        .await;
    world
        .execute(&format!(
            "INSERT INTO sweep_lots (plan_id, agency_id, state, delete_at, last_delete_at, entry_count, state_reason, swept_through) \
             VALUES ('plan_1', 'agy_1', 1, {delete_at}, {delete_at}, 3, '', '')"
        ))
        .await;
    for key_id in key_ids {
        world
            .execute(&format!(
                "INSERT INTO sweep_entries (plan_id, agency_id, key_id, display_name, display_prefix, created_at, state) \
                 VALUES ('plan_1', 'agy_1', '{key_id}', '', '', 0, 1)"
            ))
            .await;
    }
}
