//! What people do: ask for keys, use and revoke them, hold lots and release them.

use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use keysweep::clients::made_for;
use keysweep::suite::Which;
use keysweep_proto::key::v1 as key;
use keysweep_proto::location::v2 as location;
use rand::RngExt;
use rand::seq::IndexedRandom;
use service_kit::clock::Clock;

use crate::life::{IDLE, Life, TICK, next_sweep};
use crate::world::Key;

/// Keys that live at the beginning of each quarter, at least.
const KEYS: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Deed {
    Use,
    Revoke,
}

impl Life {
    /// What becomes of each key in this quarter, and who is used on the very edge of the next one.
    pub(super) fn draw_fates(&mut self, sweep: DateTime<Utc>, window: DateTime<Utc>) {
        let (start, following) = (self.now(), next_sweep(sweep) - IDLE);
        let alive: Vec<_> = (0..self.world.keys.len()).filter(|place| self.world.keys[*place].lives()).collect();
        for place in alive {
            let (at, deed) = match self.random.random_range(0..100) {
                0..40 => continue,
                40..60 => (self.between(start, window), Deed::Use),
                60..80 => (self.between(window, sweep), Deed::Use),
                80..86 => (self.between(sweep, sweep + TimeDelta::days(13)), Deed::Use),
                86..90 => (self.between(window, sweep), Deed::Revoke),
                90..95 => (following, Deed::Use),
                _ => (following + TICK, Deed::Use),
            };
            self.agenda.entry(at).or_default().push((place, deed));
        }
    }

    /// Tops up the keys, through location-service, whoever dies meanwhile.
    pub(super) async fn make_keys(&mut self) -> anyhow::Result<()> {
        while self.world.keys.iter().filter(|key| key.lives()).count() < KEYS {
            self.requests += 1;
            let request_id = format!("key-{}", self.requests);
            let agency = self.random.random_range(0..self.world.agencies.len());
            let locations = self.world.agencies[agency].locations.len();
            let location = self.chance(0.7).then(|| self.random.random_range(0..locations));
            let made = loop {
                if self.chance(0.1) {
                    self.harm_process().await?;
                }
                self.start_all().await?;
                match self.generate(agency, location, &request_id).await {
                    Ok(made) => break made,
                    Err(error) => self.say(format!("a key is asked for again: {error:#}")),
                }
            };
            let (id, secret) = made;
            let last_use = self.now();
            self.world.keys.push(Key { id, secret, agency, location, last_use, ended: false, deleted_at: None });
        }
        Ok(())
    }

    pub(super) async fn generate(
        &mut self,
        agency: usize,
        location: Option<usize>,
        request_id: &str,
    ) -> anyhow::Result<(String, String)> {
        let place = self.pick(&self.site.alive(Which::Location)).context("nobody is there")?;
        let clients = self.site.slots[place].replica.as_ref().context("it lives")?.clients.clone();
        let account = &self.world.agencies[agency];
        let actor = format!("user/{}", account.admins[0].0);
        let request_id = request_id.to_owned();
        let made = match location {
            None => {
                let request = location::GenerateAgencyApiKeyRequest {
                    agency_id: account.id.clone(),
                    request_id,
                    ..Default::default()
                };
                let mut agencies = clients.agencies;
                let answer = agencies.generate_agency_api_key(made_for(&actor, request)?);
                let answer = self.site.patiently(answer).await?.into_inner();
                (answer.api_key, answer.secret)
            }
            Some(location) => {
                let request = location::GenerateLocationApiKeyRequest {
                    location_id: account.locations[location].id.clone(),
                    request_id,
                    ..Default::default()
                };
                let mut locations = clients.locations;
                let answer = locations.generate_location_api_key(made_for(&actor, request)?);
                let answer = self.site.patiently(answer).await?.into_inner();
                (answer.api_key, answer.secret)
            }
        };
        Ok((made.0.context("no metadata")?.key_id, made.1))
    }

    /// What people do at this instant.
    pub(super) async fn deeds(&mut self) -> anyhow::Result<()> {
        let now = self.now();
        while let Some(entry) = self.agenda.first_entry().filter(|entry| *entry.key() <= now) {
            for (place, deed) in entry.remove() {
                if self.world.keys[place].lives() {
                    match deed {
                        Deed::Use => self.use_key(place).await?,
                        Deed::Revoke => self.revoke(place).await?,
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) async fn use_key(&mut self, place: usize) -> anyhow::Result<()> {
        let Some(by) = self.pick(&self.site.alive(Which::Key)) else { return Ok(()) };
        let fresh = self.chance(0.5);
        let replica = self.site.slots[by].replica.as_ref().context("it lives")?;
        let (clock, jobs, mut keys) = (replica.clock.clone(), replica.jobs.clone(), replica.clients.keys.clone());
        if fresh {
            // Answers from memory from now on, if it lives on; it may fail.
            let _: anyhow::Result<_> = self.site.patiently(jobs.activate("follow_changes")).await;
        }
        let asked = clock.now().min(self.now());
        let secret = self.world.keys[place].secret.clone();
        let request = key::VerifyKeyRequest { secret, ..Default::default() };
        let answer = self.site.patiently(keys.verify_key(request)).await;
        let id = self.world.keys[place].id.clone();
        match answer {
            Ok(answer) if answer.get_ref().valid => {
                let key = &mut self.world.keys[place];
                key.last_use = key.last_use.max(asked);
                self.ledger.totals.uses += 1;
                self.ledger.totals.rescues += u64::from(!answer.get_ref().plan_id.is_empty());
                let planned = answer.get_ref().plan_id.clone();
                self.say(format!("{id} is used by way of {by}, rescued from {planned:?}"));
            }
            Ok(answer) => {
                self.ledger.violated(format!("I2: {id} lives and was refused: {:?}", answer.get_ref().code()));
            }
            Err(status) => self.say(format!("{id} may have been used by way of {by}: {:?}", status.code())),
        }
        Ok(())
    }

    pub(super) async fn revoke(&mut self, place: usize) -> anyhow::Result<()> {
        let Some(by) = self.pick(&self.site.alive(Which::Key)) else { return Ok(()) };
        let replica = self.site.slots[by].replica.as_ref().context("it lives")?;
        let key = &mut self.world.keys[place];
        key.ended = true;
        let request = key::RevokeApiKeyRequest {
            key_id: key.id.clone(),
            reason: "no longer needed".to_owned(),
            request_id: format!("revoke-{place}"),
        };
        let actor = format!("user/{}", self.world.agencies[key.agency].admins[0].0);
        let (id, mut keys) = (key.id.clone(), replica.clients.keys.clone());
        let answer = self.site.patiently(keys.revoke_api_key(made_for(&actor, request)?)).await;
        self.say(format!("{id} is revoked by way of {by}: {:?}", answer.map(|_| ()).map_err(|status| status.code())));
        Ok(())
    }

    /// What an operator does: confirms what waits, holds a lot, releases one.
    pub(super) async fn operate(&mut self) -> anyhow::Result<()> {
        let Some(by) = self.pick(&self.site.alive(Which::Key)) else { return Ok(()) };
        let replica = self.site.slots[by].replica.as_ref().context("it lives")?;
        let mut sweeps = replica.clients.sweeps.clone();
        let (reason, request_id) = ("looked at it".to_owned(), String::new());
        for plan_id in self.ledger.unconfirmed().await? {
            if self.chance(0.3) {
                self.say(format!("{plan_id} is confirmed"));
                let request =
                    key::ConfirmPlanRequest { plan_id, reason: reason.clone(), request_id: request_id.clone() };
                // Asked again where it was not heard.
                let _: Result<_, _> =
                    self.site.patiently(sweeps.confirm_plan(made_for("user/operator", request)?)).await;
            }
        }
        let open: Vec<_> =
            self.ledger.lots.iter().filter(|(_, lot)| lot.state == 1).map(|(id, _)| id.clone()).collect();
        if self.chance(0.01)
            && let Some(id) = open.choose(&mut self.random).cloned()
        {
            let (plan_id, agency_id) = id.clone();
            let request =
                key::HoldLotRequest { plan_id, agency_id, reason: reason.clone(), request_id: request_id.clone() };
            if self.site.patiently(sweeps.hold_lot(made_for("user/operator", request)?)).await.is_ok() {
                self.say(format!("{id:?} is held"));
                self.ledger.held.insert(id);
            }
        }
        let held: Vec<_> = self.ledger.held.iter().cloned().collect();
        if self.chance(0.05)
            && let Some(id) = held.choose(&mut self.random).cloned()
        {
            // Whether heard or not: it may be released from now on.
            self.ledger.held.remove(&id);
            self.say(format!("{id:?} is released"));
            let (plan_id, agency_id) = id;
            let request = key::ReleaseLotRequest { plan_id, agency_id, reason, request_id };
            let _: Result<_, _> = self.site.patiently(sweeps.release_lot(made_for("user/operator", request)?)).await;
        }
        Ok(())
    }
}
