//! The emails. `turn` is the position among those of one agency and stage: first turns are sent before second ones.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "deliveries")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub delivery_id: String,
    pub plan_id: String,
    pub agency_id: String,
    pub stage: i16,
    pub user_id: String,
    pub recipient: String,
    pub name: String,
    pub state: i16,
    pub attempts: i32,
    pub last_reply: String,
    pub message_id: String,
    pub created_at: i64,
    pub attempted_at: Option<i64>,
    pub next_attempt_at: i64,
    pub deferred_since_at: Option<i64>,
    pub settled_at: Option<i64>,
    pub lease_owner: Option<String>,
    pub lease_until: Option<i64>,
    pub turn: i64,
    pub in_doubt_count: i32,
}

impl ActiveModelBehavior for ActiveModel {}
