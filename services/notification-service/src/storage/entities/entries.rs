//! Entries with their evidence. An empty location means that the agency itself owns the key.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "entries")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub plan_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub agency_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub key_id: String,
    pub location_id: String,
    pub display_name: String,
    pub display_prefix: String,
    pub created_at: i64,
    pub last_used_at: Option<i64>,
    pub idle_days: i32,
    pub left_at: Option<i64>,
    pub left_sequence: Option<i64>,
    pub left_cause: Option<i16>,
}

impl ActiveModelBehavior for ActiveModel {}
