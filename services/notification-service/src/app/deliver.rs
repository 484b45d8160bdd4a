//! Sends the emails that are due, one recipient a message.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures::{StreamExt, stream};
use service_kit::clock::SharedClock;
use service_kit::entropy::SharedEntropy;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::domain::delivery::{Outcome, Verdict, judge};
use crate::domain::text::masked;

use super::letter::{LetterError, LetterWriter};
use super::ports::{ClaimedDelivery, DeliveryStore, Mail, MailTransport, StorageError};

/// Emails claimed at once: what one lease must suffice for.
const CLAIM: u64 = 64;
/// Keys read for a letter at once.
const ENTRIES: u64 = 2_000;
/// How long a claimed email is left to its owner. Longer than [`CLAIM`] emails take at the slowest allowed rate, one a second,
/// with the longest attempt after them.
const LEASE: TimeDelta = TimeDelta::minutes(10);

/// Spaces messages out so that a mail server is not flooded. Real time, whatever clock the service runs on: it is the
/// server that is spared.
#[derive(Debug)]
pub struct Pace {
    gap: Option<Duration>,
    next: Mutex<Option<Instant>>,
}

impl Pace {
    /// At most `per_second` messages a second; 0 for no limit.
    pub fn new(per_second: u32) -> Self {
        Self { gap: (per_second > 0).then(|| Duration::from_secs(1) / per_second), next: Mutex::new(None) }
    }

    /// Waits for the next message's turn.
    async fn turn(&self) {
        let Some(gap) = self.gap else { return };
        let at = {
            let mut next = self.next.lock().await;
            let at = next.unwrap_or_else(Instant::now).max(Instant::now());
            *next = Some(at + gap);
            at
        };
        tokio::time::sleep_until(at).await;
    }
}

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
    /// How fast.
    pub pace: Pace,
    /// How many at once.
    pub concurrency: usize,
    /// The time: a run may take long.
    pub clock: SharedClock,
    /// Spreads the retries.
    pub entropy: SharedEntropy,
    /// This process, as the owner of leases.
    pub owner: String,
    /// When set, nothing more is claimed.
    pub shutdown: CancellationToken,
}

impl Deliver {
    /// Sends everything that is due.
    ///
    /// # Errors
    /// Of the database. What was claimed and not recorded is sent again when its lease has run out.
    pub async fn run(&self, now: DateTime<Utc>) -> Result<Delivered, StorageError> {
        let mut done = Delivered::default();
        while !self.shutdown.is_cancelled() {
            let now = now.max(self.clock.now());
            let claimed = self.store.claim(&self.owner, now, now + LEASE, CLAIM).await?;
            if claimed.is_empty() {
                break;
            }
            let last = (claimed.len() as u64) < CLAIM;
            let attempts =
                stream::iter(claimed).map(|delivery| self.attempt(delivery)).buffer_unordered(self.concurrency);
            // What has been answered meanwhile is recorded together: one transaction, soon.
            let mut answered = attempts.ready_chunks(self.concurrency);
            while let Some(outcomes) = answered.next().await {
                let now = self.clock.now();
                let verdicts: Vec<_> =
                    outcomes.into_iter().map(|(delivery, outcome)| self.verdict(delivery, outcome, now)).collect();
                verdicts.iter().for_each(|(delivery, verdict)| note(delivery, verdict, &mut done));
                self.store.record(&self.owner, verdicts, now).await?;
            }
            if last {
                break;
            }
        }
        Ok(done)
    }

    fn verdict(&self, delivery: ClaimedDelivery, outcome: Outcome, now: DateTime<Utc>) -> (ClaimedDelivery, Verdict) {
        let mut jitter = [0; 4];
        self.entropy.fill(&mut jitter);
        let verdict = judge(outcome, delivery.attempt, delivery.deferred_since, now, u32::from_be_bytes(jitter));
        (delivery, verdict)
    }

    async fn attempt(&self, delivery: ClaimedDelivery) -> (ClaimedDelivery, Outcome) {
        let outcome = match self.write(&delivery).await {
            Ok(content) => {
                self.pace.turn().await;
                let mail =
                    Mail { message_id: delivery.message_id.clone(), recipient: delivery.recipient.clone(), content };
                self.transport.send(mail).await
            }
            Err(WriteError::Letter(LetterError::Address(text))) => Outcome::Refused(text),
            // Ours to mend, not the recipient's to suffer for: it is tried again and stands in the delivery's last reply.
            Err(error) => {
                tracing::error!(delivery_id = %delivery.id, %error, "an email could not be written");
                Outcome::Unavailable("the message could not be written; the log says why".to_owned())
            }
        };
        (delivery, outcome)
    }

    async fn write(&self, delivery: &ClaimedDelivery) -> Result<Vec<u8>, WriteError> {
        let facts = self.store.letter(&delivery.stage).await?.ok_or(WriteError::NoFacts)?;
        let mut draft = self.writer.begin(&facts, delivery)?;
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
    #[error("its stage was never dispatched")]
    NoFacts,
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
        Verdict::Retry { reply, at, .. } => {
            done.retried += 1;
            let reply = reply.replace(&delivery.recipient, &to);
            tracing::warn!(delivery_id = %id, to, attempt, reply, next_attempt_at = %at, "email not accepted; it is tried again");
            "retry"
        }
    };
    metrics::counter!("keysweep_email_attempts_total", "outcome" => outcome).increment(1);
}
