//! A life: quarters one after the other on the same databases, every step drawn from the seed.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, ensure};
use chrono::{DateTime, Datelike, NaiveDate, TimeDelta, Utc};
use futures::future::join_all;
use keysweep::suite::Which;
use keysweep_proto::key::v1 as key;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use secrecy::SecretString;
use service_kit::clock::{Clock, SimulatedClock};
use service_kit::db::{self, DatabaseConfig};

use crate::ledger::{Ledger, Totals, files_with};
use crate::people::Deed;
use crate::site::Site;
use crate::world::World;

pub(crate) const IDLE: TimeDelta = TimeDelta::days(90);
pub(crate) const TICK: TimeDelta = TimeDelta::microseconds(1);
const WINDOW: TimeDelta = TimeDelta::hours(6);
/// When the last lot of a sweep is closed: 14 days after it, and a look.
const CLOSED: TimeDelta = TimeDelta::hours(14 * 24 + 2);

/// For so many moments at most events are waited for where nothing fails.
const CALM_MOMENTS: u32 = 4_000;

/// What came of a life.
pub(crate) struct Outcome {
    pub(crate) totals: Totals,
    pub(crate) violations: Vec<String>,
    /// What was done, step by step.
    pub(crate) trace: Vec<String>,
}

/// A life while it is lived.
pub(crate) struct Life {
    pub(crate) random: StdRng,
    pub(crate) site: Site,
    pub(crate) world: World,
    pub(crate) ledger: Ledger,
    pub(crate) agenda: BTreeMap<DateTime<Utc>, Vec<(usize, Deed)>>,
    pub(crate) requests: u64,
    trace: Vec<String>,
    loud: bool,
}

/// The sweep of the quarter after this instant.
pub(crate) fn next_sweep(after: DateTime<Utc>) -> DateTime<Utc> {
    let (year, month0) = (after.year(), (after.month0() / 3 + 1) * 3);
    let date = NaiveDate::from_ymd_opt(year + i32::from(month0 == 12), month0 % 12 + 1, 1);
    date.and_then(|date| date.and_hms_opt(0, 0, 0)).map(|at| at.and_utc()).unwrap_or(after)
}

async fn connect(url: String) -> anyhow::Result<sea_orm::DatabaseConnection> {
    let url = SecretString::from(url);
    db::connect(&DatabaseConfig { url, max_connections: 1, acquire_timeout_ms: 60_000, migrate_on_start: false }).await
}

/// Lives one life.
pub(crate) async fn live(seed: u64, quarters: u64, loud: bool) -> anyhow::Result<Outcome> {
    let mut random = StdRng::seed_from_u64(seed);
    let first = (0..random.random_range(1..=4))
        .fold(DateTime::<Utc>::UNIX_EPOCH + TimeDelta::days(20_800), |at, _| next_sweep(at));
    let truth = Arc::new(SimulatedClock::new(first - TimeDelta::days(100)));
    let counts = [random.random_range(1..=3), random.random_range(1..=2), random.random_range(1..=3)];
    let breaker = if random.random_bool(0.2) { 1 } else { 1_000 };
    let mut site = Site::build(counts, truth, seed, breaker).await?;
    for place in 0..site.slots.len() {
        ensure!(site.start(place).await?, "a process does not start");
    }
    site.lead_links(|alive| alive[0]);
    let clients = site.slots[site.alive(Which::Location)[0]].replica.as_ref().context("it lives")?.clients.clone();
    let world = site.patiently(World::populate(&clients)).await?;
    let databases = (site.database(Which::Key), site.database(Which::Notification));
    let ledger = Ledger::open(connect(databases.0).await?, connect(databases.1).await?);
    let mut life = Life { random, site, world, ledger, agenda: BTreeMap::new(), requests: 0, trace: Vec::new(), loud };
    life.say(format!("seed {seed}: {counts:?} processes, breaker at {breaker} keys"));
    let mut sweep = first;
    for _ in 0..quarters {
        life.quarter(sweep).await?;
        if !life.ledger.violations.is_empty() {
            break;
        }
        sweep = next_sweep(sweep);
    }
    life.end().await
}

impl Life {
    pub(super) fn now(&self) -> DateTime<Utc> {
        self.site.truth.now()
    }

    #[expect(clippy::print_stdout, reason = "whoever replays a seed wants to watch")]
    pub(super) fn say(&mut self, text: String) {
        let line = format!("{} {text}", self.now().format("%Y-%m-%d %H:%M:%S%.6f"));
        if self.loud {
            println!("{line}");
        }
        self.trace.push(line);
    }

    pub(super) fn chance(&mut self, probability: f64) -> bool {
        self.random.random_bool(probability)
    }

    /// One of these places.
    pub(super) fn pick(&mut self, places: &[usize]) -> Option<usize> {
        places.choose(&mut self.random).copied()
    }

    pub(super) fn between(&mut self, from: DateTime<Utc>, until: DateTime<Utc>) -> DateTime<Utc> {
        from + TimeDelta::seconds(self.random.random_range(0..(until - from).num_seconds().max(1)))
    }

    pub(super) async fn quarter(&mut self, sweep: DateTime<Utc>) -> anyhow::Result<()> {
        let window = sweep - TimeDelta::days(15) - WINDOW;
        self.say(format!("the quarter before {sweep}"));
        self.heal().await?;
        self.make_keys().await?;
        self.draw_fates(sweep, window);
        while self.now() < window - TimeDelta::hours(1) {
            let step = self.now() + TimeDelta::hours(self.random.random_range(60..240));
            let next = self.agenda.keys().next().copied().unwrap_or(step).min(step);
            self.site.advance_to(next.min(window - TimeDelta::hours(1)).max(self.now()));
            if self.chance(0.3) {
                self.harm_process().await?;
            }
            self.step().await?;
        }
        // In most quarters the faults end in time for the lots to be deleted, in some they never do.
        let healed = if self.chance(0.85) {
            self.between(sweep - TimeDelta::days(6), sweep + TimeDelta::days(2))
        } else {
            sweep + CLOSED
        };
        let mut calm = false;
        while self.now() < sweep + CLOSED && self.ledger.violations.is_empty() {
            let next = self.next_instant(window, calm).min(sweep + CLOSED);
            self.site.advance_to(next);
            if !calm && self.now() >= healed {
                calm = true;
                self.heal().await?;
            }
            if calm {
                self.calm_step().await?;
            } else {
                self.harm().await?;
                self.step().await?;
            }
        }
        self.heal().await?;
        self.calm_step().await?;
        self.ledger.close(&self.world, self.now()).await?;
        self.ledger.totals.quarters += 1;
        Ok(())
    }

    /// When something happens next: a deed, a mark of a lot, or just time passing.
    pub(super) fn next_instant(&mut self, window: DateTime<Utc>, calm: bool) -> DateTime<Utc> {
        let now = self.now();
        let minutes: &[i64] = if calm { &[360, 720, 1_440] } else { &[3, 11, 60, 180, 480, 960] };
        let mut next = now + TimeDelta::minutes(*minutes.choose(&mut self.random).unwrap_or(&60));
        let mut marks = vec![window];
        for lot in self.ledger.lots.values().filter(|lot| !lot.is_closed()) {
            for days in [15, 7, 1] {
                marks.extend([lot.delete_at - TimeDelta::days(days) - WINDOW, lot.delete_at - TimeDelta::days(days)]);
            }
            marks.extend([lot.delete_at - TICK, lot.delete_at]);
        }
        marks.extend(self.agenda.keys().next());
        for mark in marks.into_iter().filter(|mark| *mark > now) {
            next = next.min(mark);
        }
        next
    }

    /// One instant: people act, processes work in some order or at once, events arrive or not; then everything is judged.
    pub(super) async fn step(&mut self) -> anyhow::Result<()> {
        self.ledger.totals.steps += 1;
        self.deeds().await?;
        self.operate().await?;
        self.work().await?;
        if self.chance(0.8) {
            self.site.hear(&self.ledger, 20).await?;
        }
        if self.chance(0.4) {
            self.work().await?;
        }
        self.settle_accounts().await
    }

    /// One instant without faults: everybody works until nothing is left to do.
    pub(super) async fn calm_step(&mut self) -> anyhow::Result<()> {
        self.ledger.totals.steps += 1;
        self.deeds().await?;
        self.operate().await?;
        let mut failed = Vec::new();
        for _ in 0..12 {
            let before = self.work_done();
            if !self.site.hear(&self.ledger, CALM_MOMENTS).await? || !self.site.know_the_time(CALM_MOMENTS).await? {
                let heads = self.ledger.heads().await?;
                self.ledger.violated(format!("I8: events or the time do not arrive: {heads:?}"));
                break;
            }
            failed.clear();
            for place in 0..self.site.slots.len() {
                let Some(replica) = &self.site.slots[place].replica else { continue };
                let jobs = replica.jobs.clone();
                if let Err(error) = self.site.patiently(jobs.settle()).await {
                    failed.push(format!("process {place}: {error:#}"));
                }
            }
            self.settle_accounts().await?;
            if self.work_done() == before && failed.is_empty() {
                return Ok(());
            }
        }
        if !failed.is_empty() {
            self.ledger.violated(format!("I12: jobs fail although no fault is left: {failed:?}"));
        }
        Ok(())
    }

    pub(super) fn work_done(&self) -> u64 {
        self.site.slots.iter().filter_map(|slot| slot.replica.as_ref()).map(|replica| replica.jobs.work_done()).sum()
    }

    pub(super) async fn settle_accounts(&mut self) -> anyhow::Result<()> {
        for place in self.site.bury().await? {
            self.ledger.totals.crashes += 1;
            self.ledger.totals.crashes_at_commits += 1;
            self.say(format!("process {place} died at a commit"));
        }
        let now = self.now();
        self.ledger.look(&mut self.world, &self.site.post, now).await?;
        for violation in self.ledger.violations.clone() {
            self.say(format!("VIOLATION {violation}"));
        }
        Ok(())
    }

    /// Jobs of processes in some order, each to its end; now and then one job in all processes of a service at once.
    pub(super) async fn work(&mut self) -> anyhow::Result<()> {
        if self.chance(0.2) {
            return self.work_together().await;
        }
        let mut places: Vec<_> = Which::ALL.into_iter().flat_map(|which| self.site.alive(which)).collect();
        places.shuffle(&mut self.random);
        for place in places {
            let Some(replica) = &self.site.slots[place].replica else { continue };
            let (jobs, mut names) = (replica.jobs.clone(), replica.jobs.names());
            names.shuffle(&mut self.random);
            for name in names {
                if self.chance(0.7) {
                    self.note(place, name, self.site.patiently(jobs.activate(name)).await);
                }
            }
        }
        Ok(())
    }

    pub(super) async fn work_together(&mut self) -> anyhow::Result<()> {
        for which in [Which::Key, Which::Notification] {
            let all: Vec<_> = self.site.alive(which);
            let handles: Vec<_> =
                all.iter().filter_map(|place| Some(self.site.slots[*place].replica.as_ref()?.jobs.clone())).collect();
            let Some(mut names) = handles.first().map(|jobs| jobs.names()) else { continue };
            names.shuffle(&mut self.random);
            for name in names {
                let reports = self.site.patiently(join_all(handles.iter().map(|jobs| jobs.activate(name)))).await;
                for (place, report) in all.iter().zip(reports) {
                    self.note(*place, name, report);
                }
            }
        }
        Ok(())
    }

    pub(super) fn note(&mut self, place: usize, job: &str, report: anyhow::Result<service_kit::jobs::JobReport>) {
        match report {
            Ok(report) if report.work > 0 => self.say(format!("process {place}: {job}: {}", report.detail)),
            Ok(_) => {}
            Err(error) => self.say(format!("process {place}: {job} failed: {error:#}")),
        }
    }

    /// The last judgement.
    pub(super) async fn end(mut self) -> anyhow::Result<Outcome> {
        if self.ledger.violations.is_empty() {
            self.replay().await?;
            self.look_back().await?;
        }
        for lot in self.ledger.lots.values() {
            self.ledger.totals.executed += u64::from(lot.state == 3);
            self.ledger.totals.put_off += u64::from(lot.state == 4);
        }
        for slot in &mut self.site.slots {
            if let Some(replica) = slot.replica.take() {
                replica.crash().await?;
            }
        }
        Ok(Outcome { totals: self.ledger.totals, violations: self.ledger.violations, trace: self.trace })
    }

    /// I7.
    pub(super) async fn replay(&mut self) -> anyhow::Result<()> {
        let (auditor, database) = self.site.start_auditor().await?;
        let replayed = connect(database.clone()).await?;
        let witness = Ledger::open(connect(self.site.database(Which::Key)).await?, replayed);
        self.site.slots.push(auditor);
        let heard = self.site.hear(&witness, CALM_MOMENTS).await?;
        if !heard {
            self.ledger.violated("I7: the history is not heard from its first event".to_owned());
        }
        self.ledger.compare_with(&connect(database).await?).await
    }

    /// No key that nobody asked for, no secret on disk, an unbroken audit.
    pub(super) async fn look_back(&mut self) -> anyhow::Result<()> {
        let (there, asked) = (self.ledger.key_count().await?, self.world.keys.len());
        if there != asked as i64 {
            self.ledger.violated(format!("{there} keys, {asked} asked for"));
        }
        let secrets: Vec<_> = self.world.keys.iter().map(|key| key.secret.as_str()).collect();
        for file in files_with(self.site.folder.path(), &secrets)? {
            self.ledger.violated(format!("I10: {file} holds a secret"));
        }
        let place = self.pick(&self.site.alive(Which::Key)).context("it lives")?;
        let mut keys = self.site.slots[place].replica.as_ref().context("it lives")?.clients.keys.clone();
        let proof = self.site.patiently(keys.verify_audit_chain(key::VerifyAuditChainRequest {})).await?.into_inner();
        if !proof.intact {
            self.ledger.violated(format!("the audit is broken at {}", proof.first_broken_sequence));
        }
        Ok(())
    }
}
