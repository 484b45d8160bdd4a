use key_service::app::keys::Revoke;
use key_service::domain::key::VerifyCode;
use key_service::storage::keyring_check::{Refusal, check, is_unused};
use service_kit::both_databases;
use service_kit::keyring::{KeyRing, KeyRingFault};

use crate::support::{MICRO, Setting, World, admin, ring_text, text};

fn ring(text: &str) -> KeyRing {
    KeyRing::parse(text).unwrap()
}

/// The ring of seed 1, and the pepper of another as version 2, on standby or not.
fn two_peppers(standby: bool) -> String {
    let other = ring_text(2);
    let pepper = other.split("[[master]]").next().unwrap().replace("version = 1", "version = 2");
    format!("{}\n{pepper}{}", ring_text(1), if standby { "standby = true\n" } else { "" })
}

/// The pepper of one ring and the master key of another.
fn mixed(pepper: u64, master: u64) -> String {
    let (peppers, masters) = (ring_text(pepper), ring_text(master));
    let (head, tail) = (peppers.split("[[master]]").next().unwrap(), masters.split("[[master]]").nth(1).unwrap());
    format!("{head}[[master]]{tail}")
}

both_databases! {
    async fn another_secret_of_the_same_version_is_refused_by_name(db: TestDatabase) {
        let world = World::new(&db).await;
        check(&world.db, &ring(&ring_text(1))).await.unwrap();
        check(&world.db, &ring(&ring_text(1))).await.unwrap();
        let fault = check(&world.db, &ring(&mixed(2, 1))).await.unwrap_err();
        assert!(matches!(&fault, Refusal::Ring(KeyRingFault::Differs(name)) if name == "pepper 1"), "{fault}");
        let fault = check(&world.db, &ring(&mixed(1, 2))).await.unwrap_err();
        assert!(matches!(&fault, Refusal::Ring(KeyRingFault::Differs(name)) if name == "master 1"), "{fault}");
    }

    async fn a_missing_version_is_refused_while_keys_need_it(db: TestDatabase) {
        let world = World::new(&db).await;
        let newer = ring_text(2).replace("version = 1", "version = 2");
        check(&world.db, &ring(&ring_text(1))).await.unwrap();
        // Nothing needs version 1 yet.
        check(&world.db, &ring(&newer)).await.unwrap();
        let key_id = world.generate("").await.key.key_id;
        let fault = check(&world.db, &ring(&newer)).await.unwrap_err();
        assert!(matches!(&fault, Refusal::Ring(KeyRingFault::Missing(name)) if name == "pepper 1" || name == "master 1"), "{fault}");
        world.execute(&format!("UPDATE api_keys SET secret_hash = NULL, sealed_secret = NULL WHERE id = '{key_id}'")).await;
        check(&world.db, &ring(&newer)).await.unwrap();
    }

    async fn a_secret_kept_for_a_repeated_call_needs_its_master_key(db: TestDatabase) {
        let world = World::with(&db, Setting { recoverable: false, ..Setting::default() }).await;
        check(&world.db, &ring(&ring_text(1))).await.unwrap();
        world.generate("r-1").await;
        let other_master = mixed(1, 2).replace("[[master]]\nversion = 1", "[[master]]\nversion = 2");
        let fault = check(&world.db, &ring(&other_master)).await.unwrap_err();
        assert!(matches!(&fault, Refusal::Ring(KeyRingFault::Missing(name)) if name == "master 1"), "{fault}");
        world.execute("DELETE FROM requests").await;
        check(&world.db, &ring(&other_master)).await.unwrap();
    }

    async fn a_database_with_a_key_or_a_known_ring_is_in_use(db: TestDatabase) {
        let world = World::new(&db).await;
        assert!(is_unused(&world.db).await.unwrap());
        world.generate("").await;
        assert!(!is_unused(&world.db).await.unwrap());
        world.execute("DELETE FROM api_keys").await;
        check(&world.db, &ring(&ring_text(1))).await.unwrap();
        assert!(!is_unused(&world.db).await.unwrap());
    }

    async fn a_new_pepper_takes_effect_and_old_keys_verify_on(db: TestDatabase) {
        let before = World::with(&db, Setting { seed: 1, ..Setting::default() }).await;
        let old = before.generate("").await;
        // Every replica knows the new pepper before one uses it.
        let ready = World::with(&db, Setting { seed: 2, ring: two_peppers(true), ..Setting::default() }).await;
        let early = ready.generate("").await;
        assert_eq!(before.code(&text(&early)).await, VerifyCode::Valid, "the old pepper is still the current one");
        let next = World::with(&db, Setting { seed: 3, ring: two_peppers(false), ..Setting::default() }).await;
        let new = next.generate("").await;
        for world in [&ready, &next] {
            world.clock.advance(MICRO);
            for issued in [&old, &early, &new] {
                assert_eq!(world.code(&text(issued)).await, VerifyCode::Valid);
                let look_ups = world.look_ups();
                assert_eq!(world.code(&text(issued)).await, VerifyCode::Valid);
                assert_eq!(world.look_ups(), look_ups, "it is answered from memory");
            }
        }
        // A use under the new ring leaves the old hash as it is.
        for (issued, pepper) in [(&old, 1), (&early, 1), (&new, 2)] {
            assert_eq!(next.row(&issued.key.key_id).await.pepper_version, Some(pepper));
        }
        check(&next.db, &ring(&two_peppers(false))).await.unwrap();
        let both = two_peppers(false);
        let without_the_old = both[both.find("[[master]]").unwrap()..].to_owned();
        let fault = check(&next.db, &ring(&without_the_old)).await.unwrap_err();
        assert!(matches!(&fault, Refusal::Ring(KeyRingFault::Missing(name)) if name == "pepper 1"), "{fault}");
        for issued in [&old, &early] {
            let command = Revoke { key_id: issued.key.key_id.clone(), reason: String::new(), request_id: String::new() };
            next.keys.revoke(&admin(), &command).await.unwrap();
            ready.verifier.changes().catch_up().await.unwrap();
            assert_eq!(ready.code(&text(issued)).await, VerifyCode::Revoked);
        }
        check(&next.db, &ring(&without_the_old)).await.unwrap();
    }
}
