//! Agencies, locations and users over the wire, on both databases; key-service is down throughout.

mod support;

use keysweep_proto::location::v2;
use service_kit::both_databases;
use support::{World, act, by, fields, mask, new_location, new_user, refused, role};
use tonic::Code;
use tonic_types::StatusExt;

const AGENCY_ADMIN: (v2::RoleType, v2::RoleLevel) = (v2::RoleType::Agency, v2::RoleLevel::Admin);
const LOCATION_ADMIN: (v2::RoleType, v2::RoleLevel) = (v2::RoleType::Location, v2::RoleLevel::Admin);
const LOCATION_USER: (v2::RoleType, v2::RoleLevel) = (v2::RoleType::Location, v2::RoleLevel::User);

fn full_agency() -> v2::Agency {
    v2::Agency {
        name: "Zürich 東京 GmbH".into(),
        email: "mail@example.com".into(),
        phone: "+41 44 123 45 67".into(),
        address: "Bahnhofstrasse 1".into(),
        city: "Zürich".into(),
        state: "ZH".into(),
        postal_code: "8001".into(),
        country: "CH".into(),
        time_zone: "Europe/Zurich".into(),
        website: "https://example.com".into(),
        ..v2::Agency::default()
    }
}

async fn world(db: service_kit::testing::TestDatabase) -> World {
    let world = World::start(db).await;
    world.keys.go_down().await;
    world
}

both_databases! {
    async fn what_is_written_is_read(db: TestDatabase) {
        let world = world(db).await;
        let request = v2::CreateAgencyRequest { agency: Some(full_agency()), request_id: String::new() };
        let agency = world.agencies().create_agency(request).await.expect("created").into_inner();
        assert_eq!(
            v2::Agency { agency_id: String::new(), create_time: None, update_time: None, etag: String::new(), ..agency.clone() },
            full_agency()
        );
        let get = v2::GetAgencyRequest { agency_id: agency.agency_id.clone() };
        assert_eq!(world.agencies().get_agency(get).await.expect("read").into_inner(), agency);

        let location = world.location(&agency.agency_id, "Shop").await;
        assert_eq!((location.time_zone.as_str(), location.api_key.as_str()), ("Europe/Zurich", ""));
        let user = world.location_admin(&agency.agency_id, "Ada@Example.com", &[&location.location_id]).await;
        let get = v2::GetUserRequest { user_id: user.user_id.clone() };
        assert_eq!(world.users().get_user(get).await.expect("read").into_inner(), user);
        let bare = world.agency("Bare").await;
        assert_eq!(bare.time_zone, "UTC");
        assert!(world.keys.seen().is_empty());
        world.stop().await;
    }

    async fn updates_follow_their_mask_and_etag(db: TestDatabase) {
        let world = world(db).await;
        let agency = world.agency("Agency").await;
        let location = world.location(&agency.agency_id, "Shop").await;
        let update = |change: v2::Location, paths: &[&str]| v2::UpdateLocationRequest {
            location: Some(v2::Location { location_id: location.location_id.clone(), ..change }),
            update_mask: if paths.is_empty() { None } else { mask(paths) },
            request_id: String::new(),
        };
        let mut client = world.locations();
        // Without a mask: what is set. With one: what it names, also to nothing.
        let changed = client.update_location(update(v2::Location { city: "Bern".into(), ..Default::default() }, &[])).await;
        let changed = changed.expect("updated").into_inner();
        assert_eq!((changed.name.as_str(), changed.city.as_str()), ("Shop", "Bern"));
        assert_ne!(changed.etag, location.etag);
        let changed = client.update_location(update(v2::Location { name: "Shop 2".into(), ..Default::default() }, &["name", "city"])).await;
        let changed = changed.expect("updated").into_inner();
        assert_eq!((changed.name.as_str(), changed.city.as_str()), ("Shop 2", ""));
        let all = client.update_location(update(v2::Location { name: "Shop 3".into(), ..Default::default() }, &["*"])).await.expect("updated");
        assert_eq!((all.get_ref().name.as_str(), all.get_ref().time_zone.as_str()), ("Shop 3", "UTC"));

        let stale = v2::Location { name: "Lost".into(), etag: location.etag.clone(), ..Default::default() };
        refused(client.update_location(update(stale, &[])).await, Code::Aborted, "ETAG_MISMATCH");
        let fresh = v2::Location { name: "Won".into(), etag: all.into_inner().etag, ..Default::default() };
        client.update_location(update(fresh, &[])).await.expect("updated");
        for path in ["api_key", "agency_id", "create_time", "nonsense"] {
            let status = refused(client.update_location(update(v2::Location::default(), &[path])).await, Code::InvalidArgument, "INVALID_FIELDS");
            assert_eq!(fields(&status), ["update_mask"]);
        }
        world.stop().await;
    }

    async fn every_fault_is_named_at_once_and_nothing_stored(db: TestDatabase) {
        let world = world(db).await;
        let agency = world.agency("Agency").await;
        let other = world.agency("Other").await;
        let foreign = world.location(&other.agency_id, "Foreign").await;
        let bad = v2::Location {
            name: "a\u{202e}b".into(),
            email: "nobody@".into(),
            phone: "12".into(),
            address: "x".repeat(10_000_000),
            city: "\u{0}".into(),
            state: "y".repeat(101),
            postal_code: "!".into(),
            country: "XX".into(),
            time_zone: "Mars/Olympus".into(),
            website: "javascript:alert(1)".into(),
            ..v2::Location::default()
        };
        let request = v2::CreateLocationRequest { agency_id: agency.agency_id.clone(), location: Some(bad), request_id: "ä".into() };
        let status = refused(world.locations().create_location(request).await, Code::InvalidArgument, "INVALID_FIELDS");
        let expected = ["name", "email", "phone", "address", "city", "state", "postal_code", "country", "time_zone", "website"];
        let expected: Vec<_> = expected.iter().map(|field| format!("location.{field}")).chain(["request_id".to_owned()]).collect();
        assert_eq!(fields(&status), expected);

        let mut request = new_user(&agency.agency_id, "x", role(LOCATION_USER.0, LOCATION_USER.1), &[&foreign.location_id, "loc_nonsense"], "");
        request.user.as_mut().expect("a user").first_name = "\n".into();
        let status = refused(world.users().create_user(request).await, Code::InvalidArgument, "INVALID_FIELDS");
        assert_eq!(fields(&status), ["user.first_name", "user.first_name", "user.email", "user.location_ids", "user.location_ids"]);

        for id in ["", "\u{0}", "loc_1", "agy_00000000000000000000000000000000", "' OR 1=1 --"] {
            let status = world.locations().get_location(v2::GetLocationRequest { location_id: id.into() }).await.expect_err("refused");
            assert_eq!(status.code(), if id.is_empty() { Code::InvalidArgument } else { Code::NotFound }, "{id}");
        }
        let list = v2::ListLocationsRequest { agency_id: agency.agency_id, show_deleted: true, ..Default::default() };
        assert!(world.locations().list_locations(list).await.expect("a list").into_inner().locations.is_empty());
        world.stop().await;
    }

    async fn pages_are_bound_to_their_filter(db: TestDatabase) {
        let world = world(db).await;
        let agency = world.agency("Agency").await;
        let other = world.agency("Other").await;
        let mut made = Vec::new();
        for i in 0..7 {
            made.push(world.location(&agency.agency_id, &format!("L{i}")).await.location_id);
            world.location(&other.agency_id, "Foreign").await;
            world.clock.advance(chrono::TimeDelta::milliseconds(1));
        }
        let gone = v2::DeleteLocationRequest { location_id: made.remove(3), ..Default::default() };
        world.locations().delete_location(gone).await.expect("deleted");
        let page = |agency_id: &str, show_deleted: bool, page_token: &str| v2::ListLocationsRequest {
            agency_id: agency_id.to_owned(), show_deleted, page_size: 2, page_token: page_token.to_owned(), ..Default::default()
        };
        let (mut read, mut token) = (Vec::new(), String::new());
        loop {
            let answer = world.locations().list_locations(page(&agency.agency_id, false, &token)).await.expect("a page").into_inner();
            read.extend(answer.locations.into_iter().map(|location| location.location_id));
            if answer.next_page_token.is_empty() {
                break;
            }
            refused(
                world.locations().list_locations(page(&other.agency_id, false, &answer.next_page_token)).await,
                Code::InvalidArgument, "PAGE_TOKEN_INVALID",
            );
            refused(
                world.locations().list_locations(page(&agency.agency_id, true, &answer.next_page_token)).await,
                Code::InvalidArgument, "PAGE_TOKEN_INVALID",
            );
            token = answer.next_page_token;
        }
        assert_eq!(read, made);
        let agencies = world.agencies().list_agencies(v2::ListAgenciesRequest { page_size: 1, ..Default::default() }).await;
        let agencies = agencies.expect("a page").into_inner();
        let second = v2::ListAgenciesRequest { page_size: 1, page_token: agencies.next_page_token, ..Default::default() };
        let second = world.agencies().list_agencies(second).await.expect("a page").into_inner();
        assert_eq!((agencies.agencies[0].name.as_str(), second.agencies[0].name.as_str()), ("Agency", "Other"));
        assert!(second.next_page_token.is_empty());
        world.stop().await;
    }

    async fn an_email_is_one_persons_within_its_agency(db: TestDatabase) {
        let world = world(db).await;
        let agency = world.agency("Agency").await;
        let other = world.agency("Other").await;
        let admin = role(AGENCY_ADMIN.0, AGENCY_ADMIN.1);
        let ada = world.agency_admin(&agency.agency_id, "ada@example.com").await;
        world.agency_admin(&other.agency_id, "ada@example.com").await;
        let mut users = world.users();
        let again = new_user(&agency.agency_id, "ADA@example.com", admin, &[], "");
        refused(users.create_user(again.clone()).await, Code::AlreadyExists, "EMAIL_TAKEN");
        let bob = world.agency_admin(&agency.agency_id, "bob@example.com").await;
        let steal = v2::UpdateUserRequest {
            user: Some(v2::User { user_id: bob.user_id.clone(), email: "Ada@Example.com".into(), ..Default::default() }),
            ..Default::default()
        };
        refused(users.update_user(steal).await, Code::AlreadyExists, "EMAIL_TAKEN");
        let delete = v2::DeleteUserRequest { user_id: ada.user_id.clone(), ..Default::default() };
        users.delete_user(delete.clone()).await.expect("deleted");
        refused(users.delete_user(delete).await, Code::NotFound, "USER_NOT_FOUND");
        refused(users.get_user(v2::GetUserRequest { user_id: ada.user_id.clone() }).await, Code::NotFound, "USER_NOT_FOUND");
        let ada = users.create_user(again).await.expect("the address is free again").into_inner();
        let list = v2::ListUsersRequest { agency_id: agency.agency_id.clone(), email: "ada@EXAMPLE.com".into(), ..Default::default() };
        assert_eq!(users.list_users(list).await.expect("a list").into_inner().users, [ada]);
        // Two at once: one wins.
        let both = || new_user(&agency.agency_id, "eve@example.com", admin, &[], "");
        let (mut one, mut two) = (world.users(), world.users());
        let (a, b) = tokio::join!(one.create_user(both()), two.create_user(both()));
        assert_eq!([a.is_ok(), b.is_ok()].iter().filter(|won| **won).count(), 1);
        let lost = a.err().or(b.err()).expect("one lost");
        assert_eq!(support::reason(&lost), "EMAIL_TAKEN");
        world.stop().await;
    }

    async fn a_deleted_location_stays_readable_and_changes_no_more(db: TestDatabase) {
        let world = world(db).await;
        let agency = world.agency("Agency").await;
        let admin = world.agency_admin(&agency.agency_id, "a@example.com").await;
        let location = world.location(&agency.agency_id, "Shop").await;
        let id = &location.location_id;
        let mut client = world.locations();
        let delete = |etag: &str| v2::DeleteLocationRequest { location_id: id.clone(), etag: etag.to_owned(), request_id: String::new() };
        refused(client.delete_location(delete("r99")).await, Code::Aborted, "ETAG_MISMATCH");
        let deleted = client.delete_location(delete(&location.etag)).await.expect("deleted").into_inner();
        assert!(deleted.delete_time.is_some());
        assert_eq!(client.delete_location(delete("")).await.expect("again").into_inner(), deleted);
        assert_eq!(client.get_location(v2::GetLocationRequest { location_id: id.clone() }).await.expect("read").into_inner(), deleted);
        let update = v2::UpdateLocationRequest {
            location: Some(v2::Location { location_id: id.clone(), name: "New".into(), ..Default::default() }),
            ..Default::default()
        };
        refused(client.update_location(update).await, Code::FailedPrecondition, "LOCATION_DELETED");
        let generate = v2::GenerateLocationApiKeyRequest { location_id: id.clone(), ..Default::default() };
        refused(client.generate_location_api_key(by(&admin, generate)).await, Code::FailedPrecondition, "LOCATION_DELETED");
        world.stop().await;
    }

    async fn a_deleted_location_comes_back_within_30_days(db: TestDatabase) {
        let world = world(db).await;
        let agency = world.agency("Agency").await;
        let mut client = world.locations();
        let undelete = |id: &str, etag: &str, request_id: &str| v2::UndeleteLocationRequest {
            location_id: id.to_owned(), etag: etag.to_owned(), request_id: request_id.to_owned(),
        };
        // Before the limit by a microsecond, at it, and after it by one.
        for (micros, comes_back) in [(-1, true), (0, false), (1, false)] {
            let live = world.location(&agency.agency_id, "Shop").await;
            let id = live.location_id.as_str();
            assert_eq!(client.undelete_location(undelete(id, "", "")).await.expect("unchanged").into_inner(), live);
            let worker = world.user(&agency.agency_id, &format!("w{micros}@example.com"), role(v2::RoleType::Location, v2::RoleLevel::User), &[id]).await;
            let delete = v2::DeleteLocationRequest { location_id: id.to_owned(), ..Default::default() };
            let deleted = client.delete_location(delete).await.expect("deleted").into_inner();
            let stamp = deleted.delete_time.expect("an instant");
            let deleted_at = service_kit::time::from_proto(&stamp).expect("an instant");
            world.clock.advance(chrono::TimeDelta::days(30) + chrono::TimeDelta::microseconds(micros));
            refused(client.undelete_location(undelete(id, "r99", "")).await, Code::Aborted, "ETAG_MISMATCH");
            let answer = client.undelete_location(undelete(id, &deleted.etag, "u")).await;
            let list = v2::ListLocationsRequest { agency_id: agency.agency_id.clone(), page_size: 1_000, ..Default::default() };
            let listed = client.list_locations(list).await.expect("a list").into_inner().locations;
            assert_eq!(listed.iter().any(|one| one.location_id == id), comes_back);
            if !comes_back {
                let status = refused(answer, Code::FailedPrecondition, "LOCATION_DELETED");
                let said = status.get_error_details().error_info().and_then(|info| info.metadata.get("delete_time").cloned());
                assert_eq!(said.and_then(|text| text.parse().ok()), Some(deleted_at));
                continue;
            }
            let back = answer.expect("undeleted").into_inner();
            assert_eq!((back.delete_time, back.create_time), (None, live.create_time));
            assert_ne!(back.etag, deleted.etag);
            assert_eq!(client.undelete_location(undelete(id, &deleted.etag, "u")).await.expect("the same").into_inner(), back);
            let rename = v2::UpdateLocationRequest {
                location: Some(v2::Location { location_id: id.to_owned(), name: "Again".into(), etag: back.etag, ..Default::default() }),
                ..Default::default()
            };
            assert_eq!(client.update_location(rename).await.expect("changed").into_inner().name, "Again");
            let read = world.users().get_user(v2::GetUserRequest { user_id: worker.user_id }).await.expect("read").into_inner();
            assert_eq!(read.location_ids, [id]);
        }
        world.stop().await;
    }

    async fn a_user_sees_its_agency_alone(db: TestDatabase) {
        let world = world(db).await;
        let (mine, other) = (world.agency("Mine").await, world.agency("Other").await);
        let (shop, foreign) = (world.location(&mine.agency_id, "Shop").await, world.location(&other.agency_id, "Foreign").await);
        let admin = world.agency_admin(&mine.agency_id, "a@example.com").await;
        let manager = world.location_admin(&mine.agency_id, "m@example.com", &[&shop.location_id]).await;
        let stranger = world.agency_admin(&other.agency_id, "s@example.com").await;
        let missing = format!("loc_{}", &shop.location_id[4..].chars().rev().collect::<String>());
        for (user, id) in [(&admin, &foreign.location_id), (&admin, &missing), (&manager, &foreign.location_id)] {
            let get = v2::GetLocationRequest { location_id: id.clone() };
            let status = refused(world.locations().get_location(by(user, get)).await, Code::NotFound, "LOCATION_NOT_FOUND");
            assert_eq!(status.message(), "there is no such location");
            let update = v2::UpdateLocationRequest {
                location: Some(v2::Location { location_id: id.clone(), name: "Mine now".into(), ..Default::default() }),
                ..Default::default()
            };
            refused(world.locations().update_location(by(user, update)).await, Code::NotFound, "LOCATION_NOT_FOUND");
            let generate = v2::GenerateLocationApiKeyRequest { location_id: id.clone(), ..Default::default() };
            refused(world.locations().generate_location_api_key(by(user, generate)).await, Code::NotFound, "LOCATION_NOT_FOUND");
        }
        let get = v2::GetUserRequest { user_id: stranger.user_id.clone() };
        refused(world.users().get_user(by(&admin, get)).await, Code::NotFound, "USER_NOT_FOUND");
        let list = v2::ListUsersRequest { agency_id: other.agency_id.clone(), ..Default::default() };
        refused(world.users().list_users(by(&admin, list)).await, Code::NotFound, "AGENCY_NOT_FOUND");
        let listed = world.agencies().list_agencies(by(&admin, v2::ListAgenciesRequest::default())).await.expect("a list").into_inner();
        assert_eq!(listed.agencies.iter().map(|agency| agency.agency_id.as_str()).collect::<Vec<_>>(), [mine.agency_id.as_str()]);
        let nobody = act("user/usr_00000000000000000000000000000000", v2::ListAgenciesRequest::default());
        refused(world.agencies().list_agencies(nobody).await, Code::NotFound, "USER_NOT_FOUND");
        world.stop().await;
    }

    async fn writes_need_their_role(db: TestDatabase) {
        let world = world(db).await;
        let agency = world.agency("Agency").await;
        let (a, b) = (world.location(&agency.agency_id, "A").await.location_id, world.location(&agency.agency_id, "B").await.location_id);
        let boss = world.agency_admin(&agency.agency_id, "boss@example.com").await;
        let manager = world.location_admin(&agency.agency_id, "m@example.com", &[&a]).await;
        let worker = world.user(&agency.agency_id, "w@example.com", role(LOCATION_USER.0, LOCATION_USER.1), &[&a]).await;
        let new = |i: i32, roles: (v2::RoleType, v2::RoleLevel), places: &[&str]| {
            new_user(&agency.agency_id, &format!("u{i}@example.com"), role(roles.0, roles.1), places, "")
        };
        let mut users = world.users();
        refused(users.create_user(by(&worker, new(1, LOCATION_USER, &[&a]))).await, Code::PermissionDenied, "ACTOR_NOT_ALLOWED");
        refused(users.create_user(by(&manager, new(2, LOCATION_USER, &[&a, &b]))).await, Code::PermissionDenied, "ACTOR_NOT_ALLOWED");
        refused(users.create_user(by(&manager, new(3, AGENCY_ADMIN, &[]))).await, Code::PermissionDenied, "ACTOR_NOT_ALLOWED");
        let made = users.create_user(by(&manager, new(4, LOCATION_USER, &[&a]))).await.expect("its own").into_inner();
        let promote = |roles: (v2::RoleType, v2::RoleLevel), places: &[&str]| v2::UpdateUserRequest {
            user: Some(v2::User {
                user_id: made.user_id.clone(),
                role: Some(role(roles.0, roles.1)),
                location_ids: places.iter().map(|id| (*id).to_owned()).collect(),
                ..Default::default()
            }),
            update_mask: mask(&["role", "location_ids"]),
            request_id: String::new(),
        };
        refused(users.update_user(by(&manager, promote(AGENCY_ADMIN, &[]))).await, Code::PermissionDenied, "ACTOR_NOT_ALLOWED");
        refused(users.update_user(by(&manager, promote(LOCATION_USER, &[&a, &b]))).await, Code::PermissionDenied, "ACTOR_NOT_ALLOWED");
        users.update_user(by(&boss, promote(LOCATION_ADMIN, &[&b]))).await.expect("the boss may");
        let delete = v2::DeleteUserRequest { user_id: made.user_id.clone(), ..Default::default() };
        refused(users.delete_user(by(&manager, delete.clone())).await, Code::PermissionDenied, "ACTOR_NOT_ALLOWED");
        users.delete_user(by(&boss, delete)).await.expect("the boss may");

        refused(world.locations().create_location(by(&manager, new_location(&agency.agency_id, "C", ""))).await, Code::PermissionDenied, "ACTOR_NOT_ALLOWED");
        world.locations().create_location(by(&boss, new_location(&agency.agency_id, "C", ""))).await.expect("the boss may");
        world.locations().create_location(act("api-key/key_1", new_location(&agency.agency_id, "D", ""))).await.expect("an API client may");
        let agency_request = v2::CreateAgencyRequest { agency: Some(full_agency()), request_id: String::new() };
        refused(world.agencies().create_agency(by(&boss, agency_request)).await, Code::PermissionDenied, "ACTOR_NOT_ALLOWED");
        world.stop().await;
    }

    async fn recipients_are_the_admins_of_now(db: TestDatabase) {
        let world = world(db).await;
        let (agency, other) = (world.agency("Agency").await, world.agency("Other").await);
        let places = [world.location(&agency.agency_id, "A").await.location_id, world.location(&agency.agency_id, "B").await.location_id];
        let foreign = world.location(&other.agency_id, "F").await.location_id;
        let boss = world.agency_admin(&agency.agency_id, "boss@example.com").await;
        let both = world.location_admin(&agency.agency_id, "both@example.com", &[&places[0], &places[1]]).await;
        let one = world.location_admin(&agency.agency_id, "one@example.com", &[&places[1]]).await;
        world.user(&agency.agency_id, "w@example.com", role(LOCATION_USER.0, LOCATION_USER.1), &[&places[0]]).await;
        world.location_admin(&other.agency_id, "f@example.com", &[&foreign]).await;
        let gone = world.agency_admin(&agency.agency_id, "gone@example.com").await;
        world.users().delete_user(v2::DeleteUserRequest { user_id: gone.user_id, ..Default::default() }).await.expect("deleted");
        let off = world.agency_admin(&agency.agency_id, "off@example.com").await;
        let disable = v2::UpdateUserRequest {
            user: Some(v2::User { user_id: off.user_id.clone(), disabled: true, ..Default::default() }),
            ..Default::default()
        };
        world.users().update_user(disable).await.expect("disabled");
        world.locations().delete_location(v2::DeleteLocationRequest { location_id: places[0].clone(), ..Default::default() }).await.expect("deleted");

        let ask = |ids: &[&String]| v2::ListNoticeRecipientsRequest {
            agency_id: agency.agency_id.clone(),
            location_ids: ids.iter().map(|id| (*id).clone()).collect(),
        };
        let asked = ask(&[&places[1], &places[0], &places[0], &foreign, &"loc_?".to_owned()]);
        let answer = recipients(&world, asked).await;
        let told: Vec<_> = answer.recipients.iter().map(|one| (one.user_id.as_str(), one.agency_admin, one.location_ids.clone())).collect();
        assert_eq!(told, [
            (boss.user_id.as_str(), true, vec![]),
            (both.user_id.as_str(), false, places.to_vec()),
            (one.user_id.as_str(), false, vec![places[1].clone()]),
        ]);
        assert_eq!((answer.agency_name.as_str(), answer.agency_time_zone.as_str()), ("Agency", "UTC"));
        assert_eq!(answer.location_names.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["A", "B"]);
        // A change of place is seen at the next question.
        let moved = v2::UpdateUserRequest {
            user: Some(v2::User { user_id: both.user_id, location_ids: vec![places[1].clone()], ..Default::default() }),
            ..Default::default()
        };
        world.users().update_user(moved).await.expect("moved");
        assert_eq!(recipients(&world, ask(&[&places[0]])).await.recipients.len(), 1);
        assert_eq!(recipients(&world, ask(&[])).await.recipients.len(), 1);
        refused(world.users().list_notice_recipients(by(&boss, ask(&[]))).await.map(drop), Code::PermissionDenied, "ACTOR_NOT_ALLOWED");
        world.stop().await;
    }

    async fn a_mutation_repeated_happens_once(db: TestDatabase) {
        let mut world = world(db).await;
        let create = v2::CreateAgencyRequest { agency: Some(full_agency()), request_id: "a".into() };
        let (mut one, mut two) = (world.agencies(), world.agencies());
        let (first, second) = tokio::join!(one.create_agency(create.clone()), two.create_agency(create.clone()));
        let agency = first.expect("created").into_inner();
        assert_eq!(second.expect("the same").into_inner(), agency);
        let other = v2::CreateAgencyRequest { agency: Some(v2::Agency { name: "Else".into(), ..Default::default() }), request_id: "a".into() };
        refused(world.agencies().create_agency(other).await, Code::AlreadyExists, "REQUEST_ID_REUSED");

        let create = new_location(&agency.agency_id, "Shop", "l");
        let (mut one, mut two) = (world.locations(), world.locations());
        let (first, second) = tokio::join!(one.create_location(create.clone()), two.create_location(create.clone()));
        let location = first.expect("created").into_inner();
        assert_eq!(second.expect("the same").into_inner(), location);
        refused(world.locations().create_location(new_location(&agency.agency_id, "Else", "l")).await, Code::AlreadyExists, "REQUEST_ID_REUSED");

        let create = new_user(&agency.agency_id, "a@example.com", role(AGENCY_ADMIN.0, AGENCY_ADMIN.1), &[], "u");
        let (mut one, mut two) = (world.users(), world.users());
        let (first, second) = tokio::join!(one.create_user(create.clone()), two.create_user(create.clone()));
        let user = first.expect("created").into_inner();
        assert_eq!(second.expect("the same").into_inner(), user);

        // Updates, with the etag that only the first call finds current.
        let update = v2::UpdateAgencyRequest {
            agency: Some(v2::Agency { agency_id: agency.agency_id.clone(), name: "New".into(), etag: agency.etag.clone(), ..Default::default() }),
            update_mask: mask(&["name"]), request_id: "ua".into(),
        };
        let (mut one, mut two) = (world.agencies(), world.agencies());
        let (first, second) = tokio::join!(one.update_agency(update.clone()), two.update_agency(update.clone()));
        assert_eq!(first.expect("updated").into_inner(), second.expect("the same").into_inner());
        let update = v2::UpdateLocationRequest {
            location: Some(v2::Location { location_id: location.location_id.clone(), name: "New".into(), etag: location.etag.clone(), ..Default::default() }),
            update_mask: mask(&["name"]), request_id: "ul".into(),
        };
        let (mut one, mut two) = (world.locations(), world.locations());
        let (first, second) = tokio::join!(one.update_location(update.clone()), two.update_location(update.clone()));
        assert_eq!(first.expect("updated").into_inner(), second.expect("the same").into_inner());
        let update = v2::UpdateUserRequest {
            user: Some(v2::User { user_id: user.user_id.clone(), first_name: "Eva".into(), etag: user.etag.clone(), ..Default::default() }),
            update_mask: mask(&["first_name"]), request_id: "uu".into(),
        };
        let (mut one, mut two) = (world.users(), world.users());
        let (first, second) = tokio::join!(one.update_user(update.clone()), two.update_user(update.clone()));
        assert_eq!(first.expect("updated").into_inner(), second.expect("the same").into_inner());

        let choose = v2::UpdateSecuritySettingsRequest {
            agency_id: agency.agency_id.clone(), enhanced_account_security: false, acknowledge_risk: true, request_id: "s".into(),
        };
        let (mut one, mut two) = (world.agencies(), world.agencies());
        let (first, second) = tokio::join!(one.update_security_settings(by(&user, choose.clone())), two.update_security_settings(by(&user, choose.clone())));
        assert_eq!(first.expect("chosen").into_inner(), second.expect("the same").into_inner());

        let delete = v2::DeleteLocationRequest { location_id: location.location_id, etag: String::new(), request_id: "dl".into() };
        let (mut one, mut two) = (world.locations(), world.locations());
        let (first, second) = tokio::join!(one.delete_location(delete.clone()), two.delete_location(delete.clone()));
        assert_eq!(first.expect("deleted").into_inner(), second.expect("the same").into_inner());
        let delete = v2::DeleteUserRequest { user_id: user.user_id, etag: String::new(), request_id: "du".into() };
        let (mut one, mut two) = (world.users(), world.users());
        let (first, second) = tokio::join!(one.delete_user(delete.clone()), two.delete_user(delete.clone()));
        first.expect("deleted");
        second.expect("the same");

        // The memory survives a crash, and ends after 24 h.
        world.crash_and_restart().await;
        world.users().delete_user(delete).await.expect("the same");
        let create = v2::CreateAgencyRequest { agency: Some(full_agency()), request_id: "a".into() };
        let again = world.agencies().create_agency(create.clone()).await.expect("the same").into_inner();
        assert_eq!((again.agency_id.as_str(), again.name.as_str()), (agency.agency_id.as_str(), "New"));
        world.clock.advance(chrono::TimeDelta::hours(24));
        let fresh = world.agencies().create_agency(create).await.expect("another").into_inner();
        assert_ne!(fresh.agency_id, agency.agency_id);
        world.stop().await;
    }
}

/// The whole answer as one message.
async fn recipients(world: &World, request: v2::ListNoticeRecipientsRequest) -> v2::ListNoticeRecipientsResponse {
    let mut stream = world.users().list_notice_recipients(request).await.expect("a stream").into_inner();
    let mut whole = stream.message().await.expect("a message").expect("the first message");
    while let Some(part) = stream.message().await.expect("a message") {
        whole.recipients.extend(part.recipients);
        whole.location_names.extend(part.location_names);
    }
    whole
}
