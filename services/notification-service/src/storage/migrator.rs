//! The database's versions.

use sea_orm_migration::{MigrationTrait, MigratorTrait};

#[path = "../../migrations/m0001_notification.rs"]
mod m0001_notification;
#[path = "../../migrations/m0002_delivery.rs"]
mod m0002_delivery;

/// Brings the database to the current version.
#[derive(Debug)]
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(m0001_notification::Migration), Box::new(m0002_delivery::Migration)]
    }
}
