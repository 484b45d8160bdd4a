//! The stream of events: from disk, in order, as fast as its reader reads.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use futures::Stream;
use futures::stream::unfold;
use keysweep_proto::key::v1 as proto;
use service_kit::status::draining;
use service_kit::time::to_proto;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{convert, status};
use crate::app::sweep::{Subscription, SweepError, SweepService};
use crate::domain::sweep::{EventPayload, StoredEvent};

/// Events read at once. A chunk of a plan is an event of a few bytes until it is sent, so memory holds one chunk, not a page of
/// them.
const PAGE: u32 = 100;

/// How often the disk is looked at without a signal: another replica's may have been lost.
const POLL: Duration = Duration::from_secs(1);

/// A subscriber hears from the server at least this often, so that it can tell silence from a broken connection.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(15);

/// What a subscriber receives.
pub(super) type EventStream = Pin<Box<dyn Stream<Item = Result<proto::SubscribeSweepPlansResponse, Status>> + Send>>;

/// Every event after a sequence, then each new one; a heartbeat first and whenever nothing else was sent for that long.
///
/// It is read only as its reader asks for more: nothing piles up for a slow one.
pub(super) fn events(
    sweep: SweepService,
    drain: CancellationToken,
    wake: watch::Receiver<()>,
    place: Subscription,
    heartbeat: Duration,
) -> EventStream {
    let feed = Feed {
        sweep,
        drain,
        wake,
        heartbeat,
        history_id: place.history_id,
        cursor: place.after,
        head: place.head,
        page: VecDeque::new(),
        greet: true,
        ended: false,
        spoke_at: Instant::now(),
    };
    Box::pin(unfold(feed, |mut feed| async move {
        if feed.ended {
            return None;
        }
        let message = feed.next().await;
        feed.ended = message.is_err();
        feed.spoke_at = Instant::now();
        Some((message, feed))
    }))
}

struct Feed {
    sweep: SweepService,
    drain: CancellationToken,
    wake: watch::Receiver<()>,
    heartbeat: Duration,
    history_id: String,
    cursor: i64,
    head: i64,
    page: VecDeque<StoredEvent>,
    greet: bool,
    ended: bool,
    spoke_at: Instant,
}

impl Feed {
    async fn next(&mut self) -> Result<proto::SubscribeSweepPlansResponse, Status> {
        if std::mem::take(&mut self.greet) {
            return self.heartbeat().await;
        }
        loop {
            if self.drain.is_cancelled() {
                return Err(draining());
            }
            if let Some(event) = self.page.pop_front() {
                self.cursor = event.sequence;
                let event = self.event(event).await.map_err(|error| status::of(&error))?;
                return Ok(proto::SubscribeSweepPlansResponse {
                    event: Some(event),
                    head_sequence: self.head,
                    ..Default::default()
                });
            }
            // Seen before the look, so that an event committed after it wakes the wait.
            self.wake.mark_unchanged();
            self.read().await.map_err(|error| status::of(&error))?;
            if self.page.is_empty() && self.wait().await {
                return self.heartbeat().await;
            }
        }
    }

    async fn read(&mut self) -> Result<(), SweepError> {
        self.page = self.sweep.events_after(self.cursor, PAGE).await?.into();
        // Events are without gaps: what is missing was removed for its age.
        if let Some(first) = self.page.front().filter(|event| event.sequence != self.cursor + 1) {
            return Err(SweepError::CursorExpired { first: first.sequence });
        }
        if let Some(last) = self.page.back() {
            self.head = self.head.max(last.sequence);
            if self.page.len() == PAGE as usize {
                self.head = self.head.max(self.sweep.head().await?);
            }
        }
        Ok(())
    }

    /// Waits until there may be more; true: it is time for a heartbeat.
    async fn wait(&mut self) -> bool {
        let heartbeat = self.spoke_at + self.heartbeat;
        tokio::select! {
            () = self.drain.cancelled() => false,
            Ok(()) = self.wake.changed() => false,
            () = tokio::time::sleep(POLL) => Instant::now() >= heartbeat,
            () = sleep_until(heartbeat) => true,
        }
    }

    async fn event(&self, event: StoredEvent) -> Result<proto::SweepEvent, SweepError> {
        let payload = match event.payload {
            EventPayload::PlanEntries(range) => {
                let (delete_at, entries) = self.sweep.chunk(&event.plan_id, &range).await?;
                let entries = entries.into_iter().map(|entry| convert::entry(entry, delete_at)).collect();
                Some(proto::sweep_event::Payload::PlanEntries(proto::PlanEntries { entries }))
            }
            other => convert::payload(other),
        };
        Ok(proto::SweepEvent {
            sequence: event.sequence,
            event_time: Some(to_proto(event.occurred_at)),
            plan_id: event.plan_id,
            payload,
        })
    }

    async fn heartbeat(&self) -> Result<proto::SubscribeSweepPlansResponse, Status> {
        let time = self.sweep.time().await.map_err(|error| status::of(&error))?;
        Ok(proto::SubscribeSweepPlansResponse {
            event: None,
            head_sequence: self.head,
            server_time: Some(to_proto(time)),
            history_id: self.history_id.clone(),
        })
    }
}
