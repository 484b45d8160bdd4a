//! What the sweep needs of the database and of the rest of the service. Every method is one transaction.

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use service_kit::actor::Actor;
use service_kit::page::Page;
use thiserror::Error;

use crate::app::StorageError;
use crate::domain::audit::Origin;
use crate::domain::sweep::{
    Breaker, Entry, EntryState, HoldReason, KeyRange, Lot, LotBlock, LotCounts, LotState, Notice, Passage, Plan,
    PlanState, StoredEvent, UsageWriter,
};

/// The uses that this process records.
#[async_trait]
pub trait LocalUses: Send + Sync {
    /// Stores what was recorded before the call. Best effort: how far uses are stored is read from `usage_writers` afterwards.
    async fn flush(&self);
    /// Keys found valid in memory since the process was started.
    fn verified(&self) -> u64;
}

/// A plan to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanDraft {
    /// `plan_…`.
    pub plan_id: String,
    /// D.
    pub delete_at: DateTime<Utc>,
    /// Keys last used at or before this instant are listed; slack counted already.
    pub idle_since: DateTime<Utc>,
    /// After it nothing is deleted any more.
    pub last_delete_at: DateTime<Utc>,
    /// How long before its mark a stage's notices may begin.
    pub stage_window: TimeDelta,
    /// The size that needs an operator's word.
    pub breaker: Breaker,
    /// ACTIVE keys, against which the size is judged.
    pub active_key_count: i64,
}

/// A lot whose gate seemed open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueLot {
    /// The plan.
    pub plan_id: String,
    /// The lot's agency.
    pub agency_id: String,
    /// Its deletion instant.
    pub delete_at: DateTime<Utc>,
    /// Keys listed when the plan was made: it has at most so many.
    pub entry_count: i64,
}

/// A lot in a batch of the deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LotOrder {
    /// The lot's agency.
    pub agency_id: String,
    /// The lot's deletion instant for which `slack` was judged; moved meanwhile, nothing is deleted.
    pub delete_at: DateTime<Utc>,
    /// Counted against the sweep where a replica's uses may be missing.
    pub slack: TimeDelta,
}

/// One batch of the deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchOrder {
    /// The plan.
    pub plan_id: String,
    /// The lots, in the order of their agencies: all but the last have fewer entries than `limit` together.
    pub lots: Vec<LotOrder>,
    /// Most entries.
    pub limit: u32,
}

/// What a batch did with one of its lots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LotOutcome {
    /// The lot's gate is shut.
    Blocked(Vec<LotBlock>),
    /// The batch went through.
    Done {
        /// Keys deleted.
        deleted: u64,
        /// Keys that turned out to live: rescued or spared.
        kept: u64,
        /// Whether the lot is closed with it.
        closed: bool,
    },
}

/// One page of entries compared with their keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReconcilePage {
    /// Entries rescued.
    pub rescued: u64,
    /// The last key compared; none: all were.
    pub next: Option<(String, String)>,
}

/// The right to sweep, as its holder knows it. Whoever takes it after him has a greater token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The replica that holds it.
    pub owner: String,
    /// Grows with each change of the holder and never falls.
    pub token: i64,
    /// How long it lasts after a renewal.
    pub lasts: TimeDelta,
}

/// What became of the wish for the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseAnswer {
    /// It is held.
    Held(Lease),
    /// Somebody else holds it.
    Other {
        /// Who.
        owner: String,
    },
}

/// Why the sweeper did not do it.
#[derive(Debug, Clone, Error)]
pub enum SweepJobError {
    /// The lease is another's: nothing was written.
    #[error("the lease was lost: another replica sweeps")]
    LeaseLost,
    /// This process ends: the rest is left to another.
    #[error("this process ends")]
    Ending,
    /// The database did not do it.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Who sweeps, and by which clock.
#[async_trait]
pub trait SweepLease: Send + Sync {
    /// What the database's clock shows; none: it has none of its own.
    async fn database_time(&self) -> Result<Option<DateTime<Utc>>, StorageError>;
    /// Renews the lease of `owner`, or takes it for him if nobody holds it at `at`, an instant of the database's clock that has
    /// passed.
    async fn take_lease(&self, owner: &str, lasts: TimeDelta, at: DateTime<Utc>) -> Result<LeaseAnswer, StorageError>;
    /// Ends a lease before its time. One that was lost meanwhile is left to its holder.
    async fn give_back(&self, lease: &Lease) -> Result<(), StorageError>;
}

/// What the sweeper does to the database. All of it is idempotent. What writes does so only under the lease, looked at in the same
/// transaction.
#[async_trait]
pub trait SweepJobs: Send + Sync {
    /// The processes that record uses.
    async fn usage_writers(&self) -> Result<Vec<UsageWriter>, StorageError>;
    /// The plan for a deletion instant.
    async fn plan_for(&self, delete_at: DateTime<Utc>) -> Result<Option<Plan>, StorageError>;
    /// Plans in a state, oldest first.
    async fn plans_in(&self, state: PlanState) -> Result<Vec<Plan>, StorageError>;
    /// Makes and publishes a plan, or lets it await confirmation. None: another sweeper made it.
    async fn make_plan(
        &self,
        lease: &Lease,
        draft: &PlanDraft,
        now: DateTime<Utc>,
    ) -> Result<Option<Plan>, SweepJobError>;
    /// Publishes a confirmed plan with what is idle since `idle_since` now. None: it is no longer to be published.
    async fn publish_confirmed(
        &self,
        lease: &Lease,
        plan_id: &str,
        idle_since: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Result<Option<Plan>, SweepJobError>;
    /// Ends a plan that was never published. False: it is no longer waiting.
    async fn cancel_unpublished(
        &self,
        lease: &Lease,
        plan_id: &str,
        reason: &str,
        now: DateTime<Utc>,
    ) -> Result<bool, SweepJobError>;
    /// Rescues planned entries after a position whose keys are no longer eligible.
    async fn rescue_ineligible(
        &self,
        lease: &Lease,
        plan: &Plan,
        after: Option<(String, String)>,
        now: DateTime<Utc>,
    ) -> Result<ReconcilePage, SweepJobError>;
    /// Defers up to `limit` open or held lots whose last date has passed; answers how many.
    async fn defer_overdue(&self, lease: &Lease, limit: u32, now: DateTime<Utc>) -> Result<u64, SweepJobError>;
    /// Up to `limit` lots that can be deleted now, in the order of (plan, agency), after a position.
    async fn due_lots(
        &self,
        after: Option<(String, String)>,
        limit: u32,
        now: DateTime<Utc>,
    ) -> Result<Vec<DueLot>, StorageError>;
    /// Deletes the next batch of some lots of a plan; answers what became of each, in their order.
    async fn delete_batch(
        &self,
        lease: &Lease,
        order: &BatchOrder,
        now: DateTime<Utc>,
    ) -> Result<Vec<LotOutcome>, SweepJobError>;
    /// Closes up to `limit` lots whose time has come and whose entries have all left; answers how many.
    async fn close_emptied(&self, lease: &Lease, limit: u32, now: DateTime<Utc>) -> Result<u64, SweepJobError>;
    /// Removes up to `limit` of the oldest events: of plans that have ended, from before an instant and passed by every
    /// subscriber; answers how many.
    async fn forget_events(&self, lease: &Lease, before: DateTime<Utc>, limit: u32) -> Result<u64, SweepJobError>;
    /// Held lots by reason; a reason without any is left out.
    async fn held_lots(&self) -> Result<Vec<(HoldReason, i64)>, StorageError>;
    /// Completes a plan without open lots whose time has come. False: it was not to be completed.
    async fn complete_plan(&self, lease: &Lease, plan_id: &str, now: DateTime<Utc>) -> Result<bool, SweepJobError>;
}

/// Who asked for what, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Who.
    pub actor: Actor,
    /// Why.
    pub reason: String,
    /// Makes the call repeatable; empty: it is not.
    pub request_id: String,
    /// The call's own id, for the audit.
    pub call_id: String,
    /// Where the call came from, for the audit.
    pub origin: Origin,
}

/// Why the desk did not do it.
#[derive(Debug, Error)]
pub enum DeskError {
    /// There is no such plan.
    #[error("there is no such plan")]
    PlanNotFound,
    /// The plan's state does not allow it.
    #[error("the plan's state does not allow it: {needed}")]
    PlanState {
        /// Its state.
        state: PlanState,
        /// The state that is needed, in words.
        needed: &'static str,
    },
    /// There is no such lot.
    #[error("there is no such lot")]
    LotNotFound,
    /// The lot's state does not allow it.
    #[error("the lot's state does not allow it: {needed}")]
    LotState {
        /// Its state.
        state: LotState,
        /// The state that is needed, in words.
        needed: &'static str,
    },
    /// The request id was used within 24 h for other contents.
    #[error("{}", service_kit::idempotency::REUSED)]
    RequestIdReused,
    /// The database did not do it.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// What became of a notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoticeReply {
    /// Recorded, or recorded before.
    Recorded,
    /// The lot is closed.
    LotClosed,
    /// It does not fit.
    Refused,
}

/// What a notice did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoticeResult {
    /// What became of it.
    pub reply: NoticeReply,
    /// When the lot will be deleted; none: there is no such lot.
    pub delete_at: Option<DateTime<Utc>>,
    /// Why it was refused.
    pub detail: String,
}

/// Notices and operators.
#[async_trait]
pub trait SweepDesk: Send + Sync {
    /// Applies each notice to its lot; the answers are in the order of the notices.
    async fn record_notices(&self, notices: &[Notice], passage: &Passage) -> Result<Vec<NoticeResult>, StorageError>;
    /// Lets a plan go ahead that the breaker stopped.
    async fn confirm_plan(&self, plan_id: &str, by: &Command, now: DateTime<Utc>) -> Result<(), DeskError>;
    /// Ends a plan.
    async fn cancel_plan(&self, plan_id: &str, by: &Command, now: DateTime<Utc>) -> Result<(), DeskError>;
    /// Holds a lot.
    async fn hold_lot(&self, plan_id: &str, agency_id: &str, by: &Command, now: DateTime<Utc>)
    -> Result<(), DeskError>;
    /// Ends a lot's hold.
    async fn release_lot(
        &self,
        plan_id: &str,
        agency_id: &str,
        by: &Command,
        now: DateTime<Utc>,
    ) -> Result<(), DeskError>;
}

/// A plan with its counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanView {
    /// The plan.
    pub plan: Plan,
    /// Its entries by state.
    pub counts: LotCounts,
    /// Its last event; 0: none.
    pub last_sequence: i64,
}

/// A lot with its counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LotView {
    /// The lot.
    pub lot: Lot,
    /// Its entries by state.
    pub counts: LotCounts,
    /// Why it is not deleted at this moment.
    pub waits_for: Vec<String>,
}

/// Which plans.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PlanFilter {
    /// Only in this state.
    pub state: Option<PlanState>,
}

/// Which lots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LotFilter {
    /// The plan.
    pub plan_id: String,
    /// Only in this state.
    pub state: Option<LotState>,
}

/// Which entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryFilter {
    /// The plan.
    pub plan_id: String,
    /// Only of this agency.
    pub agency_id: Option<String>,
    /// Only in this state.
    pub state: Option<EntryState>,
}

/// Which keys to preview.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreviewFilter {
    /// Keys last used at or before this instant.
    pub idle_since: DateTime<Utc>,
    /// Only of this agency.
    pub agency_id: Option<String>,
}

/// What a sweep would list of one agency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgencyTotal {
    /// The agency.
    pub agency_id: String,
    /// Keys of the agency itself.
    pub agency_keys: i64,
    /// Keys of its locations.
    pub location_keys: i64,
    /// Locations with such a key.
    pub locations: i64,
}

/// Counts of what a sweep would list beside what a plan did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Difference {
    /// Would be listed and was not.
    pub new: i64,
    /// Was listed and would not be.
    pub gone: i64,
    /// Was listed and would be again.
    pub same: i64,
}

/// A preview beside the last plan that was published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanComparison {
    /// The plan.
    pub plan_id: String,
    /// Keys.
    pub keys: Difference,
    /// Impacted agencies.
    pub agencies: Difference,
}

/// The totals of a preview.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preview {
    /// Keys that would be listed.
    pub listed: i64,
    /// All ACTIVE keys of the installation.
    pub active: i64,
    /// Keys that would be listed in the whole installation: the breaker's measure.
    pub listed_anywhere: i64,
    /// By agency, most keys first.
    pub agencies: Vec<AgencyTotal>,
    /// Beside the last plan that was published; none: there has been none.
    pub last_plan: Option<PlanComparison>,
}

/// What readers see. A page is one row longer than asked for where another follows.
#[async_trait]
pub trait SweepReads: Send + Sync {
    /// One plan.
    async fn plan(&self, plan_id: &str) -> Result<Option<PlanView>, StorageError>;
    /// Plans, newest first; the cursor is a plan's id.
    async fn plans(&self, filter: PlanFilter, page: &Page) -> Result<Vec<PlanView>, StorageError>;
    /// One lot.
    async fn lot(&self, plan_id: &str, agency_id: &str) -> Result<Option<(Lot, LotCounts)>, StorageError>;
    /// Lots by agency; the cursor is an agency's id.
    async fn lots(&self, filter: &LotFilter, page: &Page) -> Result<Vec<(Lot, LotCounts)>, StorageError>;
    /// Entries by (agency, key), after such a pair.
    async fn entries(
        &self,
        filter: &EntryFilter,
        after: Option<(String, String)>,
        limit: u32,
    ) -> Result<Vec<Entry>, StorageError>;
    /// What a sweep would list: the totals.
    async fn preview(&self, filter: &PreviewFilter, agencies: u32) -> Result<Preview, StorageError>;
    /// What a sweep would list: the keys by (agency, key), after such a pair.
    async fn preview_entries(
        &self,
        filter: &PreviewFilter,
        after: Option<(String, String)>,
        limit: u32,
    ) -> Result<Vec<Entry>, StorageError>;
}

/// Where the history begins and ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// Which history it is: no other database has one with this id.
    pub id: String,
    /// The first event's sequence; also that of the first event to come.
    pub first: i64,
    /// The last event's sequence; 0: there has been none.
    pub head: i64,
}

/// The history, as subscribers read it.
#[async_trait]
pub trait SweepFeed: Send + Sync {
    /// Where the history begins and ends.
    async fn history(&self) -> Result<History, StorageError>;
    /// Up to `limit` events after a sequence, in order.
    async fn events_after(&self, sequence: i64, limit: u32) -> Result<Vec<StoredEvent>, StorageError>;
    /// The entries of a chunk with their evidence, and the plan's deletion instant.
    async fn chunk(&self, plan_id: &str, range: &KeyRange) -> Result<(DateTime<Utc>, Vec<Entry>), StorageError>;
    /// Notes that a subscriber has applied all events up to a sequence.
    async fn note_subscriber(&self, name: &str, sequence: i64, now: DateTime<Utc>) -> Result<(), StorageError>;
}

/// All of the sweep's database.
pub trait SweepStore: SweepLease + SweepJobs + SweepDesk + SweepReads + SweepFeed + 'static {}

impl<T: SweepLease + SweepJobs + SweepDesk + SweepReads + SweepFeed + 'static> SweepStore for T {}
