//! Ends keys whose overlap after a rotation has run out.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use service_kit::jobs::{JobReport, Reconciler};

use crate::app::upkeep::Upkeep;

/// Ends keys whose overlap has run out. They stopped verifying on their instant; this destroys their secrets.
#[derive(Debug)]
pub struct EndOverlaps {
    upkeep: Arc<Upkeep>,
}

impl EndOverlaps {
    /// The job over these use cases.
    pub fn new(upkeep: Arc<Upkeep>) -> Self {
        Self { upkeep }
    }
}

#[async_trait]
impl Reconciler for EndOverlaps {
    fn name(&self) -> &'static str {
        "end_overlaps"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(10)
    }

    async fn activate(&self, now: DateTime<Utc>) -> anyhow::Result<JobReport> {
        let ended = self.upkeep.end_overlaps(now).await?;
        Ok(JobReport { work: ended, detail: serde_json::json!({ "keys": ended }) })
    }
}
