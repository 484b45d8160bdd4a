//! Decides who is told of a lot, and puts it into inboxes and the queue of emails.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use futures::{StreamExt, stream};

use super::ports::{DispatchStore, PeerError, Published, RecipientSource, StageId, StorageError};
use super::signals::Signals;
use crate::domain::recipient::RecipientChunk;
use crate::metrics::NOTIFICATIONS;

/// Stages claimed at once. Small, so that replicas share the work.
const CLAIM: u64 = 64;
/// Lots whose people are asked for at once.
const CONCURRENCY: usize = 8;
/// How long a claimed stage is left to its owner: the largest lots ask for their people in many pages.
const LEASE: TimeDelta = TimeDelta::minutes(10);
/// Locations asked for in one call, as location-service allows.
const LOCATIONS: u64 = 10_000;

/// Parts of an answer noted at once where they have arrived: one transaction for the people of most agencies.
const CHUNKS: usize = 8;

/// Why a stage was not dispatched.
#[derive(Debug, thiserror::Error)]
pub enum DispatchError {
    /// location-service.
    #[error("location-service: {0}")]
    Peer(#[from] PeerError),
    /// The database.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// What one run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dispatched {
    /// Stages dispatched.
    pub stages: u64,
    /// Notifications made.
    pub in_app: u64,
    /// Emails to send.
    pub emails: u64,
    /// Stages newly found to have nobody to tell.
    pub undeliverable: u64,
}

/// The use case.
pub struct Dispatch {
    /// Where stages are claimed and published.
    pub store: Arc<dyn DispatchStore>,
    /// Who there is to tell.
    pub recipients: Arc<dyn RecipientSource>,
    /// Who is told that something was dispatched.
    pub signals: Arc<Signals>,
    /// This process, as the owner of leases.
    pub owner: String,
}

impl Dispatch {
    /// Dispatches everything that is due at `now`.
    ///
    /// # Errors
    /// The first that a lot met; the others are dispatched all the same, and what failed is due again at once.
    pub async fn run(&self, now: DateTime<Utc>) -> Result<Dispatched, DispatchError> {
        let mut done = Dispatched::default();
        loop {
            let claimed = self.store.claim_due(&self.owner, now, now + LEASE, CLAIM).await?;
            let last = (claimed.len() as u64) < CLAIM;
            let results: Vec<_> = stream::iter(claimed)
                .map(|id| async move { self.one(&id, now).await })
                .buffer_unordered(CONCURRENCY)
                .collect()
                .await;
            let mut failed = None;
            for result in results {
                match result {
                    Ok(Published::Dispatched { in_app, emails }) => {
                        done.stages += 1;
                        done.in_app += in_app;
                        done.emails += emails;
                    }
                    Ok(Published::Undeliverable { news, .. }) => done.undeliverable += u64::from(news),
                    Ok(Published::NotDue) => {}
                    Err(error) => failed = Some(error),
                }
            }
            if done.stages > 0 {
                self.signals.projection_changed();
            }
            if let Some(error) = failed {
                return Err(error);
            }
            if last {
                return Ok(done);
            }
        }
    }

    async fn one(&self, id: &StageId, now: DateTime<Utc>) -> Result<Published, DispatchError> {
        let result = match self.collect(id).await {
            Ok(true) => self.store.publish(id, &self.owner, now).await.map_err(DispatchError::from),
            Ok(false) => Ok(Published::NotDue),
            Err(error) => Err(error),
        };
        match &result {
            Ok(Published::Dispatched { in_app, emails }) => {
                metrics::counter!(NOTIFICATIONS.name, "stage" => id.stage.name()).increment(*in_app);
                tracing::info!(plan_id = %id.plan_id, agency_id = %id.agency_id, stage = id.stage.name(), in_app, emails, "notices dispatched");
            }
            Ok(Published::Undeliverable { reason, news: true }) => {
                tracing::warn!(plan_id = %id.plan_id, agency_id = %id.agency_id, stage = id.stage.name(), reason = reason.name(), "nobody can be told");
            }
            Ok(Published::Undeliverable { .. } | Published::NotDue) => {}
            Err(error) => {
                tracing::warn!(plan_id = %id.plan_id, agency_id = %id.agency_id, stage = id.stage.name(), %error, "notices not dispatched");
                // If this fails too, the lease runs out by itself.
                if let Err(error) = self.store.release(id, &self.owner).await {
                    tracing::warn!(%error, "a claimed stage could not be given back");
                }
            }
        }
        result
    }

    /// Asks who is to be told, page by page, with no transaction open. Answers whether the stage is still ours.
    async fn collect(&self, id: &StageId) -> Result<bool, DispatchError> {
        let mut locations = self.store.live_locations(id, None, LOCATIONS).await?;
        loop {
            let last = locations.last().cloned().filter(|_| locations.len() as u64 == LOCATIONS);
            match self.ask(id, locations).await {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                // An agency that location-service does not know has nobody to tell.
                Err(DispatchError::Peer(PeerError::NotFound(_))) => return Ok(true),
                Err(error) => return Err(error),
            }
            let Some(last) = last else { return Ok(true) };
            locations = self.store.live_locations(id, Some(&last), LOCATIONS).await?;
            if locations.is_empty() {
                return Ok(true);
            }
        }
    }

    async fn ask(&self, id: &StageId, locations: Vec<crate::domain::ids::LocationId>) -> Result<bool, DispatchError> {
        let mut chunks = self.recipients.recipients(&id.agency_id, locations).await?.ready_chunks(CHUNKS);
        while let Some(some) = chunks.next().await {
            let mut whole = RecipientChunk::default();
            for chunk in some {
                let chunk = chunk?;
                whole.agency = chunk.agency.or(whole.agency);
                whole.recipients.extend(chunk.recipients);
                whole.locations.extend(chunk.locations);
            }
            if !self.store.collect(id, &self.owner, whole).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
