//! Table `audit_events`: append-only, hash-chained.

use sea_orm::entity::prelude::*;

/// One thing that was done.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "audit_events")]
pub struct Model {
    /// From 1, without gaps.
    #[sea_orm(primary_key, auto_increment = false)]
    pub sequence: i64,
    /// Unix microseconds.
    pub occurred_at: i64,
    /// `user/…`, `api-key/…` or `service/…`.
    pub actor: String,
    /// Such as `key.generated`.
    pub action: String,
    /// Empty: no agency alone.
    pub agency_id: String,
    /// Empty: no key alone.
    pub key_id: String,
    /// Empty: no plan.
    pub plan_id: String,
    /// Empty: none was asked for.
    pub reason: String,
    /// Empty: it came from no call.
    pub request_id: String,
    /// The JSON text that was hashed.
    pub detail: String,
    /// 32 bytes.
    pub hash: Vec<u8>,
}

/// No relations.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
