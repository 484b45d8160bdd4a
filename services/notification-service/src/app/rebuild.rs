//! Makes the projection anew from key-service's first event on. What was dispatched, sent and told stays as it is.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::StreamExt;

use super::ports::{ApplyError, PeerError, PlanSource, Projected, Rebuild, RebuildStore, StorageError};

/// Three of key-service's heartbeats.
const SILENCE: Duration = Duration::from_secs(45);
/// Events applied between two looks at the stream at most.
const BATCH: usize = 32;
/// Progress is reported each time that so many more events are applied.
const REPORT: i64 = 10_000;

/// Why the projection was left as it was.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// key-service.
    #[error("key-service: {0}")]
    Peer(#[from] PeerError),
    /// key-service's events do not make a projection.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The database.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The first event is gone.
    #[error("key-service's history begins at event {0}: it cannot be replayed from the first one")]
    Truncated(i64),
    /// The stream ended too soon.
    #[error("key-service ended the stream after event {0}, or was silent for {wait} s", wait = SILENCE.as_secs())]
    Closed(i64),
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rebuilt {
    /// What the new projection holds.
    pub projected: Projected,
    /// The cursor before. Greater than the new one where key-service's history ends before it.
    pub cursor_before: i64,
}

/// The use case.
pub struct RebuildProjection {
    /// Where the events come from.
    pub source: Arc<dyn PlanSource>,
    /// Where they are applied.
    pub store: Arc<dyn RebuildStore>,
}

impl RebuildProjection {
    /// Replays up to the event that was the last one applied; those after it are left to the service, which announces what they
    /// bring.
    ///
    /// # Errors
    /// Whatever kept it from being done whole; then nothing is changed.
    pub async fn run(&self, now: DateTime<Utc>) -> Result<Rebuilt, RebuildError> {
        let mut rebuild = self.store.begin_rebuild(now).await?;
        let cursor_before = rebuild.cursor();
        if cursor_before > 0 {
            self.replay(rebuild.as_mut(), cursor_before).await?;
        }
        Ok(Rebuilt { projected: rebuild.finish().await?, cursor_before })
    }

    async fn replay(&self, rebuild: &mut dyn Rebuild, cursor_before: i64) -> Result<(), RebuildError> {
        let closed = |applied| move |_| RebuildError::Closed(applied);
        let stream = tokio::time::timeout(SILENCE, self.source.subscribe(0)).await.map_err(closed(0))??;
        let mut batches = stream.ready_chunks(BATCH);
        let (mut applied, mut reported) = (0, 0);
        loop {
            let batch = tokio::time::timeout(SILENCE, batches.next()).await.map_err(closed(applied))?;
            let mut last = cursor_before;
            let mut events = Vec::new();
            for message in batch.ok_or(RebuildError::Closed(applied))? {
                let message = message?;
                last = message.head_sequence.min(cursor_before);
                events.extend(message.event.filter(|event| event.sequence <= cursor_before));
            }
            if let Some(first) = events.first().filter(|event| applied == 0 && event.sequence > 1) {
                return Err(RebuildError::Truncated(first.sequence));
            }
            if let Some(event) = events.last() {
                let sequence = event.sequence;
                rebuild.apply(events).await?;
                applied = sequence;
            }
            if applied - reported >= REPORT {
                reported = applied;
                tracing::info!(applied, of = last, "replaying events");
            }
            if applied >= last {
                return Ok(());
            }
        }
    }
}
