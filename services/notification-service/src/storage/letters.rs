//! What letters say, read back as it was when their stage was dispatched.

use sea_orm::ConnectionTrait;
use sea_orm::prelude::*;
use sea_orm::sea_query::{Alias, Cond, ExprTrait, JoinType, Order, Query};
use service_kit::time::from_micros;

use super::Store;
use super::entities::{entries, location_names, plans, stages};
use super::stages::is;
use crate::app::letter::{LetterEntry, LetterFacts};
use crate::app::ports::{StageId, StorageError};
use crate::domain::ids::LocationId;

impl Store {
    pub(super) async fn letter_facts(&self, id: &StageId) -> Result<Option<LetterFacts>, StorageError> {
        let Some(stage) = stages::Entity::find().filter(is(id)).one(&self.db).await? else { return Ok(None) };
        let Some(plan) = plans::Entity::find_by_id(id.plan_id.as_str()).one(&self.db).await? else { return Ok(None) };
        let (Some(as_of_sequence), Some(delete_at)) = (stage.as_of_sequence, stage.announced_delete_at) else {
            return Ok(None);
        };
        Ok(Some(LetterFacts {
            agency_name: stage.agency_name,
            time_zone: stage.agency_time_zone,
            delete_at: from_micros(delete_at),
            idle_since_at: from_micros(plan.idle_since_at),
            key_count: stage.key_count,
            as_of_sequence,
        }))
    }

    pub(super) async fn letter_page(
        &self,
        id: &StageId,
        as_of: i64,
        after: Option<&LetterEntry>,
        limit: u64,
    ) -> Result<Vec<LetterEntry>, StorageError> {
        let entry = |column: entries::Column| Expr::col((entries::Entity, column));
        let mut select = Query::select();
        select
            .columns([
                (entries::Entity, entries::Column::KeyId),
                (entries::Entity, entries::Column::LocationId),
                (entries::Entity, entries::Column::DisplayName),
                (entries::Entity, entries::Column::DisplayPrefix),
                (entries::Entity, entries::Column::CreatedAt),
                (entries::Entity, entries::Column::LastUsedAt),
            ])
            .expr_as(Expr::col((location_names::Entity, location_names::Column::Name)), Alias::new("location_name"))
            .from(entries::Entity)
            .join(
                JoinType::LeftJoin,
                location_names::Entity,
                Cond::all()
                    .add(
                        Expr::col((location_names::Entity, location_names::Column::PlanId))
                            .equals((entries::Entity, entries::Column::PlanId)),
                    )
                    .add(
                        Expr::col((location_names::Entity, location_names::Column::AgencyId))
                            .equals((entries::Entity, entries::Column::AgencyId)),
                    )
                    .add(
                        Expr::col((location_names::Entity, location_names::Column::LocationId))
                            .equals((entries::Entity, entries::Column::LocationId)),
                    ),
            )
            .and_where(entry(entries::Column::PlanId).eq(id.plan_id.as_str()))
            .and_where(entry(entries::Column::AgencyId).eq(id.agency_id.as_str()))
            .cond_where(
                Cond::any()
                    .add(entry(entries::Column::LeftSequence).is_null())
                    .add(entry(entries::Column::LeftSequence).gt(as_of)),
            )
            .order_by((entries::Entity, entries::Column::LocationId), Order::Asc)
            .order_by((entries::Entity, entries::Column::KeyId), Order::Asc)
            .limit(limit);
        if let Some(after) = after {
            let location = after.location_id.as_ref().map_or("", LocationId::as_str);
            select.cond_where(
                Cond::any().add(entry(entries::Column::LocationId).gt(location)).add(
                    Cond::all()
                        .add(entry(entries::Column::LocationId).eq(location))
                        .add(entry(entries::Column::KeyId).gt(after.key_id.as_str())),
                ),
            );
        }
        let rows = self.db.query_all(&select).await?;
        rows.iter()
            .map(|row| {
                let location_id: String = row.try_get("", "location_id")?;
                Ok(LetterEntry {
                    key_id: row.try_get::<String>("", "key_id")?.into(),
                    location_id: (!location_id.is_empty()).then(|| location_id.into()),
                    location_name: row.try_get::<Option<String>>("", "location_name")?.unwrap_or_default(),
                    display_name: row.try_get("", "display_name")?,
                    display_prefix: row.try_get("", "display_prefix")?,
                    created_at: from_micros(row.try_get("", "created_at")?),
                    last_used_at: row.try_get::<Option<i64>>("", "last_used_at")?.map(from_micros),
                })
            })
            .collect()
    }
}
