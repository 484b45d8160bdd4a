//! The sweeper's lease: which of several replicas sweeps.

use sea_orm_migration::prelude::*;

pub(crate) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0003_lease"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .create_table(
                Table::create()
                    .table("sweep_lease")
                    .col(ColumnDef::new("id").small_integer().not_null().primary_key())
                    .col(ColumnDef::new("owner").text().not_null())
                    .col(ColumnDef::new("token").big_integer().not_null())
                    .col(ColumnDef::new("renewed_at").big_integer().not_null())
                    .col(ColumnDef::new("expires_at").big_integer().not_null())
                    .to_owned(),
            )
            .await?;
        manager
            .execute(
                Query::insert()
                    .into_table("sweep_lease")
                    .columns(["id", "owner", "token", "renewed_at", "expires_at"])
                    .values_panic([1_i16.into(), "".into(), 0_i64.into(), 0_i64.into(), 0_i64.into()])
                    .to_owned(),
            )
            .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table("sweep_lease").to_owned()).await
    }
}
