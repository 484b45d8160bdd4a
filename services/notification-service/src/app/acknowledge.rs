//! Hands key-service the receipts of notices that are out.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use service_kit::clock::SharedClock;
use tokio_util::sync::CancellationToken;

use super::ports::{OwedReceipt, PeerError, ReceiptAnswer, ReceiptSink, ReceiptStore, StageNews, StorageError};
use crate::metrics::RECEIPTS_REFUSED;

/// Receipts handed in at once; key-service takes up to 1,000.
const BATCH: u64 = 500;

/// Why receipts were not handed in.
#[derive(Debug, thiserror::Error)]
pub enum AcknowledgeError {
    /// key-service.
    #[error("key-service: {0}")]
    Peer(#[from] PeerError),
    /// The database.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// The use case.
pub struct Acknowledge {
    /// Where the owed receipts stand.
    pub store: Arc<dyn ReceiptStore>,
    /// Who takes them.
    pub sink: Arc<dyn ReceiptSink>,
    /// The time that dates them.
    pub clock: SharedClock,
    /// Ends the run after the batch that is under way: the rest stays owed.
    pub shutdown: CancellationToken,
}

impl Acknowledge {
    /// Hands in every receipt owed; answers how many.
    ///
    /// # Errors
    /// What kept a batch from being handed in or recorded; it is handed in again, which changes nothing twice.
    pub async fn run(&self, now: DateTime<Utc>) -> Result<u64, AcknowledgeError> {
        let mut total = 0;
        while !self.shutdown.is_cancelled() {
            let owed = self.store.owed(BATCH).await?;
            if owed.is_empty() {
                break;
            }
            let count = owed.len() as u64;
            let (answers, head_sequence) = self.sink.acknowledge(&owed, self.clock.now()).await?;
            if answers.len() != owed.len() {
                let text = format!("{} receipts were handed in and {} answered", owed.len(), answers.len());
                return Err(PeerError::Refused(text).into());
            }
            let answers: Vec<_> = owed.into_iter().zip(answers).collect();
            for (receipt, answer) in &answers {
                note(receipt, answer);
            }
            self.store.record(answers, head_sequence, now).await?;
            total += count;
            if count < BATCH {
                break;
            }
        }
        Ok(total)
    }
}

fn note(receipt: &OwedReceipt, answer: &ReceiptAnswer) {
    let (plan_id, agency_id, stage) = (&receipt.id.plan_id, &receipt.id.agency_id, receipt.id.stage.name());
    match answer {
        ReceiptAnswer::Recorded => match &receipt.news {
            StageNews::Delivered { .. } => tracing::info!(%plan_id, %agency_id, stage, "receipt recorded"),
            StageNews::Undeliverable(reason) => {
                tracing::warn!(%plan_id, %agency_id, stage, reason = reason.name(), "lot reported as undeliverable")
            }
        },
        ReceiptAnswer::LotClosed => {
            tracing::info!(%plan_id, %agency_id, stage, "the lot was closed before its receipt")
        }
        ReceiptAnswer::Refused(detail) => {
            metrics::counter!(RECEIPTS_REFUSED.name).increment(1);
            tracing::error!(%plan_id, %agency_id, stage, detail, "key-service refused a receipt: the lot will not be deleted");
        }
    }
}
