//! What a caller may not see cannot be told from what is not there: not by the answer, and not by the statements that it
//! takes, on both databases.

#![expect(deprecated, reason = "the legacy user API is deprecated, and tested all the same")]

mod support;

use keysweep_proto::location::{v1, v2};
use service_kit::both_databases;
use support::{World, act, new_location, new_user, role};
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Methods that are about an agency.
const OF_AGENCIES: [&str; 11] = [
    "GetAgency",
    "UpdateAgency",
    "GenerateAgencyApiKey",
    "GetSecuritySettings",
    "UpdateSecuritySettings",
    "CreateLocation",
    "ListLocations",
    "CreateUser",
    "ListUsers",
    "v1.CreateUser",
    "v1.ListUsers",
];
const OF_LOCATIONS: [&str; 5] =
    ["GetLocation", "UpdateLocation", "DeleteLocation", "UndeleteLocation", "GenerateLocationApiKey"];
const OF_USERS: [&str; 6] = ["GetUser", "UpdateUser", "DeleteUser", "v1.GetUser", "v1.UpdateUser", "v1.DeleteUser"];

/// What a call about the resource with this id is answered.
async fn attempt(world: &World, method: &str, actor: &str, id: &str) -> Result<(), Status> {
    if OF_AGENCIES.contains(&method) {
        of_agency(world, method, actor, id.to_owned()).await
    } else if OF_LOCATIONS.contains(&method) {
        of_location(world, method, actor, id.to_owned()).await
    } else {
        of_user(world, method, actor, id.to_owned()).await
    }
}

async fn of_agency(world: &World, method: &str, actor: &str, agency_id: String) -> Result<(), Status> {
    let (mut agencies, mut locations) = (world.agencies(), world.locations());
    let (mut users, mut legacy) = (world.users(), world.legacy_users());
    let request_id = "r".to_owned();
    match method {
        "GetAgency" => agencies.get_agency(act(actor, v2::GetAgencyRequest { agency_id })).await.map(drop),
        "UpdateAgency" => {
            let agency = Some(v2::Agency { agency_id, city: "Bern".into(), ..Default::default() });
            let request = v2::UpdateAgencyRequest { agency, request_id, ..Default::default() };
            agencies.update_agency(act(actor, request)).await.map(drop)
        }
        "GenerateAgencyApiKey" => {
            let request = v2::GenerateAgencyApiKeyRequest { agency_id, request_id, ..Default::default() };
            agencies.generate_agency_api_key(act(actor, request)).await.map(drop)
        }
        "GetSecuritySettings" => {
            agencies.get_security_settings(act(actor, v2::GetSecuritySettingsRequest { agency_id })).await.map(drop)
        }
        "UpdateSecuritySettings" => {
            let request = v2::UpdateSecuritySettingsRequest { agency_id, request_id, ..Default::default() };
            agencies.update_security_settings(act(actor, request)).await.map(drop)
        }
        "CreateLocation" => locations.create_location(act(actor, new_location(&agency_id, "New", "r"))).await.map(drop),
        "ListLocations" => {
            let request = v2::ListLocationsRequest { agency_id, ..Default::default() };
            locations.list_locations(act(actor, request)).await.map(drop)
        }
        "CreateUser" => {
            let role = role(v2::RoleType::Agency, v2::RoleLevel::User);
            users.create_user(act(actor, new_user(&agency_id, "new@example.com", role, &[], "r"))).await.map(drop)
        }
        "ListUsers" => {
            users.list_users(act(actor, v2::ListUsersRequest { agency_id, ..Default::default() })).await.map(drop)
        }
        "v1.CreateUser" => {
            let user = Some(v1::User { first_name: "Old".into(), ..Default::default() });
            legacy.create_user(act(actor, v1::CreateUserRequest { agency_id, user, request_id })).await.map(drop)
        }
        _ => legacy.list_users(act(actor, v1::ListUsersRequest { agency_id, ..Default::default() })).await.map(drop),
    }
}

async fn of_location(world: &World, method: &str, actor: &str, location_id: String) -> Result<(), Status> {
    let mut client = world.locations();
    let (etag, request_id) = ("r99".to_owned(), "r".to_owned());
    match method {
        "GetLocation" => client.get_location(act(actor, v2::GetLocationRequest { location_id })).await.map(drop),
        "UpdateLocation" => {
            let location = Some(v2::Location { location_id, name: "\n".into(), etag, ..Default::default() });
            let request = v2::UpdateLocationRequest { location, request_id, ..Default::default() };
            client.update_location(act(actor, request)).await.map(drop)
        }
        "DeleteLocation" => {
            let request = v2::DeleteLocationRequest { location_id, etag, request_id };
            client.delete_location(act(actor, request)).await.map(drop)
        }
        "UndeleteLocation" => {
            let request = v2::UndeleteLocationRequest { location_id, etag, request_id };
            client.undelete_location(act(actor, request)).await.map(drop)
        }
        _ => {
            let request = v2::GenerateLocationApiKeyRequest { location_id, request_id, ..Default::default() };
            client.generate_location_api_key(act(actor, request)).await.map(drop)
        }
    }
}

async fn of_user(world: &World, method: &str, actor: &str, user_id: String) -> Result<(), Status> {
    let (mut users, mut legacy) = (world.users(), world.legacy_users());
    let (last_name, request_id) = ("Byron".to_owned(), "r".to_owned());
    match method {
        "GetUser" => users.get_user(act(actor, v2::GetUserRequest { user_id })).await.map(drop),
        "UpdateUser" => {
            let user = Some(v2::User { user_id, last_name, ..Default::default() });
            users.update_user(act(actor, v2::UpdateUserRequest { user, update_mask: None, request_id })).await.map(drop)
        }
        "DeleteUser" => {
            let request = v2::DeleteUserRequest { user_id, request_id, ..Default::default() };
            users.delete_user(act(actor, request)).await.map(drop)
        }
        "v1.GetUser" => legacy.get_user(act(actor, v1::GetUserRequest { user_id })).await.map(drop),
        "v1.UpdateUser" => {
            let user = Some(v1::User { user_id, last_name, ..Default::default() });
            let request = v1::UpdateUserRequest { user, update_mask: None, request_id };
            legacy.update_user(act(actor, request)).await.map(drop)
        }
        _ => legacy.delete_user(act(actor, v1::DeleteUserRequest { user_id, request_id })).await.map(drop),
    }
}

/// Everything that a caller is told, but for the id that it sent itself.
fn told(status: &Status, id: &str) -> String {
    let headers: Vec<_> = status.metadata().clone().into_headers().keys().map(ToString::to_string).collect();
    let all = format!("{:?} {} {:?} {headers:?}", status.code(), status.message(), status.get_error_details());
    all.replace(id, "<id>")
}

both_databases! {
    async fn a_hidden_resource_is_answered_as_a_missing_one(db: TestDatabase) {
        let (world, statements) = World::start_watched(db).await;
        let (mine, other) = (world.agency("Mine").await, world.agency("Other").await);
        let shop = world.location(&mine.agency_id, "Shop").await.location_id;
        let foreign = world.location(&other.agency_id, "Foreign").await.location_id;
        let admin = world.agency_admin(&mine.agency_id, "a@example.com").await;
        let manager = world.location_admin(&mine.agency_id, "m@example.com", &[&shop]).await;
        // One who works somewhere, so that there is more of her to read.
        let stranger = world.location_admin(&other.agency_id, "s@example.com", &[&foreign]).await;
        let missing = |prefix: &str| format!("{prefix}{}", "0".repeat(32));
        let methods = [
            (OF_AGENCIES.as_slice(), &other.agency_id, missing("agy_")),
            (OF_LOCATIONS.as_slice(), &foreign, missing("loc_")),
            (OF_USERS.as_slice(), &stranger.user_id, missing("usr_")),
        ];
        for actor in [&admin.user_id, &manager.user_id, &missing("usr_")] {
            let actor = format!("user/{actor}");
            for (methods, hidden, missing) in &methods {
                for method in *methods {
                    let mut seen = Vec::new();
                    for id in [hidden, missing] {
                        statements.lock().expect("lock").clear();
                        let status = attempt(&world, method, &actor, id).await.expect_err("must be refused");
                        assert_eq!(status.code(), Code::NotFound, "{method}: {status:?}");
                        seen.push((told(&status, id), statements.lock().expect("lock").clone()));
                    }
                    assert!(seen[0].1.len() > 1, "{method} is recorded");
                    assert_eq!(seen[0], seen[1], "{method} for {actor}");
                }
            }
        }
        world.stop().await;
    }
}
