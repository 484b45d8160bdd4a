use key_service::storage::keyring_check::{KeyRingFault, check, is_unused};
use service_kit::both_databases;
use service_kit::keyring::KeyRing;

use crate::support::{Setting, World, ring_text};

fn ring(text: &str) -> KeyRing {
    KeyRing::parse(text).unwrap()
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
        assert!(matches!(&fault, KeyRingFault::Differs(name) if name == "pepper 1"), "{fault}");
        let fault = check(&world.db, &ring(&mixed(1, 2))).await.unwrap_err();
        assert!(matches!(&fault, KeyRingFault::Differs(name) if name == "master 1"), "{fault}");
    }

    async fn a_missing_version_is_refused_while_keys_need_it(db: TestDatabase) {
        let world = World::new(&db).await;
        let newer = ring_text(2).replace("version = 1", "version = 2");
        check(&world.db, &ring(&ring_text(1))).await.unwrap();
        // Nothing needs version 1 yet.
        check(&world.db, &ring(&newer)).await.unwrap();
        let key_id = world.generate("").await.key.key_id;
        let fault = check(&world.db, &ring(&newer)).await.unwrap_err();
        assert!(matches!(&fault, KeyRingFault::Missing(name) if name == "pepper 1" || name == "master 1"), "{fault}");
        world.execute(&format!("UPDATE api_keys SET secret_hash = NULL, sealed_secret = NULL WHERE id = '{key_id}'")).await;
        check(&world.db, &ring(&newer)).await.unwrap();
    }

    async fn a_secret_kept_for_a_repeated_call_needs_its_master_key(db: TestDatabase) {
        let world = World::with(&db, Setting { recoverable: false, ..Setting::default() }).await;
        check(&world.db, &ring(&ring_text(1))).await.unwrap();
        world.generate("r-1").await;
        let other_master = mixed(1, 2).replace("[[master]]\nversion = 1", "[[master]]\nversion = 2");
        let fault = check(&world.db, &ring(&other_master)).await.unwrap_err();
        assert!(matches!(&fault, KeyRingFault::Missing(name) if name == "master 1"), "{fault}");
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
}
