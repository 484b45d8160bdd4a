//! The work behind the scenes: dispatch, deliver, acknowledge, and forgetting old requests.

mod figures;

pub(crate) use figures::FiguresJob;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sea_orm::DatabaseConnection;
use serde_json::json;
use service_kit::clock::{Clock, FollowingClock};
use service_kit::idempotency;
use service_kit::jobs::{JobHandle, JobReport, Reconciler};

use crate::app::acknowledge::Acknowledge;
use crate::app::deliver::Deliver;
use crate::app::dispatch::Dispatch;

/// A notice that is due goes out within this time.
const PERIOD: Duration = Duration::from_secs(1);
/// Old requests take little room.
const FORGET_PERIOD: Duration = Duration::from_secs(3_600);

/// The job that comes after another, woken when there is work for it. Set once both run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Next(Arc<OnceLock<JobHandle>>);

impl Next {
    pub(crate) fn set(&self, handle: JobHandle) {
        // Set once, in `run`.
        let _ = self.0.set(handle);
    }

    fn signal(&self) {
        if let Some(handle) = self.0.get() {
            handle.signal();
        }
    }
}

/// A job that does nothing until the time of the sweep is known: by it notices are due and dated.
pub(crate) struct Timed {
    pub(crate) job: Box<dyn Reconciler>,
    pub(crate) clock: Arc<FollowingClock>,
}

#[async_trait]
impl Reconciler for Timed {
    fn name(&self) -> &'static str {
        self.job.name()
    }

    fn period(&self) -> Duration {
        self.job.period()
    }

    async fn activate(&self, _: DateTime<Utc>) -> anyhow::Result<JobReport> {
        // The instant of the activation may have been read before it was.
        if self.clock.follows() { self.job.activate(self.clock.now()).await } else { Ok(JobReport::default()) }
    }
}

pub(crate) struct DispatchJob {
    pub(crate) dispatch: Dispatch,
    pub(crate) deliver: Next,
    pub(crate) acknowledge: Next,
}

#[async_trait]
impl Reconciler for DispatchJob {
    fn name(&self) -> &'static str {
        "notification.dispatch"
    }

    fn period(&self) -> Duration {
        PERIOD
    }

    async fn activate(&self, now: DateTime<Utc>) -> anyhow::Result<JobReport> {
        let done = self.dispatch.run(now).await?;
        let work = done.stages + done.undeliverable;
        if work > 0 {
            self.deliver.signal();
            self.acknowledge.signal();
        }
        let detail = json!({"stages": done.stages, "in_app": done.in_app, "emails": done.emails, "undeliverable": done.undeliverable});
        Ok(JobReport { work, detail })
    }
}

pub(crate) struct DeliverJob {
    pub(crate) deliver: Arc<Deliver>,
    pub(crate) acknowledge: Next,
}

#[async_trait]
impl Reconciler for DeliverJob {
    fn name(&self) -> &'static str {
        "notification.deliver"
    }

    fn period(&self) -> Duration {
        PERIOD
    }

    async fn activate(&self, now: DateTime<Utc>) -> anyhow::Result<JobReport> {
        let done = self.deliver.run(now).await?;
        let work = done.accepted + done.failed + done.retried;
        if work > 0 {
            self.acknowledge.signal();
        }
        Ok(JobReport {
            work,
            detail: json!({"accepted": done.accepted, "failed": done.failed, "retried": done.retried}),
        })
    }
}

pub(crate) struct AcknowledgeJob {
    pub(crate) acknowledge: Acknowledge,
}

#[async_trait]
impl Reconciler for AcknowledgeJob {
    fn name(&self) -> &'static str {
        "notification.acknowledge"
    }

    fn period(&self) -> Duration {
        PERIOD
    }

    async fn activate(&self, now: DateTime<Utc>) -> anyhow::Result<JobReport> {
        let work = self.acknowledge.run(now).await?;
        Ok(JobReport { work, detail: json!({"receipts": work}) })
    }
}

pub(crate) struct ForgetJob {
    pub(crate) db: DatabaseConnection,
}

#[async_trait]
impl Reconciler for ForgetJob {
    fn name(&self) -> &'static str {
        "notification.forget_requests"
    }

    fn period(&self) -> Duration {
        FORGET_PERIOD
    }

    async fn activate(&self, now: DateTime<Utc>) -> anyhow::Result<JobReport> {
        let work = idempotency::purge(&self.db, now - idempotency::MEMORY).await?;
        Ok(JobReport { work, detail: json!({"requests": work}) })
    }
}
