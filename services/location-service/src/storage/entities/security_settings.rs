//! Agencies' choices about Enhanced Account Security; no row: no choice.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "security_settings")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub agency_id: String,
    pub enabled: bool,
    pub actor: String,
    pub chosen_at: i64,
}

impl ActiveModelBehavior for ActiveModel {}
