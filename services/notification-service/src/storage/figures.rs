//! How much there is of what.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sea_orm::prelude::*;
use sea_orm::{JoinType, QueryOrder, QuerySelect};
use service_kit::time::from_micros;

use super::claims::is_due;
use super::entities::{deliveries, plans, stages};
use super::stages::{StageState, stage_of};
use super::{Store, limits};
use crate::app::ports::{Figures, FiguresStore, StorageError};
use crate::domain::delivery::DeliveryState;
use crate::domain::plan::PlanState;
use crate::domain::stage::Stage;

/// The states of emails that are few: those that somebody waits for or should look at.
const COUNTED: [DeliveryState; 3] = [DeliveryState::Pending, DeliveryState::Sending, DeliveryState::Failed];

#[async_trait]
impl FiguresStore for Store {
    async fn figures(&self, now: DateTime<Utc>) -> Result<Figures, StorageError> {
        let oldest: Option<i64> = deliveries::Entity::find()
            .select_only()
            .column(deliveries::Column::NextAttemptAt)
            .filter(is_due(now))
            .order_by_asc(deliveries::Column::NextAttemptAt)
            .into_tuple()
            .one(&self.db)
            .await?;
        let deferral = match oldest {
            Some(_) if !self.limits.is_none() => self.limits.deferral(&limits::read(&self.db).await?, now),
            _ => None,
        };
        let mut deferred = None;
        if let Some(deferral) = deferral {
            let count = deliveries::Entity::find().filter(is_due(now)).count(&self.db).await?;
            deferred = Some((deferral.limit, i64::try_from(count).unwrap_or(i64::MAX)));
        }
        Ok(Figures {
            notices: self.notices().await?,
            deliveries: self.emails().await?,
            oldest_due_at: oldest.map(from_micros),
            deferred,
        })
    }
}

impl Store {
    async fn notices(&self) -> Result<Vec<(Stage, &'static str, i64)>, StorageError> {
        let of_plan =
            stages::Entity::belongs_to(plans::Entity).from(stages::Column::PlanId).to(plans::Column::PlanId).into();
        let counts: Vec<(i16, i16, i64)> = stages::Entity::find()
            .select_only()
            .column(stages::Column::Stage)
            .column(stages::Column::State)
            .column_as(stages::Column::AgencyId.count(), "count")
            .join(JoinType::InnerJoin, of_plan)
            .filter(plans::Column::State.eq(PlanState::Open.code()))
            .group_by(stages::Column::Stage)
            .group_by(stages::Column::State)
            .into_tuple()
            .all(&self.db)
            .await?;
        let mut notices: Vec<_> =
            Stage::ALL.iter().flat_map(|stage| StageState::ALL.map(|state| (*stage, state.name(), 0))).collect();
        for (stage, state, count) in counts {
            let (stage, state) = (stage_of(stage)?, StageState::from_code(state)?.name());
            notices.iter_mut().filter(|one| (one.0, one.1) == (stage, state)).for_each(|one| one.2 = count);
        }
        Ok(notices)
    }

    async fn emails(&self) -> Result<Vec<(DeliveryState, i64)>, StorageError> {
        let counts: Vec<(i16, i64)> = deliveries::Entity::find()
            .select_only()
            .column(deliveries::Column::State)
            .column_as(deliveries::Column::DeliveryId.count(), "count")
            .filter(deliveries::Column::State.is_in(COUNTED.map(DeliveryState::code)))
            .group_by(deliveries::Column::State)
            .into_tuple()
            .all(&self.db)
            .await?;
        let count = |state: DeliveryState| counts.iter().find(|one| one.0 == state.code()).map_or(0, |one| one.1);
        Ok(COUNTED.map(|state| (state, count(state))).into())
    }
}
