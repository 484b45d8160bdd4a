//! Table `keyring_check`: fingerprints of the secrets that this database was made with.

use sea_orm::entity::prelude::*;

/// One versioned secret of the key ring.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "keyring_check")]
pub struct Model {
    /// The ring's name for it, with the version.
    #[sea_orm(primary_key, auto_increment = false)]
    pub name: String,
    /// One-way from the secret, 32 bytes.
    pub fingerprint: Vec<u8>,
}

/// No relations.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
