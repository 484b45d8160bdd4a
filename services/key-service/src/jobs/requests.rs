//! Forgets requests that cannot be repeated any more.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use service_kit::jobs::{JobReport, Reconciler};

use crate::app::keys::Keys;
use crate::app::upkeep::Upkeep;
use crate::app::verify::Verifier;

/// Forgets requests older than 24 h, the secrets kept for them, actors that have long revealed nothing, and sources that have long
/// presented nothing bad.
#[derive(Debug)]
pub struct ForgetRequests {
    upkeep: Arc<Upkeep>,
    keys: Arc<Keys>,
    verifier: Arc<Verifier>,
}

impl ForgetRequests {
    /// The job over these use cases.
    pub fn new(upkeep: Arc<Upkeep>, keys: Arc<Keys>, verifier: Arc<Verifier>) -> Self {
        Self { upkeep, keys, verifier }
    }
}

#[async_trait]
impl Reconciler for ForgetRequests {
    fn name(&self) -> &'static str {
        "forget_requests"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(600)
    }

    async fn activate(&self, now: DateTime<Utc>) -> anyhow::Result<JobReport> {
        self.keys.tidy_reveals();
        self.verifier.tidy();
        let forgotten = self.upkeep.forget_requests(now).await?;
        Ok(JobReport { work: forgotten, detail: serde_json::json!({ "requests": forgotten }) })
    }
}
