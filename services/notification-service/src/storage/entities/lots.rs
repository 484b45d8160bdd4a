//! Lots.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "lots")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub plan_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub agency_id: String,
    pub state: i16,
    pub hold_reason: Option<i16>,
    pub state_reason: String,
    pub delete_at: i64,
    pub entry_count: i64,
    pub live_count: i64,
    pub closed_sequence: Option<i64>,
}

impl ActiveModelBehavior for ActiveModel {}
