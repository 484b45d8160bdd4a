//! Lists by time of creation: an index for each, in place of those by id, whose order within a millisecond is chance.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DatabaseBackend;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

type Shape = (&'static str, &'static str, &'static [&'static str]);

const BY_CREATION: [Shape; 6] = [
    ("agencies_created", "agencies", &["created_at", "id"]),
    ("locations_created", "locations", &["agency_id", "created_at", "id"]),
    ("locations_country_created", "locations", &["agency_id", "country", "created_at", "id"]),
    ("locations_state_created", "locations", &["agency_id", "state", "created_at", "id"]),
    ("users_created", "users", &["agency_id", "created_at", "id"]),
    ("users_role_created", "users", &["agency_id", "role_type", "role_level", "created_at", "id"]),
];

const BY_ID: [Shape; 5] = [
    ("locations_agency", "locations", &["agency_id", "id"]),
    ("locations_country", "locations", &["agency_id", "country", "id"]),
    ("locations_state", "locations", &["agency_id", "state", "id"]),
    ("users_agency", "users", &["agency_id", "id"]),
    ("users_agency_role", "users", &["agency_id", "role_type", "role_level", "id"]),
];

// The trait's methods elide the lifetime, so these must too.
#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // Addresses are ordered as names are: byte by byte on both databases.
        collate(manager, "\"C\"").await?;
        replace(manager, &BY_ID, &BY_CREATION).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        replace(manager, &BY_CREATION, &BY_ID).await?;
        collate(manager, "\"default\"").await
    }
}

async fn collate(manager: &SchemaManager<'_>, collation: &str) -> Result<(), DbErr> {
    if manager.get_database_backend() != DatabaseBackend::Postgres {
        return Ok(());
    }
    let column = format!("ALTER TABLE users ALTER COLUMN email_key TYPE TEXT COLLATE {collation}");
    manager.get_connection().execute_unprepared(&column).await.map(drop)
}

/// Makes the new before it drops the old.
async fn replace(manager: &SchemaManager<'_>, old: &[Shape], new: &[Shape]) -> Result<(), DbErr> {
    for (name, table, columns) in new {
        let mut index = Index::create();
        index.name(*name).table(*table);
        for column in *columns {
            index.col(*column);
        }
        manager.create_index(index).await?;
    }
    for (name, table, _) in old {
        manager.drop_index(Index::drop().name(*name).table(*table).to_owned()).await?;
    }
    Ok(())
}
