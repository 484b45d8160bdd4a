//! Certificates are renewed by others, and taken over while the service runs.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde_json::json;

use super::credentials::{Credentials, FileFault};
use crate::jobs::{JobReport, Reconciler};
use crate::telemetry::metrics::{CERTIFICATE_EXPIRY, CERTIFICATE_FILES_UNUSABLE};

/// The name of the job.
pub const JOB: &str = "certificates";
/// Files are looked at this often: Kubernetes swaps links, of which not every file system tells.
const PERIOD: Duration = Duration::from_secs(10);

/// Takes over what the files hold; what cannot be used leaves the old in force.
pub(super) struct ReloadCertificates(pub(super) Arc<Credentials>);

#[async_trait]
impl Reconciler for ReloadCertificates {
    fn name(&self) -> &'static str {
        JOB
    }

    fn period(&self) -> Duration {
        PERIOD
    }

    async fn activate(&self, _: DateTime<Utc>) -> anyhow::Result<JobReport> {
        let credentials = self.0.clone();
        let read = tokio::task::spawn_blocking(move || credentials.refresh()).await.context("the files are read")?;
        metrics::gauge!(CERTIFICATE_FILES_UNUSABLE.name).set(if read.is_err() { 1.0 } else { 0.0 });
        let changed = read.map_err(|faults| anyhow::anyhow!("the old certificate stays: {}", in_words(&faults)))?;
        let current = self.0.current();
        for (file, not_after) in [("certificate", current.own.not_after), ("ca", current.ca_not_after)] {
            metrics::gauge!(CERTIFICATE_EXPIRY.name, "file" => file).set(not_after as f64);
        }
        let detail = json!({ "identity": current.own.identity.as_str(), "not_after": current.own.not_after });
        Ok(JobReport { work: changed.into(), detail })
    }
}

pub(super) fn in_words(faults: &[FileFault]) -> String {
    faults.iter().map(|one| format!("{}: {}", one.setting, one.fault)).collect::<Vec<_>>().join("; ")
}
