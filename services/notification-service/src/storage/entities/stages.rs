//! Each notice of each lot, and how far it is.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "stages")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub plan_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub agency_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub stage: i16,
    pub state: i16,
    pub due_at: i64,
    pub wait_sequence: i64,
    pub lease_owner: Option<String>,
    pub lease_until: Option<i64>,
    pub collections: i32,
    pub agency_name: String,
    pub agency_time_zone: String,
    pub as_of_sequence: Option<i64>,
    pub announced_delete_at: Option<i64>,
    pub dispatched_at: Option<i64>,
    pub delivered_at: Option<i64>,
    pub key_count: i64,
    pub in_app_count: i64,
    pub emails_accepted: i64,
    pub hold_reason: Option<i16>,
    pub report_owed: bool,
    pub receipt_detail: String,
    pub acknowledged_at: Option<i64>,
}

impl ActiveModelBehavior for ActiveModel {}
