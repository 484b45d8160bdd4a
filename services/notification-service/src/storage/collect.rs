//! Which stages are due, and the people collected for them.

use std::collections::{BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use sea_orm::prelude::*;
use sea_orm::sea_query::{Cond, ExprTrait, LockBehavior, LockType, OnConflict, Order, Query};
use sea_orm::{
    ActiveValue::Set, Condition, ConnectionTrait, DatabaseTransaction, DbErr, FromQueryResult, Iterable, QueryResult,
    Statement,
};
use service_kit::rows::{Column, Rows};
use service_kit::time::to_micros;

use super::entities::{location_names, lots, notice_scopes, plans, stage_recipients, stages};
use super::stages::{Key, StageState};
use crate::app::ports::StageId;
use crate::domain::plan::{HoldReason, LotState, PlanState};
use crate::domain::recipient::{AgencyFacts, Reach, RecipientChunk};

/// Rows in one INSERT of narrow tables.
const ROWS: usize = 1_000;

/// People handled at once.
pub(super) const PAGE: u64 = 500;

pub(super) fn lease_is_over(now: DateTime<Utc>) -> Condition {
    Condition::any().add(stages::Column::LeaseUntil.is_null()).add(stages::Column::LeaseUntil.lte(to_micros(now)))
}

/// Stages that are due, of lots that can be told: no operator holds them, and everything that their last receipt brought about is
/// known. Those that wait for their first notices come before those that look for somebody to tell again. Within a transaction that
/// claims them, those that another one is claiming are passed over.
pub(super) async fn due(
    db: &impl ConnectionTrait,
    now: DateTime<Utc>,
    limit: u64,
    claiming: bool,
) -> Result<Vec<stages::Model>, DbErr> {
    let mut rows = due_in(db, StageState::Waiting, now, limit, claiming).await?;
    let left = limit.saturating_sub(rows.len() as u64);
    if left > 0 {
        rows.extend(due_in(db, StageState::Dispatched, now, left, claiming).await?);
    }
    Ok(rows)
}

/// Those in one state, in the order of an index, so that no more is read than there is room for.
async fn due_in(
    db: &impl ConnectionTrait,
    state: StageState,
    now: DateTime<Utc>,
    limit: u64,
    claiming: bool,
) -> Result<Vec<stages::Model>, DbErr> {
    let stage = |column: stages::Column| Expr::col((stages::Entity, column));
    let lot = |column: lots::Column| Expr::col((lots::Entity, column));
    let plan = |column: plans::Column| Expr::col((plans::Entity, column));
    let tellable = Cond::any().add(lot(lots::Column::State).eq(LotState::Open.code())).add(
        Cond::all()
            .add(lot(lots::Column::State).eq(LotState::Held.code()))
            .add(lot(lots::Column::HoldReason).ne(HoldReason::Operator.code())),
    );
    let free = Cond::any()
        .add(stage(stages::Column::LeaseUntil).is_null())
        .add(stage(stages::Column::LeaseUntil).lte(to_micros(now)));
    let applied = Query::select()
        .column(super::entities::heads::Column::AppliedSequence)
        .from(super::entities::heads::Entity)
        .to_owned();
    let mut select = Query::select();
    select
        .columns(stages::Column::iter().map(|column| (stages::Entity, column)))
        .from(stages::Entity)
        .inner_join(
            lots::Entity,
            Cond::all()
                .add(lot(lots::Column::PlanId).equals((stages::Entity, stages::Column::PlanId)))
                .add(lot(lots::Column::AgencyId).equals((stages::Entity, stages::Column::AgencyId))),
        )
        .inner_join(plans::Entity, plan(plans::Column::PlanId).equals((stages::Entity, stages::Column::PlanId)))
        .and_where(plan(plans::Column::State).eq(PlanState::Open.code()))
        .and_where(plan(plans::Column::SealedSequence).is_not_null())
        .and_where(stage(stages::Column::State).eq(state.code()))
        .and_where(stage(stages::Column::DueAt).lte(to_micros(now)))
        .and_where(
            stage(stages::Column::WaitSequence)
                .lte(sea_orm::sea_query::SimpleExpr::SubQuery(None, Box::new(applied.into()))),
        )
        .cond_where(tellable)
        .cond_where(free)
        .order_by((stages::Entity, stages::Column::DueAt), Order::Asc)
        .limit(limit);
    if state == StageState::Dispatched {
        select.and_where(stage(stages::Column::HoldReason).is_not_null());
    }
    if claiming {
        select.lock_with_tables_behavior(LockType::Update, [stages::Entity], LockBehavior::SkipLocked);
    }
    db.query_all(&select).await?.iter().map(|row| stages::Model::from_query_result(row, "")).collect()
}

pub(super) async fn forget_collected(tx: &DatabaseTransaction, id: &StageId) -> Result<(), DbErr> {
    stage_recipients::Entity::delete_many()
        .filter(stage_recipients::Column::PlanId.eq(id.plan_id.as_str()))
        .filter(stage_recipients::Column::AgencyId.eq(id.agency_id.as_str()))
        .filter(stage_recipients::Column::Stage.eq(id.stage.code()))
        .exec(tx)
        .await?;
    notice_scopes::Entity::delete_many()
        .filter(notice_scopes::Column::PlanId.eq(id.plan_id.as_str()))
        .filter(notice_scopes::Column::AgencyId.eq(id.agency_id.as_str()))
        .filter(notice_scopes::Column::Stage.eq(id.stage.code()))
        .exec(tx)
        .await?;
    Ok(())
}

/// What was heard of the people of several stages, to be written in one transaction.
#[derive(Default)]
pub(super) struct Collected {
    agencies: Vec<(StageId, AgencyFacts)>,
    names: Vec<location_names::ActiveModel>,
    people: Vec<stage_recipients::ActiveModel>,
    scopes: Vec<notice_scopes::ActiveModel>,
}

impl Collected {
    /// Adds what was heard of a stage, which waits for its first notices or was dispatched and looks for new agency admins alone.
    pub(super) fn add(&mut self, id: &StageId, first_time: bool, chunk: RecipientChunk) {
        self.agencies.extend(chunk.agency.filter(|_| first_time).map(|facts| (id.clone(), facts)));
        self.names.extend(chunk.locations.into_iter().map(|(location_id, name)| location_names::ActiveModel {
            plan_id: Set(id.plan_id.as_str().to_owned()),
            agency_id: Set(id.agency_id.as_str().to_owned()),
            location_id: Set(location_id.into()),
            name: Set(name),
        }));
        for one in chunk.recipients {
            let agency_admin = one.reach == Reach::WholeLot;
            let user_id = String::from(one.user_id);
            match one.reach {
                Reach::WholeLot if first_time => self.scopes.push(scope(id, String::new(), user_id.clone())),
                Reach::Locations(locations) if first_time => {
                    let own = locations.into_iter().map(|location| scope(id, location.into(), user_id.clone()));
                    self.scopes.extend(own);
                }
                Reach::WholeLot => {}
                Reach::Locations(_) => continue,
            }
            self.people.push(stage_recipients::ActiveModel {
                plan_id: Set(id.plan_id.as_str().to_owned()),
                agency_id: Set(id.agency_id.as_str().to_owned()),
                stage: Set(id.stage.code()),
                user_id: Set(user_id),
                email: Set(if agency_admin && id.stage.by_email() { one.email } else { String::new() }),
                first_name: Set(one.first_name),
                last_name: Set(one.last_name),
                agency_admin: Set(agency_admin),
            });
        }
    }

    /// Writes it, within a transaction that has locked the stages.
    pub(super) async fn write(self, tx: &DatabaseTransaction) -> Result<(), DbErr> {
        name_agencies(tx, &self.agencies).await?;
        for names in self.names.chunks(ROWS) {
            let insert = location_names::Entity::insert_many(names.to_vec());
            insert.on_conflict_do_nothing().exec_without_returning(tx).await?;
        }
        let latest = OnConflict::columns([
            stage_recipients::Column::PlanId,
            stage_recipients::Column::AgencyId,
            stage_recipients::Column::Stage,
            stage_recipients::Column::UserId,
        ])
        .update_column(stage_recipients::Column::Email)
        .to_owned();
        for people in self.people.chunks(ROWS) {
            let insert = stage_recipients::Entity::insert_many(people.to_vec()).on_conflict(latest.clone());
            insert.exec_without_returning(tx).await?;
        }
        for scopes in self.scopes.chunks(ROWS) {
            let insert = notice_scopes::Entity::insert_many(scopes.to_vec());
            insert.on_conflict_do_nothing().exec_without_returning(tx).await?;
        }
        Ok(())
    }
}

async fn name_agencies(tx: &DatabaseTransaction, named: &[(StageId, AgencyFacts)]) -> Result<(), DbErr> {
    if named.is_empty() {
        return Ok(());
    }
    let text =
        |of: fn(&(StageId, AgencyFacts)) -> &str| Column::Text(named.iter().map(|one| of(one).to_owned()).collect());
    let rows = Rows::new("t")
        .column("plan_id", text(|(id, _)| id.plan_id.as_str()))
        .column("agency_id", text(|(id, _)| id.agency_id.as_str()))
        .column("stage", Column::SmallInt(named.iter().map(|(id, _)| id.stage.code()).collect()))
        .column("name", text(|(_, facts)| &facts.name))
        .column("time_zone", text(|(_, facts)| &facts.time_zone));
    let backend = tx.get_database_backend();
    let (relation, values) = rows.relation(backend, 1);
    let sql = format!(
        "UPDATE stages SET agency_name = t.name, agency_time_zone = t.time_zone FROM {relation} \
         WHERE stages.plan_id = t.plan_id AND stages.agency_id = t.agency_id AND stages.stage = t.stage"
    );
    tx.execute_raw(Statement::from_sql_and_values(backend, sql, values)).await?;
    Ok(())
}

/// The people collected for a stage.
#[derive(Default)]
pub(super) struct People {
    /// How many of them are agency admins.
    pub(super) admins: i64,
    /// All of them in the order of their ids, where they are few.
    pub(super) all: Option<Vec<stage_recipients::Model>>,
    /// How many keys still to be deleted each of these has in its locations.
    pub(super) live: HashMap<String, i64>,
}

/// What several stages need to be published, read at once.
pub(super) struct Known {
    lots: HashMap<(String, String), lots::Model>,
    plans: HashMap<String, plans::Model>,
    pub(super) people: HashMap<Key, People>,
}

impl Known {
    /// Reads it.
    pub(super) async fn of(tx: &DatabaseTransaction, keys: &BTreeSet<Key>) -> Result<Self, DbErr> {
        if keys.is_empty() {
            return Ok(Self { lots: HashMap::new(), plans: HashMap::new(), people: HashMap::new() });
        }
        let plan_ids: BTreeSet<&str> = keys.iter().map(|key| key.0.as_str()).collect();
        let agency_ids: BTreeSet<&str> = keys.iter().map(|key| key.1.as_str()).collect();
        let lots = lots::Entity::find()
            .filter(lots::Column::PlanId.is_in(plan_ids.iter().copied()))
            .filter(lots::Column::AgencyId.is_in(agency_ids))
            .all(tx)
            .await?;
        let plans = plans::Entity::find().filter(plans::Column::PlanId.is_in(plan_ids)).all(tx).await?;
        Ok(Self {
            lots: lots.into_iter().map(|lot| ((lot.plan_id.clone(), lot.agency_id.clone()), lot)).collect(),
            plans: plans.into_iter().map(|plan| (plan.plan_id.clone(), plan)).collect(),
            people: people_of(tx, keys).await?,
        })
    }

    /// A stage's lot and plan.
    pub(super) fn lot_and_plan(&self, row: &stages::Model) -> Option<(lots::Model, plans::Model)> {
        let lot = self.lots.get(&(row.plan_id.clone(), row.agency_id.clone()))?;
        Some((lot.clone(), self.plans.get(&row.plan_id)?.clone()))
    }
}

/// The stages as a relation `t`.
fn stage_rows(keys: &BTreeSet<Key>) -> Rows {
    Rows::new("t")
        .column("plan_id", Column::Text(keys.iter().map(|key| key.0.clone()).collect()))
        .column("agency_id", Column::Text(keys.iter().map(|key| key.1.clone()).collect()))
        .column("stage", Column::SmallInt(keys.iter().map(|key| key.2).collect()))
}

async fn people_of(tx: &DatabaseTransaction, keys: &BTreeSet<Key>) -> Result<HashMap<Key, People>, DbErr> {
    let backend = tx.get_database_backend();
    let key_of = |row: &QueryResult| {
        Ok::<Key, DbErr>((row.try_get("", "plan_id")?, row.try_get("", "agency_id")?, row.try_get("", "stage")?))
    };
    let (relation, values) = stage_rows(keys).relation(backend, 1);
    let same = "r.plan_id = t.plan_id AND r.agency_id = t.agency_id AND r.stage = t.stage";
    let sql = format!(
        "SELECT r.plan_id, r.agency_id, r.stage, COUNT(*) AS number, COUNT(CASE WHEN r.agency_admin THEN 1 END) AS admins \
         FROM {relation} JOIN stage_recipients r ON {same} GROUP BY r.plan_id, r.agency_id, r.stage"
    );
    let (mut people, mut few) = (HashMap::new(), BTreeSet::new());
    for row in tx.query_all_raw(Statement::from_sql_and_values(backend, sql, values)).await? {
        let (key, number): (Key, i64) = (key_of(&row)?, row.try_get("", "number")?);
        let mut of_stage = People { admins: row.try_get("", "admins")?, ..People::default() };
        if number.unsigned_abs() <= PAGE {
            of_stage.all = Some(Vec::new());
            few.insert(key.clone());
        }
        people.insert(key, of_stage);
    }
    if few.is_empty() {
        return Ok(people);
    }
    let (relation, values) = stage_rows(&few).relation(backend, 1);
    let sql = format!("SELECT r.* FROM {relation} JOIN stage_recipients r ON {same} ORDER BY r.user_id");
    let all = stage_recipients::Entity::find().from_raw_sql(Statement::from_sql_and_values(backend, sql, values));
    for one in all.all(tx).await? {
        let key = (one.plan_id.clone(), one.agency_id.clone(), one.stage);
        if let Some(all) = people.get_mut(&key).and_then(|of_stage: &mut People| of_stage.all.as_mut()) {
            all.push(one);
        }
    }
    let (relation, values) = stage_rows(&few).relation(backend, 1);
    let sql = format!(
        "SELECT s.plan_id, s.agency_id, s.stage, s.user_id, COUNT(*) AS live FROM {relation} \
         JOIN notice_scopes s ON s.plan_id = t.plan_id AND s.agency_id = t.agency_id AND s.stage = t.stage AND s.location_id <> '' \
         JOIN entries e ON e.plan_id = s.plan_id AND e.agency_id = s.agency_id AND e.location_id = s.location_id \
         AND e.left_sequence IS NULL GROUP BY s.plan_id, s.agency_id, s.stage, s.user_id"
    );
    for row in tx.query_all_raw(Statement::from_sql_and_values(backend, sql, values)).await? {
        if let Some(of_stage) = people.get_mut(&key_of(&row)?) {
            of_stage.live.insert(row.try_get("", "user_id")?, row.try_get("", "live")?);
        }
    }
    Ok(people)
}

pub(super) fn scope(id: &StageId, location_id: String, user_id: String) -> notice_scopes::ActiveModel {
    notice_scopes::ActiveModel {
        plan_id: Set(id.plan_id.as_str().to_owned()),
        agency_id: Set(id.agency_id.as_str().to_owned()),
        stage: Set(id.stage.code()),
        location_id: Set(location_id),
        user_id: Set(user_id),
    }
}
