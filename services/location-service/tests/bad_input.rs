//! What nobody should send: each is refused by the name of its field, and nothing is stored.

mod support;

use std::time::Duration;

use keysweep_proto::location::v2;
use service_kit::testing::{Kind, TestDatabase};
use support::{World, by, fields, mask, refused, role};
use tonic::metadata::{AsciiMetadataValue, MetadataValue};
use tonic::{Code, Request};

/// More than any field may hold, and less than a request may weigh.
const HUGE: usize = 10 * 1024 * 1024;

/// Texts that are no valid value of any text field, with a label for the report.
fn hostile() -> Vec<(&'static str, String)> {
    let mut texts = vec![
        ("10 MB", "x".repeat(HUGE)),
        ("a line break", "a\nb".to_owned()),
        ("a null", "a\0b".to_owned()),
        ("an escape sequence", "a\u{1b}[31mb".to_owned()),
        ("a C1 control", "a\u{85}b".to_owned()),
        ("a zero-width space", "a\u{200b}b".to_owned()),
        ("a byte order mark", "\u{feff}a".to_owned()),
        ("a line separator", "a\u{2028}b".to_owned()),
    ];
    for override_ in
        ['\u{202a}', '\u{202b}', '\u{202c}', '\u{202d}', '\u{202e}', '\u{2066}', '\u{2067}', '\u{2068}', '\u{2069}']
    {
        texts.push(("a text-direction character", format!("invoice{override_}fdp.exe")));
    }
    texts
}

type Set<T> = fn(&mut T, String);

const LOCATION_FIELDS: [(&str, Set<v2::Location>); 10] = [
    ("name", |one, text| one.name = text),
    ("email", |one, text| one.email = text),
    ("phone", |one, text| one.phone = text),
    ("address", |one, text| one.address = text),
    ("city", |one, text| one.city = text),
    ("state", |one, text| one.state = text),
    ("postal_code", |one, text| one.postal_code = text),
    ("country", |one, text| one.country = text),
    ("time_zone", |one, text| one.time_zone = text),
    ("website", |one, text| one.website = text),
];

const AGENCY_FIELDS: [(&str, Set<v2::Agency>); 10] = [
    ("name", |one, text| one.name = text),
    ("email", |one, text| one.email = text),
    ("phone", |one, text| one.phone = text),
    ("address", |one, text| one.address = text),
    ("city", |one, text| one.city = text),
    ("state", |one, text| one.state = text),
    ("postal_code", |one, text| one.postal_code = text),
    ("country", |one, text| one.country = text),
    ("time_zone", |one, text| one.time_zone = text),
    ("website", |one, text| one.website = text),
];

const USER_FIELDS: [(&str, Set<v2::User>); 3] = [
    ("first_name", |one, text| one.first_name = text),
    ("last_name", |one, text| one.last_name = text),
    ("email", |one, text| one.email = text),
];

/// Asserts that the one field is at fault, however often.
#[track_caller]
fn blames<T: std::fmt::Debug>(label: &str, answer: Result<T, tonic::Status>, field: &str) {
    let status = refused(answer, Code::InvalidArgument, "INVALID_FIELDS");
    let mut named = fields(&status);
    named.dedup();
    assert_eq!(named, [field], "{label}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_text_field_refuses_every_hostile_text() {
    let world = World::start(TestDatabase::new(Kind::Sqlite)).await;
    let agency = world.agency("Agency").await;
    let location = world.location(&agency.agency_id, "Shop").await;
    let admin = world.agency_admin(&agency.agency_id, "a@example.com").await;
    for (label, text) in hostile() {
        for (name, set) in AGENCY_FIELDS {
            let mut new = v2::Agency { name: "New".into(), ..Default::default() };
            set(&mut new, text.clone());
            let request = v2::CreateAgencyRequest { agency: Some(new.clone()), ..Default::default() };
            blames(label, world.agencies().create_agency(request).await, &format!("agency.{name}"));
            new.agency_id.clone_from(&agency.agency_id);
            let request = v2::UpdateAgencyRequest { agency: Some(new), ..Default::default() };
            blames(label, world.agencies().update_agency(request).await, &format!("agency.{name}"));
        }
        for (name, set) in LOCATION_FIELDS {
            let mut new = v2::Location { name: "New".into(), ..Default::default() };
            set(&mut new, text.clone());
            let agency_id = agency.agency_id.clone();
            let request = v2::CreateLocationRequest { agency_id, location: Some(new.clone()), ..Default::default() };
            blames(label, world.locations().create_location(request).await, &format!("location.{name}"));
            new.location_id.clone_from(&location.location_id);
            let request = v2::UpdateLocationRequest { location: Some(new), ..Default::default() };
            blames(label, world.locations().update_location(request).await, &format!("location.{name}"));
        }
        for (name, set) in USER_FIELDS {
            let role = Some(role(v2::RoleType::Agency, v2::RoleLevel::User));
            let email = "new@example.com".to_owned();
            let mut new = v2::User { first_name: "New".into(), email, role, ..Default::default() };
            set(&mut new, text.clone());
            let agency_id = agency.agency_id.clone();
            let request = v2::CreateUserRequest { agency_id, user: Some(new.clone()), ..Default::default() };
            blames(label, world.users().create_user(request).await, &format!("user.{name}"));
            new.user_id.clone_from(&admin.user_id);
            let request = v2::UpdateUserRequest { user: Some(new), ..Default::default() };
            blames(label, world.users().update_user(request).await, &format!("user.{name}"));
        }
        let location = v2::Location { name: "New".into(), ..Default::default() };
        let request = v2::CreateLocationRequest {
            agency_id: agency.agency_id.clone(),
            location: Some(location),
            request_id: text,
        };
        blames(label, world.locations().create_location(request).await, "request_id");
    }
    // What is there is what was there.
    let agencies = world.agencies().list_agencies(v2::ListAgenciesRequest::default()).await.expect("a list");
    assert_eq!(agencies.into_inner().agencies, std::slice::from_ref(&agency));
    let list =
        v2::ListLocationsRequest { agency_id: agency.agency_id.clone(), show_deleted: true, ..Default::default() };
    assert_eq!(world.locations().list_locations(list).await.expect("a list").into_inner().locations, [location]);
    let list = v2::ListUsersRequest { agency_id: agency.agency_id, ..Default::default() };
    assert_eq!(world.users().list_users(list).await.expect("a list").into_inner().users, [admin]);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_that_is_no_utf_8_is_refused_or_passed_over() {
    let world = World::start(TestDatabase::new(Kind::Sqlite)).await;
    let list = |key: &'static str, value: &[u8]| {
        let mut request = Request::new(v2::ListAgenciesRequest::default());
        let value: AsciiMetadataValue = MetadataValue::try_from(value).expect("bytes that a header can carry");
        request.metadata_mut().insert(key, value);
        request
    };
    for bytes in [&b"user/\xff\xfe"[..], b"\xc3\x28", b"user/usr_\xed\xa0\x80"] {
        // An actor that cannot be read must not pass for none.
        let answer = world.agencies().list_agencies(list("x-keysweep-actor", bytes)).await;
        blames(&format!("{bytes:?}"), answer, "metadata x-keysweep-actor");
        // What merely traces a call is replaced.
        for key in ["x-request-id", "traceparent"] {
            let answer = world.agencies().list_agencies(list(key, bytes)).await.expect("answered");
            let id = answer.metadata().get("x-request-id").and_then(|id| id.to_str().ok()).unwrap_or_default();
            assert!(!id.is_empty());
        }
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_too_large_to_read_is_refused_and_the_service_lives_on() {
    let world = World::start(TestDatabase::new(Kind::Sqlite)).await;
    let agency = v2::Agency { name: "x".repeat(20 * 1024 * 1024), ..Default::default() };
    let mut request = Request::new(v2::CreateAgencyRequest { agency: Some(agency), ..Default::default() });
    request.set_timeout(Duration::from_secs(20));
    let status = refused(world.agencies().create_agency(request).await, Code::InvalidArgument, "INVALID_FIELDS");
    let told = status.message();
    assert!(
        told.starts_with("the message is too large: found 209715") && told.ends_with("the limit is: 16777216 bytes")
    );
    world.agency("Agency").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_huge_text_beside_the_resources_is_refused_by_name_and_goes_nowhere() {
    let world = World::start(TestDatabase::new(Kind::Sqlite)).await;
    let agency = world.agency("Agency").await;
    let (agency_id, huge) = (agency.agency_id.clone(), || "x".repeat(HUGE));
    let location_id = world.location(&agency_id, "Shop").await.location_id;
    let admin = world.agency_admin(&agency_id, "a@example.com").await;
    let generate = v2::GenerateAgencyApiKeyRequest { agency_id: agency_id.clone(), ..Default::default() };
    for (field, request) in [
        ("display_name", v2::GenerateAgencyApiKeyRequest { display_name: huge(), ..generate.clone() }),
        ("scopes[1]", v2::GenerateAgencyApiKeyRequest { scopes: vec!["a".into(), huge()], ..generate.clone() }),
        ("allowed_cidrs[0]", v2::GenerateAgencyApiKeyRequest { allowed_cidrs: vec![huge()], ..generate.clone() }),
        ("scopes", v2::GenerateAgencyApiKeyRequest { scopes: vec![String::new(); 1_000_000], ..generate.clone() }),
        ("allowed_cidrs", v2::GenerateAgencyApiKeyRequest { allowed_cidrs: vec!["a".into(); 51], ..generate.clone() }),
        ("request_id", v2::GenerateAgencyApiKeyRequest { request_id: huge(), ..generate }),
    ] {
        blames(field, world.agencies().generate_agency_api_key(by(&admin, request)).await, field);
    }
    let generate = v2::GenerateLocationApiKeyRequest { location_id, display_name: huge(), ..Default::default() };
    blames("", world.locations().generate_location_api_key(by(&admin, generate)).await, "display_name");
    assert!(world.keys.seen().is_empty());

    let list = v2::ListLocationsRequest { agency_id: agency_id.clone(), ..Default::default() };
    for (field, request) in [
        ("name_prefix", v2::ListLocationsRequest { name_prefix: huge(), ..list.clone() }),
        ("country", v2::ListLocationsRequest { country: huge(), ..list.clone() }),
        ("state", v2::ListLocationsRequest { state: huge(), ..list.clone() }),
        ("order_by", v2::ListLocationsRequest { order_by: huge(), ..list.clone() }),
    ] {
        blames(field, world.locations().list_locations(request).await, field);
    }
    let token = v2::ListLocationsRequest { page_token: huge(), ..list };
    let status = refused(world.locations().list_locations(token).await, Code::InvalidArgument, "PAGE_TOKEN_INVALID");
    assert_eq!(fields(&status), ["page_token"]);
    let list = v2::ListUsersRequest { agency_id: agency_id.clone(), ..Default::default() };
    for (field, request) in [
        ("location_id", v2::ListUsersRequest { location_id: huge(), ..list.clone() }),
        ("email", v2::ListUsersRequest { email: huge(), ..list }),
    ] {
        blames(field, world.users().list_users(request).await, field);
    }
    let masked = v2::UpdateAgencyRequest { agency: Some(agency), update_mask: mask(&[&huge()]), ..Default::default() };
    blames("", world.agencies().update_agency(masked).await, "update_mask");
    let settings = v2::UpdateSecuritySettingsRequest { agency_id, request_id: huge(), ..Default::default() };
    blames("", world.agencies().update_security_settings(by(&admin, settings)).await, "request_id");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_faults_of_a_request_are_told_at_once() {
    let world = World::start(TestDatabase::new(Kind::Sqlite)).await;
    let agency_id = world.agency("Agency").await.agency_id;
    let admin = world.agency_admin(&agency_id, "a@example.com").await;
    let named = |status: tonic::Status| {
        assert_eq!((status.code(), support::reason(&status).as_str()), (Code::InvalidArgument, "INVALID_FIELDS"));
        fields(&status)
    };
    let long_ago = Some(prost_types::Timestamp { seconds: i64::MIN, nanos: 0 });
    let (mut agencies, mut locations, mut users) = (world.agencies(), world.locations(), world.users());
    let create = v2::CreateAgencyRequest { agency: None, request_id: "\u{e4}".into() };
    assert_eq!(named(agencies.create_agency(create).await.expect_err("refused")), ["agency.name", "request_id"]);
    let agency = Some(v2::Agency { email: "x".into(), ..Default::default() });
    let change =
        v2::UpdateAgencyRequest { agency, update_mask: mask(&["email", "name", "id"]), request_id: "\n".into() };
    assert_eq!(
        named(agencies.update_agency(change).await.expect_err("refused")),
        ["update_mask", "agency.email", "agency.name", "request_id", "agency.agency_id"]
    );
    let generate =
        v2::GenerateAgencyApiKeyRequest { request_id: "\n".into(), expire_time: long_ago, ..Default::default() };
    let expected = ["expire_time", "request_id", "agency_id"];
    assert_eq!(named(agencies.generate_agency_api_key(generate.clone()).await.expect_err("refused")), expected);
    let generate = v2::GenerateAgencyApiKeyRequest { agency_id: agency_id.clone(), ..generate };
    let status = agencies.generate_agency_api_key(by(&admin, generate)).await.expect_err("refused");
    assert_eq!(named(status), expected[..2]);
    let settings = v2::UpdateSecuritySettingsRequest { request_id: "\n".into(), ..Default::default() };
    let status = agencies.update_security_settings(settings).await.expect_err("refused");
    assert_eq!(named(status), ["request_id", "agency_id"]);

    let create = v2::CreateLocationRequest { request_id: "\n".into(), ..Default::default() };
    let status = locations.create_location(create).await.expect_err("refused");
    assert_eq!(named(status), ["location.name", "request_id", "agency_id"]);
    let location = Some(v2::Location { country: "XX".into(), ..Default::default() });
    let change = v2::UpdateLocationRequest { location, update_mask: None, request_id: "\n".into() };
    let status = locations.update_location(change).await.expect_err("refused");
    assert_eq!(named(status), ["location.country", "request_id", "location.location_id"]);
    let delete = v2::DeleteLocationRequest { request_id: "\n".into(), ..Default::default() };
    assert_eq!(named(locations.delete_location(delete).await.expect_err("refused")), ["request_id", "location_id"]);
    let undelete = v2::UndeleteLocationRequest { request_id: "\n".into(), ..Default::default() };
    assert_eq!(named(locations.undelete_location(undelete).await.expect_err("refused")), ["request_id", "location_id"]);

    let create = v2::CreateUserRequest { request_id: "\n".into(), ..Default::default() };
    let status = users.create_user(create).await.expect_err("refused");
    assert_eq!(named(status), ["user.first_name", "user.email", "user.role", "request_id", "agency_id"]);
    let user = Some(v2::User { email: "x".into(), ..Default::default() });
    let change = v2::UpdateUserRequest { user, update_mask: mask(&["email", "id"]), request_id: "\n".into() };
    let status = users.update_user(change).await.expect_err("refused");
    assert_eq!(named(status), ["request_id", "update_mask", "user.email", "user.user_id"]);
    let user_id = admin.user_id.clone();
    let places = vec!["loc_1".to_owned()];
    let user = Some(v2::User { user_id, email: "x".into(), location_ids: places, ..Default::default() });
    let change = v2::UpdateUserRequest { user, update_mask: None, request_id: "\n".into() };
    let status = users.update_user(change).await.expect_err("refused");
    assert_eq!(named(status), ["request_id", "user.email", "user.location_ids", "user.location_ids"]);
    let delete = v2::DeleteUserRequest { request_id: "\n".into(), ..Default::default() };
    assert_eq!(named(users.delete_user(delete).await.expect_err("refused")), ["request_id", "user_id"]);
    let ask = v2::ListNoticeRecipientsRequest { agency_id: String::new(), location_ids: vec![String::new(); 10_001] };
    let status = users.list_notice_recipients(ask).await.expect_err("refused");
    assert_eq!(named(status), ["location_ids", "agency_id"]);
    world.stop().await;
}
