//! What fails, as the seed has it, and how it ends.

use anyhow::ensure;
use chrono::TimeDelta;
use keysweep::suite::Which;
use keysweep_e2e::post::Mood;
use rand::RngExt;
use rand::seq::IndexedRandom;

use crate::life::Life;
use crate::link::Weather;
use crate::replica::{Effect, Replica};

impl Life {
    /// Faults, as the seed has them.
    pub(super) async fn harm(&mut self) -> anyhow::Result<()> {
        self.harm_process().await?;
        let now = self.now();
        for place in 0..self.site.slots.len() {
            for link in 0..self.site.slots[place].links.len() {
                let weather = self.site.slots[place].links[link].1.weather();
                let (change, to) = match weather {
                    Weather::Fair => {
                        (0.03, *[Weather::Cut, Weather::Silent].choose(&mut self.random).unwrap_or(&Weather::Cut))
                    }
                    Weather::Cut | Weather::Silent => (0.3, Weather::Fair),
                };
                if self.chance(change) {
                    self.ledger.totals.partitions += u64::from(to != Weather::Fair);
                    self.say(format!("the network from {place} to {:?}: {to:?}", self.site.slots[place].links[link].0));
                    self.site.slots[place].links[link].1.set(to);
                }
            }
            let skewed = self.site.slots[place].skew != TimeDelta::zero();
            let which = self.site.slots[place].which;
            // notification-service's stay wrong for long: people must be told in time by the others', or late and counted so.
            let (set, heal) = if which == Which::Notification { (0.15, 0.05) } else { (0.01, 0.3) };
            if self.chance(if skewed { heal } else { set }) {
                let skew = if skewed { TimeDelta::zero() } else { self.draw_skew(which) };
                self.ledger.totals.jumps += u64::from(!skewed);
                self.say(format!("the clock of {place} is set to {skew} from true"));
                self.site.set_clock(place, skew);
            }
        }
        if self.chance(0.15) {
            let moods = [
                Mood::Good,
                Mood::Deferring,
                Mood::Closed,
                Mood::Leaving,
                Mood::Vanishing,
                Mood::Cutting,
                Mood::Silent,
            ];
            let mood = *moods.choose(&mut self.random).unwrap_or(&Mood::Good);
            self.say(format!("the mail server is {mood:?}"));
            self.site.post.set(mood);
        }
        if self.chance(0.01) {
            let which =
                *[Which::Key, Which::Notification, Which::Location].choose(&mut self.random).unwrap_or(&Which::Key);
            let until = now + TimeDelta::hours(self.random.random_range(1..12 * 24));
            self.ledger.totals.absences += 1;
            self.say(format!("{} is away until {until}", which.name()));
            for place in 0..self.site.slots.len() {
                if self.site.slots[place].which == which {
                    self.site.slots[place].away_until = until;
                    self.crash(place).await?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn draw_skew(&mut self, which: Which) -> TimeDelta {
        // Longer than a stage's window, so that it would show if people were told by it.
        let behind = if which == Which::Notification { 2 * 1_440 } else { 6 * 60 };
        if self.chance(0.5) {
            TimeDelta::minutes(self.random.random_range(1..20 * 1_440))
        } else {
            -TimeDelta::minutes(self.random.random_range(1..behind))
        }
    }

    /// A process dies, is going to die at a commit, or comes back.
    pub(super) async fn harm_process(&mut self) -> anyhow::Result<()> {
        let place = self.random.random_range(0..self.site.slots.len());
        match self.random.random_range(0..100) {
            0..5 => self.crash(place).await?,
            5..8 if self.site.slots[place].replica.as_ref().is_some_and(Replica::is_alive) => {
                self.say(format!("process {place} is stopped"));
                self.site.stop(place).await?;
            }
            8..24 => {
                let (after, effect) =
                    (self.random.random_range(0..6), if self.chance(0.5) { Effect::None } else { Effect::Whole });
                if let Some(replica) = &self.site.slots[place].replica {
                    replica.fuse.light(after, effect);
                    self.say(format!("process {place} will die after {after} commits, effect {effect:?}"));
                }
            }
            _ => {}
        }
        let now = self.now();
        for place in 0..self.site.slots.len() {
            let slot = &self.site.slots[place];
            if slot.replica.is_none() && slot.away_until <= now && self.chance(0.5) {
                self.say(format!("process {place} comes back"));
                self.site.start(place).await?;
            }
        }
        if self.chance(0.7) {
            self.lead_links();
        }
        Ok(())
    }

    pub(super) async fn crash(&mut self, place: usize) -> anyhow::Result<()> {
        if self.site.slots[place].replica.is_some() {
            self.ledger.totals.crashes += 1;
            self.say(format!("process {place} crashes"));
            self.site.crash(place).await?;
        }
        Ok(())
    }

    pub(super) fn lead_links(&mut self) {
        let random = &mut self.random;
        self.site.lead_links(|alive| alive.choose(random).copied().unwrap_or_default());
    }

    pub(super) async fn start_all(&mut self) -> anyhow::Result<()> {
        for place in self.site.bury().await? {
            self.ledger.totals.crashes += 1;
            self.ledger.totals.crashes_at_commits += 1;
            self.say(format!("process {place} died at a commit"));
        }
        for place in 0..self.site.slots.len() {
            if self.site.slots[place].replica.is_none() {
                self.say(format!("process {place} comes back"));
                ensure!(self.site.start(place).await?, "process {place} does not start");
            }
        }
        self.lead_links();
        Ok(())
    }

    /// Ends every fault.
    pub(super) async fn heal(&mut self) -> anyhow::Result<()> {
        self.say("all faults end".to_owned());
        self.site.heal();
        for replica in self.site.slots.iter().filter_map(|slot| slot.replica.as_ref()) {
            replica.fuse.put_out();
        }
        self.start_all().await
    }
}
