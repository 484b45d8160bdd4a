//! Shows the figures as metrics.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use service_kit::jobs::{JobReport, Reconciler};

use crate::app::figures::{FigureKeeper, Figures};
use crate::domain::key::ApiKeyState;
use crate::domain::sweep::{LotState, PlanState};
use crate::metrics::{KEYS, SWEEP_LOTS, SWEEP_PLANS};

/// As often as metrics are usually read.
const PERIOD: Duration = Duration::from_secs(15);

/// Counts keys, plans and lots.
#[derive(Debug)]
pub struct CountFigures {
    keeper: Arc<FigureKeeper>,
}

impl CountFigures {
    /// The job of this keeper.
    pub fn new(keeper: Arc<FigureKeeper>) -> Self {
        Self { keeper }
    }
}

#[async_trait]
impl Reconciler for CountFigures {
    fn name(&self) -> &'static str {
        "figures"
    }

    fn period(&self) -> Duration {
        PERIOD
    }

    async fn activate(&self, _: DateTime<Utc>) -> anyhow::Result<JobReport> {
        show(&self.keeper.figures().await?);
        Ok(JobReport::default())
    }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn show(figures: &Figures) {
    for state in [ApiKeyState::Active, ApiKeyState::Revoked, ApiKeyState::Deleted] {
        metrics::gauge!(KEYS.name, "state" => state.as_str()).set(figures.keys.of(state) as f64);
    }
    for state in PlanState::ALL {
        let plans = figures.plans.iter().find(|(of, _)| *of == state).map_or(0, |(_, number)| *number);
        metrics::gauge!(SWEEP_PLANS.name, "state" => state.as_str()).set(plans as f64);
    }
    for state in LotState::ALL {
        let lots = figures.lots.iter().find(|(of, _)| *of == state).map_or(0, |(_, number)| *number);
        metrics::gauge!(SWEEP_LOTS.name, "state" => state.as_str()).set(lots as f64);
    }
}
