//! Every method of the location packages for every role, over the wire; `docs/roles.md` shows the same table.

#![expect(deprecated, reason = "the legacy user API is deprecated, and tested all the same")]

mod support;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};

use keysweep_proto::location::{v1, v2};
use prost::Message;
use prost_types::FileDescriptorSet;
use service_kit::testing::{Kind, TestDatabase};
use support::{World, new_location, new_user, reason, role};
use tonic::{Code, Request, Status};

/// Who asks, in the order of the table's columns.
const ROLES: [&str; 9] = [
    "no actor",
    "service",
    "api-key",
    "agency admin",
    "agency user",
    "location admin",
    "location user",
    "admin of another agency",
    "disabled agency admin",
];

/// What of the method's target the row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    /// Nothing in particular.
    Any,
    /// The location where the location admin and the location user work, or a user who works there alone.
    Theirs,
    /// Another location of the agency, or a user of the agency as a whole.
    Others,
}

impl Of {
    fn words(self) -> &'static str {
        match self {
            Self::Any => "",
            Self::Theirs => ", own location",
            Self::Others => ", elsewhere in the agency",
        }
    }
}

const PLATFORM: [&str; 9] = ["yes", "yes", "no", "no", "no", "no", "no", "no", "no"];
const READ: [&str; 9] = ["yes", "yes", "yes", "yes", "yes", "yes", "yes", "hidden", "no"];
const WRITE: [&str; 9] = ["yes", "yes", "yes", "yes", "no", "no", "no", "hidden", "no"];
const LOCATION_WRITE: [&str; 9] = ["yes", "yes", "yes", "yes", "no", "yes", "no", "hidden", "no"];
const AGENCY_ADMIN: [&str; 9] = ["log in", "no", "no", "yes", "no", "no", "no", "hidden", "no"];
const LOCATION_ADMIN: [&str; 9] = ["log in", "no", "no", "yes", "no", "yes", "no", "hidden", "no"];
const TELLERS: [&str; 9] = ["yes", "yes", "no", "no", "no", "no", "no", "hidden", "no"];
/// Persons see their own agency alone, whichever it is.
const OWN: [&str; 9] = ["yes", "yes", "no", "yes", "yes", "yes", "yes", "yes", "no"];

/// Method, target, and what each of [`ROLES`] gets.
const TABLE: [(&str, Of, [&str; 9]); 32] = [
    ("v2.AgencyService/CreateAgency", Of::Any, PLATFORM),
    ("v2.AgencyService/GetAgency", Of::Any, READ),
    ("v2.AgencyService/ListAgencies", Of::Any, OWN),
    ("v2.AgencyService/UpdateAgency", Of::Any, WRITE),
    ("v2.AgencyService/GenerateAgencyApiKey", Of::Any, AGENCY_ADMIN),
    ("v2.AgencyService/GetSecuritySettings", Of::Any, READ),
    ("v2.AgencyService/UpdateSecuritySettings", Of::Any, AGENCY_ADMIN),
    ("v2.LocationService/CreateLocation", Of::Any, WRITE),
    ("v2.LocationService/GetLocation", Of::Any, READ),
    ("v2.LocationService/ListLocations", Of::Any, READ),
    ("v2.LocationService/UpdateLocation", Of::Any, WRITE),
    ("v2.LocationService/DeleteLocation", Of::Any, WRITE),
    ("v2.LocationService/UndeleteLocation", Of::Any, WRITE),
    ("v2.LocationService/GenerateLocationApiKey", Of::Theirs, LOCATION_ADMIN),
    ("v2.LocationService/GenerateLocationApiKey", Of::Others, AGENCY_ADMIN),
    ("v2.UserService/CreateUser", Of::Theirs, LOCATION_WRITE),
    ("v2.UserService/CreateUser", Of::Others, WRITE),
    ("v2.UserService/GetUser", Of::Any, READ),
    ("v2.UserService/ListUsers", Of::Any, READ),
    ("v2.UserService/UpdateUser", Of::Theirs, LOCATION_WRITE),
    ("v2.UserService/UpdateUser", Of::Others, WRITE),
    ("v2.UserService/DeleteUser", Of::Theirs, LOCATION_WRITE),
    ("v2.UserService/DeleteUser", Of::Others, WRITE),
    ("v2.UserService/ListNoticeRecipients", Of::Any, TELLERS),
    ("v1.UserService/CreateUser", Of::Theirs, LOCATION_WRITE),
    ("v1.UserService/CreateUser", Of::Others, WRITE),
    ("v1.UserService/GetUser", Of::Any, READ),
    ("v1.UserService/ListUsers", Of::Any, READ),
    ("v1.UserService/UpdateUser", Of::Theirs, LOCATION_WRITE),
    ("v1.UserService/UpdateUser", Of::Others, WRITE),
    ("v1.UserService/DeleteUser", Of::Theirs, LOCATION_WRITE),
    ("v1.UserService/DeleteUser", Of::Others, WRITE),
];

#[test]
fn every_method_has_a_row() {
    let files = FileDescriptorSet::decode(keysweep_proto::FILE_DESCRIPTOR_SET).expect("descriptors").file;
    let mut there = BTreeSet::new();
    for file in files.iter() {
        let Some(version) = file.package().strip_prefix("keysweep.location.") else { continue };
        for service in &file.service {
            there.extend(service.method.iter().map(|method| format!("{version}.{}/{}", service.name(), method.name())));
        }
    }
    let rows: BTreeSet<_> = TABLE.iter().map(|(method, _, _)| (*method).to_owned()).collect();
    assert_eq!(rows, there);
}

#[test]
fn the_documentation_shows_this_table() {
    let row = |cells: Vec<&str>| format!("| {} |", cells.join(" | "));
    let mut expected = vec![row([&["method"], ROLES.as_slice()].concat())];
    for (method, of, cells) in TABLE {
        let name = format!("`{method}`{}", of.words());
        expected.push(row([&[name.as_str()], cells.as_slice()].concat()));
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/roles.md");
    let text = std::fs::read_to_string(path).expect("docs/roles.md");
    let shown: Vec<_> = text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---")).collect();
    assert_eq!(shown, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_role_gets_what_the_table_says() {
    let stage = Stage::set().await;
    let mut wrong = Vec::new();
    for (method, of, cells) in TABLE {
        for (column, expected) in cells.into_iter().enumerate() {
            let answer = stage.attempt(method, of, stage.actors[column].as_deref()).await;
            let got = match &answer {
                Ok(()) => "yes".to_owned(),
                Err(status) => match (status.code(), reason(status).as_str()) {
                    (Code::PermissionDenied, "ACTOR_NOT_ALLOWED") => "no".to_owned(),
                    (Code::Unauthenticated, "ACTOR_REQUIRED") => "log in".to_owned(),
                    (Code::NotFound, _) => "hidden".to_owned(),
                    _ => format!("{status:?}"),
                },
            };
            if got != expected {
                wrong.push(format!("{method}{}: {} gets {got}, not {expected}", of.words(), ROLES[column]));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    stage.world.stop().await;
}

/// An agency that has opted out, so that the legacy API writes, with two locations and somebody of each role.
struct Stage {
    world: World,
    agency_id: String,
    theirs: String,
    others: String,
    actors: [Option<String>; 9],
    fresh: AtomicU32,
}

impl Stage {
    async fn set() -> Self {
        let world = World::start(TestDatabase::new(Kind::Sqlite)).await;
        let (agency, foreign) = (world.agency("Agency").await, world.agency("Other").await);
        let id = agency.agency_id.as_str();
        let theirs = world.location(id, "Theirs").await.location_id;
        let others = world.location(id, "Other").await.location_id;
        let admin = world.agency_admin(id, "admin@example.com").await;
        let (place, worker) = (v2::RoleType::Location, v2::RoleLevel::User);
        let agency_user = world.user(id, "user@example.com", role(v2::RoleType::Agency, worker), &[]).await;
        let location_admin = world.location_admin(id, "manager@example.com", &[&theirs]).await;
        let location_user = world.user(id, "worker@example.com", role(place, worker), &[&theirs]).await;
        let stranger = world.agency_admin(&foreign.agency_id, "stranger@example.com").await;
        let disabled = world.agency_admin(id, "disabled@example.com").await;
        let disable = v2::UpdateUserRequest {
            user: Some(v2::User { user_id: disabled.user_id.clone(), disabled: true, ..Default::default() }),
            ..Default::default()
        };
        world.users().update_user(disable).await.expect("disabled");
        world.choose(&admin, false).await;
        let user = |user: v2::User| Some(format!("user/{}", user.user_id));
        let actors = [
            None,
            Some("service/notification".to_owned()),
            Some("api-key/key_1".to_owned()),
            user(admin),
            user(agency_user),
            user(location_admin),
            user(location_user),
            user(stranger),
            user(disabled),
        ];
        let agency_id = agency.agency_id;
        Self { world, agency_id, theirs, others, actors, fresh: AtomicU32::new(0) }
    }

    fn email(&self) -> String {
        format!("fresh{}@example.com", self.fresh.fetch_add(1, Ordering::Relaxed))
    }

    fn place(&self, of: Of) -> String {
        if of == Of::Others { self.others.clone() } else { self.theirs.clone() }
    }

    /// A user who is not there yet.
    fn newcomer(&self, of: Of) -> v2::CreateUserRequest {
        match of {
            Of::Others => {
                let role = role(v2::RoleType::Agency, v2::RoleLevel::User);
                new_user(&self.agency_id, &self.email(), role, &[], "")
            }
            Of::Any | Of::Theirs => {
                let role = role(v2::RoleType::Location, v2::RoleLevel::User);
                new_user(&self.agency_id, &self.email(), role, &[&self.theirs], "")
            }
        }
    }

    /// A user who is there, and whom nothing else uses.
    async fn user(&self, of: Of) -> String {
        self.world.users().create_user(self.newcomer(of)).await.expect("a user").into_inner().user_id
    }

    async fn location(&self, deleted: bool) -> String {
        let location_id = self.world.location(&self.agency_id, "Fresh").await.location_id;
        if deleted {
            let delete = v2::DeleteLocationRequest { location_id: location_id.clone(), ..Default::default() };
            self.world.locations().delete_location(delete).await.expect("deleted");
        }
        location_id
    }

    async fn attempt(&self, method: &str, of: Of, actor: Option<&str>) -> Result<(), Status> {
        match method.split_once('/') {
            Some(("v2.AgencyService", method)) => self.attempt_agencies(method, actor).await,
            Some(("v2.LocationService", method)) => self.attempt_locations(method, of, actor).await,
            Some(("v2.UserService", method)) => self.attempt_users(method, of, actor).await,
            Some(("v1.UserService", method)) => self.attempt_legacy_users(method, of, actor).await,
            _ => panic!("{method} belongs to no service"),
        }
    }

    async fn attempt_agencies(&self, method: &str, actor: Option<&str>) -> Result<(), Status> {
        let (mut client, agency_id) = (self.world.agencies(), self.agency_id.clone());
        let named = |agency_id: &str| v2::Agency {
            agency_id: agency_id.to_owned(),
            name: "Named".into(),
            ..Default::default()
        };
        match method {
            "CreateAgency" => {
                let request = v2::CreateAgencyRequest { agency: Some(named("")), ..Default::default() };
                client.create_agency(made_for(actor, request)).await.map(drop)
            }
            "GetAgency" => client.get_agency(made_for(actor, v2::GetAgencyRequest { agency_id })).await.map(drop),
            "ListAgencies" => {
                let listed = client.list_agencies(made_for(actor, v2::ListAgenciesRequest::default())).await?;
                let own = actor.is_some_and(|actor| actor.starts_with("user/"));
                assert!(!own || listed.into_inner().agencies.len() == 1, "a person sees another agency");
                Ok(())
            }
            "UpdateAgency" => {
                let request = v2::UpdateAgencyRequest { agency: Some(named(&agency_id)), ..Default::default() };
                client.update_agency(made_for(actor, request)).await.map(drop)
            }
            "GenerateAgencyApiKey" => {
                let request = v2::GenerateAgencyApiKeyRequest { agency_id, ..Default::default() };
                client.generate_agency_api_key(made_for(actor, request)).await.map(drop)
            }
            "GetSecuritySettings" => {
                let request = v2::GetSecuritySettingsRequest { agency_id };
                client.get_security_settings(made_for(actor, request)).await.map(drop)
            }
            "UpdateSecuritySettings" => {
                let request =
                    v2::UpdateSecuritySettingsRequest { agency_id, acknowledge_risk: true, ..Default::default() };
                client.update_security_settings(made_for(actor, request)).await.map(drop)
            }
            _ => panic!("AgencyService/{method} is not attempted"),
        }
    }

    async fn attempt_locations(&self, method: &str, of: Of, actor: Option<&str>) -> Result<(), Status> {
        let (mut client, location_id) = (self.world.locations(), self.place(of));
        match method {
            "CreateLocation" => {
                client.create_location(made_for(actor, new_location(&self.agency_id, "New", ""))).await.map(drop)
            }
            "GetLocation" => {
                client.get_location(made_for(actor, v2::GetLocationRequest { location_id })).await.map(drop)
            }
            "ListLocations" => {
                let request = v2::ListLocationsRequest { agency_id: self.agency_id.clone(), ..Default::default() };
                client.list_locations(made_for(actor, request)).await.map(drop)
            }
            "UpdateLocation" => {
                let location = Some(v2::Location { location_id, city: "Bern".into(), ..Default::default() });
                let request = v2::UpdateLocationRequest { location, ..Default::default() };
                client.update_location(made_for(actor, request)).await.map(drop)
            }
            "DeleteLocation" => {
                let request =
                    v2::DeleteLocationRequest { location_id: self.location(false).await, ..Default::default() };
                client.delete_location(made_for(actor, request)).await.map(drop)
            }
            "UndeleteLocation" => {
                let request =
                    v2::UndeleteLocationRequest { location_id: self.location(true).await, ..Default::default() };
                client.undelete_location(made_for(actor, request)).await.map(drop)
            }
            "GenerateLocationApiKey" => {
                let request = v2::GenerateLocationApiKeyRequest { location_id, ..Default::default() };
                client.generate_location_api_key(made_for(actor, request)).await.map(drop)
            }
            _ => panic!("LocationService/{method} is not attempted"),
        }
    }

    async fn attempt_users(&self, method: &str, of: Of, actor: Option<&str>) -> Result<(), Status> {
        let (mut client, agency_id) = (self.world.users(), self.agency_id.clone());
        match method {
            "CreateUser" => client.create_user(made_for(actor, self.newcomer(of))).await.map(drop),
            "GetUser" => {
                client.get_user(made_for(actor, v2::GetUserRequest { user_id: self.user(of).await })).await.map(drop)
            }
            "ListUsers" => client
                .list_users(made_for(actor, v2::ListUsersRequest { agency_id, ..Default::default() }))
                .await
                .map(drop),
            "UpdateUser" => {
                let user = v2::User { user_id: self.user(of).await, last_name: "New".into(), ..Default::default() };
                let request = v2::UpdateUserRequest { user: Some(user), ..Default::default() };
                client.update_user(made_for(actor, request)).await.map(drop)
            }
            "DeleteUser" => {
                let request = v2::DeleteUserRequest { user_id: self.user(of).await, ..Default::default() };
                client.delete_user(made_for(actor, request)).await.map(drop)
            }
            "ListNoticeRecipients" => {
                let request = v2::ListNoticeRecipientsRequest { agency_id, location_ids: Vec::new() };
                client.list_notice_recipients(made_for(actor, request)).await.map(drop)
            }
            _ => panic!("UserService/{method} is not attempted"),
        }
    }

    async fn attempt_legacy_users(&self, method: &str, of: Of, actor: Option<&str>) -> Result<(), Status> {
        let (mut client, agency_id) = (self.world.legacy_users(), self.agency_id.clone());
        match method {
            "CreateUser" => {
                let user = self.newcomer(of).user.map(|user| v1::User {
                    first_name: user.first_name,
                    email: user.email,
                    role: user.role.map(|role| v1::Role { r#type: role.r#type, level: role.level }),
                    location_ids: user.location_ids,
                    ..Default::default()
                });
                let request = v1::CreateUserRequest { agency_id, user, request_id: String::new() };
                client.create_user(made_for(actor, request)).await.map(drop)
            }
            "GetUser" => {
                client.get_user(made_for(actor, v1::GetUserRequest { user_id: self.user(of).await })).await.map(drop)
            }
            "ListUsers" => client
                .list_users(made_for(actor, v1::ListUsersRequest { agency_id, ..Default::default() }))
                .await
                .map(drop),
            "UpdateUser" => {
                let user = v1::User { user_id: self.user(of).await, last_name: "New".into(), ..Default::default() };
                let request = v1::UpdateUserRequest { user: Some(user), ..Default::default() };
                client.update_user(made_for(actor, request)).await.map(drop)
            }
            "DeleteUser" => {
                let request = v1::DeleteUserRequest { user_id: self.user(of).await, ..Default::default() };
                client.delete_user(made_for(actor, request)).await.map(drop)
            }
            _ => panic!("v1.UserService/{method} is not attempted"),
        }
    }
}

fn made_for<T>(actor: Option<&str>, message: T) -> Request<T> {
    match actor {
        None => Request::new(message),
        Some(actor) => support::act(actor, message),
    }
}
