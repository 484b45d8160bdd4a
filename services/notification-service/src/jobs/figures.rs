//! Shows the figures as metrics.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use service_kit::jobs::{JobReport, Reconciler};

use crate::app::ports::{Figures, FiguresStore, ProjectionStore};
use crate::app::subscribe::{SharedStatus, SubscriptionFault};
use crate::domain::limits::SendLimit;
use crate::metrics::{
    DELIVERIES, DELIVERY_LAG, EMAILS_DEFERRED, NOTICES, SUBSCRIPTION_CONNECTED, SUBSCRIPTION_FAULT, SUBSCRIPTION_LAG,
};

/// As often as metrics are usually read.
const PERIOD: Duration = Duration::from_secs(15);

pub(crate) struct FiguresJob {
    pub(crate) store: Arc<dyn FiguresStore>,
    pub(crate) projection: Arc<dyn ProjectionStore>,
    pub(crate) status: SharedStatus,
}

#[async_trait]
impl Reconciler for FiguresJob {
    fn name(&self) -> &'static str {
        "notification.figures"
    }

    fn period(&self) -> Duration {
        PERIOD
    }

    async fn activate(&self, now: DateTime<Utc>) -> anyhow::Result<JobReport> {
        show(&self.store.figures(now).await?, now);
        self.show_subscription(self.projection.cursor().await?.sequence);
        Ok(JobReport::default())
    }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn show(figures: &Figures, now: DateTime<Utc>) {
    for (stage, state, count) in &figures.notices {
        metrics::gauge!(NOTICES.name, "stage" => stage.name(), "state" => *state).set(*count as f64);
    }
    for (state, count) in &figures.deliveries {
        metrics::gauge!(DELIVERIES.name, "state" => state.name()).set(*count as f64);
    }
    let lag = figures.oldest_due_at.and_then(|at| (now - at).to_std().ok()).unwrap_or_default();
    metrics::gauge!(DELIVERY_LAG.name).set(lag.as_secs_f64());
    for limit in SendLimit::ALL {
        let count = figures.deferred.filter(|deferred| deferred.0 == limit).map_or(0, |deferred| deferred.1);
        metrics::gauge!(EMAILS_DEFERRED.name, "limit" => limit.name()).set(count as f64);
    }
}

impl FiguresJob {
    fn show_subscription(&self, applied: i64) {
        let status = self.status.get();
        metrics::gauge!(SUBSCRIPTION_CONNECTED.name).set(f64::from(u8::from(status.is_connected())));
        // While nothing was heard of, the lag is not known and is not shown.
        if let Some(lag) = status.lag(applied) {
            metrics::gauge!(SUBSCRIPTION_LAG.name).set(lag.as_secs_f64());
        }
        for fault in SubscriptionFault::ALL {
            let stands = f64::from(u8::from(status.fault == Some(fault)));
            metrics::gauge!(SUBSCRIPTION_FAULT.name, "fault" => fault.name()).set(stands);
        }
    }
}
