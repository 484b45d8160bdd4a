//! Reading the audit, and proving it whole.

use std::sync::Arc;

use async_trait::async_trait;
use service_kit::page::Page;

use super::StorageError;
use crate::domain::audit::{AuditEvent, ChainHead};

/// Events checked by one query: bounds the memory of a proof.
const PROOF_EVENTS: u32 = 1_000;

/// Which events to list; joined by AND.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// Only of this agency.
    pub agency_id: Option<String>,
    /// Only of this key.
    pub key_id: Option<String>,
    /// Only at or after this instant.
    pub from: Option<chrono::DateTime<chrono::Utc>>,
    /// Only before this instant.
    pub until: Option<chrono::DateTime<chrono::Utc>>,
}

/// The audit in the database.
#[async_trait]
pub trait AuditStore: Send + Sync + 'static {
    /// At most `limit` events after `after`, in order.
    async fn events(&self, filter: &AuditFilter, after: i64, limit: u32) -> Result<Vec<AuditEvent>, StorageError>;
    /// The end of the chain.
    async fn head(&self) -> Result<ChainHead, StorageError>;
}

/// What a proof found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// The first event that does not follow; `None`: the chain is whole.
    pub first_broken: Option<i64>,
    /// Events that follow.
    pub checked: i64,
    /// The end of the chain, as far as the database says.
    pub head: ChainHead,
}

/// The use cases of the audit.
pub struct Audit {
    store: Arc<dyn AuditStore>,
}

impl std::fmt::Debug for Audit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Audit")
    }
}

impl Audit {
    /// The use cases over this store.
    pub fn new(store: Arc<dyn AuditStore>) -> Self {
        Self { store }
    }

    /// One page of events, oldest first, and the cursor of the next page if there is one. `None` for a cursor that is
    /// none of ours.
    pub async fn list(
        &self,
        filter: &AuditFilter,
        page: &Page,
    ) -> Result<Option<(Vec<AuditEvent>, Option<String>)>, StorageError> {
        let after = match &page.cursor {
            None => 0,
            Some(cursor) => match cursor.parse() {
                Ok(after) => after,
                Err(_) => return Ok(None),
            },
        };
        let mut events = self.store.events(filter, after, page.size + 1).await?;
        let more = events.len() > page.size as usize;
        events.truncate(page.size as usize);
        let next = more.then(|| events.last().map(|event| event.sequence.to_string())).flatten();
        Ok(Some((events, next)))
    }

    /// Recomputes the chain from its first event to the end it had when the proof began. `noted` is an end that it had earlier:
    /// whoever can write to the database can cut the chain's tail or begin another, but not one that contains this.
    pub async fn verify(&self, noted: Option<ChainHead>) -> Result<Proof, StorageError> {
        let head = self.store.head().await?;
        let mut at = ChainHead::EMPTY;
        while at.sequence < head.sequence {
            let events = self.store.events(&AuditFilter::default(), at.sequence, PROOF_EVENTS).await?;
            if events.is_empty() {
                break;
            }
            for event in events.iter().take_while(|event| event.sequence <= head.sequence) {
                let other = noted.is_some_and(|noted| noted.sequence == event.sequence && noted.hash != event.hash);
                if other || !at.follow(event) {
                    return Ok(Proof { first_broken: Some(at.sequence + 1), checked: at.sequence, head });
                }
            }
            if events.last().is_some_and(|event| event.sequence > head.sequence) {
                break;
            }
        }
        // A cut tail leaves a chain that follows and does not end where it should.
        let cut = noted.is_some_and(|noted| noted.sequence > at.sequence);
        let first_broken = (at != head || cut).then_some(at.sequence + 1);
        Ok(Proof { first_broken, checked: at.sequence, head })
    }
}
