//! What was done; rows are added and never changed.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "audit_events")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub occurred_at: i64,
    pub actor: String,
    pub action: String,
    pub agency_id: String,
    pub location_id: Option<String>,
    pub call_id: String,
    pub detail: String,
}

impl ActiveModelBehavior for ActiveModel {}
