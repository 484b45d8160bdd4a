//! The inboxes. `subject` tells apart notifications of one kind to one user of a lot: the stage, key or instant.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "notifications")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub notification_id: String,
    pub sequence: i64,
    pub user_id: String,
    pub plan_id: String,
    pub agency_id: String,
    pub kind: i16,
    pub subject: String,
    pub scope_stage: Option<i16>,
    pub whole_lot: bool,
    pub key_id: String,
    pub delete_at: i64,
    pub as_of_sequence: i64,
    pub key_count: i64,
    pub reason: String,
    pub created_at: i64,
    pub read_at: Option<i64>,
}

impl ActiveModelBehavior for ActiveModel {}
