//! Takes an adopter's keys over from a file, with agencies, locations and admins made up around them.

use std::collections::HashMap;
use std::fs::File;
use std::io::Seek;
use std::path::Path;

use anyhow::{Context, bail};
use chrono::{DateTime, Utc};
use key_service::import_csv;
use keysweep_proto::key::v1 as key;
use service_kit::time::from_proto;

use crate::clients::Clients;
use crate::quarter::facts::instant;
use crate::quarter::fate::Fate;
use crate::quarter::play::Play;
use crate::quarter::world::{Account, Key, World};

/// Imports the file as `key-service import` does, into the accounts made up for it; answers how many rows were refused.
pub(crate) async fn take_over(play: &mut Play, file: &Path, now: DateTime<Utc>) -> anyhow::Result<u64> {
    let (rewritten, secrets) = rewrite(&play.clients, &mut play.world, file)
        .await
        .with_context(|| format!("cannot import {}", file.display()))?;
    let summary = import_csv::import(rewritten, play.clients.keys.clone(), |_| ()).await?;
    play.world.keys = note_keys(&play.clients, &play.world, &secrets, now).await?;
    Ok(summary.refused)
}

/// Copies the file with the ids of the made-up accounts in place of its own, and notes the secrets by their references.
async fn rewrite(
    clients: &Clients,
    world: &mut World,
    file: &Path,
) -> anyhow::Result<(File, HashMap<(String, String), String>)> {
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_path(file)?;
    let header = reader.headers()?.clone();
    let column = |name: &str| header.iter().position(|own| own.trim_start_matches('\u{feff}').trim() == name);
    let Some(agency_column) = column("agency_id") else { bail!("the header lacks the column agency_id") };
    let location_column = column("location_id");
    let (secret_column, reference_column) = (column("secret"), column("external_reference"));

    let mut accounts = Accounts::default();
    let mut secrets = HashMap::new();
    let mut copy = csv::WriterBuilder::new().flexible(true).from_writer(tempfile::tempfile()?);
    copy.write_record(&header)?;
    for record in reader.records() {
        let record = record?;
        let text = |column: Option<usize>| column.and_then(|place| record.get(place)).unwrap_or_default();
        let account = accounts.find(clients, world, text(Some(agency_column)), text(location_column)).await?;
        let agency_id = world.agencies[account.agency].id.clone();
        secrets.insert((agency_id.clone(), text(reference_column).to_owned()), text(secret_column).to_owned());
        copy.write_record(record.iter().enumerate().map(|(place, own)| match account.location {
            _ if place == agency_column && !own.is_empty() => agency_id.as_str(),
            Some(location) if Some(place) == location_column => world.locations[location].id.as_str(),
            _ => own,
        }))?;
    }
    let mut copy = copy.into_inner().map_err(|e| anyhow::anyhow!("cannot copy the file: {e}"))?;
    copy.rewind()?;
    Ok((copy, secrets))
}

/// The made-up accounts, by the ids that the file uses.
#[derive(Default)]
struct Accounts {
    agencies: HashMap<String, usize>,
    locations: HashMap<(usize, String), usize>,
}

impl Accounts {
    async fn find(
        &mut self,
        clients: &Clients,
        world: &mut World,
        agency: &str,
        location: &str,
    ) -> anyhow::Result<Account> {
        let place = match self.agencies.get(agency) {
            Some(place) => *place,
            None => {
                let name = if agency.is_empty() { "unnamed" } else { agency };
                let place = world.add_agency(clients, name, world.agencies.len(), 1).await?;
                self.agencies.insert(agency.to_owned(), place);
                place
            }
        };
        if location.is_empty() {
            return Ok(Account { agency: place, location: None });
        }
        let known = (place, location.to_owned());
        let location_place = match self.locations.get(&known) {
            Some(location_place) => *location_place,
            None => {
                let location_place = world.add_location(clients, place, location, 1).await?;
                self.locations.insert(known, location_place);
                location_place
            }
        };
        Ok(Account { agency: place, location: Some(location_place) })
    }
}

/// The imported keys as key-service has them now.
async fn note_keys(
    clients: &Clients,
    world: &World,
    secrets: &HashMap<(String, String), String>,
    now: DateTime<Utc>,
) -> anyhow::Result<Vec<Key>> {
    let accounts = world.accounts();
    let (mut keys, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = key::ListApiKeysRequest { page_size: 1_000, page_token, ..Default::default() };
        let page = clients.keys.clone().list_api_keys(request).await?.into_inner();
        for one in page.api_keys {
            let (agency, owner) = match one.owner.and_then(|owner| owner.account).context("a key lacks its owner")? {
                key::owner::Account::AgencyId(id) => (id.clone(), id),
                key::owner::Account::Location(location) => (location.agency_id, location.location_id),
            };
            let account = *accounts.get(owner.as_str()).context("a key has an owner that was not made up")?;
            let used_at = one.last_use_time.as_ref().and_then(from_proto).filter(|at| *at <= now);
            keys.push(Key {
                secret: secrets.get(&(agency, one.external_reference)).cloned().unwrap_or_default(),
                id: one.key_id,
                prefix: one.display_prefix,
                account,
                created_at: instant(one.create_time)?,
                uses: used_at.into_iter().collect(),
                ended_at: None,
                fate: Fate::Imported,
            });
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(keys);
        }
    }
}
