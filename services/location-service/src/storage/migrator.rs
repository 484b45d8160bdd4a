//! The migrations, in order.

use sea_orm_migration::prelude::*;

#[path = "../../migrations/m0001_accounts.rs"]
mod m0001_accounts;
#[path = "../../migrations/m0002_lists.rs"]
mod m0002_lists;
#[path = "../../migrations/m0003_created.rs"]
mod m0003_created;

/// Brings the database to the form that this version needs.
#[derive(Debug)]
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(m0001_accounts::Migration), Box::new(m0002_lists::Migration), Box::new(m0003_created::Migration)]
    }
}
