//! Plans.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "plans")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub plan_id: String,
    pub state: i16,
    pub state_reason: String,
    pub delete_at: i64,
    pub idle_since_at: i64,
    pub last_delete_at: i64,
    pub stage_window_ms: i64,
    pub published_at: i64,
    pub sealed_sequence: Option<i64>,
    pub closed_sequence: Option<i64>,
    pub entry_count: i64,
    pub lot_count: i64,
}

impl ActiveModelBehavior for ActiveModel {}
