use chrono::TimeDelta;
use key_service::app::KeyError;
use key_service::app::keys::Revoke;
use service_kit::both_databases;
use service_kit::testing::Kind;

use crate::support::{REVEALS, Setting, World, admin, caller, text};

both_databases! {
    async fn a_secret_is_shown_to_a_person_and_audited(db: TestDatabase) {
        let world = World::new(&db).await;
        let issued = world.generate("").await;
        let key_id = &issued.key.key_id;
        let shown = world.keys.reveal(&admin(), key_id).await.unwrap();
        assert_eq!(text(&shown), text(&issued));
        assert_eq!(world.actions(key_id).await, ["key.generated", "key.revealed"]);
        for actor in ["api-key/key_1", "service/x"] {
            assert!(matches!(world.keys.reveal(&caller(actor), key_id).await, Err(KeyError::ActorNotAllowed { .. })));
        }
        assert!(matches!(world.keys.reveal(&caller(""), key_id).await, Err(KeyError::ActorRequired)));
        assert!(matches!(world.keys.reveal(&admin(), "key_none").await, Err(KeyError::NotFound { .. })));
        let revoke = Revoke { key_id: key_id.clone(), reason: String::new(), request_id: String::new() };
        world.keys.revoke(&admin(), &revoke).await.unwrap();
        assert!(matches!(world.keys.reveal(&admin(), key_id).await, Err(KeyError::NotActive { .. })));
        assert_eq!(world.count("audit_events WHERE action = 'key.revealed'").await, 1);
    }

    async fn each_actor_is_shown_only_so_many(db: TestDatabase) {
        let world = World::new(&db).await;
        let key_id = world.generate("").await.key.key_id;
        for _ in 0..REVEALS {
            world.keys.reveal(&admin(), &key_id).await.unwrap();
        }
        let refused = world.keys.reveal(&admin(), &key_id).await;
        let Err(KeyError::RevealRateLimited { retry_after }) = refused else { panic!("{refused:?}") };
        world.keys.reveal(&caller("user/usr_2"), &key_id).await.unwrap();
        world.clock.advance(TimeDelta::from_std(retry_after).unwrap());
        world.keys.reveal(&admin(), &key_id).await.unwrap();
        assert!(matches!(world.keys.reveal(&admin(), &key_id).await, Err(KeyError::RevealRateLimited { .. })));
        // Tidying up forgets nobody too early.
        world.keys.tidy_reveals();
        assert!(matches!(world.keys.reveal(&admin(), &key_id).await, Err(KeyError::RevealRateLimited { .. })));
    }

    async fn an_installation_that_keeps_no_secrets_shows_none(db: TestDatabase) {
        let world = World::with(&db, Setting { recoverable: false, ..Setting::default() }).await;
        let key = world.generate("r-1").await.key;
        assert!(!key.sealed);
        assert!(matches!(world.keys.reveal(&admin(), &key.key_id).await, Err(KeyError::NotRecoverable { .. })));
    }

    async fn a_sealed_secret_opens_for_its_own_key_alone(db: TestDatabase) {
        let world = World::new(&db).await;
        let (one, other) = (world.generate("").await.key.key_id, world.generate("").await.key.key_id);
        world.execute(&format!(
            "UPDATE api_keys SET sealed_secret = (SELECT sealed_secret FROM api_keys WHERE id = '{one}') WHERE id = '{other}'"
        )).await;
        assert!(matches!(world.keys.reveal(&admin(), &other).await, Err(KeyError::Internal(_))));
        assert_eq!(world.count("audit_events WHERE action = 'key.revealed'").await, 0);
    }

    async fn no_secret_stands_in_the_database(db: TestDatabase) {
        let world = World::new(&db).await;
        let issued = world.generate("r-1").await;
        world.keys.reveal(&admin(), &issued.key.key_id).await.unwrap();
        let body = text(&issued)[12..].to_owned();
        if db.kind == Kind::Sqlite {
            let path = db.config().sqlite_path().unwrap();
            for suffix in ["", "-wal"] {
                let bytes = std::fs::read(format!("{}{suffix}", path.display())).unwrap();
                assert!(!bytes.windows(body.len()).any(|window| window == body.as_bytes()), "{suffix}");
            }
        }
        for table in ["api_keys", "requests", "audit_events"] {
            assert_eq!(world.count(&format!("{table} AS t WHERE CAST(t.* AS TEXT) LIKE '%{body}%'").replace("CAST(t.* AS TEXT)", row_text(&db.kind, table))).await, 0);
        }
        assert!(!format!("{issued:?} {:?} {:?}", world.keys, world.row(&issued.key.key_id).await).contains(&body));
    }
}

/// All columns of text of a table, in one text.
fn row_text(kind: &Kind, table: &str) -> &'static str {
    match (kind, table) {
        (Kind::Postgres, _) => "t::text",
        (Kind::Sqlite, "api_keys") => {
            "display_name || display_prefix || scopes || allowed_cidrs || quote(sealed_secret)"
        }
        (Kind::Sqlite, "requests") => "method || scope || request_id || resource_id || coalesce(quote(payload), '')",
        (Kind::Sqlite, _) => "actor || action || reason || request_id || detail",
    }
}
