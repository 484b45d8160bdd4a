//! No response of the location packages can carry a key where none may be.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use keysweep_proto::location::v2;
use prost::Message;
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorSet};
use service_kit::testing::{Kind, TestDatabase};
use support::{World, by, new_location, new_user, role};

/// The only fields that carry a key.
const CARRIERS: [&str; 3] = [
    "keysweep.location.v2.GenerateAgencyApiKeyResponse.secret",
    "keysweep.location.v2.GenerateLocationApiKeyResponse.secret",
    "keysweep.location.v2.Location.api_key",
];

/// Every other text that a response holds, by the name of its field: ids, names, addresses and opaque tokens of ours.
const HARMLESS: [&str; 31] = [
    "address",
    "agency_id",
    "agency_name",
    "agency_time_zone",
    "city",
    "country",
    "display_name",
    "display_prefix",
    "email",
    "etag",
    "first_name",
    "key_id",
    "last_name",
    "location_id",
    "location_ids",
    "name",
    "next_page_token",
    "phone",
    "postal_code",
    "scopes",
    "state",
    "time_zone",
    "update_actor",
    "user_id",
    "website",
    // Parts of well-known messages.
    "paths",
    "type_url",
    "value",
    "reason",
    "domain",
    "description",
];

#[test]
fn only_the_named_fields_of_any_response_can_carry_a_key() {
    let set = FileDescriptorSet::decode(keysweep_proto::FILE_DESCRIPTOR_SET).expect("descriptors");
    let mut messages: BTreeMap<String, &DescriptorProto> = BTreeMap::new();
    let mut pending = Vec::new();
    for file in &set.file {
        for message in &file.message_type {
            collect(&format!(".{}", file.package()), message, &mut messages);
        }
        if file.package().starts_with("keysweep.location.") {
            pending.extend(
                file.service
                    .iter()
                    .flat_map(|service| service.method.iter().map(|method| method.output_type().to_owned())),
            );
        }
    }
    assert!(pending.len() > 20, "the services are there: {pending:?}");
    let (mut seen, mut carriers) = (BTreeSet::new(), BTreeSet::new());
    while let Some(name) = pending.pop() {
        if !seen.insert(name.clone()) {
            continue;
        }
        let message = messages.get(&name).unwrap_or_else(|| panic!("{name} is described"));
        for field in &message.field {
            match field.r#type() {
                Type::Message | Type::Group => pending.push(field.type_name().to_owned()),
                Type::String | Type::Bytes => {
                    let path = format!("{}.{}", &name[1..], field.name());
                    if CARRIERS.contains(&path.as_str()) {
                        carriers.insert(path);
                    } else {
                        assert!(
                            HARMLESS.contains(&field.name()),
                            "{path} is a new text in a response: can it carry a key?"
                        );
                    }
                }
                _ => {}
            }
        }
    }
    assert_eq!(carriers.into_iter().collect::<Vec<_>>(), CARRIERS);
}

fn collect<'a>(scope: &str, message: &'a DescriptorProto, messages: &mut BTreeMap<String, &'a DescriptorProto>) {
    let name = format!("{scope}.{}", message.name());
    for nested in &message.nested_type {
        collect(&name, nested, messages);
    }
    messages.insert(name, message);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_crud_response_of_an_agency_with_the_setting_on_holds_a_key() {
    let world = World::start(TestDatabase::new(Kind::Sqlite)).await;
    let agency = world.agency("Agency").await;
    let admin = world.agency_admin(&agency.agency_id, "a@example.com").await;
    // A location from the time of an opt-out, one from after, each with generated keys.
    world.choose(&admin, false).await;
    let old = world.location(&agency.agency_id, "Old").await;
    world.choose(&admin, true).await;
    let created = world
        .locations()
        .create_location(by(&admin, new_location(&agency.agency_id, "New", "")))
        .await
        .expect("created")
        .into_inner();
    for id in [&old.location_id, &created.location_id] {
        let generate = v2::GenerateLocationApiKeyRequest { location_id: id.clone(), ..Default::default() };
        world.locations().generate_location_api_key(by(&admin, generate)).await.expect("generated");
    }
    assert_eq!(world.keys.generated(), 3);

    let mut answers = location_answers(&world, &admin, &old, &created).await;
    answers.extend(other_answers(&world, &admin, created.location_id).await);
    for answer in answers {
        assert!(!String::from_utf8_lossy(&answer).contains("canary"), "a response holds a key");
    }
    world.stop().await;
}

/// What every CRUD method of locations answers, encoded.
async fn location_answers(world: &World, admin: &v2::User, old: &v2::Location, created: &v2::Location) -> Vec<Vec<u8>> {
    let mut answers = vec![created.encode_to_vec()];
    let mut locations = world.locations();
    for location in [old, created] {
        let get = v2::GetLocationRequest { location_id: location.location_id.clone() };
        answers.push(locations.get_location(by(admin, get)).await.expect("read").into_inner().encode_to_vec());
        let update = v2::UpdateLocationRequest {
            location: Some(v2::Location {
                location_id: location.location_id.clone(),
                city: "Bern".into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        answers.push(locations.update_location(by(admin, update)).await.expect("updated").into_inner().encode_to_vec());
    }
    let list = v2::ListLocationsRequest { agency_id: admin.agency_id.clone(), ..Default::default() };
    answers.push(locations.list_locations(by(admin, list)).await.expect("a list").into_inner().encode_to_vec());
    let delete = v2::DeleteLocationRequest { location_id: old.location_id.clone(), ..Default::default() };
    answers.push(locations.delete_location(by(admin, delete)).await.expect("deleted").into_inner().encode_to_vec());
    let back = v2::UndeleteLocationRequest { location_id: old.location_id.clone(), ..Default::default() };
    answers.push(locations.undelete_location(by(admin, back)).await.expect("undeleted").into_inner().encode_to_vec());
    answers
}

/// What the methods of agencies and users answer, encoded.
async fn other_answers(world: &World, admin: &v2::User, location_id: String) -> Vec<Vec<u8>> {
    let (mut agencies, mut users) = (world.agencies(), world.users());
    let mut answers = Vec::new();
    let get = v2::GetAgencyRequest { agency_id: admin.agency_id.clone() };
    answers.push(agencies.get_agency(by(admin, get)).await.expect("read").into_inner().encode_to_vec());
    let worker = new_user(&admin.agency_id, "w@example.com", role(v2::RoleType::Agency, v2::RoleLevel::User), &[], "");
    answers.push(users.create_user(by(admin, worker)).await.expect("created").into_inner().encode_to_vec());
    let list = v2::ListUsersRequest { agency_id: admin.agency_id.clone(), ..Default::default() };
    answers.push(users.list_users(by(admin, list)).await.expect("a list").into_inner().encode_to_vec());
    let ask = v2::ListNoticeRecipientsRequest { agency_id: admin.agency_id.clone(), location_ids: vec![location_id] };
    let mut told = users.list_notice_recipients(ask).await.expect("a stream").into_inner();
    while let Some(part) = told.message().await.expect("a message") {
        answers.push(part.encode_to_vec());
    }
    answers
}
