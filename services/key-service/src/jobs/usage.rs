//! Stores the uses that wait in memory.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use service_kit::jobs::{JobReport, Reconciler};

use crate::app::verify::UsageRecorder;
use crate::metrics::{KEYS_IN_MEMORY, USAGE_FLUSH_LAG, USES_STORED, USES_WAITING};

/// Stores the uses that wait in memory, each second, says that it has, and counts the answers that made them.
#[derive(Debug)]
pub struct FlushUses {
    recorder: Arc<UsageRecorder>,
}

impl FlushUses {
    /// The job of this recorder.
    pub fn new(recorder: Arc<UsageRecorder>) -> Self {
        Self { recorder }
    }
}

#[async_trait]
impl Reconciler for FlushUses {
    fn name(&self) -> &'static str {
        "flush_uses"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(1)
    }

    async fn activate(&self, _: DateTime<Utc>) -> anyhow::Result<JobReport> {
        self.recorder.count();
        let stored = self.recorder.flush_some().await;
        let lag = self.recorder.lag().await.to_std().unwrap_or_default();
        metrics::gauge!(USAGE_FLUSH_LAG.name).set(lag.as_secs_f64());
        let stored = stored?;
        metrics::counter!(USES_STORED.name).increment(stored);
        let (keys, waiting) = self.recorder.load();
        metrics::gauge!(KEYS_IN_MEMORY.name).set(keys as f64);
        metrics::gauge!(USES_WAITING.name).set(waiting as f64);
        Ok(JobReport { work: stored, detail: serde_json::json!({ "uses": stored }) })
    }
}
