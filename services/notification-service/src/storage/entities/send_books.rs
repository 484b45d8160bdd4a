//! What was sent already, as the send limits count it.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "send_books")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: i16,
    pub day: i64,
    pub day_count: i64,
    pub next_slot_at: i64,
}

impl ActiveModelBehavior for ActiveModel {}
