//! Sends the emails that are due, one recipient a message.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures::{StreamExt, stream};
use service_kit::clock::SharedClock;
use service_kit::entropy::SharedEntropy;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::domain::delivery::{Contact, Outcome, Verdict, judge};
use crate::domain::text::masked;
use crate::metrics::EMAIL_ATTEMPTS;

use super::letter::{LetterEntry, LetterError, LetterFacts, LetterWriter};
use super::ports::{ClaimedDelivery, DeliveryStore, Mail, MailTransport, StageId, StorageError};

/// Emails claimed at once.
const CLAIM: u64 = 128;
/// Batches in work at once: while the outcomes of one are recorded, those of the other are sent.
const LANES: usize = 2;
/// Outcomes recorded at once at most. What was sent and not recorded is in doubt if the process dies: few, and soon.
const RECORD: usize = 32;
/// Letters with up to this many keys are read together.
const SHORT_LETTER: i64 = 100;
/// Keys of a longer letter read at once.
const ENTRIES: u64 = 2_000;
/// A letter with more keys than this is written and sent while no other such is: one in memory at a time.
const LONG_LETTER: i64 = 20_000;
/// How many of the longest attempts a lease lasts for. No attempt is begun that might outlast it.
const LEASE_ATTEMPTS: i32 = 3;
/// By how much the clocks of two replicas may differ without one taking what the other still sends.
const SKEW: TimeDelta = TimeDelta::minutes(1);
/// How long to wait for a database that does not answer before the next try.
const DATABASE_RETRY: Duration = Duration::from_millis(250);

/// What a delivery's last reply says where its letter could not be written.
const UNWRITTEN: &str = "the message could not be written; the log says why";

/// What one run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    /// Emails accepted.
    pub accepted: u64,
    /// Emails failed for good.
    pub failed: u64,
    /// Emails to be tried again.
    pub retried: u64,
}

/// The use case.
pub struct Deliver {
    /// Where the emails wait.
    pub store: Arc<dyn DeliveryStore>,
    /// Who puts them into words.
    pub writer: Arc<dyn LetterWriter>,
    /// Who sends them.
    pub transport: Arc<dyn MailTransport>,
    /// How many at once.
    pub connections: Semaphore,
    /// One long letter at a time.
    pub long_letter: Semaphore,
    /// The time: a run may take long.
    pub clock: SharedClock,
    /// Spreads the retries.
    pub entropy: SharedEntropy,
    /// This process, as the owner of leases.
    pub owner: String,
    /// When set, nothing more is begun.
    pub shutdown: CancellationToken,
}

/// What the letters of one batch say.
#[derive(Default)]
struct Contents {
    facts: HashMap<StageId, LetterFacts>,
    short: HashMap<StageId, Vec<LetterEntry>>,
}

impl Deliver {
    /// Sends everything that is due, as far as the send limits allow.
    ///
    /// # Errors
    /// Of the database. What was claimed and not recorded is sent again when its lease has run out.
    pub async fn run(self: &Arc<Self>, now: DateTime<Utc>) -> Result<Delivered, StorageError> {
        let mut lanes = JoinSet::new();
        for _ in 0..LANES {
            let lane = self.clone();
            lanes.spawn(async move { lane.lane(now).await });
        }
        let (mut done, mut failed) = (Delivered::default(), None);
        while let Some(ended) = lanes.join_next().await {
            let ended = ended.unwrap_or_else(|error| Err(StorageError::Internal(format!("a lane broke off: {error}"))));
            match ended {
                Ok(lane) => {
                    done.accepted += lane.accepted;
                    done.failed += lane.failed;
                    done.retried += lane.retried;
                }
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(done), Err)
    }

    async fn lane(self: Arc<Self>, now: DateTime<Utc>) -> Result<Delivered, StorageError> {
        let mut done = Delivered::default();
        while !self.shutdown.is_cancelled() {
            let now = now.max(self.clock.now());
            let claimed = self.store.claim(&self.owner, now, now + self.lease(), CLAIM).await?;
            if claimed.is_empty() {
                break;
            }
            self.batch(claimed, &mut done).await?;
        }
        Ok(done)
    }

    async fn batch(self: &Arc<Self>, claimed: Vec<ClaimedDelivery>, done: &mut Delivered) -> Result<(), StorageError> {
        let begun = Instant::now();
        let contents = Arc::new(self.insist(|| self.contents(&claimed)).await?);
        let attempts = stream::iter(claimed).map(|delivery| {
            let (me, contents) = (self.clone(), contents.clone());
            let left = delivery.clone();
            let attempt = tokio::spawn(async move { me.attempt(&delivery, &contents, begun).await });
            // What broke off inside of us may have been sent.
            async move { (left, attempt.await.unwrap_or_else(|error| Outcome::InDoubt(error.to_string()))) }
        });
        let mut answered = attempts.buffer_unordered(CLAIM as usize).ready_chunks(RECORD);
        while let Some(outcomes) = answered.next().await {
            let now = self.clock.now();
            let verdicts: Vec<_> =
                outcomes.into_iter().map(|(delivery, outcome)| self.verdict(delivery, outcome, now)).collect();
            verdicts.iter().for_each(|(delivery, verdict)| note(delivery, verdict, done));
            self.insist(|| self.store.record(&self.owner, &verdicts, now)).await?;
        }
        Ok(())
    }

    /// Asks a database that does not answer again for as long as the leases last: what was sent and is not recorded would be
    /// sent twice.
    async fn insist<T, F>(&self, ask: impl Fn() -> F) -> Result<T, StorageError>
    where
        F: Future<Output = Result<T, StorageError>>,
    {
        let until = Instant::now() + self.lease().to_std().unwrap_or_default();
        loop {
            match ask().await {
                Err(StorageError::Unavailable(cause)) if Instant::now() < until && !self.shutdown.is_cancelled() => {
                    tracing::warn!(cause, "the database does not answer; it is asked again");
                    tokio::time::sleep(DATABASE_RETRY).await;
                }
                other => return other,
            }
        }
    }

    async fn contents(&self, claimed: &[ClaimedDelivery]) -> Result<Contents, StorageError> {
        let mut ids: Vec<_> = claimed.iter().map(|delivery| delivery.stage.clone()).collect();
        ids.sort();
        ids.dedup();
        let facts = self.store.letters(&ids).await?;
        let short = facts.iter().filter(|(_, facts)| facts.key_count <= SHORT_LETTER);
        let short: Vec<_> = short.map(|(id, facts)| (id.clone(), facts.as_of_sequence)).collect();
        let short = self.store.short_letters(&short).await?;
        Ok(Contents { facts, short })
    }

    fn verdict(&self, delivery: ClaimedDelivery, outcome: Outcome, now: DateTime<Utc>) -> (ClaimedDelivery, Verdict) {
        let mut jitter = [0; 4];
        self.entropy.fill(&mut jitter);
        let verdict = judge(outcome, delivery.attempt, delivery.deferred_since, now, u32::from_be_bytes(jitter));
        (delivery, verdict)
    }

    async fn attempt(&self, delivery: &ClaimedDelivery, contents: &Contents, begun: Instant) -> Outcome {
        // Real time, whatever clock the service runs on: it is the mail server that is spared.
        tokio::time::sleep_until(begun + delivery.wait.to_std().unwrap_or_default()).await;
        let Some(facts) = contents.facts.get(&delivery.stage) else {
            tracing::error!(delivery_id = %delivery.id, "an email's stage was never dispatched");
            return Outcome::Unavailable(UNWRITTEN.to_owned());
        };
        // Before the connection, so that long letters do not keep others waiting; and until it is sent, for it is long until then.
        let _turn = if facts.key_count > LONG_LETTER { self.long_letter.acquire().await.ok() } else { None };
        let Ok(_connection) = self.connections.acquire().await else { return Outcome::Untried };
        if self.shutdown.is_cancelled() || !self.outlasts(delivery.lease_until) {
            return Outcome::Untried;
        }
        match self.write(delivery, facts, contents).await {
            // Writing may have taken long.
            Ok(_) if !self.outlasts(delivery.lease_until) => Outcome::Untried,
            Ok(content) => {
                let mail =
                    Mail { message_id: delivery.message_id.clone(), recipient: delivery.recipient.clone(), content };
                self.transport.send(mail).await
            }
            Err(WriteError::Letter(LetterError::Address(text))) => Outcome::Refused(text),
            // Ours to mend, not the recipient's to suffer for: it is tried again and stands in the delivery's last reply.
            Err(error) => {
                tracing::error!(delivery_id = %delivery.id, %error, "an email could not be written");
                Outcome::Unavailable(UNWRITTEN.to_owned())
            }
        }
    }

    fn longest(&self) -> TimeDelta {
        TimeDelta::from_std(self.transport.longest()).unwrap_or(TimeDelta::hours(1))
    }

    /// How long a claimed email is left to its owner.
    fn lease(&self) -> TimeDelta {
        self.longest() * LEASE_ATTEMPTS + SKEW
    }

    /// Whether a lease lasts for the longest attempt that could begin now, also by the clock of another replica.
    fn outlasts(&self, lease_until: DateTime<Utc>) -> bool {
        self.clock.now() + self.longest() + SKEW < lease_until
    }

    async fn write(
        &self,
        delivery: &ClaimedDelivery,
        facts: &LetterFacts,
        contents: &Contents,
    ) -> Result<Vec<u8>, WriteError> {
        let mut draft = self.writer.begin(facts, delivery)?;
        if let Some(entries) = contents.short.get(&delivery.stage) {
            draft.add(entries)?;
            return Ok(draft.finish()?);
        }
        let mut after = None;
        loop {
            let page =
                self.store.letter_entries(&delivery.stage, facts.as_of_sequence, after.as_ref(), ENTRIES).await?;
            draft.add(&page)?;
            if (page.len() as u64) < ENTRIES {
                return Ok(draft.finish()?);
            }
            after = page.into_iter().last();
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error(transparent)]
    Letter(#[from] LetterError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

fn note(delivery: &ClaimedDelivery, verdict: &Verdict, done: &mut Delivered) {
    let (id, to, attempt) = (&delivery.id, masked(&delivery.recipient), delivery.attempt);
    let outcome = match verdict {
        Verdict::Accepted { .. } => {
            done.accepted += 1;
            tracing::info!(delivery_id = %id, to, attempt, "email accepted");
            "accepted"
        }
        Verdict::Failed { reply } => {
            done.failed += 1;
            let reply = reply.replace(&delivery.recipient, &to);
            tracing::warn!(delivery_id = %id, to, attempt, reply, "email failed for good");
            "failed"
        }
        Verdict::Retry { reply, at, contact, .. } => {
            done.retried += 1;
            let reply = reply.replace(&delivery.recipient, &to);
            let in_doubt = *contact == Contact::InDoubt;
            tracing::warn!(delivery_id = %id, to, attempt, reply, in_doubt, next_attempt_at = %at, "email not accepted; it is tried again");
            if in_doubt { "in_doubt" } else { "retry" }
        }
        Verdict::Untried => {
            tracing::info!(delivery_id = %id, to, "email given back before it was sent");
            "untried"
        }
    };
    metrics::counter!(EMAIL_ATTEMPTS.name, "outcome" => outcome).increment(1);
}
