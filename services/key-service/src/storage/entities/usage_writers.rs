//! Table `usage_writers`: one row per start of a replica, saying through when its recorded uses are stored.

use sea_orm::entity::prelude::*;

/// One run of one replica.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "usage_writers")]
pub struct Model {
    /// `rep_…`, new with each start.
    #[sea_orm(primary_key, auto_increment = false)]
    pub replica_id: String,
    /// Unix microseconds.
    pub started_at: i64,
    /// Every use up to and at this instant is stored, in unix microseconds.
    pub flushed_through_at: i64,
    /// When the replica stopped cleanly, everything stored; `None`: it runs, or died.
    pub closed_at: Option<i64>,
}

/// No relations.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
