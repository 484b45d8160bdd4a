//! What the use cases need of the world. Each method of a store is one transaction.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use futures::stream::BoxStream;

use crate::domain::banner::Banner;
use crate::domain::delivery::{Delivery, DeliveryState, Outcome, Verdict};
use crate::domain::event::SweepEvent;
use crate::domain::ids::{AgencyId, DeliveryId, LocationId, NotificationId, PlanId, UserId};
use crate::domain::limits::SendLimit;
use crate::domain::notification::InboxPage;
use crate::domain::plan::HoldReason;
use crate::domain::recipient::RecipientChunk;
use crate::domain::stage::Stage;

use super::letter::{LetterEntry, LetterFacts};

/// Why the database did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// It does not answer, or another transaction was in the way; the same call may succeed later.
    #[error("the database is unavailable: {0}")]
    Unavailable(String),
    /// It holds or answered what it should not.
    #[error("the database failed: {0}")]
    Internal(String),
}

/// Why events were not applied. None of the batch was.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// An event is missing between the cursor and the one that came.
    #[error("event {sequence} came where {expected} was expected")]
    Gap {
        /// The event after the cursor.
        expected: i64,
        /// The event that came.
        sequence: i64,
    },
    /// An event speaks of something that no event before it has told.
    #[error("event {sequence} does not fit what came before: {reason}")]
    Unfit {
        /// The event.
        sequence: i64,
        /// What is missing.
        reason: String,
    },
    /// The database.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// The last event applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Its sequence; 0 before the first.
    pub sequence: i64,
    /// Its [`SweepEvent::mark`]; empty where it is not known.
    pub mark: String,
}

/// The projection of key-service's plans, and the cursor it stands at.
#[async_trait]
pub trait ProjectionStore: Send + Sync {
    /// The last event applied.
    async fn cursor(&self) -> Result<Cursor, StorageError>;
    /// Applies events in their order, with the announcements that they bring and the cursor, whole or not at all. Events at or
    /// before the cursor are passed over. Answers the new cursor.
    async fn apply(&self, events: Vec<SweepEvent>, now: DateTime<Utc>) -> Result<i64, ApplyError>;
}

/// The projection, about to be made anew. Nobody applies an event or dispatches a notice until this ends; dropped, it leaves
/// everything as it was.
#[async_trait]
pub trait Rebuild: Send {
    /// The last event applied before.
    fn cursor(&self) -> i64;
    /// Applies the next events. What they announced was announced when they first came.
    async fn apply(&mut self, events: Vec<SweepEvent>) -> Result<(), ApplyError>;
    /// Puts the new projection in the place of the old one, with the cursor at its last event.
    async fn finish(self: Box<Self>) -> Result<Projected, StorageError>;
}

/// What a projection holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Projected {
    /// Plans.
    pub plans: u64,
    /// Lots.
    pub lots: u64,
    /// Keys listed.
    pub entries: u64,
    /// The last event applied.
    pub cursor: i64,
}

/// Where a projection can be made anew.
#[async_trait]
pub trait RebuildStore: Send + Sync {
    /// Begins with an empty projection that nobody else sees.
    async fn begin_rebuild(&self, now: DateTime<Utc>) -> Result<Box<dyn Rebuild>, StorageError>;
}

/// One stage of one lot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StageId {
    /// The plan.
    pub plan_id: PlanId,
    /// The lot's agency.
    pub agency_id: AgencyId,
    /// The stage.
    pub stage: Stage,
}

/// What became of an attempt to dispatch a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Published {
    /// Its notifications are in the inboxes, its emails wait to be sent.
    Dispatched {
        /// Notifications made.
        in_app: u64,
        /// Emails to send.
        emails: u64,
    },
    /// There is nobody to tell; looked at again later. `news` unless that was known before.
    Undeliverable {
        /// Why.
        reason: HoldReason,
        /// Whether this was not known before.
        news: bool,
    },
    /// Nothing is owed any more, or not yet, or another replica does it.
    NotDue,
}

/// The dispatch of notices: who is told what, decided once.
#[async_trait]
pub trait DispatchStore: Send + Sync {
    /// Takes up to `limit` stages that are due and whose predecessor's consequences are known, for this owner alone until
    /// `lease_until`.
    async fn claim_due(
        &self,
        owner: &str,
        now: DateTime<Utc>,
        lease_until: DateTime<Utc>,
        limit: u64,
    ) -> Result<Vec<StageId>, StorageError>;
    /// Locations of the lot with a key still to be deleted, in the order of their ids.
    async fn live_locations(
        &self,
        id: &StageId,
        after: Option<&LocationId>,
        limit: u64,
    ) -> Result<Vec<LocationId>, StorageError>;
    /// Notes some of the people to tell of each stage that is still this owner's; answers which are. They are told nothing before
    /// [`DispatchStore::publish`].
    async fn collect(&self, owner: &str, parts: Vec<(StageId, RecipientChunk)>) -> Result<Vec<StageId>, StorageError>;
    /// Makes the notifications and the emails of everybody collected for these stages, at once and once; the answers are in the order of
    /// the stages.
    async fn publish(&self, ids: &[StageId], owner: &str, now: DateTime<Utc>) -> Result<Vec<Published>, StorageError>;
    /// Gives a claimed stage back untold.
    async fn release(&self, id: &StageId, owner: &str) -> Result<(), StorageError>;
}

/// An email to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimedDelivery {
    /// Its id.
    pub id: DeliveryId,
    /// The stage whose notice it is.
    pub stage: StageId,
    /// The user.
    pub user_id: UserId,
    /// The address.
    pub recipient: String,
    /// First and last name; may be empty.
    pub name: String,
    /// The `Message-ID` without its angle brackets.
    pub message_id: String,
    /// The number of this attempt, from 1.
    pub attempt: i32,
    /// Since when the server has put it off.
    pub deferred_since: Option<DateTime<Utc>>,
    /// How long after the claim its turn comes under the send limits.
    pub wait: TimeDelta,
    /// Until when it is this owner's.
    pub lease_until: DateTime<Utc>,
    /// When it was created: the date it bears, whenever it is sent.
    pub created_at: DateTime<Utc>,
}

/// Which deliveries to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeliveryFilter {
    /// Only of this plan.
    pub plan_id: Option<PlanId>,
    /// Only of this agency.
    pub agency_id: Option<AgencyId>,
    /// Only in this state.
    pub state: Option<DeliveryState>,
}

/// Why a delivery cannot be retried.
#[derive(Debug, thiserror::Error)]
pub enum RetryError {
    /// There is no such delivery.
    #[error("there is no such delivery")]
    NotFound,
    /// It is accepted, cancelled or being sent.
    #[error("the delivery is {}", .0.name())]
    State(DeliveryState),
    /// The request id was used for something else.
    #[error("the request id was used for another request")]
    Reused,
    /// The database.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// The emails and their attempts.
#[async_trait]
pub trait DeliveryStore: Send + Sync {
    /// Takes up to `limit` emails that are due, as many as the send limits allow, for this owner alone until `lease_until`.
    /// Those whose lease ran out are taken again first; then every agency's first email, every agency's second, and so on.
    /// Those with nothing left to tell are cancelled.
    async fn claim(
        &self,
        owner: &str,
        now: DateTime<Utc>,
        lease_until: DateTime<Utc>,
        limit: u64,
    ) -> Result<Vec<ClaimedDelivery>, StorageError>;
    /// Records what attempts came to, and completes the stages whose last email is settled. An attempt that is no longer
    /// this owner's is passed over.
    async fn record(
        &self,
        owner: &str,
        verdicts: &[(ClaimedDelivery, Verdict)],
        now: DateTime<Utc>,
    ) -> Result<(), StorageError>;
    /// What the letters of these stages say, as it was when they were dispatched; a stage that was not is left out.
    async fn letters(&self, ids: &[StageId]) -> Result<HashMap<StageId, LetterFacts>, StorageError>;
    /// All keys of the letters of these stages, which are short, each list in the order of (location, key), the agency's own
    /// first.
    async fn short_letters(
        &self,
        letters: &[(StageId, i64)],
    ) -> Result<HashMap<StageId, Vec<LetterEntry>>, StorageError>;
    /// The keys of a letter in the order of (location, key), the agency's own first, after `after`.
    async fn letter_entries(
        &self,
        id: &StageId,
        as_of: i64,
        after: Option<&LetterEntry>,
        limit: u64,
    ) -> Result<Vec<LetterEntry>, StorageError>;
    /// One page of deliveries as of `now` in the order of their ids, and whether there are more.
    async fn list(
        &self,
        filter: &DeliveryFilter,
        after: Option<&str>,
        limit: u32,
        now: DateTime<Utc>,
    ) -> Result<(Vec<Delivery>, bool), StorageError>;
    /// Has a delivery sent again at once, its attempts counted anew.
    async fn retry(&self, id: &DeliveryId, request_id: &str, now: DateTime<Utc>) -> Result<Delivery, RetryError>;
}

/// What key-service is to be told of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwedReceipt {
    /// The stage.
    pub id: StageId,
    /// What happened to its notices.
    pub news: StageNews,
}

/// What happened to the notices of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StageNews {
    /// They are out.
    Delivered {
        /// When the last one was.
        delivered_at: DateTime<Utc>,
        /// Notifications made.
        in_app: i64,
        /// Emails accepted.
        emails: i64,
    },
    /// Nobody can be told.
    Undeliverable(HoldReason),
}

/// What key-service did with one receipt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReceiptAnswer {
    /// Recorded it.
    Recorded,
    /// The lot is closed.
    LotClosed,
    /// Refused it, and why.
    Refused(String),
}

/// What is owed, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owed {
    /// Stages whose receipt key-service has not recorded yet.
    pub receipts_owed: i64,
    /// Stages whose receipt it refused.
    pub receipts_refused: i64,
    /// Emails not settled.
    pub deliveries_unsettled: i64,
}

/// How much there is of what, for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Notices of open plans by stage and state, those that there are none of included.
    pub notices: Vec<(Stage, &'static str, i64)>,
    /// Emails that wait, are being sent or failed for good.
    pub deliveries: Vec<(DeliveryState, i64)>,
    /// Since when the email that waits longest could have been attempted.
    pub oldest_due_at: Option<DateTime<Utc>>,
    /// Which send limit puts emails off, and how many.
    pub deferred: Option<(SendLimit, i64)>,
}

/// The figures.
#[async_trait]
pub trait FiguresStore: Send + Sync {
    /// The figures at `now`.
    async fn figures(&self, now: DateTime<Utc>) -> Result<Figures, StorageError>;
}

/// The receipts that key-service is owed.
#[async_trait]
pub trait ReceiptStore: Send + Sync {
    /// Up to `limit` receipts that are owed.
    async fn owed(&self, limit: u64) -> Result<Vec<OwedReceipt>, StorageError>;
    /// Records the answers. The next stage of a lot waits until the event `head_sequence` is applied.
    async fn record(
        &self,
        answers: Vec<(OwedReceipt, ReceiptAnswer)>,
        head_sequence: i64,
        now: DateTime<Utc>,
    ) -> Result<(), StorageError>;
    /// What is owed, in numbers.
    async fn count(&self) -> Result<Owed, StorageError>;
}

/// Which notifications to mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All that are unread.
    All,
    /// These.
    Ids(Vec<NotificationId>),
}

/// What was marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marked {
    /// How many were unread before.
    pub marked: i64,
    /// Unread notifications left in the whole inbox.
    pub unread: i64,
}

/// Why nothing was marked.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// This one is not in the user's inbox.
    #[error("there is no notification {0} in this inbox")]
    NotFound(NotificationId),
    /// The request id was used for something else.
    #[error("the request id was used for another request")]
    Reused,
    /// The database.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// The inboxes.
#[async_trait]
pub trait InboxStore: Send + Sync {
    /// A page of an inbox, newest first, of those before a position.
    async fn list(
        &self,
        user: &UserId,
        unread_only: bool,
        before: Option<i64>,
        limit: u32,
    ) -> Result<InboxPage, StorageError>;
    /// A page of an inbox, oldest first, of those after a position.
    async fn follow(&self, user: &UserId, after: i64, limit: u32) -> Result<InboxPage, StorageError>;
    /// The position of one notification, if it is in the inbox.
    async fn position(&self, user: &UserId, id: &NotificationId) -> Result<Option<i64>, StorageError>;
    /// The position after which every later notification of anybody comes.
    async fn head(&self) -> Result<i64, StorageError>;
    /// Marks notifications as read.
    async fn mark_read(
        &self,
        user: &UserId,
        selection: &Selection,
        request_id: &str,
        now: DateTime<Utc>,
    ) -> Result<Marked, MarkError>;
}

/// The banners, read from the projection.
#[async_trait]
pub trait BannerStore: Send + Sync {
    /// Those that stand at `now`, the agency's first, then by location.
    async fn banners(
        &self,
        agency: &AgencyId,
        locations: &[LocationId],
        now: DateTime<Utc>,
    ) -> Result<Vec<Banner>, StorageError>;
    /// When, if no event comes, one of them next appears or goes.
    async fn next_change(&self, agency: &AgencyId, now: DateTime<Utc>) -> Result<Option<DateTime<Utc>>, StorageError>;
}

/// Why a peer did not answer.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// It cannot be reached or wants to be asked later.
    #[error("{0}")]
    Unavailable(String),
    /// It does not know what was asked for.
    #[error("{0}")]
    NotFound(String),
    /// Its history ends before the event asked for.
    #[error("{0}")]
    CursorAhead(String),
    /// It refuses, or answers what it must not. Asking again as it stands is futile.
    #[error("{0}")]
    Refused(String),
}

/// A message of the plan subscription.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanMessage {
    /// The event; `None` for a heartbeat.
    pub event: Option<SweepEvent>,
    /// The last event there is.
    pub head_sequence: i64,
    /// The time of the sweep when it was sent; heartbeats tell it.
    pub server_time: Option<DateTime<Utc>>,
}

/// A subscription that is open.
pub type PlanStream = BoxStream<'static, Result<PlanMessage, PeerError>>;
/// The people of an agency, as they arrive.
pub type RecipientStream = BoxStream<'static, Result<RecipientChunk, PeerError>>;

/// key-service's plans.
#[async_trait]
pub trait PlanSource: Send + Sync {
    /// Every event after one, in order, then each new one.
    async fn subscribe(&self, after: i64) -> Result<PlanStream, PeerError>;
}

/// location-service's people.
#[async_trait]
pub trait RecipientSource: Send + Sync {
    /// The admins of an agency, and of these locations of it.
    async fn recipients(&self, agency: &AgencyId, locations: Vec<LocationId>) -> Result<RecipientStream, PeerError>;
}

/// key-service's book of receipts.
#[async_trait]
pub trait ReceiptSink: Send + Sync {
    /// Hands receipts in, at `now` by the clock that dates them; answers what became of each, in their order, and the last event
    /// there was then.
    async fn acknowledge(
        &self,
        receipts: &[OwedReceipt],
        now: DateTime<Utc>,
    ) -> Result<(Vec<ReceiptAnswer>, i64), PeerError>;
}

/// A message ready to be sent.
#[derive(Clone, PartialEq, Eq)]
pub struct Mail {
    /// The `Message-ID` without its angle brackets.
    pub message_id: String,
    /// The one recipient.
    pub recipient: String,
    /// The whole MIME message.
    pub content: Vec<u8>,
}

/// Sends mail.
#[async_trait]
pub trait MailTransport: Send + Sync {
    /// Makes one attempt, within [`MailTransport::longest`].
    async fn send(&self, mail: Mail) -> Outcome;
    /// The longest that an attempt may take.
    fn longest(&self) -> Duration;
}
