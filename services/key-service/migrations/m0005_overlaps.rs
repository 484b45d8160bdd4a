//! No index of keys names what a deletion changes: PostgreSQL would write each tombstone into every index anew.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::ConnectionTrait;

pub(crate) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0005_overlaps"
    }
}

async fn replace(
    manager: &SchemaManager<'_>,
    old: &'static str,
    new: &'static str,
    only: &'static str,
) -> Result<(), DbErr> {
    let mut index = Index::create();
    index.name(new).table("api_keys").col("revoke_at").and_where(Expr::cust(only));
    manager.create_index(index).await?;
    manager.drop_index(Index::drop().name(old).table("api_keys").to_owned()).await
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // A revoked key has no hash, and so no pepper of it: that tells it from one in an overlap. What an older replica revokes from
        // now on keeps the number, and costs a row of the index.
        let forget = "UPDATE api_keys SET pepper_version = NULL WHERE state = 2 AND pepper_version IS NOT NULL";
        manager.get_connection().execute_unprepared(forget).await?;
        let running = "revoke_at IS NOT NULL AND pepper_version IS NOT NULL";
        replace(manager, "api_keys_overlap", "api_keys_overlap_end", running).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let running = "state = 1 AND revoke_at IS NOT NULL";
        replace(manager, "api_keys_overlap_end", "api_keys_overlap", running).await
    }
}
