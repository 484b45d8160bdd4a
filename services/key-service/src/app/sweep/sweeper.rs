//! What is due, done: one activation of the sweep.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use service_kit::clock::JumpWatch;
use service_kit::ids::IdGenerator;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::leadership::{Leadership, Standing};
use super::pace::Pace;
use super::ports::{BatchOrder, DueLot, Lease, LocalUses, LotOrder, LotOutcome, PlanDraft, SweepJobError, SweepStore};
use super::rest::Rest;
use super::signal::EventSignal;
use super::tick::{SweepStanding, SweepTick};
use crate::app::StorageError;
use crate::app::figures::FigureKeeper;
use crate::domain::sweep::schedule::{idle_since, last_delete_at, planning_closes_at};
use crate::domain::sweep::{Plan, PlanState, SweepPolicy, UsageVerdict, UsageWriter, clock_wait, judge_usage};
use crate::metrics::SWEEP_KEYS_DELETED;

/// Lots handled by one query. Small enough for one transaction, large enough that a query is no cost.
const PAGE: u32 = 200;

/// How often entries are compared with their keys while a plan is open. Each use rescues its entry itself; the comparison
/// finds only those whose use met the making of the plan.
const COMPARE_EVERY: TimeDelta = TimeDelta::minutes(10);

/// For how long after its publication a plan is compared at each activation: transactions that met its making end within.
const COMPARE_ALWAYS: TimeDelta = TimeDelta::minutes(2);

/// How often old events are looked for, where they are removed at all.
const FORGET_EVERY: TimeDelta = TimeDelta::hours(1);

/// Events removed by one transaction.
const FORGET_ROWS: u32 = 1_000;

/// A transaction that met another one is repeated this often before the next activation takes over.
const ATTEMPTS: u32 = 3;

/// Brings the database to what the rules of the sweep ask for at an instant. Of several, the one with the lease does.
pub struct Sweeper {
    parts: SweeperParts,
    rest: Rest,
    compared_at: Mutex<Option<DateTime<Utc>>>,
    forgot_at: Mutex<Option<DateTime<Utc>>>,
}

impl std::fmt::Debug for Sweeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sweeper")
            .field("policy", &self.parts.policy)
            .field("leadership", &self.parts.leadership)
            .finish_non_exhaustive()
    }
}

/// What a sweeper is made of.
pub struct SweeperParts {
    /// The sweep's part of the database.
    pub store: Arc<dyn SweepStore>,
    /// The uses of this process.
    pub usage: Arc<dyn LocalUses>,
    /// How many keys there are.
    pub figures: Arc<FigureKeeper>,
    /// Names plans.
    pub ids: IdGenerator,
    /// What the installation asks for.
    pub policy: SweepPolicy,
    /// Wakes the streams of this process.
    pub signal: EventSignal,
    /// Whether this replica sweeps.
    pub leadership: Arc<Leadership>,
    /// Whether the clock jumped.
    pub watch: Arc<JumpWatch>,
    /// Ends the work after the transaction that is under way: what is left is for whoever sweeps next.
    pub end: CancellationToken,
}

impl Sweeper {
    /// The sweeper of this process.
    pub fn new(parts: SweeperParts) -> Self {
        let rest = Rest::new(parts.usage.clone(), parts.end.clone());
        Self { parts, rest, compared_at: Mutex::default(), forgot_at: Mutex::default() }
    }

    /// Does what is due at `now`, if this replica is the one that sweeps. What another sweeper has done before is found done.
    ///
    /// # Errors
    /// When the database does not do its part; what was done stays done, and the next activation goes on from there.
    pub async fn tick(&self, now: DateTime<Utc>) -> Result<SweepTick, StorageError> {
        let mut tick = SweepTick::default();
        let ahead = self.parts.watch.ahead();
        let standing = self.parts.leadership.stand().await?;
        tick.clock_offset_us = self.parts.leadership.clock_offset().and_then(|offset| offset.num_microseconds());
        match standing {
            Standing::Follower => return Ok(tick),
            Standing::ClockOff { wait } => {
                tick.standing = SweepStanding::ClockOff;
                tick.waits.push(wait);
                return Ok(tick);
            }
            Standing::Leader { taken } => {
                tick.standing = SweepStanding::Leading;
                tick.lease_taken = taken;
            }
        }
        let result = self.run(&mut tick, ahead, now).await;
        if tick.work() > 0 {
            self.parts.signal.bump();
        }
        match result {
            Ok(()) => Ok(tick),
            Err(SweepJobError::LeaseLost) => {
                tracing::warn!("the sweeper's lease was lost: nothing more was written, another replica goes on");
                self.parts.leadership.lost();
                tick.standing = SweepStanding::LeaseLost;
                Ok(tick)
            }
            Err(SweepJobError::Ending) => {
                tracing::info!("this process ends: what is left of the sweep is for the next one");
                Ok(tick)
            }
            Err(SweepJobError::Storage(error)) => Err(error),
        }
    }

    /// The lease, for the next transaction, unless this process is to end.
    async fn lease(&self) -> Result<Lease, SweepJobError> {
        if self.parts.end.is_cancelled() {
            return Err(SweepJobError::Ending);
        }
        self.parts.leadership.lease().await
    }

    /// Lets another replica sweep, at once.
    ///
    /// # Errors
    /// When the database does not do its part; the lease then runs out by itself.
    pub async fn resign(&self) -> Result<(), StorageError> {
        self.parts.leadership.resign().await
    }

    async fn run(&self, tick: &mut SweepTick, ahead: TimeDelta, now: DateTime<Utc>) -> Result<(), SweepJobError> {
        self.confirm_or_cancel(tick, now).await?;
        self.plan(tick, now).await?;
        self.forget_events(tick, now).await?;
        let open = self.parts.store.plans_in(PlanState::Open).await?;
        if open.is_empty() {
            return Ok(());
        }
        loop {
            let lease = self.lease().await?;
            let deferred = repeat(|| self.parts.store.defer_overdue(&lease, PAGE, now)).await?;
            tick.lots_deferred += deferred;
            if deferred == 0 {
                break;
            }
        }
        if open.iter().any(|plan| plan.delete_at <= now) {
            self.delete(tick, ahead, now).await?;
            self.close_emptied(tick, now).await?;
        }
        tick.lots_held = self.parts.store.held_lots().await?;
        for plan in open.iter().filter(|plan| plan.delete_at <= now) {
            let lease = self.lease().await?;
            tick.plans_completed +=
                u64::from(repeat(|| self.parts.store.complete_plan(&lease, &plan.plan_id, now)).await?);
        }
        // What was deleted was compared by that.
        let open = if tick.plans_completed > 0 { self.parts.store.plans_in(PlanState::Open).await? } else { open };
        self.compare(tick, &open, now).await
    }

    /// Closes lots with nothing more to delete.
    async fn close_emptied(&self, tick: &mut SweepTick, now: DateTime<Utc>) -> Result<(), SweepJobError> {
        loop {
            let lease = self.lease().await?;
            let closed = repeat(|| self.parts.store.close_emptied(&lease, PAGE, now)).await?;
            tick.lots_executed += closed;
            if closed == 0 {
                return Ok(());
            }
        }
    }

    /// Publishes plans that an operator has confirmed, and ends those for which it is too late.
    async fn confirm_or_cancel(&self, tick: &mut SweepTick, now: DateTime<Utc>) -> Result<(), SweepJobError> {
        for plan in self.parts.store.plans_in(PlanState::AwaitingConfirmation).await? {
            if now > planning_closes_at(plan.delete_at) {
                let reason = "not confirmed while its notices could still go out in time";
                let lease = self.lease().await?;
                let done = repeat(|| self.parts.store.cancel_unpublished(&lease, &plan.plan_id, reason, now)).await?;
                tick.plans_cancelled += u64::from(done);
            } else if plan.confirmed_at.is_some()
                && let Some(idle_since) = self.trusted_cutoff(tick, idle_since(plan.delete_at), now).await?
            {
                let lease = self.lease().await?;
                let published =
                    repeat(|| self.parts.store.publish_confirmed(&lease, &plan.plan_id, idle_since, now)).await?;
                tick.plans_published += u64::from(published.is_some());
            }
        }
        Ok(())
    }

    /// Makes the plan that is due.
    async fn plan(&self, tick: &mut SweepTick, now: DateTime<Utc>) -> Result<(), SweepJobError> {
        let Some(delete_at) = self.parts.policy.plan_due(now) else { return Ok(()) };
        if self.parts.store.plan_for(delete_at).await?.is_some() {
            return Ok(());
        }
        let Some(idle_since) = self.trusted_cutoff(tick, idle_since(delete_at), now).await? else { return Ok(()) };
        let begun = self.parts.watch.lived();
        let draft = PlanDraft {
            plan_id: self.parts.ids.next("plan_", now),
            delete_at,
            idle_since,
            last_delete_at: last_delete_at(delete_at),
            stage_window: self.parts.policy.stage_window,
            breaker: self.parts.policy.breaker,
            active_key_count: self.parts.figures.keys().await?.active,
        };
        tracing::info!(plan_id = draft.plan_id, %delete_at, "a plan is being made");
        let lease = self.lease().await?;
        let made = repeat(|| self.parts.store.make_plan(&lease, &draft, now)).await?;
        tick.plan_ms = millis(self.since(begun));
        tick.plans_made += u64::from(made.is_some());
        Ok(())
    }

    /// The cutoff with the slack taken off where a dead replica's uses may be missing. None: a replica must store its uses first.
    async fn trusted_cutoff(
        &self,
        tick: &mut SweepTick,
        cutoff: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Result<Option<DateTime<Utc>>, StorageError> {
        self.parts.usage.flush().await;
        let writers = self.parts.store.usage_writers().await?;
        Ok(self.slack(tick, &writers, cutoff, now).map(|slack| cutoff - slack))
    }

    fn slack(
        &self,
        tick: &mut SweepTick,
        writers: &[UsageWriter],
        cutoff: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Option<TimeDelta> {
        match judge_usage(writers, self.parts.leadership.replica_id(), cutoff, self.parts.policy.recording_slack, now) {
            UsageVerdict::Exact => Some(TimeDelta::zero()),
            UsageVerdict::CountSlack => Some(self.parts.policy.recording_slack),
            UsageVerdict::Wait { replica_id } => {
                let wait = format!("usage not flushed by replica {replica_id}");
                if !tick.waits.contains(&wait) {
                    tracing::warn!(replica_id, "the sweep waits: usage not flushed");
                    tick.waits.push(wait);
                }
                None
            }
        }
    }

    /// Removes events that are old enough, if any ever are.
    async fn forget_events(&self, tick: &mut SweepTick, now: DateTime<Utc>) -> Result<(), SweepJobError> {
        let Some(retention) = self.parts.policy.event_retention else { return Ok(()) };
        let mut forgot_at = self.forgot_at.lock().await;
        if forgot_at.is_some_and(|last| last <= now && now < last + FORGET_EVERY) {
            return Ok(());
        }
        loop {
            let lease = self.lease().await?;
            let removed = repeat(|| self.parts.store.forget_events(&lease, now - retention, FORGET_ROWS)).await?;
            tick.events_removed += removed;
            if removed == 0 {
                *forgot_at = Some(now);
                return Ok(());
            }
        }
    }

    /// Rescues entries whose keys turned out to be no longer eligible.
    async fn compare(&self, tick: &mut SweepTick, open: &[Plan], now: DateTime<Utc>) -> Result<(), SweepJobError> {
        let mut compared_at = self.compared_at.lock().await;
        let due = compared_at.is_none_or(|last| now >= last + COMPARE_EVERY || now < last);
        for plan in open {
            let fresh = plan.published_at.is_some_and(|published| now < published + COMPARE_ALWAYS);
            if !due && !fresh {
                continue;
            }
            let mut after = None;
            loop {
                let (lease, begun) = (self.lease().await?, self.parts.watch.lived());
                let page = repeat(|| self.parts.store.rescue_ineligible(&lease, plan, after.clone(), now)).await?;
                tick.entries_kept += page.rescued;
                after = page.next;
                if after.is_none() {
                    break;
                }
                self.rest.after(self.since(begun)).await;
            }
        }
        if due {
            *compared_at = Some(now);
        }
        Ok(())
    }

    /// Deletes every lot whose gate is open, batch after batch, unless only a clock set forward says that its time has come.
    async fn delete(&self, tick: &mut SweepTick, ahead: TimeDelta, now: DateTime<Utc>) -> Result<(), SweepJobError> {
        let mut after = None;
        let mut writers = None;
        let mut pace = Pace::new(self.parts.policy.delete_batch, self.parts.watch.lived());
        while pace.goes_on(self.parts.watch.lived()) {
            let due = self.parts.store.due_lots(after.take(), PAGE, now).await?;
            let Some(last) = due.last() else { break };
            after = Some((last.plan_id.clone(), last.agency_id.clone()));
            let mut ready = Vec::with_capacity(due.len());
            for lot in due {
                if let Some(wait) = clock_wait(lot.delete_at, now, ahead) {
                    if !tick.waits.contains(&wait) {
                        tick.waits.push(wait);
                    }
                    continue;
                }
                if writers.is_none() {
                    self.parts.usage.flush().await;
                    writers = Some(self.parts.store.usage_writers().await?);
                }
                let known = writers.as_deref().unwrap_or_default();
                if let Some(slack) = self.slack(tick, known, idle_since(lot.delete_at), now) {
                    ready.push((lot, slack));
                }
            }
            for of_plan in ready.chunk_by(|(one, _), (next, _)| one.plan_id == next.plan_id) {
                self.delete_lots(tick, &mut pace, of_plan.to_vec(), now).await?;
            }
        }
        Ok(())
    }

    /// Deletes lots of one plan: as many of them at once as one batch takes, a large one in several.
    async fn delete_lots(
        &self,
        tick: &mut SweepTick,
        pace: &mut Pace,
        mut lots: Vec<(DueLot, TimeDelta)>,
        now: DateTime<Utc>,
    ) -> Result<(), SweepJobError> {
        while let Some((first, _)) = lots.first()
            && pace.goes_on(self.parts.watch.lived())
        {
            let (plan_id, limit) = (first.plan_id.clone(), pace.entries());
            let fit = fitting(&lots, limit);
            let order = |(lot, slack): &(DueLot, TimeDelta)| LotOrder {
                agency_id: lot.agency_id.clone(),
                delete_at: lot.delete_at,
                slack: *slack,
            };
            let order = BatchOrder { plan_id, lots: lots.iter().take(fit).map(order).collect(), limit };
            let lease = self.lease().await?;
            let (done, took) = repeat(|| async {
                let begun = self.parts.watch.lived();
                self.parts.store.delete_batch(&lease, &order, now).await.map(|done| (done, self.since(begun)))
            })
            .await?;
            let (mut worked, mut outcomes, before) = (0, done.iter(), tick.keys_deleted);
            lots.retain(|_| match outcomes.next() {
                // Not of this batch.
                None => true,
                Some(LotOutcome::Blocked(_)) => false,
                Some(LotOutcome::Done { deleted, kept, closed }) => {
                    tick.keys_deleted += deleted;
                    tick.entries_kept += kept;
                    tick.lots_executed += u64::from(*closed);
                    worked += deleted + kept;
                    !closed && deleted + kept > 0
                }
            });
            metrics::counter!(SWEEP_KEYS_DELETED.name).increment(tick.keys_deleted - before);
            pace.note(worked, took);
            if pace.is_time_to_speak(self.parts.watch.lived()) {
                let (keys_deleted, lots_executed) = (tick.keys_deleted, tick.lots_executed);
                tracing::info!(plan_id = %order.plan_id, keys_deleted, lots_executed, "a sweep is deleting");
            }
            tick.longest_batch_ms = tick.longest_batch_ms.max(millis(took));
            self.parts.signal.bump();
            self.rest.after(took).await;
        }
        Ok(())
    }

    /// Time lived since an instant of it.
    fn since(&self, begun: Duration) -> Duration {
        self.parts.watch.lived().saturating_sub(begun)
    }
}

fn millis(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}

/// How many lots a batch takes: as many as have no more entries together, and then one that has more.
fn fitting(lots: &[(DueLot, TimeDelta)], limit: u32) -> usize {
    let mut entries = 0;
    let before = |(lot, _): &&(DueLot, TimeDelta)| {
        let fits = entries < i64::from(limit);
        entries += lot.entry_count.max(1);
        fits
    };
    lots.iter().take_while(before).count()
}

/// Repeats a transaction that met another one.
async fn repeat<T, F>(mut transaction: impl FnMut() -> F) -> Result<T, SweepJobError>
where
    F: Future<Output = Result<T, SweepJobError>>,
{
    for _ in 1..ATTEMPTS {
        match transaction().await {
            Err(SweepJobError::Storage(StorageError::Conflict(cause))) => {
                tracing::debug!(cause, "a transaction of the sweep met another one")
            }
            result => return result,
        }
    }
    transaction().await
}
