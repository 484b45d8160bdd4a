//! The banners, read from the projection.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sea_orm::prelude::*;
use sea_orm::{QueryOrder, QuerySelect};
use service_kit::time::{from_micros, to_micros};

use super::Store;
use super::entities::{entries, lots, plans};
use crate::app::ports::{BannerStore, StorageError};
use crate::domain::banner::{self, Banner};
use crate::domain::ids::{AgencyId, LocationId};
use crate::domain::plan::{LotState, Owner, PlanState};

#[async_trait]
impl BannerStore for Store {
    async fn banners(
        &self,
        agency: &AgencyId,
        locations: &[LocationId],
        now: DateTime<Utc>,
    ) -> Result<Vec<Banner>, StorageError> {
        let (mut of_agency, mut of_locations) = (Vec::new(), Vec::new());
        for lot in self.announced_lots(agency, now).await? {
            let delete_at = from_micros(lot.delete_at);
            if !banner::stands(delete_at, now) {
                continue;
            }
            let banner = |location_id: Option<LocationId>, key_count: i64| Banner {
                account: Owner { agency_id: agency.clone(), location_id },
                plan_id: lot.plan_id.as_str().into(),
                delete_at,
                key_count,
            };
            of_agency.push(banner(None, lot.live_count));
            let counts: Vec<(String, i64)> = entries::Entity::find()
                .select_only()
                .column(entries::Column::LocationId)
                .column_as(entries::Column::KeyId.count(), "live")
                .filter(entries::Column::PlanId.eq(&lot.plan_id))
                .filter(entries::Column::AgencyId.eq(&lot.agency_id))
                .filter(entries::Column::LocationId.is_in(locations.iter().map(LocationId::as_str)))
                .filter(entries::Column::LeftSequence.is_null())
                .group_by(entries::Column::LocationId)
                .into_tuple()
                .all(&self.db)
                .await?;
            of_locations.extend(counts.into_iter().map(|(location, count)| banner(Some(location.into()), count)));
        }
        of_locations.sort_by(|a, b| (&a.account, &a.plan_id).cmp(&(&b.account, &b.plan_id)));
        of_agency.extend(of_locations);
        Ok(of_agency)
    }

    async fn next_change(&self, agency: &AgencyId, now: DateTime<Utc>) -> Result<Option<DateTime<Utc>>, StorageError> {
        let lots = self.announced_lots(agency, now).await?;
        Ok(lots.into_iter().filter_map(|lot| banner::next_change(from_micros(lot.delete_at), now)).min())
    }
}

impl Store {
    /// The agency's open lots with keys still to be deleted after `now`.
    async fn announced_lots(&self, agency: &AgencyId, now: DateTime<Utc>) -> Result<Vec<lots::Model>, StorageError> {
        let lots = lots::Entity::find()
            .filter(lots::Column::AgencyId.eq(agency.as_str()))
            .filter(lots::Column::DeleteAt.gt(to_micros(now)))
            .filter(lots::Column::State.eq(LotState::Open.code()))
            .filter(lots::Column::LiveCount.gt(0))
            .order_by_asc(lots::Column::DeleteAt)
            .all(&self.db)
            .await?;
        let mut announced = Vec::with_capacity(lots.len());
        for lot in lots {
            let plan = plans::Entity::find_by_id(lot.plan_id.as_str()).one(&self.db).await?;
            if plan.is_some_and(|plan| plan.sealed_sequence.is_some() && plan.state == PlanState::Open.code()) {
                announced.push(lot);
            }
        }
        Ok(announced)
    }
}
