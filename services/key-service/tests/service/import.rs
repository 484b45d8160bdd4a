use chrono::TimeDelta;
use key_service::app::KeyError;
use key_service::app::keys::{ImportTally, MAX_CHUNK_ROWS};
use key_service::domain::key::{RawCredential, RawImportRow, RawOwner, RawTime, Secret, SecretDigest, VerifyCode};
use service_kit::both_databases;

use crate::support::{Setting, World, admin, caller, ring_text, start};

fn secret(number: usize) -> String {
    format!("sk_live_{number:024}")
}

fn row(number: usize) -> RawImportRow {
    RawImportRow {
        owner: RawOwner::Agency("agy_1".into()),
        credential: RawCredential::Secret(Secret::new(secret(number))),
        created_at: RawTime::At(start() - TimeDelta::days(400)),
        last_used_at: RawTime::At(start() - TimeDelta::days(100)),
        external_reference: format!("old-{number}"),
        display_name: "imported".into(),
        scopes: vec!["read".into()],
    }
}

fn by_digest(number: usize) -> RawImportRow {
    let digest = SecretDigest::of(&secret(number)).as_bytes().to_vec();
    RawImportRow { credential: RawCredential::Digest(digest), ..row(number) }
}

async fn import(world: &World, rows: Vec<RawImportRow>) -> ImportTally {
    let mut tally = ImportTally::default();
    world.keys.import_chunk(&caller(""), rows, &mut tally).await.unwrap();
    tally
}

fn counts(tally: &ImportTally) -> (u64, u64, u64) {
    (tally.imported, tally.unchanged, tally.refused)
}

fn told(tally: &ImportTally) -> Vec<(u64, &str)> {
    tally.refused_rows.iter().map(|refused| (refused.row_number, refused.field.as_str())).collect()
}

both_databases! {
    async fn imported_keys_verify_with_their_old_secrets(db: TestDatabase) {
        let world = World::new(&db).await;
        let tally = import(&world, vec![row(1), by_digest(2)]).await;
        assert_eq!(counts(&tally), (2, 0, 0));
        for number in [1, 2] {
            let answer = world.verifier.verify(&Secret::new(secret(number)), &Default::default()).await.unwrap();
            let key = world.keys.get(&answer.key.unwrap().key_id).await.unwrap();
            assert_eq!(key.external_reference, Some(format!("old-{number}")));
            let revealed = world.keys.reveal(&admin(), &key.key_id).await;
            if number == 1 {
                assert_eq!((key.display_prefix.as_str(), revealed.unwrap().secret.unwrap().expose()), ("sk_l", secret(1).as_str()));
            } else {
                assert!(key.display_prefix.is_empty());
                assert!(matches!(revealed, Err(KeyError::NotRecoverable { .. })));
            }
        }
        assert_eq!(world.code(&secret(3)).await, VerifyCode::NotFound);
    }

    async fn a_row_sent_again_changes_nothing_and_a_changed_one_is_refused(db: TestDatabase) {
        let world = World::new(&db).await;
        import(&world, vec![row(1), row(2)]).await;
        // By digest it is the same secret; another agency's references are its own.
        assert_eq!(counts(&import(&world, vec![row(1), by_digest(2)]).await), (0, 2, 0));
        let changed = vec![
            RawImportRow { display_name: "other".into(), ..row(1) },
            RawImportRow { credential: row(3).credential, ..row(1) },
            RawImportRow { owner: RawOwner::Location("agy_1".into(), "loc_1".into()), ..row(2) },
            RawImportRow { external_reference: "new".into(), ..row(1) },
            RawImportRow { owner: RawOwner::Agency("agy_2".into()), ..row(2) },
            RawImportRow { owner: RawOwner::Agency("agy_2".into()), ..row(4) },
        ];
        let tally = import(&world, changed).await;
        assert_eq!(counts(&tally), (1, 0, 5));
        assert_eq!(told(&tally), [(1, "external_reference"), (2, "external_reference"), (3, "external_reference"), (4, "secret"), (5, "secret")]);
        assert_eq!((world.count("api_keys").await, world.count("audit_events").await), (3, 3));
    }

    async fn rows_of_one_chunk_are_compared_with_each_other(db: TestDatabase) {
        let world = World::new(&db).await;
        let twin = RawImportRow { external_reference: "twin".into(), ..row(1) };
        let clash = RawImportRow { external_reference: "old-1".into(), ..row(2) };
        let tally = import(&world, vec![row(1), row(1), twin, clash]).await;
        assert_eq!((counts(&tally), told(&tally)), ((1, 1, 2), vec![(3, "secret"), (4, "external_reference")]));
    }

    async fn a_generated_secret_cannot_be_imported(db: TestDatabase) {
        let world = World::new(&db).await;
        let generated = world.generate("").await.secret.unwrap();
        let stolen = RawImportRow { credential: RawCredential::Secret(generated), ..row(1) };
        assert_eq!(told(&import(&world, vec![stolen]).await), [(1, "secret")]);
    }

    async fn bad_rows_are_refused_alone_and_numbers_go_on(db: TestDatabase) {
        let world = World::new(&db).await;
        let mut tally = ImportTally::default();
        let bad = RawImportRow { external_reference: String::new(), scopes: vec![String::new()], ..row(2) };
        world.keys.import_chunk(&caller(""), vec![row(1), bad.clone()], &mut tally).await.unwrap();
        world.keys.import_chunk(&caller(""), vec![bad, row(3)], &mut tally).await.unwrap();
        assert_eq!((counts(&tally), told(&tally)), ((2, 0, 2), vec![(2, "external_reference"), (3, "external_reference")]));
        assert!(tally.refused_rows[0].reason.contains("scopes[0]: must be"), "{}", tally.refused_rows[0].reason);
    }

    async fn the_same_chunk_at_once_makes_each_key_once(db: TestDatabase) {
        let one = World::new(&db).await;
        let other = World::with(&db, Setting { seed: 2, ..Setting::default() }).await;
        let chunk = || (0..200).map(row).collect::<Vec<_>>();
        let (a, b) = tokio::join!(import(&one, chunk()), import(&other, chunk()));
        assert_eq!((a.imported + b.imported, a.unchanged + b.unchanged, a.refused + b.refused), (200, 200, 0));
        assert_eq!(one.count("api_keys").await, 200);
        assert!(one.audit.verify(None).await.unwrap().first_broken.is_none());
    }

    async fn a_full_chunk_fits_and_a_larger_one_is_refused_whole(db: TestDatabase) {
        let world = World::new(&db).await;
        let tally = import(&world, (0..MAX_CHUNK_ROWS).map(row).collect()).await;
        assert_eq!(counts(&tally), (1_000, 0, 0));
        let mut tally = ImportTally::default();
        let larger = (0..=MAX_CHUNK_ROWS).map(row).collect();
        assert!(matches!(world.keys.import_chunk(&caller(""), larger, &mut tally).await, Err(KeyError::Invalid(_))));
        let refused = world.keys.import_chunk(&caller("api-key/key_1"), vec![row(1)], &mut tally).await;
        assert!(matches!(refused, Err(KeyError::ActorNotAllowed { .. })));
        assert_eq!(tally, ImportTally::default());
    }

    async fn an_import_is_resumed_after_a_pepper_was_added(db: TestDatabase) {
        let old = World::new(&db).await;
        import(&old, vec![row(1)]).await;
        let ring = format!("{}\n{}", ring_text(1), ring_text(2).replace("version = 1", "version = 2"));
        let new = World::with(&db, Setting { ring, seed: 2, ..Setting::default() }).await;
        let twin = RawImportRow { external_reference: "twin".into(), ..row(1) };
        assert_eq!(counts(&import(&new, vec![row(1), row(2), twin]).await), (1, 1, 1));
    }
}
