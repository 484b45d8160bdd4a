//! One-way digests of the secrets that this database was filled with.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "keyring_check")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub label: String,
    pub fingerprint: Vec<u8>,
}

impl ActiveModelBehavior for ActiveModel {}
