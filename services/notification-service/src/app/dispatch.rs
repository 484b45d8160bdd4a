//! Decides who is told of a lot, and puts it into inboxes and the queue of emails.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use futures::{StreamExt, stream};
use tokio_util::sync::CancellationToken;

use super::ports::{DispatchStore, PeerError, ProjectionStore, Published, RecipientSource, StageId, StorageError};
use super::signals::Signals;
use super::subscribe::SharedStatus;
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

/// People and names of a lot that wait in memory for those of others, to be noted with them in one transaction.
const GATHERED: usize = 1_000;

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
    /// What is known of the plans.
    pub projection: Arc<dyn ProjectionStore>,
    /// Whether that is of now.
    pub status: SharedStatus,
    /// Who there is to tell.
    pub recipients: Arc<dyn RecipientSource>,
    /// Who is told that something was dispatched.
    pub signals: Arc<Signals>,
    /// This process, as the owner of leases.
    pub owner: String,
    /// Ends the run after what it has claimed: the rest is due for whoever runs next.
    pub shutdown: CancellationToken,
}

impl Dispatch {
    /// Dispatches everything that is due at `now`.
    ///
    /// # Errors
    /// The first that a lot met; the others are dispatched all the same, and what failed is due again at once.
    pub async fn run(&self, now: DateTime<Utc>) -> Result<Dispatched, DispatchError> {
        let mut done = Dispatched::default();
        // Back after an absence, the service first hears what happened meanwhile: else it tells of keys that have left their lots.
        if self.status.get().is_catching_up(self.projection.cursor().await?.sequence) {
            return Ok(done);
        }
        while !self.shutdown.is_cancelled() {
            let claimed = self.store.claim_due(&self.owner, now, now + LEASE, CLAIM).await?;
            let last = (claimed.len() as u64) < CLAIM;
            let asked: Vec<_> = stream::iter(claimed)
                .map(|id| async move {
                    let gathered = self.gather(&id).await;
                    (id, gathered)
                })
                .buffer_unordered(CONCURRENCY)
                .collect()
                .await;
            let (mut parts, mut failed) = (Vec::with_capacity(asked.len()), None);
            for (id, gathered) in asked {
                match gathered {
                    Ok(Some(chunk)) => parts.push((id, chunk)),
                    // Another replica's by now.
                    Ok(None) => {}
                    Err(error) => failed = Some(self.give_back(&id, error).await),
                }
            }
            let told = self.tell(parts, now, &mut done).await;
            failed = told.err().or(failed);
            if done.stages > 0 {
                self.signals.projection_changed();
            }
            if let Some(error) = failed {
                return Err(error);
            }
            if last {
                break;
            }
        }
        Ok(done)
    }

    /// Tells the people of these stages, all in two transactions. If that fails, each stage by itself: one that cannot be told does not
    /// keep others from it.
    async fn tell(
        &self,
        parts: Vec<(StageId, RecipientChunk)>,
        now: DateTime<Utc>,
        done: &mut Dispatched,
    ) -> Result<(), DispatchError> {
        let each = if parts.len() > 1 { parts.clone() } else { Vec::new() };
        let ids: Vec<StageId> = parts.iter().map(|(id, _)| id.clone()).collect();
        let Err(error) = self.tell_at_once(parts, now, done).await else { return Ok(()) };
        if let [only] = ids.as_slice() {
            return Err(self.give_back(only, error.into()).await);
        }
        tracing::debug!(%error, "several notices could not be dispatched at once");
        let mut failed = Ok(());
        for (id, chunk) in each {
            if let Err(error) = self.tell_at_once(vec![(id.clone(), chunk)], now, done).await {
                failed = Err(self.give_back(&id, error.into()).await);
            }
        }
        failed
    }

    async fn tell_at_once(
        &self,
        parts: Vec<(StageId, RecipientChunk)>,
        now: DateTime<Utc>,
        done: &mut Dispatched,
    ) -> Result<(), StorageError> {
        if parts.is_empty() {
            return Ok(());
        }
        let ours = self.store.collect(&self.owner, parts).await?;
        let published = self.store.publish(&ours, &self.owner, now).await?;
        for (id, published) in ours.iter().zip(published) {
            match published {
                Published::Dispatched { in_app, emails } => {
                    done.stages += 1;
                    done.in_app += in_app;
                    done.emails += emails;
                    metrics::counter!(NOTIFICATIONS.name, "stage" => id.stage.name()).increment(in_app);
                    tracing::info!(plan_id = %id.plan_id, agency_id = %id.agency_id, stage = id.stage.name(), in_app, emails, "notices dispatched");
                }
                Published::Undeliverable { reason, news } => {
                    done.undeliverable += u64::from(news);
                    if news {
                        tracing::warn!(plan_id = %id.plan_id, agency_id = %id.agency_id, stage = id.stage.name(), reason = reason.name(), "nobody can be told");
                    }
                }
                Published::NotDue => {}
            }
        }
        Ok(())
    }

    /// Gives a claimed stage back, for the next run.
    async fn give_back(&self, id: &StageId, error: DispatchError) -> DispatchError {
        tracing::warn!(plan_id = %id.plan_id, agency_id = %id.agency_id, stage = id.stage.name(), %error, "notices not dispatched");
        // If this fails too, the lease runs out by itself.
        if let Err(error) = self.store.release(id, &self.owner).await {
            tracing::warn!(%error, "a claimed stage could not be given back");
        }
        error
    }

    /// Asks who is to be told, page by page, with no transaction open. Answers the people that are not noted yet, which are all of most
    /// lots; none if the stage is no longer ours.
    async fn gather(&self, id: &StageId) -> Result<Option<RecipientChunk>, DispatchError> {
        let mut locations = self.store.live_locations(id, None, LOCATIONS).await?;
        loop {
            let next = locations.last().cloned().filter(|_| locations.len() as u64 == LOCATIONS);
            let gathered = match self.ask(id, locations).await {
                Ok(Some(gathered)) => gathered,
                Ok(None) => return Ok(None),
                // An agency that location-service does not know has nobody to tell.
                Err(DispatchError::Peer(PeerError::NotFound(_))) => return Ok(Some(RecipientChunk::default())),
                Err(error) => return Err(error),
            };
            let Some(next) = next else { return Ok(Some(gathered)) };
            locations = self.store.live_locations(id, Some(&next), LOCATIONS).await?;
            if locations.is_empty() {
                return Ok(Some(gathered));
            }
            // The next answer names the agency's admins again.
            if !self.note(id, gathered).await? {
                return Ok(None);
            }
        }
    }

    async fn ask(
        &self,
        id: &StageId,
        locations: Vec<crate::domain::ids::LocationId>,
    ) -> Result<Option<RecipientChunk>, DispatchError> {
        let mut parts = self.recipients.recipients(&id.agency_id, locations).await?;
        let mut gathered = RecipientChunk::default();
        while let Some(part) = parts.next().await {
            let part = part?;
            gathered.agency = part.agency.or(gathered.agency);
            gathered.recipients.extend(part.recipients);
            gathered.locations.extend(part.locations);
            if gathered.recipients.len() + gathered.locations.len() > GATHERED
                && !self.note(id, std::mem::take(&mut gathered)).await?
            {
                return Ok(None);
            }
        }
        Ok(Some(gathered))
    }

    /// Notes people; false: the stage is no longer ours.
    async fn note(&self, id: &StageId, gathered: RecipientChunk) -> Result<bool, StorageError> {
        Ok(!self.store.collect(&self.owner, vec![(id.clone(), gathered)]).await?.is_empty())
    }
}
