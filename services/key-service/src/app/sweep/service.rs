//! What notices, operators, readers and subscribers may ask of the sweep.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use service_kit::actor::Actor;
use service_kit::clock::{JumpWatch, SharedClock};
use service_kit::page::{self, Page};
use service_kit::violations::Violations;

use super::error::SweepError;
use super::leadership::Leadership;
use super::ports::{
    Command, DeskError, EntryFilter, History, LotFilter, LotView, NoticeResult, PlanFilter, PlanView, Preview,
    PreviewFilter, SweepStore,
};
use super::signal::EventSignal;
use crate::app::StorageError;
use crate::domain::audit::Origin;
use crate::domain::sweep::schedule::idle_since;
use crate::domain::sweep::{
    Entry, KeyRange, Lot, LotCounts, LotState, Notice, Passage, StoredEvent, SweepPolicy, UsageVerdict, UsageWriter,
    clock_wait, judge_usage, waits_for,
};

/// Most characters of an operator's reason.
const MAX_REASON: usize = 500;

/// Most agencies in a preview's totals.
const MAX_TOTALS: u32 = 1_000;

/// An operator's call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorCall {
    /// Who; none: the caller itself.
    pub actor: Option<Actor>,
    /// Why.
    pub reason: String,
    /// Makes the call repeatable; empty: it is not.
    pub request_id: String,
    /// The call's own id.
    pub call_id: String,
    /// Where it came from.
    pub origin: Origin,
}

/// Where a subscription begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// The history it is of.
    pub history_id: String,
    /// Its events follow this one.
    pub after: i64,
    /// The last event there is.
    pub head: i64,
}

/// The use cases besides the sweeper's own.
#[derive(Clone)]
pub struct SweepService {
    store: Arc<dyn SweepStore>,
    clock: SharedClock,
    policy: SweepPolicy,
    signal: EventSignal,
    leadership: Arc<Leadership>,
    watch: Arc<JumpWatch>,
}

impl std::fmt::Debug for SweepService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SweepService").field("policy", &self.policy).finish_non_exhaustive()
    }
}

/// A page and the cursor of the next one.
type Paged<T> = (Vec<T>, Option<String>);

impl SweepService {
    /// The use cases over a store, in the replica whose leadership this is.
    pub fn new(
        store: Arc<dyn SweepStore>,
        clock: SharedClock,
        policy: SweepPolicy,
        signal: EventSignal,
        leadership: Arc<Leadership>,
        watch: Arc<JumpWatch>,
    ) -> Self {
        Self { store, clock, policy, signal, leadership, watch }
    }

    /// The time of the sweep, the same on every replica.
    ///
    /// # Errors
    /// The database's.
    pub async fn time(&self) -> Result<DateTime<Utc>, SweepError> {
        Ok(self.leadership.time().await?)
    }

    /// The signal that wakes subscribers.
    #[must_use]
    pub fn signal(&self) -> &EventSignal {
        &self.signal
    }

    /// Applies each notice, sent at `sent_at` by the clock that dates the deliveries, to its lot; answers also the last event
    /// there is afterwards.
    ///
    /// # Errors
    /// When the database does not do its part; notices recorded until then stay so, and repeating them changes nothing.
    pub async fn acknowledge(
        &self,
        notices: &[Notice],
        sent_at: Option<DateTime<Utc>>,
    ) -> Result<(Vec<NoticeResult>, i64), SweepError> {
        let passage = Passage { sent_at, arrived_at: self.leadership.time().await? };
        let results = self.store.record_notices(notices, &passage).await?;
        self.signal.bump();
        Ok((results, self.head().await?))
    }

    /// One plan.
    ///
    /// # Errors
    /// [`SweepError::PlanNotFound`], or the database's.
    pub async fn plan(&self, plan_id: &str) -> Result<PlanView, SweepError> {
        self.store.plan(plan_id).await?.ok_or_else(|| SweepError::PlanNotFound(plan_id.to_owned()))
    }

    /// One page of plans, newest first.
    ///
    /// # Errors
    /// The database's.
    pub async fn plans(&self, filter: PlanFilter, page: &Page) -> Result<Paged<PlanView>, SweepError> {
        let rows = self.store.plans(filter, page).await?;
        Ok(cut(rows, page.size, |view| view.plan.plan_id.clone()))
    }

    /// One page of a plan's lots, by agency.
    ///
    /// # Errors
    /// [`SweepError::PlanNotFound`], or the database's.
    pub async fn lots(&self, filter: &LotFilter, page: &Page) -> Result<Paged<LotView>, SweepError> {
        let now = self.clock.now();
        let plan = self.plan(&filter.plan_id).await?.plan;
        let rows = self.store.lots(filter, page).await?;
        let writers = self.writers_if_due(rows.iter().map(|(lot, _)| lot), now).await?;
        let view = |(lot, counts)| self.view(lot, counts, plan.last_delete_at, &writers, now);
        let views = rows.into_iter().map(view).collect();
        Ok(cut(views, page.size, |view| view.lot.agency_id.clone()))
    }

    /// One page of a plan's entries by (agency, key), and the plan's deletion instant.
    ///
    /// # Errors
    /// [`SweepError::PlanNotFound`], a cursor that is none, or the database's.
    pub async fn entries(
        &self,
        filter: &EntryFilter,
        page: &Page,
    ) -> Result<(DateTime<Utc>, Paged<Entry>), SweepError> {
        let plan = self.plan(&filter.plan_id).await?.plan;
        let rows = self.store.entries(filter, pair(page)?, page.size + 1).await?;
        Ok((plan.delete_at, cut(rows, page.size, cursor_of)))
    }

    /// The instant that a preview assumes where none is given.
    #[must_use]
    pub fn next_sweep(&self) -> DateTime<Utc> {
        self.policy.cadence.next_sweep(self.clock.now())
    }

    /// What a sweep at `as_of` would list: one page of keys, with the totals on the first.
    ///
    /// # Errors
    /// A cursor that is none, or the database's.
    pub async fn preview(
        &self,
        as_of: DateTime<Utc>,
        agency_id: Option<String>,
        page: &Page,
    ) -> Result<(Option<(Preview, bool)>, Paged<Entry>), SweepError> {
        let filter = PreviewFilter { idle_since: idle_since(as_of), agency_id };
        let rows = self.store.preview_entries(&filter, pair(page)?, page.size + 1).await?;
        let totals = if page.cursor.is_none() {
            let totals = self.store.preview(&filter, MAX_TOTALS).await?;
            let count = |n: i64| u64::try_from(n).unwrap_or(0);
            let above = self.policy.breaker.trips(count(totals.listed_anywhere), count(totals.active));
            Some((totals, above))
        } else {
            None
        };
        Ok((totals, cut(rows, page.size, cursor_of)))
    }

    /// Lets a plan go ahead that the breaker stopped; the sweeper publishes it with its next activation.
    ///
    /// # Errors
    /// An API client as actor, no reason, an unknown plan, a plan that awaits nothing, or the database's.
    pub async fn confirm_plan(&self, plan_id: &str, call: OperatorCall) -> Result<PlanView, SweepError> {
        let by = command(call, &[("plan_id", plan_id)])?;
        self.desk(plan_id, "", |now| self.store.confirm_plan(plan_id, &by, now)).await?;
        self.plan(plan_id).await
    }

    /// Ends a plan: nothing more of it is deleted.
    ///
    /// # Errors
    /// As [`Self::confirm_plan`].
    pub async fn cancel_plan(&self, plan_id: &str, call: OperatorCall) -> Result<PlanView, SweepError> {
        let by = command(call, &[("plan_id", plan_id)])?;
        self.desk(plan_id, "", |now| self.store.cancel_plan(plan_id, &by, now)).await?;
        self.plan(plan_id).await
    }

    /// Keeps a lot from being deleted until it is released.
    ///
    /// # Errors
    /// An API client as actor, no reason, an unknown lot, a closed lot, or the database's.
    pub async fn hold_lot(&self, plan_id: &str, agency_id: &str, call: OperatorCall) -> Result<LotView, SweepError> {
        let by = command(call, &[("plan_id", plan_id), ("agency_id", agency_id)])?;
        self.desk(plan_id, agency_id, |now| self.store.hold_lot(plan_id, agency_id, &by, now)).await?;
        self.lot(plan_id, agency_id).await
    }

    /// Ends a lot's hold, whatever its cause. A lot whose time has come and whose receipts are in is then deleted at once.
    ///
    /// # Errors
    /// As [`Self::hold_lot`]; a lot that is not held is in the wrong state.
    pub async fn release_lot(&self, plan_id: &str, agency_id: &str, call: OperatorCall) -> Result<LotView, SweepError> {
        let by = command(call, &[("plan_id", plan_id), ("agency_id", agency_id)])?;
        self.desk(plan_id, agency_id, |now| self.store.release_lot(plan_id, agency_id, &by, now)).await?;
        self.lot(plan_id, agency_id).await
    }

    /// Begins a subscription after a sequence, 0 for the first event that is held, in the history of this id, empty for
    /// whichever it is.
    ///
    /// # Errors
    /// [`SweepError::OtherHistory`], [`SweepError::CursorAhead`], [`SweepError::CursorExpired`], or the database's.
    pub async fn subscribe(&self, name: &str, after: i64, history_id: &str) -> Result<Subscription, SweepError> {
        let History { id, first, head } = self.store.history().await?;
        if !history_id.is_empty() && history_id != id {
            return Err(SweepError::OtherHistory { history_id: id });
        }
        if after > head {
            return Err(SweepError::CursorAhead { head });
        }
        if after > 0 && after < first - 1 {
            return Err(SweepError::CursorExpired { first });
        }
        let after = after.max(first - 1);
        self.store.note_subscriber(name, after, self.clock.now()).await?;
        Ok(Subscription { history_id: id, after, head })
    }

    /// The last event's sequence.
    ///
    /// # Errors
    /// The database's.
    pub async fn head(&self) -> Result<i64, SweepError> {
        Ok(self.store.history().await?.head)
    }

    /// Events after a sequence.
    ///
    /// # Errors
    /// The database's.
    pub async fn events_after(&self, sequence: i64, limit: u32) -> Result<Vec<StoredEvent>, SweepError> {
        Ok(self.store.events_after(sequence, limit).await?)
    }

    /// The entries of a chunk and their plan's deletion instant.
    ///
    /// # Errors
    /// The database's.
    pub async fn chunk(&self, plan_id: &str, range: &KeyRange) -> Result<(DateTime<Utc>, Vec<Entry>), SweepError> {
        Ok(self.store.chunk(plan_id, range).await?)
    }

    async fn lot(&self, plan_id: &str, agency_id: &str) -> Result<LotView, SweepError> {
        let now = self.clock.now();
        let plan = self.plan(plan_id).await?.plan;
        let (lot, counts) = self
            .store
            .lot(plan_id, agency_id)
            .await?
            .ok_or_else(|| SweepError::LotNotFound { plan_id: plan_id.to_owned(), agency_id: agency_id.to_owned() })?;
        let writers = self.writers_if_due([&lot].into_iter(), now).await?;
        Ok(self.view(lot, counts, plan.last_delete_at, &writers, now))
    }

    /// The writers of uses, read only where a lot's time has come.
    async fn writers_if_due(
        &self,
        mut lots: impl Iterator<Item = &Lot>,
        now: DateTime<Utc>,
    ) -> Result<Vec<UsageWriter>, StorageError> {
        if lots.any(|lot| lot.state == LotState::Open && lot.delete_at <= now) {
            self.store.usage_writers().await
        } else {
            Ok(Vec::new())
        }
    }

    fn view(
        &self,
        lot: Lot,
        counts: LotCounts,
        last: DateTime<Utc>,
        writers: &[UsageWriter],
        now: DateTime<Utc>,
    ) -> LotView {
        let mut waits_for = waits_for(&lot, last, now);
        if lot.state == LotState::Open && lot.delete_at <= now {
            waits_for.extend(clock_wait(lot.delete_at, now, self.watch.ahead()));
            waits_for.extend(self.leadership.clock_wait());
            let cutoff = idle_since(lot.delete_at);
            let verdict = judge_usage(writers, self.leadership.replica_id(), cutoff, self.policy.recording_slack, now);
            if let UsageVerdict::Wait { replica_id } = verdict {
                waits_for.push(format!("usage not flushed by replica {replica_id}"));
            }
        }
        LotView { lot, counts, waits_for }
    }

    /// Runs an operator's transaction. Two calls with one request id may meet: the one that lost then finds the other's result.
    async fn desk<F>(
        &self,
        plan_id: &str,
        agency_id: &str,
        transaction: impl Fn(DateTime<Utc>) -> F,
    ) -> Result<(), SweepError>
    where
        F: Future<Output = Result<(), DeskError>>,
    {
        let now = self.clock.now();
        let mut result = transaction(now).await;
        if matches!(result, Err(DeskError::Storage(StorageError::Conflict(_)))) {
            result = transaction(now).await;
        }
        self.signal.bump();
        result.map_err(|error| SweepError::of_desk(error, plan_id, agency_id))
    }
}

/// The call, checked, about what the `ids` name.
fn command(call: OperatorCall, ids: &[(&str, &str)]) -> Result<Command, SweepError> {
    let actor = call.actor.unwrap_or_else(Actor::local_service);
    if matches!(actor, Actor::ApiKey(_)) {
        return Err(SweepError::ActorNotAllowed(actor.to_string()));
    }
    let mut faults = Violations::default();
    for (field, _) in ids.iter().filter(|(_, id)| id.is_empty()) {
        faults.push(*field, "is required");
    }
    faults.check_required_text("reason", &call.reason, MAX_REASON);
    faults.check_request_id("request_id", &call.request_id);
    faults.into_result().map_err(SweepError::Invalid)?;
    let OperatorCall { reason, request_id, call_id, origin, .. } = call;
    Ok(Command { actor, reason, request_id, call_id, origin })
}

/// Cuts a page that may be one row too long.
fn cut<T>(mut rows: Vec<T>, size: u32, cursor: impl Fn(&T) -> String) -> Paged<T> {
    let size = size as usize;
    if rows.len() <= size {
        return (rows, None);
    }
    rows.truncate(size);
    let next = rows.last().map(cursor);
    (rows, next)
}

/// Between agency and key in a cursor; ids hold no line break.
const SEPARATOR: char = '\n';

fn cursor_of(entry: &Entry) -> String {
    format!("{}{SEPARATOR}{}", entry.agency_id, entry.key_id)
}

fn pair(page: &Page) -> Result<Option<(String, String)>, SweepError> {
    let Some(cursor) = &page.cursor else { return Ok(None) };
    match cursor.split_once(SEPARATOR) {
        Some((agency, key)) => Ok(Some((agency.to_owned(), key.to_owned()))),
        None => Err(page::PageError::ForeignToken.into()),
    }
}
