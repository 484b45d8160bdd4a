//! Agencies and their choices about security.

use async_trait::async_trait;
use sea_orm::sea_query::{Expr, OnConflict};
use sea_orm::{
    ActiveValue::Set, ColumnTrait, ConnectionTrait, DatabaseTransaction, EntityTrait, QueryFilter, QuerySelect, Value,
};
use service_kit::time::to_micros;

use super::entities::{agencies, locations, security_settings};
use super::listing::{Columns, windowed};
use super::{DatabaseStore, convert, fault, finish, replayed, write_audit};
use crate::app::listing::Window;
use crate::app::ports::{AgencyStore, AuditEvent, MutationKey, StoreError, Written};
use crate::domain::resources::Agency;
use crate::domain::security::Choice;

#[async_trait]
impl AgencyStore for DatabaseStore {
    async fn agency(&self, id: &str) -> Result<Option<Agency>, StoreError> {
        let row = agencies::Entity::find_by_id(id).one(&self.db).await.map_err(fault)?;
        Ok(row.map(convert::agency))
    }

    async fn agencies(&self, window: &Window) -> Result<Vec<Agency>, StoreError> {
        use agencies::Column::{CreatedAt, Id, NameKey};
        let columns = Columns { id: Id, created_at: CreatedAt, text_key: NameKey };
        let query = windowed(agencies::Entity::find(), columns, window);
        let rows = query.all(&self.db).await.map_err(fault)?;
        Ok(rows.into_iter().map(convert::agency).collect())
    }

    async fn insert_agency(&self, agency: &Agency, key: Option<&MutationKey>) -> Result<Written, StoreError> {
        let tx = self.begin().await?;
        if let Some(known) = replayed(&tx, key, agency.created_at).await? {
            return Ok(known);
        }
        agencies::Entity::insert(convert::agency_row(agency)).exec_without_returning(&tx).await.map_err(fault)?;
        finish(tx, key, &agency.id, agency.created_at).await
    }

    async fn update_agency(&self, agency: &Agency, key: Option<&MutationKey>) -> Result<Written, StoreError> {
        let tx = self.begin().await?;
        if let Some(known) = replayed(&tx, key, agency.updated_at).await? {
            return Ok(known);
        }
        let updated = agencies::Entity::update_many()
            .set(convert::agency_row(agency))
            .filter(agencies::Column::Id.eq(&agency.id))
            .filter(agencies::Column::Revision.eq(agency.revision - 1))
            .exec(&tx)
            .await
            .map_err(fault)?;
        if updated.rows_affected != 1 {
            return Ok(Written::Stale);
        }
        finish(tx, key, &agency.id, agency.updated_at).await
    }

    async fn choice(&self, agency_id: &str) -> Result<Option<Choice>, StoreError> {
        choice_of(&self.db, agency_id).await
    }

    async fn choose(
        &self,
        agency_id: &str,
        choice: &Choice,
        audit: &AuditEvent,
        key: Option<&MutationKey>,
    ) -> Result<Written, StoreError> {
        let tx = self.begin().await?;
        if let Some(known) = replayed(&tx, key, choice.chosen_at).await? {
            return Ok(known);
        }
        lock_agency(&tx, agency_id).await?;
        let row = security_settings::ActiveModel {
            agency_id: Set(agency_id.to_owned()),
            enabled: Set(choice.enabled),
            actor: Set(choice.actor.to_string()),
            chosen_at: Set(to_micros(choice.chosen_at)),
        };
        let changed =
            [security_settings::Column::Enabled, security_settings::Column::Actor, security_settings::Column::ChosenAt];
        security_settings::Entity::insert(row)
            .on_conflict(OnConflict::column(security_settings::Column::AgencyId).update_columns(changed).to_owned())
            .exec_without_returning(&tx)
            .await
            .map_err(fault)?;
        if choice.enabled {
            locations::Entity::update_many()
                .col_expr(locations::Column::SealedKey, Expr::value(Value::Bytes(None)))
                .col_expr(locations::Column::MasterVersion, Expr::value(Value::Int(None)))
                .filter(locations::Column::AgencyId.eq(agency_id))
                .filter(locations::Column::SealedKey.is_not_null())
                .exec(&tx)
                .await
                .map_err(fault)?;
        }
        write_audit(&tx, audit).await?;
        finish(tx, key, agency_id, choice.chosen_at).await
    }
}

pub(super) async fn choice_of(db: &impl ConnectionTrait, agency_id: &str) -> Result<Option<Choice>, StoreError> {
    let row = security_settings::Entity::find_by_id(agency_id).one(db).await.map_err(fault)?;
    row.map(convert::choice).transpose()
}

/// Lets no other choice, and no new location, of the agency in between.
pub(super) async fn lock_agency(tx: &DatabaseTransaction, agency_id: &str) -> Result<(), StoreError> {
    agencies::Entity::find_by_id(agency_id).lock_exclusive().one(tx).await.map(drop).map_err(fault)
}
