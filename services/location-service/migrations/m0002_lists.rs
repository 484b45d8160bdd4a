//! Lists by name, country and state: names in the form that they are compared in, and an index for each order.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{DatabaseBackend, Statement};

use crate::domain::profile::name_key;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

const TABLES: [&str; 2] = ["agencies", "locations"];

/// Every index begins with what a list is filtered by and ends with its order, so that no page needs sorting.
const INDEXES: [(&str, &str, &[&str]); 6] = [
    ("agencies_name", "agencies", &["name_key", "id"]),
    ("locations_name", "locations", &["agency_id", "name_key", "id"]),
    ("locations_country", "locations", &["agency_id", "country", "id"]),
    ("locations_country_name", "locations", &["agency_id", "country", "name_key", "id"]),
    ("locations_state", "locations", &["agency_id", "state", "id"]),
    ("locations_state_name", "locations", &["agency_id", "state", "name_key", "id"]),
];

// The trait's methods elide the lifetime, so these must too.
#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // Both databases are to compare byte by byte, which is by code point; SQLite does.
        let collation = if manager.get_database_backend() == DatabaseBackend::Postgres { " COLLATE \"C\"" } else { "" };
        for table in TABLES {
            let column = format!("ALTER TABLE {table} ADD COLUMN name_key TEXT{collation} NOT NULL DEFAULT ''");
            manager.get_connection().execute_unprepared(&column).await?;
            fill(manager, table).await?;
        }
        for (name, table, columns) in INDEXES {
            let mut index = Index::create();
            index.name(name).table(table);
            for column in columns {
                index.col(*column);
            }
            manager.create_index(index).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for (name, table, _) in INDEXES {
            manager.drop_index(Index::drop().name(name).table(table).to_owned()).await?;
        }
        for table in TABLES {
            manager.alter_table(Table::alter().table(table).drop_column("name_key").to_owned()).await?;
        }
        Ok(())
    }
}

/// In the service's own way: the databases know small letters each in their own.
async fn fill(manager: &SchemaManager<'_>, table: &str) -> Result<(), DbErr> {
    let (db, mut last) = (manager.get_connection(), String::new());
    loop {
        let page = format!("SELECT id, name FROM {table} WHERE id > $1 ORDER BY id LIMIT 1000");
        let rows =
            db.query_all_raw(Statement::from_sql_and_values(db.get_database_backend(), page, [last.into()])).await?;
        let mut end = None;
        for row in rows {
            let (id, name): (String, String) = (row.try_get_by_index(0)?, row.try_get_by_index(1)?);
            let update = format!("UPDATE {table} SET name_key = $1 WHERE id = $2");
            let values = [name_key(&name).into(), id.clone().into()];
            db.execute_raw(Statement::from_sql_and_values(db.get_database_backend(), update, values)).await?;
            end = Some(id);
        }
        let Some(end) = end else { return Ok(()) };
        last = end;
    }
}
