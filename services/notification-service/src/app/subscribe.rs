//! Follows key-service's plans: applies each event once, in order, from wherever the database stands.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use chrono::{DateTime, TimeDelta, Utc};
use futures::{Stream, StreamExt};
use service_kit::clock::{Clock, FollowingClock};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::ports::{ApplyError, PeerError, PlanMessage, PlanSource, ProjectionStore, StorageError};
use super::signals::Signals;
use crate::metrics::{CLOCK_OFFSET, SUBSCRIPTION_BREAKS, SUBSCRIPTION_LAG_EVENTS};

/// key-service sends a heartbeat every 15 s; after three missed ones the stream counts as dead.
const SILENCE: Duration = Duration::from_secs(45);
/// A time that may be wrong by more than this is asked for anew.
const MOST_DOUBT: TimeDelta = TimeDelta::seconds(5);
/// Own clocks that differ by more are told of.
const OFFSET: TimeDelta = TimeDelta::seconds(10);
/// Events applied in one transaction at most, where they have piled up.
const BATCH: usize = 32;
/// Notices wait for a subscription that catches up; for no longer than this, so short beside the window of a stage.
const CATCHING_UP: Duration = Duration::from_mins(10);
/// Batches read while one is applied.
const AHEAD: usize = 1;
/// How long to wait before the first new try; doubles from there.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// A peer that comes back is found within this time.
const LAST_RETRY: Duration = Duration::from_secs(10);

/// What keeps events from being applied until somebody sees to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubscriptionFault {
    /// key-service's history ends before the cursor.
    CursorAhead,
    /// key-service has another event at the cursor than the one that was applied.
    OtherHistory,
    /// An event is missing after the cursor.
    EventGap,
    /// An event does not fit the projection.
    EventUnfit,
    /// key-service refuses the subscription, or sends what cannot be read.
    Refused,
}

impl SubscriptionFault {
    /// All faults.
    pub const ALL: [Self; 5] = [Self::CursorAhead, Self::OtherHistory, Self::EventGap, Self::EventUnfit, Self::Refused];

    /// The name, as in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::CursorAhead => "cursor_ahead",
            Self::OtherHistory => "other_history",
            Self::EventGap => "event_gap",
            Self::EventUnfit => "event_unfit",
            Self::Refused => "refused",
        }
    }
}

/// What is known of the subscription since the process started.
#[derive(Clone, Debug, Default)]
pub struct SubscriptionStatus {
    /// When the stream was opened; `None` while it is not.
    pub connected_at: Option<DateTime<Utc>>,
    /// When the last message arrived.
    pub last_message_at: Option<DateTime<Utc>>,
    /// The last event heard of.
    pub head_sequence: i64,
    /// Why the stream last broke.
    pub last_error: String,
    /// What keeps events from being applied and does not heal by itself.
    pub fault: Option<SubscriptionFault>,
    heard_at: Option<Instant>,
    caught_up_at: Option<Instant>,
    /// When the stream was opened, as long as not everything that had happened by then is applied.
    behind_since: Option<Instant>,
}

impl SubscriptionStatus {
    /// Whether the stream is open and was heard of lately.
    pub fn is_connected(&self) -> bool {
        self.connected_at.is_some() && self.heard_at.is_some_and(|at| at.elapsed() < SILENCE)
    }

    /// Whether a stream that was opened a while ago still tells of what had happened before, given the last event applied.
    pub fn is_catching_up(&self, applied: i64) -> bool {
        let behind = self.behind_since.is_some_and(|since| since.elapsed() < CATCHING_UP);
        behind && self.is_connected() && applied < self.head_sequence
    }

    /// For how long something heard of has not been applied, given the last event that was: zero while there is nothing.
    pub fn lag(&self, applied: i64) -> Option<Duration> {
        self.caught_up_at.map(|at| if applied < self.head_sequence { at.elapsed() } else { Duration::ZERO })
    }
}

/// A subscription's status, shared with those who report it.
#[derive(Clone, Debug, Default)]
pub struct SharedStatus(Arc<Mutex<SubscriptionStatus>>);

impl SharedStatus {
    /// The status now.
    pub fn get(&self) -> SubscriptionStatus {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn update(&self, change: impl FnOnce(&mut SubscriptionStatus)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("key-service: {0}")]
    Peer(#[from] PeerError),
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(
        "key-service's history ends at event {head}, before the cursor {cursor}: it was restored from an older copy, or is another database"
    )]
    Ahead { head: i64, cursor: i64 },
    #[error(
        "key-service has another event {0} than the one applied here: its history was replaced, or is another database's"
    )]
    OtherHistory(i64),
    #[error("key-service's time was under way for perhaps {} s, and is asked for anew", .0.num_seconds())]
    Late(TimeDelta),
    #[error("nothing was heard for {} s", SILENCE.as_secs())]
    Silent,
    #[error("the stream was closed")]
    Closed,
}

impl Broken {
    /// What does not heal by itself.
    fn fault(&self) -> Option<SubscriptionFault> {
        match self {
            Self::Ahead { .. } | Self::Peer(PeerError::CursorAhead(_)) => Some(SubscriptionFault::CursorAhead),
            Self::OtherHistory(_) => Some(SubscriptionFault::OtherHistory),
            Self::Apply(ApplyError::Gap { .. }) => Some(SubscriptionFault::EventGap),
            Self::Apply(ApplyError::Unfit { .. }) => Some(SubscriptionFault::EventUnfit),
            Self::Peer(PeerError::Refused(_) | PeerError::NotFound(_)) => Some(SubscriptionFault::Refused),
            Self::Peer(PeerError::Unavailable(_))
            | Self::Apply(ApplyError::Storage(_))
            | Self::Storage(_)
            | Self::Late(_)
            | Self::Silent
            | Self::Closed => None,
        }
    }
}

/// The subscriber.
pub struct Subscriber {
    /// Where the events come from.
    pub source: Arc<dyn PlanSource>,
    /// Where they are applied.
    pub store: Arc<dyn ProjectionStore>,
    /// Who is told of them.
    pub signals: Arc<Signals>,
    /// What is known of the stream.
    pub status: SharedStatus,
    /// The time, which follows that of the sweep as key-service tells it.
    pub clock: Arc<FollowingClock>,
}

impl Subscriber {
    /// Subscribes, again and again, until `shutdown`. A broken stream is resumed from the cursor in the database.
    pub async fn run(&self, shutdown: CancellationToken) {
        let policy = ExponentialBuilder::default()
            .with_min_delay(FIRST_RETRY)
            .with_max_delay(LAST_RETRY)
            .with_jitter()
            .without_max_times();
        let mut delays = policy.build();
        loop {
            let mut heard = false;
            let broken = tokio::select! {
                () = shutdown.cancelled() => return,
                broken = self.follow(&mut heard) => broken,
            };
            self.note_break(&broken);
            if heard {
                delays = policy.build();
            }
            let mut delay = delays.next().unwrap_or(LAST_RETRY).min(LAST_RETRY);
            if broken.fault().is_some() {
                delay = LAST_RETRY;
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(delay) => {}
            }
        }
    }

    /// Follows one stream to its end.
    async fn follow(&self, heard: &mut bool) -> Broken {
        match self.try_follow(heard).await {
            Ok(never) => match never {},
            Err(broken) => broken,
        }
    }

    async fn try_follow(&self, heard: &mut bool) -> Result<std::convert::Infallible, Broken> {
        let known = self.store.cursor().await?;
        // From the event at the cursor on, where it is known: it must be the one that was applied.
        let after = if known.mark.is_empty() { known.sequence } else { known.sequence - 1 };
        let mut asked = Some(self.clock.lived());
        let stream =
            tokio::time::timeout(SILENCE, self.source.subscribe(after)).await.map_err(|_| Broken::Silent)??;
        self.status.update(|s| {
            s.connected_at = Some(self.clock.now());
            s.behind_since = Some(Instant::now());
        });
        tracing::info!(after_sequence = known.sequence, "subscribed to sweep plans");
        let mut cursor = known.sequence;
        let mut batches = ahead(stream.ready_chunks(BATCH));
        loop {
            let batch = tokio::time::timeout(SILENCE, batches.next())
                .await
                .map_err(|_| Broken::Silent)?
                .ok_or(Broken::Closed)?;
            let times: Vec<_> = batch.iter().flatten().map(|message| message.server_time).collect();
            // How much there is to hear is known before the time is: with that, notices may go out.
            let (mut events, head, broken) = self.sort(batch);
            for told in times {
                self.note_time(&mut asked, told)?;
            }
            if let Some(head) = head.filter(|head| *head < known.sequence) {
                return Err(Broken::Ahead { head, cursor: known.sequence });
            }
            if events.first().is_some_and(|event| event.sequence == known.sequence) {
                let event = events.remove(0);
                if event.mark() != known.mark {
                    return Err(Broken::OtherHistory(event.sequence));
                }
            }
            if !events.is_empty() {
                cursor = self.store.apply(events, self.clock.now()).await?;
                self.signals.projection_changed();
            }
            if head.is_some() {
                *heard = true;
                self.note_progress(cursor, head);
            }
            if let Some(error) = broken {
                return Err(error.into());
            }
        }
    }

    /// Sets the clock by what key-service says of the time: first in answer to what was asked at `asked`, then by itself.
    fn note_time(&self, asked: &mut Option<Duration>, told: Option<DateTime<Utc>>) -> Result<(), Broken> {
        let Some(at) = told else { return Ok(()) };
        let doubt = match asked.take() {
            Some(asked) => {
                let took = self.clock.lived().saturating_sub(asked);
                let doubt = TimeDelta::from_std(took).unwrap_or(TimeDelta::MAX);
                if doubt <= MOST_DOUBT {
                    self.set_clock(asked, at);
                }
                doubt
            }
            None => self.clock.heard(at),
        };
        if doubt > MOST_DOUBT { Err(Broken::Late(doubt)) } else { Ok(()) }
    }

    fn set_clock(&self, asked: Duration, at: DateTime<Utc>) {
        let (before, first) = (self.clock.own_lead().unwrap_or_default(), !self.clock.follows());
        self.clock.answered(asked, at);
        let lead = self.clock.own_lead().unwrap_or_default();
        metrics::gauge!(CLOCK_OFFSET.name).set(lead.as_seconds_f64());
        if lead.abs() > OFFSET && before.abs() <= OFFSET {
            let seconds = lead.num_seconds();
            tracing::warn!(seconds, "this machine's clock differs from the sweep's, which alone counts here");
        }
        if first {
            // What was due meanwhile is dispatched now.
            self.signals.projection_changed();
        }
    }

    /// The events of a batch, the last head heard of, and the error that ended the stream.
    fn sort(
        &self,
        batch: Vec<Result<PlanMessage, PeerError>>,
    ) -> (Vec<crate::domain::event::SweepEvent>, Option<i64>, Option<PeerError>) {
        let (mut events, mut head, mut broken) = (Vec::new(), None, None);
        for message in batch {
            match message {
                Ok(message) => {
                    head = Some(message.head_sequence);
                    events.extend(message.event);
                }
                Err(error) => {
                    broken = Some(error);
                    break;
                }
            }
        }
        if let Some(head) = head {
            let now = self.clock.now();
            self.status.update(|s| {
                s.head_sequence = head;
                s.last_message_at = Some(now);
                s.heard_at = Some(Instant::now());
            });
        }
        (events, head, broken)
    }

    fn note_progress(&self, cursor: i64, head: Option<i64>) {
        if let Some(head) = head {
            if cursor >= head {
                self.status.update(|s| {
                    s.caught_up_at = Some(Instant::now());
                    s.behind_since = None;
                    s.fault = None;
                });
            }
            #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
            metrics::gauge!(SUBSCRIPTION_LAG_EVENTS.name).set((head - cursor).max(0) as f64);
        }
    }

    fn note_break(&self, broken: &Broken) {
        let (text, fault) = (broken.to_string(), broken.fault());
        metrics::counter!(SUBSCRIPTION_BREAKS.name).increment(1);
        let known = self.status.get();
        match fault {
            Some(fault) if known.fault == Some(fault) && known.last_error == text => {
                tracing::debug!(error = text, "the subscription to sweep plans is still broken");
            }
            Some(fault) => {
                tracing::error!(
                    error = text,
                    fault = fault.name(),
                    "the subscription to sweep plans is broken and needs somebody to look; it is tried again from the cursor"
                );
            }
            None => {
                tracing::warn!(error = text, "the subscription to sweep plans broke; it is resumed from the cursor");
            }
        }
        self.status.update(|s| {
            s.connected_at = None;
            s.last_error = text;
            // A peer that is away for a moment does not make a fault undone.
            s.fault = fault.or(s.fault);
        });
    }
}

/// Reads a stream ahead of whoever takes from it, until it is dropped.
fn ahead<T: Send + 'static>(
    mut stream: impl Stream<Item = T> + Send + Unpin + 'static,
) -> impl Stream<Item = T> + Send + Unpin {
    let (into, out) = tokio::sync::mpsc::channel(AHEAD);
    tokio::spawn(async move {
        loop {
            let next = tokio::select! {
                () = into.closed() => break,
                next = stream.next() => next,
            };
            let Some(next) = next else { break };
            if into.send(next).await.is_err() {
                break;
            }
        }
    });
    ReceiverStream::new(out)
}
