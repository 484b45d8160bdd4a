//! Users, where they work, and whom to tell.

use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;
use sea_orm::sea_query::Query;
use sea_orm::{
    AccessMode, ActiveValue::Set, ColumnTrait, ConnectionTrait, DatabaseBackend, DatabaseTransaction, EntityTrait,
    IsolationLevel, QueryFilter, QuerySelect, TransactionOptions, TransactionTrait,
};

use super::entities::{agencies, locations, user_locations, users};
use super::listing::{Columns, windowed};
use super::{DatabaseStore, convert, fault, finish, replayed};
use crate::app::listing::Window;
use crate::app::ports::{MutationKey, Recipient, Recipients, StoreError, UserFilter, UserStore, Written};
use crate::domain::contact::email_key;
use crate::domain::user::{RoleLevel, RoleType, User};

/// Bound parameters of one statement, well under the limits of both databases.
const CHUNK: usize = 1_000;

#[async_trait]
impl UserStore for DatabaseStore {
    async fn user(&self, id: &str) -> Result<Option<User>, StoreError> {
        let row = users::Entity::find_by_id(id).one(&self.db).await.map_err(fault)?;
        // Asked for a missing user too, who so costs what one costs whom the caller may not see.
        let mut places = places_of(&self.db, &[id.to_owned()]).await?;
        row.map(|row| convert::user(row, places.remove(id).unwrap_or_default())).transpose()
    }

    async fn users(&self, filter: UserFilter<'_>, window: &Window) -> Result<Vec<User>, StoreError> {
        let mut query = users::Entity::find()
            .filter(users::Column::AgencyId.eq(filter.agency_id))
            .filter(users::Column::DeletedAt.is_null());
        if let Some(email) = filter.email {
            query = query.filter(users::Column::EmailKey.eq(email_key(email)));
        }
        if let Some(kind) = filter.role_type {
            query = query.filter(users::Column::RoleType.eq(convert::role_type(kind)));
        }
        if let Some(level) = filter.role_level {
            query = query.filter(users::Column::RoleLevel.eq(convert::role_level(level)));
        }
        if let Some(location_id) = filter.location_id {
            let there = Query::select()
                .column(user_locations::Column::UserId)
                .from(user_locations::Entity)
                .and_where(user_locations::Column::LocationId.eq(location_id))
                .to_owned();
            query = query.filter(users::Column::Id.in_subquery(there));
        }
        let columns =
            Columns { id: users::Column::Id, created_at: users::Column::CreatedAt, text_key: users::Column::EmailKey };
        let rows = windowed(query, columns, window).all(&self.db).await.map_err(fault)?;
        let ids: Vec<_> = rows.iter().map(|row| row.id.clone()).collect();
        let mut places = places_of(&self.db, &ids).await?;
        rows.into_iter()
            .map(|row| {
                let own = places.remove(&row.id).unwrap_or_default();
                convert::user(row, own)
            })
            .collect()
    }

    async fn insert_user(&self, user: &User, key: Option<&MutationKey>) -> Result<Written, StoreError> {
        let tx = self.begin().await?;
        if let Some(known) = replayed(&tx, key, user.created_at).await? {
            return Ok(known);
        }
        if email_taken(&tx, user).await? {
            // The same call, made twice at once, may have committed since: then the address is this request's own.
            return Ok(replayed(&tx, key, user.created_at).await?.unwrap_or(Written::EmailTaken));
        }
        users::Entity::insert(convert::user_row(user)?).exec_without_returning(&tx).await.map_err(fault)?;
        write_locations(&tx, user).await?;
        finish(tx, key, &user.id, user.created_at).await
    }

    async fn update_user(&self, user: &User, key: Option<&MutationKey>) -> Result<Written, StoreError> {
        let tx = self.begin().await?;
        if let Some(known) = replayed(&tx, key, user.updated_at).await? {
            return Ok(known);
        }
        if user.deleted_at.is_none() && email_taken(&tx, user).await? {
            return Ok(Written::EmailTaken);
        }
        let updated = users::Entity::update_many()
            .set(convert::user_row(user)?)
            .filter(users::Column::Id.eq(&user.id))
            .filter(users::Column::Revision.eq(user.revision - 1))
            .exec(&tx)
            .await
            .map_err(fault)?;
        if updated.rows_affected != 1 {
            return Ok(Written::Stale);
        }
        user_locations::Entity::delete_many()
            .filter(user_locations::Column::UserId.eq(&user.id))
            .exec(&tx)
            .await
            .map_err(fault)?;
        write_locations(&tx, user).await?;
        finish(tx, key, &user.id, user.updated_at).await
    }

    async fn recipients(&self, agency_id: &str, location_ids: &[String]) -> Result<Option<Recipients>, StoreError> {
        let mut options = TransactionOptions::default();
        // SQLite's readers see one state of the database as they are.
        if self.db.get_database_backend() == DatabaseBackend::Postgres {
            options.isolation_level = Some(IsolationLevel::RepeatableRead);
            options.access_mode = Some(AccessMode::ReadOnly);
        }
        let tx = self.db.begin_with_options(options).await.map_err(fault)?;
        let Some(agency) = agencies::Entity::find_by_id(agency_id).one(&tx).await.map_err(fault)? else {
            return Ok(None);
        };
        let mut people: BTreeMap<String, Recipient> = BTreeMap::new();
        let agency_admins =
            told(RoleType::Agency).filter(users::Column::AgencyId.eq(agency_id)).all(&tx).await.map_err(fault)?;
        people.extend(agency_admins.into_iter().map(|row| (row.id.clone(), recipient(row, true, Vec::new()))));

        let mut names = Vec::with_capacity(location_ids.len());
        let mut places: HashMap<String, Vec<String>> = HashMap::new();
        for chunk in location_ids.chunks(CHUNK) {
            let found: Vec<(String, String)> = locations::Entity::find()
                .select_only()
                .columns([locations::Column::Id, locations::Column::Name])
                .filter(locations::Column::AgencyId.eq(agency_id))
                .filter(locations::Column::Id.is_in(chunk))
                .into_tuple()
                .all(&tx)
                .await
                .map_err(fault)?;
            let ids = found.iter().map(|(id, _)| id.as_str());
            let rows = user_locations::Entity::find()
                .filter(user_locations::Column::LocationId.is_in(ids))
                .all(&tx)
                .await
                .map_err(fault)?;
            for row in rows {
                places.entry(row.user_id).or_default().push(row.location_id);
            }
            names.extend(found);
        }
        let candidates: Vec<_> = places.keys().cloned().collect();
        for chunk in candidates.chunks(CHUNK) {
            let rows = told(RoleType::Location)
                .filter(users::Column::AgencyId.eq(agency_id))
                .filter(users::Column::Id.is_in(chunk))
                .all(&tx)
                .await
                .map_err(fault)?;
            for row in rows {
                let mut own = places.remove(&row.id).unwrap_or_default();
                own.sort_unstable();
                people.insert(row.id.clone(), recipient(row, false, own));
            }
        }
        names.sort_unstable();
        tx.commit().await.map_err(fault)?;
        let recipients = people.into_values().collect();
        Ok(Some(Recipients {
            agency_name: agency.name,
            agency_time_zone: agency.time_zone,
            recipients,
            location_names: names,
        }))
    }
}

/// The admins of a kind who can be told.
fn told(kind: RoleType) -> sea_orm::Select<users::Entity> {
    users::Entity::find()
        .filter(users::Column::RoleType.eq(convert::role_type(kind)))
        .filter(users::Column::RoleLevel.eq(convert::role_level(RoleLevel::Admin)))
        .filter(users::Column::DeletedAt.is_null())
        .filter(users::Column::Disabled.eq(false))
}

fn recipient(row: users::Model, agency_admin: bool, location_ids: Vec<String>) -> Recipient {
    Recipient {
        user_id: row.id,
        email: row.email,
        first_name: row.first_name,
        last_name: row.last_name,
        agency_admin,
        location_ids,
    }
}

/// The locations that each of the users lists, sorted.
async fn places_of(db: &impl ConnectionTrait, ids: &[String]) -> Result<HashMap<String, Vec<String>>, StoreError> {
    let mut places: HashMap<String, Vec<String>> = HashMap::new();
    for chunk in ids.chunks(CHUNK) {
        let found = user_locations::Entity::find()
            .filter(user_locations::Column::UserId.is_in(chunk))
            .all(db)
            .await
            .map_err(fault)?;
        for row in found {
            places.entry(row.user_id).or_default().push(row.location_id);
        }
    }
    places.values_mut().for_each(|own| own.sort_unstable());
    Ok(places)
}

async fn write_locations(tx: &DatabaseTransaction, user: &User) -> Result<(), StoreError> {
    // Who is deleted works nowhere.
    if user.details.location_ids.is_empty() || user.deleted_at.is_some() {
        return Ok(());
    }
    let row = |id: &String| user_locations::ActiveModel { user_id: Set(user.id.clone()), location_id: Set(id.clone()) };
    let rows = user.details.location_ids.iter().map(row);
    user_locations::Entity::insert_many(rows).exec_without_returning(tx).await.map(drop).map_err(fault)
}

async fn email_taken(tx: &DatabaseTransaction, user: &User) -> Result<bool, StoreError> {
    let other = users::Entity::find()
        .filter(users::Column::AgencyId.eq(&user.agency_id))
        .filter(users::Column::EmailKey.eq(email_key(&user.details.email)))
        .filter(users::Column::Id.ne(&user.id))
        .one(tx)
        .await
        .map_err(fault)?;
    Ok(other.is_some())
}
