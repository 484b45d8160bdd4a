//! The world that a quarter is played in: agencies, locations, people and their keys, made over the public API.

use std::collections::HashMap;

use anyhow::Context;
use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt, stream};
use keysweep_proto::location::v2 as location;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use crate::clients::{Clients, made_for};
use crate::quarter::fate::Fate;

/// Calls in flight while the world is made; more only queue before one disk.
pub(crate) const CONCURRENCY: usize = 16;

/// An account: an agency, or one of its locations, by their places in [`World`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Account {
    pub(crate) agency: usize,
    pub(crate) location: Option<usize>,
}

/// An agency.
#[derive(Clone, Debug)]
pub(crate) struct Agency {
    pub(crate) id: String,
    pub(crate) admins: Vec<String>,
}

/// A location.
#[derive(Clone, Debug)]
pub(crate) struct Location {
    pub(crate) id: String,
    pub(crate) agency: usize,
    pub(crate) admins: Vec<String>,
}

/// A key, and what truly happened to it, as its owner saw it.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) id: String,
    /// Empty where only its hash was imported.
    pub(crate) secret: String,
    pub(crate) prefix: String,
    pub(crate) account: Account,
    pub(crate) created_at: DateTime<Utc>,
    /// When a verification was answered VALID, in order.
    pub(crate) uses: Vec<DateTime<Utc>>,
    /// When a person revoked it or rotated it away.
    pub(crate) ended_at: Option<DateTime<Utc>>,
    pub(crate) fate: Fate,
}

impl Key {
    /// The effective last use as of `at`.
    pub(crate) fn last_use(&self, at: DateTime<Utc>) -> DateTime<Utc> {
        self.uses.iter().copied().filter(|used| *used <= at).fold(self.created_at, DateTime::max)
    }

    /// Whether it was used or ended after `from` and before `until`.
    pub(crate) fn stirred(&self, from: DateTime<Utc>, until: DateTime<Utc>) -> bool {
        self.uses.iter().copied().chain(self.ended_at).any(|at| from < at && at < until)
    }
}

/// Everything there is.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) agencies: Vec<Agency>,
    pub(crate) locations: Vec<Location>,
    pub(crate) keys: Vec<Key>,
    /// People who are told nothing: no admins.
    pub(crate) bystanders: Vec<String>,
}

const PLACES: [(&str, &str, &str); 8] = [
    ("Harbour", "US", "America/New_York"),
    ("Lakeside", "US", "America/Chicago"),
    ("Summit", "CH", "Europe/Zurich"),
    ("Riverbank", "GB", "Europe/London"),
    ("Orchard", "IN", "Asia/Kolkata"),
    ("Lantern", "JP", "Asia/Tokyo"),
    ("Juniper", "AU", "Australia/Sydney"),
    ("Meadow", "BR", "America/Sao_Paulo"),
];
const TRADES: [&str; 8] = ["Dental", "Fitness", "Roofing", "Legal", "Realty", "Bakery", "Optics", "Motors"];
const USES: [&str; 8] =
    ["till", "website form", "calendar sync", "nightly export", "call tracker", "reviews", "old zap", "invoice bot"];
const PEOPLE: [(&str, &str); 8] = [
    ("Ada", "Byron"),
    ("Grace", "Murray"),
    ("Alan", "Mathison"),
    ("Edsger", "Wybe"),
    ("Barbara", "Huberman"),
    ("Tony", "Hoare"),
    ("Radia", "Joy"),
    ("Niklaus", "Emil"),
];

impl World {
    /// The place of a location, by its id.
    pub(crate) fn accounts(&self) -> HashMap<&str, Account> {
        let agencies =
            self.agencies.iter().enumerate().map(|(i, a)| (a.id.as_str(), Account { agency: i, location: None }));
        let locations = self
            .locations
            .iter()
            .enumerate()
            .map(|(i, l)| (l.id.as_str(), Account { agency: l.agency, location: Some(i) }));
        agencies.chain(locations).collect()
    }

    /// The id of the account.
    pub(crate) fn account_id(&self, account: Account) -> &str {
        account.location.map_or(&self.agencies[account.agency].id, |location| &self.locations[location].id)
    }

    /// Everybody who must be told about a key of the account.
    pub(crate) fn admins_of(&self, account: Account) -> impl Iterator<Item = &String> {
        let own = account.location.map(|location| &self.locations[location].admins);
        self.agencies[account.agency].admins.iter().chain(own.into_iter().flatten())
    }

    /// Makes agencies, locations and people; `locations` are spread over the agencies in turn.
    pub(crate) async fn populate(
        clients: &Clients,
        agencies: usize,
        locations: usize,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = Self::default();
        for index in 0..agencies {
            let name = name_of(index);
            world.add_agency(clients, &name, index, 1 + usize::from(rng.random_bool(0.5))).await?;
        }
        for index in 0..locations {
            let agency = index % agencies;
            let name = format!("{} {}", name_of(agency), index / agencies + 1);
            let admins = usize::from(rng.random_bool(0.6));
            world.add_location(clients, agency, &name, admins).await?;
        }
        Ok(world)
    }

    /// Makes an agency with its admins and one colleague who is none.
    pub(crate) async fn add_agency(
        &mut self,
        clients: &Clients,
        name: &str,
        index: usize,
        admins: usize,
    ) -> anyhow::Result<usize> {
        let (_, country, time_zone) = PLACES[index % PLACES.len()];
        let agency = location::Agency {
            name: name.to_owned(),
            email: format!("office@agency{index}.example"),
            country: country.to_owned(),
            time_zone: time_zone.to_owned(),
            ..Default::default()
        };
        let request = location::CreateAgencyRequest { agency: Some(agency), request_id: format!("agency-{index}") };
        let made = clients
            .agencies
            .clone()
            .create_agency(request)
            .await
            .with_context(|| format!("agency {name}"))?
            .into_inner();
        let place = self.agencies.len();
        self.agencies.push(Agency { id: made.agency_id, admins: Vec::new() });
        for number in 0..=admins {
            let level = if number < admins { location::RoleLevel::Admin } else { location::RoleLevel::User };
            let id = self.add_user(clients, place, location::RoleType::Agency, level, &[], number).await?;
            match level {
                location::RoleLevel::Admin => self.agencies[place].admins.push(id),
                _ => self.bystanders.push(id),
            }
        }
        Ok(place)
    }

    /// Makes a location with its admins.
    pub(crate) async fn add_location(
        &mut self,
        clients: &Clients,
        agency: usize,
        name: &str,
        admins: usize,
    ) -> anyhow::Result<usize> {
        let (_, country, time_zone) = PLACES[agency % PLACES.len()];
        let new = location::Location {
            name: name.to_owned(),
            country: country.to_owned(),
            time_zone: time_zone.to_owned(),
            ..Default::default()
        };
        let place = self.locations.len();
        let request = location::CreateLocationRequest {
            agency_id: self.agencies[agency].id.clone(),
            location: Some(new),
            request_id: format!("location-{place}"),
        };
        let made = clients
            .locations
            .clone()
            .create_location(request)
            .await
            .with_context(|| format!("location {name}"))?
            .into_inner();
        let ids = [made.location_id.clone()];
        self.locations.push(Location { id: made.location_id, agency, admins: Vec::new() });
        for number in 0..admins {
            let id = self
                .add_user(
                    clients,
                    agency,
                    location::RoleType::Location,
                    location::RoleLevel::Admin,
                    &ids,
                    100 + place + number,
                )
                .await?;
            self.locations[place].admins.push(id);
        }
        Ok(place)
    }

    async fn add_user(
        &self,
        clients: &Clients,
        agency: usize,
        kind: location::RoleType,
        level: location::RoleLevel,
        location_ids: &[String],
        number: usize,
    ) -> anyhow::Result<String> {
        let (first, last) = PEOPLE[(agency + number) % PEOPLE.len()];
        let user = location::User {
            first_name: first.to_owned(),
            last_name: last.to_owned(),
            email: format!("{}.{number}@agency{agency}.example", first.to_lowercase()),
            role: Some(location::Role { r#type: kind.into(), level: level.into() }),
            location_ids: location_ids.to_vec(),
            ..Default::default()
        };
        let request = location::CreateUserRequest {
            agency_id: self.agencies[agency].id.clone(),
            user: Some(user),
            request_id: format!("user-{agency}-{number}"),
        };
        Ok(clients.users.clone().create_user(request).await.context("a user")?.into_inner().user_id)
    }

    /// Has an agency's admin ask for each key, and notes what came of it. One in five belongs to the agency itself.
    pub(crate) async fn generate_keys(
        &mut self,
        clients: &Clients,
        count: usize,
        seed: u64,
        now: DateTime<Utc>,
        progress: impl Fn(u64),
    ) -> anyhow::Result<()> {
        let mut rng = StdRng::seed_from_u64(seed.wrapping_add(1));
        let mut wishes = Vec::with_capacity(count);
        for number in 0..count {
            let own = self.locations.is_empty() || rng.random_bool(0.2);
            let account = if own {
                Account { agency: number % self.agencies.len(), location: None }
            } else {
                let location = rng.random_range(0..self.locations.len());
                Account { agency: self.locations[location].agency, location: Some(location) }
            };
            let name = USES.choose(&mut rng).copied().unwrap_or_default();
            wishes.push((number, account, name, Fate::draw(number, &mut rng)));
        }
        let world = &*self;
        let keys: Vec<Key> = stream::iter(wishes)
            .map(|(number, account, name, fate)| async move {
                world.generate(clients, number, account, name, fate, now).await
            })
            .buffered(CONCURRENCY)
            .inspect_ok(|_| progress(1))
            .try_collect()
            .await?;
        self.keys = keys;
        Ok(())
    }

    async fn generate(
        &self,
        clients: &Clients,
        number: usize,
        account: Account,
        name: &str,
        fate: Fate,
        now: DateTime<Utc>,
    ) -> anyhow::Result<Key> {
        let agency = &self.agencies[account.agency];
        let actor = format!("user/{}", agency.admins[0]);
        let (display_name, request_id) = (name.to_owned(), format!("key-{number}"));
        let (key, secret) = match account.location {
            None => {
                let request = location::GenerateAgencyApiKeyRequest {
                    agency_id: agency.id.clone(),
                    display_name,
                    request_id,
                    ..Default::default()
                };
                let answer =
                    clients.agencies.clone().generate_agency_api_key(made_for(&actor, request)?).await?.into_inner();
                (answer.api_key, answer.secret)
            }
            Some(place) => {
                let location_id = self.locations[place].id.clone();
                let request = location::GenerateLocationApiKeyRequest {
                    location_id,
                    display_name,
                    request_id,
                    ..Default::default()
                };
                let answer =
                    clients.locations.clone().generate_location_api_key(made_for(&actor, request)?).await?.into_inner();
                (answer.api_key, answer.secret)
            }
        };
        let key = key.context("a generated key has no metadata")?;
        Ok(Key {
            id: key.key_id,
            secret,
            prefix: key.display_prefix,
            account,
            created_at: now,
            uses: Vec::new(),
            ended_at: None,
            fate,
        })
    }
}

fn name_of(index: usize) -> String {
    let (place, ..) = PLACES[index % PLACES.len()];
    let trade = TRADES[(index / PLACES.len() + index) % TRADES.len()];
    let round = index / (PLACES.len() * TRADES.len());
    if round == 0 { format!("{place} {trade}") } else { format!("{place} {trade} {}", round + 1) }
}
