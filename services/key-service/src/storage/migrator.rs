//! The migrations of key-service's database, in their order.

use sea_orm_migration::{MigrationTrait, MigratorTrait};

#[path = "../../migrations/m0001_keys.rs"]
mod m0001_keys;
#[path = "../../migrations/m0002_sweep.rs"]
mod m0002_sweep;
#[path = "../../migrations/m0003_lease.rs"]
mod m0003_lease;
#[path = "../../migrations/m0004_history.rs"]
mod m0004_history;
#[path = "../../migrations/m0005_overlaps.rs"]
mod m0005_overlaps;

/// Brings a database to the schema of this version.
#[derive(Debug)]
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m0001_keys::Migration),
            Box::new(m0002_sweep::Migration),
            Box::new(m0003_lease::Migration),
            Box::new(m0004_history::Migration),
            Box::new(m0005_overlaps::Migration),
        ]
    }
}
