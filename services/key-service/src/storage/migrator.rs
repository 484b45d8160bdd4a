//! The migrations of key-service's database, in their order.

use sea_orm_migration::{MigrationTrait, MigratorTrait};

#[expect(
    elided_lifetimes_in_paths,
    reason = "the trait of migrations elides them, and an implementation must do as it does"
)]
#[path = "../../migrations/m0001_keys.rs"]
mod m0001_keys;

/// Brings a database to the schema of this version.
#[derive(Debug)]
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(m0001_keys::Migration)]
    }
}
