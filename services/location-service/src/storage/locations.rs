//! Locations and the sealed copies of their keys.

use async_trait::async_trait;
use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, QueryFilter, QuerySelect};

use super::agencies::{choice_of, lock_agency};
use super::entities::locations;
use super::listing::{Columns, windowed};
use super::{DatabaseStore, convert, fault, finish, replayed, write_audit};
use crate::app::listing::Window;
use crate::app::ports::{AuditEvent, LocationFilter, LocationStore, MutationKey, StoreError, StoredLocation, Written};
use crate::domain::resources::Location;

#[async_trait]
impl LocationStore for DatabaseStore {
    async fn location(&self, id: &str) -> Result<Option<StoredLocation>, StoreError> {
        let row = locations::Entity::find_by_id(id).one(&self.db).await.map_err(fault)?;
        row.map(convert::location).transpose()
    }

    async fn locations(&self, filter: LocationFilter<'_>, window: &Window) -> Result<Vec<StoredLocation>, StoreError> {
        let mut query = locations::Entity::find().filter(locations::Column::AgencyId.eq(filter.agency_id));
        if !filter.show_deleted {
            query = query.filter(locations::Column::DeletedAt.is_null());
        }
        if !filter.country.is_empty() {
            query = query.filter(locations::Column::Country.eq(filter.country));
        }
        if !filter.state.is_empty() {
            query = query.filter(locations::Column::State.eq(filter.state));
        }
        let columns = Columns {
            id: locations::Column::Id,
            created_at: locations::Column::CreatedAt,
            text_key: locations::Column::NameKey,
        };
        let rows = windowed(query, columns, window).all(&self.db).await.map_err(fault)?;
        rows.into_iter().map(convert::location).collect()
    }

    async fn insert_location(
        &self,
        stored: &StoredLocation,
        audit: Option<&AuditEvent>,
        key: Option<&MutationKey>,
    ) -> Result<Written, StoreError> {
        let location = &stored.location;
        let tx = self.begin().await?;
        if let Some(known) = replayed(&tx, key, location.created_at).await? {
            return Ok(known);
        }
        let mut row = convert::location_row(location);
        if let Some(sealed) = &stored.sealed_key {
            // Either the choice to opt in sees this row and destroys the copy, or this sees the choice.
            lock_agency(&tx, &location.agency_id).await?;
            if choice_of(&tx, &location.agency_id).await?.is_some_and(|choice| !choice.enabled) {
                let version = i32::try_from(sealed.master_version)
                    .map_err(|_| StoreError::Internal("the master key's version does not fit its column".to_owned()))?;
                row.sealed_key = Set(Some(sealed.bytes.clone()));
                row.master_version = Set(Some(version));
            }
        }
        locations::Entity::insert(row).exec_without_returning(&tx).await.map_err(fault)?;
        if let Some(audit) = audit {
            write_audit(&tx, audit).await?;
        }
        finish(tx, key, &location.id, location.created_at).await
    }

    async fn update_location(&self, location: &Location, key: Option<&MutationKey>) -> Result<Written, StoreError> {
        let tx = self.begin().await?;
        if let Some(known) = replayed(&tx, key, location.updated_at).await? {
            return Ok(known);
        }
        let mut row = convert::location_row(location);
        if location.deleted_at.is_some() {
            row.sealed_key = Set(None);
            row.master_version = Set(None);
        }
        let updated = locations::Entity::update_many()
            .set(row)
            .filter(locations::Column::Id.eq(&location.id))
            .filter(locations::Column::Revision.eq(location.revision - 1))
            .exec(&tx)
            .await
            .map_err(fault)?;
        if updated.rows_affected != 1 {
            return Ok(Written::Stale);
        }
        finish(tx, key, &location.id, location.updated_at).await
    }

    async fn live_locations(&self, agency_id: &str, ids: &[String]) -> Result<Vec<String>, StoreError> {
        locations::Entity::find()
            .select_only()
            .column(locations::Column::Id)
            .filter(locations::Column::AgencyId.eq(agency_id))
            .filter(locations::Column::DeletedAt.is_null())
            .filter(locations::Column::Id.is_in(ids))
            .into_tuple()
            .all(&self.db)
            .await
            .map_err(fault)
    }
}
