//! Background work: forgetting requests that can no longer be repeated.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use service_kit::jobs::{JobReport, Reconciler};

use crate::app::ports::Store;

/// Promised are 24 h; the rest keeps a replica whose clock runs ahead from breaking the promise.
const KEPT: TimeDelta = TimeDelta::hours(25);

/// Forgets what `request_id`s did once they can no longer be repeated.
pub(crate) struct ForgetRequests {
    store: Arc<dyn Store>,
}

impl ForgetRequests {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }
}

#[async_trait]
impl Reconciler for ForgetRequests {
    fn name(&self) -> &'static str {
        "location.forget_requests"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(3_600)
    }

    async fn activate(&self, now: DateTime<Utc>) -> anyhow::Result<JobReport> {
        let forgotten = self.store.purge_requests(now - KEPT).await?;
        Ok(JobReport { work: forgotten, detail: serde_json::json!({ "forgotten": forgotten }) })
    }
}
