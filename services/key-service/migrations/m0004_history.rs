//! The history of events knows where it begins, and which one it is.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend};

pub(crate) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0004_history"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for column in [
            ColumnDef::new("first_sequence").big_integer().not_null().default(1).to_owned(),
            ColumnDef::new("history_id").text().not_null().default("").to_owned(),
        ] {
            manager.alter_table(Table::alter().table("sweep_head").add_column(column).to_owned()).await?;
        }
        let db = manager.get_connection();
        let random = match manager.get_database_backend() {
            DbBackend::Postgres => "replace(CAST(gen_random_uuid() AS TEXT), '-', '')",
            _ => "lower(hex(randomblob(16)))",
        };
        db.execute_unprepared(&format!("UPDATE sweep_head SET history_id = 'his_' || {random}")).await?;
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for column in ["history_id", "first_sequence"] {
            manager.alter_table(Table::alter().table("sweep_head").drop_column(column).to_owned()).await?;
        }
        Ok(())
    }
}
