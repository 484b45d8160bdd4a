//! Keys, audit events, the replicas that record uses, the key ring's fingerprints, and repeatable requests.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend};

pub(crate) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0001_keys"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        Box::pin(create_api_keys(manager)).await?;
        create_audit(manager).await?;
        manager
            .create_table(
                Table::create()
                    .table("usage_writers")
                    .col(ColumnDef::new("replica_id").text().not_null().primary_key())
                    .col(ColumnDef::new("started_at").big_integer().not_null())
                    .col(ColumnDef::new("flushed_through_at").big_integer().not_null())
                    .col(ColumnDef::new("closed_at").big_integer())
                    .to_owned(),
            )
            .await?;
        manager
            .create_table(
                Table::create()
                    .table("keyring_check")
                    .col(ColumnDef::new("name").text().not_null().primary_key())
                    .col(ColumnDef::new("fingerprint").blob().not_null())
                    .to_owned(),
            )
            .await?;
        service_kit::idempotency::create_table(manager).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        service_kit::idempotency::drop_table(manager).await?;
        for table in ["keyring_check", "usage_writers", "audit_head", "audit_events", "api_keys"] {
            manager.drop_table(Table::drop().table(table).to_owned()).await?;
        }
        Ok(())
    }
}

async fn create_api_keys(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    manager
        .create_table(
            Table::create()
                .table("api_keys")
                .col(ColumnDef::new("id").text().not_null().primary_key())
                .col(ColumnDef::new("agency_id").text().not_null())
                .col(ColumnDef::new("location_id").text())
                .col(ColumnDef::new("display_name").text().not_null())
                .col(ColumnDef::new("display_prefix").text().not_null())
                .col(ColumnDef::new("scopes").text().not_null())
                .col(ColumnDef::new("allowed_cidrs").text().not_null())
                .col(ColumnDef::new("created_at").big_integer().not_null())
                .col(ColumnDef::new("last_used_at").big_integer())
                .col(ColumnDef::new("expires_at").big_integer())
                .col(ColumnDef::new("state").small_integer().not_null())
                .col(ColumnDef::new("revoke_at").big_integer())
                .col(ColumnDef::new("deleted_at").big_integer())
                .col(ColumnDef::new("selector").blob().not_null())
                .col(ColumnDef::new("secret_hash").blob())
                .col(ColumnDef::new("pepper_version").integer())
                .col(ColumnDef::new("sealed_secret").blob())
                .col(ColumnDef::new("master_version").integer())
                .col(ColumnDef::new("successor_id").text())
                .col(ColumnDef::new("external_reference").text())
                .col(ColumnDef::new("import_fingerprint").blob())
                .col(ColumnDef::new("revision").big_integer().not_null())
                .to_owned(),
        )
        .await?;
    if manager.get_database_backend() == DbBackend::Postgres {
        // Room in every page, so that recording a use rewrites the row beside itself and touches no index.
        manager.get_connection().execute_unprepared("ALTER TABLE api_keys SET (fillfactor = 85)").await?;
    }
    // No index holds last_used_at: it would make each recording of a use dearer, to speed up four scans a year.
    for mut index in [
        Index::create().name("api_keys_selector").unique().col("selector").to_owned(),
        Index::create().name("api_keys_owner").col("agency_id").col("location_id").col("id").to_owned(),
        Index::create()
            .name("api_keys_external_reference")
            .unique()
            .col("agency_id")
            .col("external_reference")
            .and_where(Expr::col("external_reference").is_not_null())
            .to_owned(),
        // Small: only keys inside the overlap of a rotation, and those whose overlap awaits its end.
        Index::create()
            .name("api_keys_overlap")
            .col("revoke_at")
            .and_where(Expr::cust("state = 1 AND revoke_at IS NOT NULL"))
            .to_owned(),
    ] {
        manager.create_index(index.table("api_keys").to_owned()).await?;
    }
    Ok(())
}

async fn create_audit(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    manager
        .create_table(
            Table::create()
                .table("audit_events")
                .col(ColumnDef::new("sequence").big_integer().not_null().primary_key())
                .col(ColumnDef::new("occurred_at").big_integer().not_null())
                .col(ColumnDef::new("actor").text().not_null())
                .col(ColumnDef::new("action").text().not_null())
                .col(ColumnDef::new("agency_id").text().not_null())
                .col(ColumnDef::new("key_id").text().not_null())
                .col(ColumnDef::new("plan_id").text().not_null())
                .col(ColumnDef::new("reason").text().not_null())
                .col(ColumnDef::new("request_id").text().not_null())
                .col(ColumnDef::new("detail").text().not_null())
                .col(ColumnDef::new("hash").blob().not_null())
                .to_owned(),
        )
        .await?;
    for mut index in [
        Index::create().name("audit_events_agency").col("agency_id").col("sequence").to_owned(),
        Index::create().name("audit_events_key").col("key_id").col("sequence").to_owned(),
    ] {
        manager.create_index(index.table("audit_events").to_owned()).await?;
    }
    manager
        .create_table(
            Table::create()
                .table("audit_head")
                .col(ColumnDef::new("id").small_integer().not_null().primary_key())
                .col(ColumnDef::new("sequence").big_integer().not_null())
                .col(ColumnDef::new("hash").blob().not_null())
                .to_owned(),
        )
        .await?;
    manager
        .execute(
            Query::insert()
                .into_table("audit_head")
                .columns(["id", "sequence", "hash"])
                .values_panic([1_i16.into(), 0_i64.into(), vec![0_u8; 32].into()])
                .to_owned(),
        )
        .await
}
