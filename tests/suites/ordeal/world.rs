//! Who there is, and what truly happened to their keys.

use anyhow::Context;
use chrono::{DateTime, Utc};
use keysweep::clients::Clients;
use keysweep_proto::location::v2 as location;

use keysweep_e2e::post::NOBODY;

/// An agency: good admins and such whose address is refused, and the admins of each of its locations.
const AGENCIES: [(&str, usize, usize, &[usize]); 4] =
    [("Harbour", 1, 0, &[1, 0]), ("Lakeside", 2, 0, &[2]), ("Summit", 0, 1, &[1]), ("Orchard", 1, 1, &[0])];

/// A location.
#[derive(Debug)]
pub(crate) struct Location {
    pub(crate) id: String,
    pub(crate) admins: Vec<String>,
}

/// An agency.
#[derive(Debug)]
pub(crate) struct Agency {
    pub(crate) id: String,
    /// The admins with their addresses.
    pub(crate) admins: Vec<(String, String)>,
    pub(crate) locations: Vec<Location>,
}

impl Agency {
    /// Whether nobody of them can be reached by email.
    pub(crate) fn is_unreachable(&self) -> bool {
        self.admins.iter().all(|(_, address)| address.contains(NOBODY))
    }
}

/// A key as its owner saw it.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) id: String,
    pub(crate) secret: String,
    pub(crate) agency: usize,
    pub(crate) location: Option<usize>,
    /// When it was made or last answered VALID, by whichever was earlier: the true time or the clock of the process that answered.
    pub(crate) last_use: DateTime<Utc>,
    /// Whether somebody asked to end it, heard or not.
    pub(crate) ended: bool,
    /// When the sweep was seen to have deleted it.
    pub(crate) deleted_at: Option<DateTime<Utc>>,
}

impl Key {
    pub(crate) fn lives(&self) -> bool {
        !self.ended && self.deleted_at.is_none()
    }
}

/// Everything there is.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) agencies: Vec<Agency>,
    pub(crate) keys: Vec<Key>,
}

impl World {
    /// Makes agencies, locations and people.
    pub(crate) async fn populate(clients: &Clients) -> anyhow::Result<Self> {
        let mut world = Self::default();
        for (number, (name, good, refused, locations)) in AGENCIES.into_iter().enumerate() {
            let agency = location::Agency {
                name: name.to_owned(),
                email: format!("office@{number}.example"),
                country: "US".to_owned(),
                time_zone: "America/New_York".to_owned(),
                ..Default::default()
            };
            let request =
                location::CreateAgencyRequest { agency: Some(agency), request_id: format!("agency-{number}") };
            let id = clients.agencies.clone().create_agency(request).await?.into_inner().agency_id;
            let mut made = Agency { id, admins: Vec::new(), locations: Vec::new() };
            for admin in 0..good + refused {
                let host = if admin < good { "" } else { NOBODY };
                let email = format!("admin{admin}@{host}agency{number}.example");
                let id = user(clients, &made.id, &email, None).await?;
                made.admins.push((id, email));
            }
            for (place, admins) in locations.iter().enumerate() {
                let new = location::Location {
                    name: format!("{name} {place}"),
                    country: "US".to_owned(),
                    time_zone: "America/New_York".to_owned(),
                    ..Default::default()
                };
                let request = location::CreateLocationRequest {
                    agency_id: made.id.clone(),
                    location: Some(new),
                    request_id: format!("location-{number}-{place}"),
                };
                let id = clients.locations.clone().create_location(request).await?.into_inner().location_id;
                let mut there = Location { id, admins: Vec::new() };
                for admin in 0..*admins {
                    let email = format!("local{place}-{admin}@agency{number}.example");
                    there.admins.push(user(clients, &made.id, &email, Some(&there.id)).await?);
                }
                made.locations.push(there);
            }
            world.agencies.push(made);
        }
        Ok(world)
    }
}

async fn user(clients: &Clients, agency: &str, email: &str, of_location: Option<&str>) -> anyhow::Result<String> {
    let kind = if of_location.is_some() { location::RoleType::Location } else { location::RoleType::Agency };
    let user = location::User {
        first_name: "Ada".to_owned(),
        last_name: "Byron".to_owned(),
        email: email.to_owned(),
        role: Some(location::Role { r#type: kind.into(), level: location::RoleLevel::Admin.into() }),
        location_ids: of_location.map(str::to_owned).into_iter().collect(),
        ..Default::default()
    };
    let request = location::CreateUserRequest {
        agency_id: agency.to_owned(),
        user: Some(user),
        request_id: format!("user-{email}"),
    };
    Ok(clients.users.clone().create_user(request).await.context("a user")?.into_inner().user_id)
}
