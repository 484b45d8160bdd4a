//! Table `audit_head`: one row, the end of the audit chain, locked by whoever appends.

use sea_orm::entity::prelude::*;

/// The end of the chain.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "audit_head")]
pub struct Model {
    /// Always 1.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: i16,
    /// Of the last event; 0: there is none.
    pub sequence: i64,
    /// Of the last event, 32 bytes.
    pub hash: Vec<u8>,
}

/// No relations.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
