//! Enhanced Account Security and explicit generation over the wire, on both databases.

#![expect(deprecated, reason = "the legacy user API is deprecated, and tested all the same")]

mod support;

use std::collections::HashSet;
use std::time::Duration;

use keysweep_proto::location::{v1, v2};
use sea_orm::{ConnectionTrait, Statement};
use service_kit::both_databases;
use service_kit::testing::Kind;
use support::{World, act, by, new_location, refused, role};
use tonic::Code;
use tonic_types::StatusExt;

/// As many bytes of a sealed key are nowhere else by chance.
const PART: usize = 12;

fn generate_for(agency_id: &str, request_id: &str) -> v2::GenerateAgencyApiKeyRequest {
    v2::GenerateAgencyApiKeyRequest {
        agency_id: agency_id.to_owned(),
        display_name: "CI".into(),
        scopes: vec!["read".into()],
        request_id: request_id.to_owned(),
        ..Default::default()
    }
}

fn generate_at(location_id: &str, request_id: &str) -> v2::GenerateLocationApiKeyRequest {
    v2::GenerateLocationApiKeyRequest {
        location_id: location_id.to_owned(),
        request_id: request_id.to_owned(),
        ..Default::default()
    }
}

fn get_settings(agency_id: &str) -> v2::GetSecuritySettingsRequest {
    v2::GetSecuritySettingsRequest { agency_id: agency_id.to_owned() }
}

/// Counts rows by SQL of the test's own, past the service.
async fn count(world: &World, sql: &str) -> i64 {
    let db = service_kit::db::connect(&world.db.config()).await.expect("connects");
    let row = db
        .query_one_raw(Statement::from_string(db.get_database_backend(), sql))
        .await
        .expect("answers")
        .expect("a row");
    let count = row.try_get_by_index(0).expect("a number");
    db.close().await.expect("closes");
    count
}

both_databases! {
    async fn the_default_turns_on_at_its_instant(db: TestDatabase) {
        let world = World::start_at(db, "2024-06-16T23:59:59.000000Z").await;
        let agency = world.agency("Agency").await;
        let admin = world.agency_admin(&agency.agency_id, "a@example.com").await;
        let legacy = |email: &str| v1::CreateUserRequest {
            agency_id: agency.agency_id.clone(),
            user: Some(v1::User {
                first_name: "Old".into(),
                email: email.to_owned(),
                role: Some(v1::Role { r#type: v1::RoleType::Agency.into(), level: v1::RoleLevel::User.into() }),
                ..Default::default()
            }),
            request_id: String::new(),
        };
        for (now, on) in [("2024-06-16T23:59:59.999999Z", false), ("2024-06-17T00:00:00Z", true), ("2024-06-17T00:00:00.000001Z", true)] {
            world.clock.advance_to(now.parse().expect("an instant"));
            let settings = world.agencies().get_security_settings(by(&admin, get_settings(&agency.agency_id))).await.expect("read").into_inner();
            assert_eq!(settings, v2::SecuritySettings {
                agency_id: agency.agency_id.clone(),
                enhanced_account_security: on,
                provenance: v2::SettingProvenance::Default.into(),
                update_actor: String::new(),
                update_time: None,
            });
            let written = world.legacy_users().create_user(legacy(&format!("{}@example.com", on))).await;
            if on {
                refused(written, Code::FailedPrecondition, "LEGACY_USERS_API_DISABLED");
            } else {
                written.expect("the legacy API writes");
            }
            // A default that merely is off is nobody's request for a key.
            assert!(world.location(&agency.agency_id, "Shop").await.api_key.is_empty());
        }
        assert!(world.keys.seen().is_empty());
        world.stop().await;
    }

    async fn only_a_logged_in_agency_admin_chooses(db: TestDatabase) {
        let world = World::start(db).await;
        let (agency, other) = (world.agency("Agency").await, world.agency("Other").await);
        let shop = world.location(&agency.agency_id, "Shop").await;
        let admin = world.agency_admin(&agency.agency_id, "a@example.com").await;
        let manager = world.location_admin(&agency.agency_id, "m@example.com", &[&shop.location_id]).await;
        let stranger = world.agency_admin(&other.agency_id, "s@example.com").await;
        let off = |acknowledge_risk: bool| v2::UpdateSecuritySettingsRequest {
            agency_id: agency.agency_id.clone(), enhanced_account_security: false, acknowledge_risk, request_id: String::new(),
        };
        let mut client = world.agencies();
        refused(client.update_security_settings(off(true)).await, Code::Unauthenticated, "ACTOR_REQUIRED");
        refused(client.update_security_settings(act("api-key/key_1", off(true))).await, Code::PermissionDenied, "ACTOR_NOT_ALLOWED");
        refused(client.update_security_settings(act("service/notification", off(true))).await, Code::PermissionDenied, "ACTOR_NOT_ALLOWED");
        refused(client.update_security_settings(by(&manager, off(true))).await, Code::PermissionDenied, "ACTOR_NOT_ALLOWED");
        refused(client.update_security_settings(by(&stranger, off(true))).await, Code::NotFound, "AGENCY_NOT_FOUND");
        refused(client.update_security_settings(by(&admin, off(false))).await, Code::FailedPrecondition, "RISK_NOT_ACKNOWLEDGED");
        assert_eq!(count(&world, "SELECT COUNT(*) FROM audit_events").await, 0);

        let chosen = client.update_security_settings(by(&admin, off(true))).await.expect("chosen").into_inner();
        assert!(!chosen.enhanced_account_security);
        assert_eq!(chosen.provenance(), v2::SettingProvenance::Explicit);
        assert_eq!(chosen.update_actor, format!("user/{}", admin.user_id));
        assert!(chosen.update_time.is_some());
        let read = client.get_security_settings(by(&manager, get_settings(&agency.agency_id))).await.expect("read").into_inner();
        assert_eq!(read, chosen);
        assert!(world.choose(&admin, true).await.enhanced_account_security);
        assert_eq!(count(&world, "SELECT COUNT(*) FROM audit_events WHERE action IN ('security.opted_out', 'security.opted_in')").await, 2);
        world.stop().await;
    }

    async fn only_a_logged_in_admin_generates(db: TestDatabase) {
        let world = World::start(db).await;
        let (agency, other) = (world.agency("Agency").await, world.agency("Other").await);
        let (a, b) = (world.location(&agency.agency_id, "A").await.location_id, world.location(&agency.agency_id, "B").await.location_id);
        let admin = world.agency_admin(&agency.agency_id, "a@example.com").await;
        let manager = world.location_admin(&agency.agency_id, "m@example.com", &[&a]).await;
        let worker = world.user(&agency.agency_id, "w@example.com", role(v2::RoleType::Location, v2::RoleLevel::User), &[&a]).await;
        let stranger = world.agency_admin(&other.agency_id, "s@example.com").await;
        let (mut agencies, mut locations) = (world.agencies(), world.locations());
        let id = agency.agency_id.as_str();
        refused(agencies.generate_agency_api_key(generate_for(id, "")).await, Code::Unauthenticated, "ACTOR_REQUIRED");
        refused(locations.generate_location_api_key(generate_at(&a, "")).await, Code::Unauthenticated, "ACTOR_REQUIRED");
        for actor in ["api-key/key_1", "service/notification"] {
            refused(agencies.generate_agency_api_key(act(actor, generate_for(id, ""))).await, Code::PermissionDenied, "ACTOR_NOT_ALLOWED");
            refused(locations.generate_location_api_key(act(actor, generate_at(&a, ""))).await, Code::PermissionDenied, "ACTOR_NOT_ALLOWED");
        }
        refused(agencies.generate_agency_api_key(by(&manager, generate_for(id, ""))).await, Code::PermissionDenied, "ACTOR_NOT_ALLOWED");
        refused(locations.generate_location_api_key(by(&manager, generate_at(&b, ""))).await, Code::PermissionDenied, "ACTOR_NOT_ALLOWED");
        refused(locations.generate_location_api_key(by(&worker, generate_at(&a, ""))).await, Code::PermissionDenied, "ACTOR_NOT_ALLOWED");
        refused(agencies.generate_agency_api_key(by(&stranger, generate_for(id, ""))).await, Code::NotFound, "AGENCY_NOT_FOUND");
        let nobody = act("user/usr_00000000000000000000000000000000", generate_for(id, ""));
        refused(agencies.generate_agency_api_key(nobody).await, Code::NotFound, "AGENCY_NOT_FOUND");
        assert!(world.keys.seen().is_empty());

        let first = agencies.generate_agency_api_key(by(&admin, generate_for(id, "r1"))).await.expect("generated").into_inner();
        let again = agencies.generate_agency_api_key(by(&admin, generate_for(id, "r1"))).await.expect("the same").into_inner();
        assert_eq!(first, again);
        locations.generate_location_api_key(by(&admin, generate_at(&b, ""))).await.expect("generated");
        locations.generate_location_api_key(by(&manager, generate_at(&a, "r2"))).await.expect("generated");
        refused(locations.generate_location_api_key(by(&manager, generate_at(&a, "r1"))).await, Code::AlreadyExists, "REQUEST_ID_REUSED");
        // What key-service finds at fault is passed on.
        let strange = v2::GenerateAgencyApiKeyRequest { display_name: "a\nb".into(), ..generate_for(id, "") };
        let status = refused(agencies.generate_agency_api_key(by(&admin, strange)).await, Code::InvalidArgument, "INVALID_FIELDS");
        assert_eq!(support::fields(&status), ["display_name"]);

        let seen = world.keys.seen();
        assert!(seen.iter().all(|one| one.method == "GenerateApiKey" && !one.request.request_id.is_empty()));
        assert_eq!(seen.iter().map(|one| one.actor.clone()).collect::<Vec<_>>(), [
            format!("user/{}", admin.user_id), format!("user/{}", admin.user_id), format!("user/{}", admin.user_id),
            format!("user/{}", manager.user_id), format!("user/{}", manager.user_id), format!("user/{}", admin.user_id),
        ]);
        assert_eq!((world.keys.generated(), count(&world, "SELECT COUNT(*) FROM audit_events WHERE action = 'key.generated'").await), (3, 3));
        world.stop().await;
    }

    async fn an_opted_out_agency_has_its_keys_shown_until_it_opts_in(db: TestDatabase) {
        let world = World::start(db).await;
        let agency = world.agency("Agency").await;
        let admin = world.agency_admin(&agency.agency_id, "a@example.com").await;
        let before = world.location(&agency.agency_id, "Before").await;
        let neighbour = world.agency("Neighbour").await;
        world.choose(&admin, false).await;

        let location = world.location(&agency.agency_id, "Shop").await;
        assert_eq!(world.keys.secrets(), std::slice::from_ref(&location.api_key));
        let seen = world.keys.seen();
        assert_eq!((seen.len(), seen[0].actor.as_str()), (1, format!("user/{}", admin.user_id).as_str()));
        assert!(world.location(&neighbour.agency_id, "Other").await.api_key.is_empty());
        let get = |id: &str| v2::GetLocationRequest { location_id: id.to_owned() };
        let list = v2::ListLocationsRequest { agency_id: agency.agency_id.clone(), ..Default::default() };
        let update = v2::UpdateLocationRequest {
            location: Some(v2::Location { location_id: location.location_id.clone(), city: "Bern".into(), ..Default::default() }),
            ..Default::default()
        };
        // Reads and updates show it while key-service is down.
        world.keys.go_down().await;
        let mut client = world.locations();
        assert_eq!(client.get_location(get(&location.location_id)).await.expect("read").into_inner(), location);
        assert!(client.get_location(get(&before.location_id)).await.expect("read").into_inner().api_key.is_empty());
        let keys: Vec<_> = client.list_locations(list.clone()).await.expect("a list").into_inner().locations.into_iter().map(|l| l.api_key).collect();
        assert_eq!(keys, [String::new(), location.api_key.clone()]);
        assert_eq!(client.update_location(update).await.expect("updated").into_inner().api_key, location.api_key);
        assert_eq!(count(&world, "SELECT COUNT(*) FROM locations WHERE sealed_key IS NOT NULL").await, 1);
        let text = if world.db.kind == Kind::Sqlite { "CAST(sealed_key AS TEXT)" } else { "encode(sealed_key, 'escape')" };
        assert_eq!(count(&world, &format!("SELECT COUNT(*) FROM locations WHERE {text} LIKE '%canary%'")).await, 0);

        // Opting in destroys the copies at once; opting out again brings none back.
        for enabled in [true, false] {
            world.choose(&admin, enabled).await;
            assert_eq!(count(&world, "SELECT COUNT(*) FROM locations WHERE sealed_key IS NOT NULL OR master_version IS NOT NULL").await, 0);
            assert!(client.get_location(get(&location.location_id)).await.expect("read").into_inner().api_key.is_empty());
            assert!(client.list_locations(list.clone()).await.expect("a list").into_inner().locations.iter().all(|l| l.api_key.is_empty()));
        }
        world.stop().await;
    }

    async fn no_copy_survives_an_opt_in_that_meets_a_creation(db: TestDatabase) {
        let world = World::start(db).await;
        let agency = world.agency("Agency").await;
        let admin = world.agency_admin(&agency.agency_id, "a@example.com").await;
        for round in 0..10 {
            world.choose(&admin, false).await;
            let create = |name: &str| new_location(&agency.agency_id, &format!("{name} {round}"), "");
            let (mut one, mut two) = (world.locations(), world.locations());
            let (a, b, _) = tokio::join!(one.create_location(create("A")), two.create_location(create("B")), world.choose(&admin, true));
            a.expect("created");
            b.expect("created");
            assert_eq!(count(&world, "SELECT COUNT(*) FROM locations WHERE sealed_key IS NOT NULL").await, 0);
        }
        world.stop().await;
    }

    async fn deleting_an_opted_out_location_destroys_its_copy(db: TestDatabase) {
        let world = World::start(db).await;
        let agency = world.agency("Agency").await;
        let admin = world.agency_admin(&agency.agency_id, "a@example.com").await;
        world.choose(&admin, false).await;
        let location = world.location(&agency.agency_id, "Shop").await;
        let delete = v2::DeleteLocationRequest { location_id: location.location_id.clone(), ..Default::default() };
        assert!(world.locations().delete_location(delete).await.expect("deleted").into_inner().api_key.is_empty());
        let back = v2::UndeleteLocationRequest { location_id: location.location_id, ..Default::default() };
        assert!(world.locations().undelete_location(back).await.expect("undeleted").into_inner().api_key.is_empty());
        assert_eq!(world.keys.generated(), 1);
        assert_eq!(count(&world, "SELECT COUNT(*) FROM locations WHERE sealed_key IS NOT NULL").await, 0);
        world.stop().await;
    }

    async fn without_key_service_all_but_generation_works(db: TestDatabase) {
        let world = World::start(db).await;
        let agency = world.agency("Agency").await;
        let admin = world.agency_admin(&agency.agency_id, "a@example.com").await;
        world.keys.go_down().await;
        let location = world.location(&agency.agency_id, "Shop").await;
        let generate = || by(&admin, generate_at(&location.location_id, "r1"));
        let status = refused(world.locations().generate_location_api_key(generate()).await, Code::Unavailable, "KEY_SERVICE_UNAVAILABLE");
        assert!(status.get_error_details().retry_info().is_some());

        // The creation of an opted-out agency's location fails whole, and its retry ends with one of everything.
        world.choose(&admin, false).await;
        let create = || new_location(&agency.agency_id, "Second", "c1");
        refused(world.locations().create_location(create()).await, Code::Unavailable, "KEY_SERVICE_UNAVAILABLE");
        assert_eq!(count(&world, "SELECT COUNT(*) FROM locations").await, 1);
        refused(world.locations().create_location(new_location(&agency.agency_id, "Else", "c1")).await, Code::AlreadyExists, "REQUEST_ID_REUSED");

        world.keys.come_up().await;
        let first = world.locations().generate_location_api_key(generate()).await.expect("generated").into_inner();
        let again = world.locations().generate_location_api_key(generate()).await.expect("the same").into_inner();
        assert_eq!((first, world.keys.generated()), (again, 1));
        let (mut one, mut two) = (world.locations(), world.locations());
        let (first, second) = tokio::join!(one.create_location(create()), two.create_location(create()));
        let created = first.expect("created").into_inner();
        assert_eq!(second.expect("the same").into_inner(), created);
        assert!(!created.api_key.is_empty());
        assert_eq!((world.keys.generated(), count(&world, "SELECT COUNT(*) FROM locations").await), (2, 2));
        world.stop().await;
    }

    async fn a_lost_answer_makes_no_second_key(db: TestDatabase) {
        let mut world = World::start(db).await;
        let agency = world.agency("Agency").await;
        let admin = world.agency_admin(&agency.agency_id, "a@example.com").await;
        // Within one call, without a request id.
        world.keys.lose(2);
        world.agencies().generate_agency_api_key(by(&admin, generate_for(&agency.agency_id, ""))).await.expect("generated");
        assert_eq!((world.keys.generated(), world.keys.seen().len()), (1, 3));

        // The service dies between the answer and its commit: the retry finds the same location and key.
        world.choose(&admin, false).await;
        world.keys.hang(true);
        let mut client = world.locations();
        let create = new_location(&agency.agency_id, "Shop", "c1");
        let lost = tokio::spawn({
            let create = create.clone();
            async move { client.create_location(create).await }
        });
        while world.keys.generated() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        world.crash_and_restart().await;
        lost.abort();
        world.keys.hang(false);
        let created = world.locations().create_location(create.clone()).await.expect("created").into_inner();
        assert_eq!(world.keys.generated(), 2);
        assert!(world.keys.secrets().contains(&created.api_key));
        assert_eq!(world.locations().create_location(create).await.expect("the same").into_inner(), created);
        let at: Vec<_> = world.keys.seen().into_iter().skip(3).map(|one| one.request).collect();
        assert!(at.len() >= 2 && at.iter().all(|request| *request == at[0]), "{at:?}");
        world.stop().await;
    }

    async fn the_caller_hears_in_time_that_key_service_hangs(db: TestDatabase) {
        let world = World::start(db).await;
        let agency = world.agency("Agency").await;
        let admin = world.agency_admin(&agency.agency_id, "a@example.com").await;
        world.keys.hang(true);
        let mut request = by(&admin, generate_for(&agency.agency_id, "r1"));
        request.set_timeout(Duration::from_millis(600));
        refused(world.agencies().generate_agency_api_key(request).await, Code::Unavailable, "KEY_SERVICE_UNAVAILABLE");
        world.stop().await;
    }

    async fn the_legacy_api_writes_for_an_opted_out_agency_alone(db: TestDatabase) {
        let world = World::start(db).await;
        let agency = world.agency("Agency").await;
        let admin = world.agency_admin(&agency.agency_id, "a@example.com").await;
        let mut client = world.legacy_users();
        let create = |request_id: &str| v1::CreateUserRequest {
            agency_id: agency.agency_id.clone(),
            user: Some(v1::User {
                first_name: "Old".into(),
                email: "old@example.com".into(),
                role: Some(v1::Role { r#type: v1::RoleType::Agency.into(), level: v1::RoleLevel::User.into() }),
                ..Default::default()
            }),
            request_id: request_id.to_owned(),
        };
        refused(client.create_user(by(&admin, create(""))).await, Code::FailedPrecondition, "LEGACY_USERS_API_DISABLED");
        world.choose(&admin, false).await;
        let user = client.create_user(by(&admin, create("r"))).await.expect("created").into_inner();
        assert_eq!(client.create_user(by(&admin, create("r"))).await.expect("the same").into_inner(), user);
        let rename = v1::UpdateUserRequest {
            user: Some(v1::User { user_id: user.user_id.clone(), last_name: "Timer".into(), ..Default::default() }),
            ..Default::default()
        };
        assert_eq!(client.update_user(by(&admin, rename.clone())).await.expect("updated").into_inner().last_name, "Timer");
        // Both versions show the same person.
        let current = world.users().get_user(v2::GetUserRequest { user_id: user.user_id.clone() }).await.expect("read").into_inner();
        assert_eq!((current.first_name.as_str(), current.last_name.as_str()), ("Old", "Timer"));
        world.choose(&admin, true).await;
        let delete = v1::DeleteUserRequest { user_id: user.user_id.clone(), request_id: String::new() };
        refused(client.update_user(by(&admin, rename)).await, Code::FailedPrecondition, "LEGACY_USERS_API_DISABLED");
        refused(client.delete_user(by(&admin, delete.clone())).await, Code::FailedPrecondition, "LEGACY_USERS_API_DISABLED");
        client.get_user(by(&admin, v1::GetUserRequest { user_id: user.user_id.clone() })).await.expect("reads answer");
        let list = v1::ListUsersRequest { agency_id: agency.agency_id.clone(), ..Default::default() };
        assert_eq!(client.list_users(by(&admin, list)).await.expect("reads answer").into_inner().users.len(), 2);
        world.choose(&admin, false).await;
        client.delete_user(by(&admin, delete)).await.expect("deleted");
        world.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_opted_in_database_file_holds_no_sealed_copy() {
    let world = World::start(service_kit::testing::TestDatabase::new(Kind::Sqlite)).await;
    let agency = world.agency("Agency").await;
    let admin = world.agency_admin(&agency.agency_id, "a@example.com").await;
    world.choose(&admin, false).await;
    let mut location_id = String::new();
    for i in 0..20 {
        location_id = world.location(&agency.agency_id, &format!("Shop {i}")).await.location_id;
    }
    let db = service_kit::db::connect(&world.db.config()).await.expect("connects");
    let sql = Statement::from_string(db.get_database_backend(), "SELECT sealed_key FROM locations");
    let rows = db.query_all_raw(sql).await.expect("answers");
    let sealed: Vec<Vec<u8>> = rows.iter().map(|row| row.try_get_by_index(0).expect("bytes")).collect();
    assert_eq!(sealed.len(), 20);
    // A part of a copy is a copy of a part.
    let parts: HashSet<_> = sealed.iter().flat_map(|one| one.chunks_exact(PART)).collect();
    let file = world.db.url.trim_start_matches("sqlite:").to_owned();
    let holds_copy = |path: &str| {
        let bytes = std::fs::read(path).unwrap_or_default();
        bytes.windows(PART).any(|window| parts.contains(window))
    };
    let wal = format!("{file}-wal");
    assert!(holds_copy(&wal), "the search finds what is in the WAL");
    db.execute_unprepared("PRAGMA wal_checkpoint(TRUNCATE)").await.expect("a checkpoint");
    assert!(holds_copy(&file), "the search finds what is in the file");

    world.choose(&admin, true).await;
    let get = v2::GetLocationRequest { location_id };
    let shown = world.locations().get_location(by(&admin, get)).await.expect("read").into_inner();
    assert_eq!(shown.api_key, "");
    // While the service runs, as an operator would.
    db.execute_unprepared("PRAGMA wal_checkpoint(TRUNCATE)").await.expect("a checkpoint");
    db.execute_unprepared("VACUUM").await.expect("a vacuum");
    assert!(std::fs::metadata(&wal).is_ok_and(|wal| wal.len() > 0), "the vacuum's WAL is there to be searched");
    assert!(!holds_copy(&file) && !holds_copy(&wal), "a sealed copy is left");
    let _kept = world.stop().await;
    db.close().await.expect("closes");
    assert!(!holds_copy(&file) && !holds_copy(&wal), "a sealed copy is left");
}
