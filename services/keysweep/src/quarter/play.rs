//! Plays the quarter: moves the clock, does what people do, lets the services work, and writes down what they said.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use futures::{StreamExt, TryStreamExt, stream};
use keysweep_proto::key::v1 as key;
use keysweep_proto::notification::v1::GetSubscriptionRequest;
use rand::SeedableRng;
use rand::rngs::StdRng;
use service_kit::clock::{Clock, SimulatedClock};
use service_kit::time::from_proto;

use crate::clients::{Clients, made_for};
use crate::quarter::calendar::{BANNER, LATEST, TICK, WINDOW, lead};
use crate::quarter::facts::{self, Lot, Stage};
use crate::quarter::fate::{Deed, Fate};
use crate::quarter::timeline::{Timeline, Topic, count};
use crate::quarter::world::{Account, CONCURRENCY, World};
use crate::suite::{Suite, Which};

/// What was written down while the quarter was played.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    pub(crate) plan_id: Option<String>,
    /// When the plan was first seen.
    pub(crate) planned_at: Option<DateTime<Utc>>,
    pub(crate) announced: HashSet<String>,
    /// Uses of living keys that were refused.
    pub(crate) refused_uses: Vec<String>,
    /// Uses that were said to have rescued a key.
    pub(crate) rescues: HashSet<String>,
    /// Rescues that the timeline has yet to sum up.
    untold_rescues: usize,
    pub(crate) rotations: u64,
    pub(crate) banner_looks: u64,
    pub(crate) banner_faults: Vec<String>,
    pub(crate) banners_seen: HashSet<String>,
    /// Notices by (agency, stage) that the timeline has shown.
    shown: HashSet<(String, Stage)>,
    shown_moves: HashMap<String, DateTime<Utc>>,
}

/// The suite while a quarter is played on it.
pub(crate) struct Play {
    pub(crate) suite: Suite,
    pub(crate) clients: Clients,
    pub(crate) clock: Arc<SimulatedClock>,
    pub(crate) world: World,
    pub(crate) sweep: DateTime<Utc>,
    pub(crate) timeline: Timeline,
    pub(crate) notes: Notes,
}

/// notification-service is away for this span before the sweep, if the quarter has an outage.
const AWAY: (TimeDelta, TimeDelta) = (TimeDelta::days(16), TimeDelta::days(10));
/// How long a service on this machine may take to hear of an event.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(2);

impl Play {
    /// Plays until every lot of the sweep's plan is closed.
    pub(crate) async fn run(&mut self, seed: u64, outage: bool) -> anyhow::Result<()> {
        let start = self.clock.now();
        let mut agenda = self.agenda(seed, start);
        let mut stops = self.stops(start, outage);
        let end = self.sweep + LATEST + TimeDelta::days(2);
        let quiet_days = (self.sweep - lead(Stage::D15) - start).num_days().try_into().unwrap_or(0);
        let bar = self.timeline.bar(quiet_days, "the quarter passes");
        loop {
            let next =
                [agenda.first_key_value().map(|(at, _)| *at), stops.first().copied()].into_iter().flatten().min();
            let Some(next) = next.filter(|at| *at <= end) else { break };
            self.tell_rescues_until(next);
            self.clock.advance_to(next);
            bar.set_position((next - start).num_days().try_into().unwrap_or(0));
            let deeds = agenda.remove(&next).unwrap_or_default();
            let stop = stops.remove(&next);
            if outage {
                self.go_away(next).await?;
            }
            let noticed = next >= self.sweep - lead(Stage::D15) - WINDOW;
            if noticed {
                bar.finish_and_clear();
            }
            self.act(next, deeds).await?;
            if noticed || stop {
                self.settle().await?;
            }
            if noticed && self.look(next, &mut stops).await? {
                break;
            }
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// What people do, by instant.
    fn agenda(&self, seed: u64, start: DateTime<Utc>) -> BTreeMap<DateTime<Utc>, Vec<(usize, Deed)>> {
        let mut rng = StdRng::seed_from_u64(seed.wrapping_add(2));
        let mut agenda: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (place, key) in self.world.keys.iter().enumerate() {
            for (at, deed) in key.fate.deeds(start, self.sweep, &mut rng) {
                agenda.entry(at).or_default().push((place, deed));
            }
        }
        agenda
    }

    /// The instants at which the services are given time whatever people do; more come with each lot.
    fn stops(&self, start: DateTime<Utc>, outage: bool) -> BTreeSet<DateTime<Utc>> {
        let window = self.sweep - lead(Stage::D15) - WINDOW;
        let mut stops: BTreeSet<_> =
            (0..).map(|n| start + TimeDelta::days(5 * n)).take_while(|at| *at < window).collect();
        stops.extend([window - TICK, window, self.sweep - lead(Stage::D15), self.sweep]);
        stops.extend((1..24).map(|n| self.sweep - BANNER + TimeDelta::hours(n)));
        // Whatever was moved or held by then is looked at daily until the last day it may be deleted.
        stops.extend((0..=LATEST.num_days() + 1).map(|n| self.sweep + TimeDelta::days(n)));
        if outage {
            stops.extend([self.sweep - AWAY.0, self.sweep - AWAY.1]);
        }
        if start > window {
            stops.insert(start);
        }
        stops
    }

    async fn go_away(&mut self, now: DateTime<Utc>) -> anyhow::Result<()> {
        if now == self.sweep - AWAY.0 {
            self.suite.stop_one(Which::Notification).await?;
            self.timeline.line(now, Topic::Outage, "notification-service stops");
        } else if now == self.sweep - AWAY.1 {
            self.suite.start_one(Which::Notification).await?;
            self.clients = self.suite.clients()?;
            self.timeline.line(now, Topic::Outage, "notification-service is back, 10 days before the sweep");
        }
        Ok(())
    }

    /// Does what people do at this instant, all at once.
    async fn act(&mut self, now: DateTime<Utc>, deeds: Vec<(usize, Deed)>) -> anyhow::Result<()> {
        if deeds.is_empty() {
            return Ok(());
        }
        let (world, clients) = (&self.world, &self.clients);
        let done: Vec<(usize, Deed, Option<Verified>)> = stream::iter(deeds)
            .map(|(place, deed)| async move {
                let verified = match deed {
                    Deed::Use => Some(verify(clients, &world.keys[place].secret).await?),
                    Deed::Revoke => revoke(clients, world, place).await.map(|()| None)?,
                    Deed::Rotate => rotate(clients, world, place).await.map(|()| None)?,
                };
                anyhow::Ok((place, deed, verified))
            })
            .buffer_unordered(CONCURRENCY)
            .try_collect()
            .await?;
        let mut rescued = Vec::new();
        for (place, deed, verified) in done {
            let key = &mut self.world.keys[place];
            match (deed, verified) {
                (Deed::Use, Some(Verified { valid: true, plan_id, .. })) => {
                    key.uses.push(now);
                    if !plan_id.is_empty() {
                        self.notes.rescues.insert(key.id.clone());
                        rescued.push(place);
                    }
                }
                (Deed::Use, other) => self.notes.refused_uses.push(format!("{} at {now}: {other:?}", key.id)),
                (Deed::Revoke, _) => {
                    key.ended_at = Some(now);
                }
                (Deed::Rotate, _) => {
                    key.ended_at = Some(now);
                    self.notes.rotations += 1;
                }
            }
        }
        self.tell_rescues(now, &rescued);
        Ok(())
    }

    /// Names each rescue in a small world; in a large one sums them up by day.
    fn tell_rescues(&mut self, now: DateTime<Utc>, rescued: &[usize]) {
        const NAMED: usize = 200;
        if self.world.keys.len() > NAMED {
            self.notes.untold_rescues += rescued.len();
            return;
        }
        for place in rescued {
            let key = &self.world.keys[*place];
            let told = count(i64::try_from(self.world.admins_of(key.account).count()).unwrap_or(0), "admin");
            self.timeline.line(
                now,
                Topic::Rescue,
                &format!("{}… is used after all: it stays, and {told} will hear so", key.prefix),
            );
        }
    }

    /// Tells the rescues summed up so far, once their day is over.
    fn tell_rescues_until(&mut self, next: DateTime<Utc>) {
        let day = self.clock.now();
        let untold = i64::try_from(self.notes.untold_rescues).unwrap_or(i64::MAX);
        if untold > 0 && next.date_naive() != day.date_naive() {
            self.timeline.line(
                day,
                Topic::Rescue,
                &format!("{} used after all in this day: they stay", count(untold, "key")),
            );
            self.notes.untold_rescues = 0;
        }
    }

    /// Lets all three services work until nothing is left to do at this instant: until a pass over all of them, each having heard
    /// of what the others did before, finds no work.
    async fn settle(&self) -> anyhow::Result<()> {
        loop {
            let before = self.suite.work_done();
            self.suite.settle(Which::Key).await?;
            self.suite.settle(Which::Location).await?;
            if self.suite.is_running(Which::Notification) {
                self.caught_up().await?;
                self.suite.settle(Which::Notification).await?;
            }
            if self.suite.work_done() == before {
                return Ok(());
            }
        }
    }

    /// Waits until notification-service has applied every event that key-service has published, and knows the time.
    async fn caught_up(&self) -> anyhow::Result<()> {
        let request = key::ListSweepPlansRequest { page_size: 1_000, ..Default::default() };
        let plans = self.clients.sweeps.clone().list_sweep_plans(request).await?.into_inner().sweep_plans;
        let head = plans.iter().map(|plan| plan.last_sequence).max().unwrap_or(0);
        let waiting = async {
            loop {
                let known =
                    self.clients.notifications.clone().get_subscription(GetSubscriptionRequest {}).await?.into_inner();
                if known.applied_sequence >= head && known.sweep_time.is_some() {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting)
            .await
            .with_context(|| format!("notification-service has not heard of event {head}"))?
    }

    /// Looks at the plan and its lots, tells what is new, and answers whether the quarter is over.
    async fn look(&mut self, now: DateTime<Utc>, stops: &mut BTreeSet<DateTime<Utc>>) -> anyhow::Result<bool> {
        let Some(mut plan) = facts::plan_of(&self.clients, self.sweep).await? else { return Ok(false) };
        if plan.state() == key::PlanState::AwaitingConfirmation {
            plan = self.confirm(now, plan).await?;
        }
        if self.notes.plan_id.is_none() {
            self.first_look(now, &plan).await?;
        }
        let lots = facts::lots(&self.clients, &plan.plan_id).await?;
        for lot in lots.iter().filter(|lot| matches!(lot.state, key::LotState::Open | key::LotState::Held)) {
            let marks = Stage::ALL
                .into_iter()
                .flat_map(|stage| [lot.delete_at - lead(stage) - WINDOW, lot.delete_at - lead(stage)]);
            let edges = [lot.delete_at - BANNER - TICK, lot.delete_at - TICK, lot.delete_at];
            stops.extend(marks.chain(edges).filter(|at| *at > now));
        }
        self.tell_notices(now, &lots);
        self.tell_end(now, &plan, &lots);
        if self.suite.is_running(Which::Notification) {
            self.check_banners(now, &lots).await?;
        }
        Ok(matches!(plan.state(), key::PlanState::Completed | key::PlanState::Cancelled))
    }

    /// A plan above the breaker waits for an operator: here is one.
    async fn confirm(&mut self, now: DateTime<Utc>, plan: key::SweepPlan) -> anyhow::Result<key::SweepPlan> {
        let text = format!(
            "{} of {} would go: above the breaker, so it waits for an operator",
            plan.entry_count,
            count(plan.active_key_count, "key")
        );
        self.timeline.line(now, Topic::Hold, &text);
        let request = key::ConfirmPlanRequest {
            plan_id: plan.plan_id,
            reason: "looked at the preview".to_owned(),
            request_id: String::new(),
        };
        self.clients.sweeps.clone().confirm_plan(made_for("user/operator", request)?).await?;
        self.timeline.line(now, Topic::Hold, "an operator has looked at it, and confirms");
        self.settle().await?;
        let plan = facts::plan_of(&self.clients, self.sweep).await?.context("the plan has gone")?;
        ensure!(
            plan.state() != key::PlanState::AwaitingConfirmation,
            "the plan was confirmed and still waits: {}",
            plan.state_reason
        );
        Ok(plan)
    }

    async fn first_look(&mut self, now: DateTime<Utc>, plan: &key::SweepPlan) -> anyhow::Result<()> {
        self.notes.plan_id = Some(plan.plan_id.clone());
        self.notes.planned_at = plan.publish_time.as_ref().and_then(from_proto);
        self.notes.announced = facts::announced(&self.clients, &plan.plan_id).await?.into_iter().collect();
        let text = format!(
            "{} of {} will have been unused for 90 days on {}: announced",
            count(plan.entry_count, "key"),
            count(plan.lot_count, "agency"),
            self.sweep.format("%-d %B %Y"),
        );
        self.timeline.line(now, Topic::Plan, &text);
        Ok(())
    }

    /// New receipts, summed over the lots, and lots that moved or are held.
    fn tell_notices(&mut self, now: DateTime<Utc>, lots: &[Lot]) {
        for stage in Stage::ALL {
            let (mut in_app, mut emails, mut new) = (0, 0, 0);
            for lot in lots {
                if let Some(receipt) =
                    lot.receipts.get(&stage).filter(|_| self.notes.shown.insert((lot.agency_id.clone(), stage)))
                {
                    in_app += receipt.in_app;
                    emails += receipt.emails;
                    new += 1;
                }
            }
            if new > 0 {
                let text = format!(
                    "{} {} to the admins of {}",
                    stage.name(),
                    count(in_app, "notification"),
                    count(new, "agency")
                );
                self.timeline.line(now, Topic::InApp, &text);
            }
            if emails > 0 {
                self.timeline.line(
                    now,
                    Topic::Email,
                    &format!("{} {} with the complete list accepted", stage.name(), count(emails, "summary")),
                );
            }
        }
        let mut moves: BTreeMap<DateTime<Utc>, i64> = BTreeMap::new();
        for lot in lots.iter().filter(|lot| lot.delete_at > self.sweep) {
            if self.notes.shown_moves.insert(lot.agency_id.clone(), lot.delete_at) != Some(lot.delete_at) {
                *moves.entry(lot.delete_at).or_default() += 1;
            }
        }
        for (delete_at, moved) in moves {
            let text =
                format!("{} to {}: a notice came late", count(moved, "lot"), delete_at.format("%-d %B %Y %H:%M UTC"));
            self.timeline.line(now, Topic::Move, &text);
        }
        for lot in lots.iter().filter(|lot| lot.state == key::LotState::Held) {
            if self.notes.shown_moves.insert(format!("{} held", lot.agency_id), now).is_none() {
                self.timeline.line(
                    now,
                    Topic::Hold,
                    &format!("the lot of {} is held: {}", lot.agency_id, lot.state_reason),
                );
            }
        }
    }

    fn tell_end(&mut self, now: DateTime<Utc>, plan: &key::SweepPlan, lots: &[Lot]) {
        let closed: Vec<_> =
            lots.iter().filter(|lot| lot.planned == 0 && lot.delete_at == now && lot.deleted > 0).collect();
        if !closed.is_empty() {
            let deleted: i64 = closed.iter().map(|lot| lot.deleted).sum();
            let agencies = count(i64::try_from(closed.len()).unwrap_or(0), "agency");
            self.timeline.line(now, Topic::Sweep, &format!("{} of {agencies} deleted", count(deleted, "key")));
        }
        if plan.state() == key::PlanState::Completed {
            let text = format!(
                "the plan is completed: {} deleted, {} rescued, {} spared",
                plan.deleted_count, plan.rescued_count, plan.spared_count
            );
            self.timeline.line(now, Topic::Sweep, &text);
        }
    }

    /// Compares the banners that are shown with those that should be.
    async fn check_banners(&mut self, now: DateTime<Utc>, lots: &[Lot]) -> anyhow::Result<()> {
        let standing: HashMap<&str, bool> = lots
            .iter()
            .map(|lot| {
                (
                    lot.agency_id.as_str(),
                    lot.state == key::LotState::Open && lot.delete_at - BANNER <= now && now < lot.delete_at,
                )
            })
            .collect();
        let planned_at = self.notes.planned_at.unwrap_or(now);
        let mut expected: BTreeMap<String, i64> = BTreeMap::new();
        for key in self
            .world
            .keys
            .iter()
            .filter(|key| self.notes.announced.contains(&key.id) && !key.stirred(planned_at - TICK, now + TICK))
        {
            let agency = Account { location: None, ..key.account };
            if standing.get(self.world.account_id(agency)).copied().unwrap_or(false) {
                for account in [agency, key.account].into_iter().take(1 + usize::from(key.account.location.is_some())) {
                    *expected.entry(self.world.account_id(account).to_owned()).or_default() += 1;
                }
            }
        }
        let shown = facts::banners(&self.clients, &self.world).await?;
        self.notes.banner_looks += 1;
        if shown != expected {
            self.notes.banner_faults.push(format!("at {now}: {} shown, {} expected", shown.len(), expected.len()));
        }
        let news = shown.keys().filter(|account| self.notes.banners_seen.insert((*account).clone())).count();
        if news > 0 {
            let text = format!("{} shown for the last 24 hours", count(i64::try_from(news).unwrap_or(0), "banner"));
            self.timeline.line(now, Topic::Banner, &text);
        }
        Ok(())
    }

    /// How many keys have a fate in which they are used in quiet times, for the timeline.
    pub(crate) fn busy(&self) -> usize {
        self.world.keys.iter().filter(|key| key.fate == Fate::Busy).count()
    }
}

/// The part of a verification's answer that is looked at.
#[derive(Clone, Debug)]
pub(crate) struct Verified {
    pub(crate) valid: bool,
    pub(crate) code: key::VerifyCode,
    pub(crate) plan_id: String,
    pub(crate) deleted_at: Option<DateTime<Utc>>,
}

/// Presents a secret.
pub(crate) async fn verify(clients: &Clients, secret: &str) -> anyhow::Result<Verified> {
    let request = key::VerifyKeyRequest { secret: secret.to_owned(), ..Default::default() };
    let answer = clients.keys.clone().verify_key(request).await?.into_inner();
    let deleted_at = answer.delete_time.as_ref().and_then(from_proto);
    Ok(Verified { valid: answer.valid, code: answer.code(), plan_id: answer.plan_id, deleted_at })
}

async fn revoke(clients: &Clients, world: &World, place: usize) -> anyhow::Result<()> {
    let key = &world.keys[place];
    let request = key::RevokeApiKeyRequest {
        key_id: key.id.clone(),
        reason: "no longer needed".to_owned(),
        request_id: format!("revoke-{place}"),
    };
    let actor = format!("user/{}", world.agencies[key.account.agency].admins[0]);
    clients.keys.clone().revoke_api_key(made_for(&actor, request)?).await?;
    Ok(())
}

async fn rotate(clients: &Clients, world: &World, place: usize) -> anyhow::Result<()> {
    let key = &world.keys[place];
    let request =
        key::RotateApiKeyRequest { key_id: key.id.clone(), overlap: None, request_id: format!("rotate-{place}") };
    let actor = format!("user/{}", world.agencies[key.account.agency].admins[0]);
    clients.keys.clone().rotate_api_key(made_for(&actor, request)?).await?;
    Ok(())
}
