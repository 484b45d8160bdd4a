//! An account to begin with, made as a platform makes it.

use keysweep::clients::{Clients, made_for};
use keysweep_proto::key::v1 as key;
use keysweep_proto::location::v2 as location;

/// An agency with one admin and one location.
#[derive(Clone, Debug)]
pub struct Account {
    /// The agency.
    pub agency_id: String,
    /// Its location.
    pub location_id: String,
    /// Its admin, as an actor.
    pub admin: String,
}

/// Creates one.
///
/// # Panics
/// When a call is refused.
pub async fn create_account(clients: &Clients) -> Account {
    let agency = location::Agency {
        name: "Acme".into(),
        email: "office@acme.example".into(),
        country: "US".into(),
        time_zone: "America/New_York".into(),
        ..Default::default()
    };
    let request = location::CreateAgencyRequest { agency: Some(agency), request_id: "a1".into() };
    let agency_id = clients.agencies.clone().create_agency(request).await.expect("an agency").into_inner().agency_id;
    let request = location::CreateLocationRequest {
        agency_id: agency_id.clone(),
        location: Some(uptown()),
        request_id: "l1".into(),
    };
    let location_id =
        clients.locations.clone().create_location(request).await.expect("a location").into_inner().location_id;
    let role = location::Role { r#type: location::RoleType::Agency.into(), level: location::RoleLevel::Admin.into() };
    let user = location::User {
        first_name: "Ada".into(),
        last_name: "Byron".into(),
        email: "ada@acme.example".into(),
        role: Some(role),
        ..Default::default()
    };
    let request =
        location::CreateUserRequest { agency_id: agency_id.clone(), user: Some(user), request_id: "u1".into() };
    let user_id = clients.users.clone().create_user(request).await.expect("a user").into_inner().user_id;
    Account { agency_id, location_id, admin: format!("user/{user_id}") }
}

fn uptown() -> location::Location {
    location::Location {
        name: "Acme Uptown".into(),
        country: "US".into(),
        time_zone: "America/New_York".into(),
        ..Default::default()
    }
}

/// Generates a key of the location, for the admin.
///
/// # Errors
/// The status of a refusal.
///
/// # Panics
/// When the account's admin is no actor.
pub async fn generate(
    clients: &Clients,
    account: &Account,
    request_id: &str,
) -> Result<location::GenerateLocationApiKeyResponse, tonic::Status> {
    let request = location::GenerateLocationApiKeyRequest {
        location_id: account.location_id.clone(),
        display_name: "till".into(),
        request_id: request_id.into(),
        ..Default::default()
    };
    let request = made_for(&account.admin, request).expect("an actor");
    clients.locations.clone().generate_location_api_key(request).await.map(tonic::Response::into_inner)
}

/// What key-service says of a secret.
///
/// # Panics
/// When the call is refused.
pub async fn verify(clients: &Clients, secret: &str) -> key::VerifyKeyResponse {
    let request = key::VerifyKeyRequest { secret: secret.into(), ..Default::default() };
    clients.keys.clone().verify_key(request).await.expect("an answer").into_inner()
}
