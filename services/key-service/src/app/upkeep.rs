//! What time alone brings about: overlaps that end, and requests that are forgotten.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::StorageError;

/// Keys ended by one transaction.
const BATCH_KEYS: u32 = 500;

/// What the upkeep needs of the database.
#[async_trait]
pub trait UpkeepStore: Send + Sync + 'static {
    /// Ends at most `limit` keys whose overlap has run out at `now`, and destroys their secret material.
    async fn end_overlaps(&self, now: DateTime<Utc>, limit: u32) -> Result<u64, StorageError>;
    /// Forgets the requests that cannot be repeated any more at `now`.
    async fn forget_requests(&self, now: DateTime<Utc>) -> Result<u64, StorageError>;
}

/// The upkeep's use cases.
pub struct Upkeep {
    store: Arc<dyn UpkeepStore>,
}

impl std::fmt::Debug for Upkeep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Upkeep")
    }
}

impl Upkeep {
    /// The use cases over this store.
    pub fn new(store: Arc<dyn UpkeepStore>) -> Self {
        Self { store }
    }

    /// Ends every key whose overlap has run out. Such a key stopped verifying on its instant; this makes it final.
    pub async fn end_overlaps(&self, now: DateTime<Utc>) -> Result<u64, StorageError> {
        let mut ended = 0;
        loop {
            let batch = self.store.end_overlaps(now, BATCH_KEYS).await?;
            ended += batch;
            if batch < u64::from(BATCH_KEYS) {
                return Ok(ended);
            }
        }
    }

    /// Forgets the requests that cannot be repeated any more, and with them the secrets kept for that.
    pub async fn forget_requests(&self, now: DateTime<Utc>) -> Result<u64, StorageError> {
        self.store.forget_requests(now).await
    }
}
