//! The cursor with what tells its event from any other, and the order of notifications.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "heads")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: i16,
    pub applied_sequence: i64,
    pub notification_sequence: i64,
    pub applied_event: String,
}

impl ActiveModelBehavior for ActiveModel {}
