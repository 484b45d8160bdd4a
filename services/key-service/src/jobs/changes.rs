//! Keeps the keys in memory in step with the database.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use service_kit::jobs::{JobReport, Reconciler};

use crate::app::verify::ChangeFollower;
use crate::metrics::REVOCATION_LAG;

/// Reads what other replicas changed: when a notification says that something did, and each second all the same.
#[derive(Debug)]
pub struct FollowChanges {
    changes: Arc<ChangeFollower>,
}

impl FollowChanges {
    /// The job of this follower.
    pub fn new(changes: Arc<ChangeFollower>) -> Self {
        Self { changes }
    }
}

#[async_trait]
impl Reconciler for FollowChanges {
    fn name(&self) -> &'static str {
        "follow_changes"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(1)
    }

    async fn activate(&self, _: DateTime<Utc>) -> anyhow::Result<JobReport> {
        metrics::gauge!(REVOCATION_LAG.name).set(self.changes.lag().as_secs_f64());
        let heard = self.changes.catch_up().await?;
        Ok(JobReport { work: heard, detail: serde_json::json!({ "changes": heard }) })
    }
}
