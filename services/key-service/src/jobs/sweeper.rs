//! The sweeper as a job: looks once a second, does what is due.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use service_kit::jobs::{JobReport, Reconciler};

use crate::app::sweep::{SweepStanding, Sweeper};
use crate::domain::sweep::HoldReason;
use crate::metrics::{
    CLOCK_OFFSET, SWEEP_EVENTS_REMOVED, SWEEP_LEADER, SWEEP_LEASES_LOST, SWEEP_LEASES_TAKEN, SWEEP_LOTS_HELD,
    SWEEP_WAITS,
};

/// A second: within it a confirmed plan is published and a due lot begins to go. A look at nothing due is three small queries.
const PERIOD: Duration = Duration::from_secs(1);

/// Activates the sweeper.
#[derive(Debug)]
pub struct SweeperJob {
    sweeper: Arc<Sweeper>,
}

impl SweeperJob {
    /// A job for this sweeper.
    #[must_use]
    pub fn new(sweeper: Arc<Sweeper>) -> Self {
        Self { sweeper }
    }
}

#[async_trait]
impl Reconciler for SweeperJob {
    fn name(&self) -> &'static str {
        "sweeper"
    }

    fn period(&self) -> Duration {
        PERIOD
    }

    async fn activate(&self, now: DateTime<Utc>) -> anyhow::Result<JobReport> {
        let tick = self.sweeper.tick(now).await?;
        metrics::counter!(SWEEP_EVENTS_REMOVED.name).increment(tick.events_removed);
        metrics::gauge!(SWEEP_LEADER.name).set(u8::from(tick.standing == SweepStanding::Leading));
        metrics::counter!(SWEEP_LEASES_TAKEN.name).increment(tick.lease_taken.into());
        metrics::counter!(SWEEP_LEASES_LOST.name).increment((tick.standing == SweepStanding::LeaseLost).into());
        if let Some(offset) = tick.clock_offset_us {
            #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
            metrics::gauge!(CLOCK_OFFSET.name).set(offset as f64 / 1e6);
        }
        metrics::gauge!(SWEEP_WAITS.name).set(u32::try_from(tick.waits.len()).unwrap_or(u32::MAX));
        for reason in HoldReason::ALL {
            let held: i64 = tick.lots_held.iter().filter(|(why, _)| *why == reason).map(|(_, lots)| lots).sum();
            metrics::gauge!(SWEEP_LOTS_HELD.name, "reason" => reason.as_str())
                .set(u32::try_from(held).unwrap_or(u32::MAX));
        }
        // Whoever lost the lease has not found that nothing is due.
        let lost = u64::from(tick.standing == SweepStanding::LeaseLost);
        Ok(JobReport { work: tick.work() + lost, detail: serde_json::to_value(&tick)? })
    }
}
