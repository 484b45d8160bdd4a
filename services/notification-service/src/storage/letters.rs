//! What letters say, read back as it was when their stage was dispatched.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sea_orm::prelude::*;
use sea_orm::sea_query::{Alias, Cond, ExprTrait, JoinType, Order, Query, SelectStatement};
use sea_orm::{ConnectionTrait, QueryResult};
use service_kit::time::from_micros;

use super::Store;
use super::entities::{entries, location_names, plans};
use super::stages::{around, id_of, key_of, key_of_row};
use crate::app::letter::{LetterEntry, LetterFacts};
use crate::app::ports::{StageId, StorageError};
use crate::domain::ids::{LocationId, PlanId};

impl Store {
    pub(super) async fn letter_facts(&self, ids: &[StageId]) -> Result<HashMap<StageId, LetterFacts>, StorageError> {
        let keys: BTreeSet<_> = ids.iter().map(key_of).collect();
        let stages = around(&keys).all(&self.db).await?;
        let plans = plans::Entity::find()
            .filter(plans::Column::PlanId.is_in(keys.iter().map(|key| key.0.as_str()).collect::<BTreeSet<_>>()))
            .all(&self.db)
            .await?;
        let mut facts = HashMap::with_capacity(keys.len());
        for stage in stages.into_iter().filter(|stage| keys.contains(&key_of_row(stage))) {
            let plan = plans.iter().find(|plan| plan.plan_id == stage.plan_id);
            let (Some(plan), Some(as_of_sequence), Some(delete_at)) =
                (plan, stage.as_of_sequence, stage.announced_delete_at)
            else {
                continue;
            };
            let id = id_of(&stage)?;
            let one = LetterFacts {
                agency_name: stage.agency_name,
                time_zone: stage.agency_time_zone,
                delete_at: from_micros(delete_at),
                idle_since_at: from_micros(plan.idle_since_at),
                key_count: stage.key_count,
                as_of_sequence,
            };
            facts.insert(id, one);
        }
        Ok(facts)
    }

    pub(super) async fn short_letter_entries(
        &self,
        letters: &[(StageId, i64)],
    ) -> Result<HashMap<StageId, Vec<LetterEntry>>, StorageError> {
        let mut of_plans: BTreeMap<&PlanId, Vec<&(StageId, i64)>> = BTreeMap::new();
        for letter in letters {
            of_plans.entry(&letter.0.plan_id).or_default().push(letter);
        }
        let mut found = HashMap::with_capacity(letters.len());
        for (plan_id, letters) in of_plans {
            let of_agencies = self.entries_of(plan_id, &letters).await?;
            for (id, as_of) in letters {
                let of_agency = of_agencies.get(id.agency_id.as_str()).map_or(&[][..], Vec::as_slice);
                let listed = of_agency.iter().filter(|(left, _)| left.is_none_or(|left| left > *as_of));
                found.insert(id.clone(), listed.map(|(_, entry)| entry.clone()).collect());
            }
        }
        Ok(found)
    }

    /// The keys of these letters of one plan by agency, each with the event by which it left its lot.
    async fn entries_of(
        &self,
        plan_id: &PlanId,
        letters: &[&(StageId, i64)],
    ) -> Result<HashMap<String, Vec<(Option<i64>, LetterEntry)>>, StorageError> {
        let agencies: BTreeSet<&str> = letters.iter().map(|(id, _)| id.agency_id.as_str()).collect();
        let oldest = letters.iter().map(|(_, as_of)| *as_of).min().unwrap_or(0);
        let mut select = listed();
        select
            .columns([(entries::Entity, entries::Column::AgencyId), (entries::Entity, entries::Column::LeftSequence)])
            .and_where(entry(entries::Column::PlanId).eq(plan_id.as_str()))
            .and_where(entry(entries::Column::AgencyId).is_in(agencies))
            .cond_where(not_left_before(oldest));
        let mut of_agencies: HashMap<String, Vec<(Option<i64>, LetterEntry)>> = HashMap::new();
        for row in self.db.query_all(&select).await? {
            let agency_id = row.try_get("", "agency_id")?;
            of_agencies.entry(agency_id).or_default().push((row.try_get("", "left_sequence")?, entry_of(&row)?));
        }
        Ok(of_agencies)
    }

    pub(super) async fn letter_page(
        &self,
        id: &StageId,
        as_of: i64,
        after: Option<&LetterEntry>,
        limit: u64,
    ) -> Result<Vec<LetterEntry>, StorageError> {
        let mut select = listed();
        select
            .and_where(entry(entries::Column::PlanId).eq(id.plan_id.as_str()))
            .and_where(entry(entries::Column::AgencyId).eq(id.agency_id.as_str()))
            .cond_where(not_left_before(as_of))
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
        rows.iter().map(|row| Ok(entry_of(row)?)).collect()
    }
}

fn entry(column: entries::Column) -> Expr {
    Expr::col((entries::Entity, column))
}

/// Still in its lot when this event was applied.
fn not_left_before(as_of: i64) -> Cond {
    let left = || entry(entries::Column::LeftSequence);
    Cond::any().add(left().is_null()).add(left().gt(as_of))
}

/// What letters say of keys, in their order.
fn listed() -> SelectStatement {
    let name = |column: location_names::Column| Expr::col((location_names::Entity, column));
    Query::select()
        .columns([
            (entries::Entity, entries::Column::KeyId),
            (entries::Entity, entries::Column::LocationId),
            (entries::Entity, entries::Column::DisplayName),
            (entries::Entity, entries::Column::DisplayPrefix),
            (entries::Entity, entries::Column::CreatedAt),
            (entries::Entity, entries::Column::LastUsedAt),
        ])
        .expr_as(name(location_names::Column::Name), Alias::new("location_name"))
        .from(entries::Entity)
        .join(
            JoinType::LeftJoin,
            location_names::Entity,
            Cond::all()
                .add(name(location_names::Column::PlanId).equals((entries::Entity, entries::Column::PlanId)))
                .add(name(location_names::Column::AgencyId).equals((entries::Entity, entries::Column::AgencyId)))
                .add(name(location_names::Column::LocationId).equals((entries::Entity, entries::Column::LocationId))),
        )
        .order_by((entries::Entity, entries::Column::LocationId), Order::Asc)
        .order_by((entries::Entity, entries::Column::KeyId), Order::Asc)
        .to_owned()
}

fn entry_of(row: &QueryResult) -> Result<LetterEntry, DbErr> {
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
}
