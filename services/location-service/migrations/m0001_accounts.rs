//! Agencies, locations, users, choices about security, the audit, and the requests that may be repeated.

use sea_orm_migration::prelude::*;
use service_kit::idempotency;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

// The trait's methods elide the lifetime, so these must too.
#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let mut agencies = Table::create();
        agencies.table("agencies").col(id("id"));
        profile(&mut agencies);
        manager.create_table(life(&mut agencies)).await?;

        let mut locations = Table::create();
        locations.table("locations").col(id("id")).col(ColumnDef::new("agency_id").text().not_null());
        profile(&mut locations);
        locations
            .col(ColumnDef::new("deleted_at").big_integer().null())
            .col(ColumnDef::new("sealed_key").binary().null())
            .col(ColumnDef::new("master_version").integer().null())
            .foreign_key(ForeignKey::create().from("locations", "agency_id").to("agencies", "id"));
        manager.create_table(life(&mut locations)).await?;
        index(manager, "locations_agency", "locations", &["agency_id", "id"], false).await?;

        users(manager).await?;

        manager
            .create_table(
                Table::create()
                    .table("security_settings")
                    .col(id("agency_id"))
                    .col(ColumnDef::new("enabled").boolean().not_null())
                    .col(ColumnDef::new("actor").text().not_null())
                    .col(ColumnDef::new("chosen_at").big_integer().not_null())
                    .foreign_key(ForeignKey::create().from("security_settings", "agency_id").to("agencies", "id"))
                    .to_owned(),
            )
            .await?;
        manager
            .create_table(
                Table::create()
                    .table("audit_events")
                    .col(id("id"))
                    .col(ColumnDef::new("occurred_at").big_integer().not_null())
                    .col(ColumnDef::new("actor").text().not_null())
                    .col(ColumnDef::new("action").text().not_null())
                    .col(ColumnDef::new("agency_id").text().not_null())
                    .col(ColumnDef::new("location_id").text().null())
                    .col(ColumnDef::new("call_id").text().not_null())
                    .col(ColumnDef::new("detail").text().not_null())
                    .to_owned(),
            )
            .await?;
        index(manager, "audit_events_agency", "audit_events", &["agency_id", "occurred_at"], false).await?;
        manager
            .create_table(
                Table::create()
                    .table("keyring_check")
                    .col(id("label"))
                    .col(ColumnDef::new("fingerprint").binary().not_null())
                    .to_owned(),
            )
            .await?;
        idempotency::create_table(manager).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        idempotency::drop_table(manager).await?;
        for table in
            ["keyring_check", "audit_events", "security_settings", "user_locations", "users", "locations", "agencies"]
        {
            manager.drop_table(Table::drop().table(table).to_owned()).await?;
        }
        Ok(())
    }
}

async fn users(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let mut users = Table::create();
    users
        .table("users")
        .col(id("id"))
        .col(ColumnDef::new("agency_id").text().not_null())
        .col(ColumnDef::new("first_name").text().not_null())
        .col(ColumnDef::new("last_name").text().not_null())
        .col(ColumnDef::new("email").text().not_null())
        // The address in small letters; NULL once the user is deleted, so that the address is free again.
        .col(ColumnDef::new("email_key").text().null())
        .col(ColumnDef::new("role_type").small_integer().not_null())
        .col(ColumnDef::new("role_level").small_integer().not_null())
        .col(ColumnDef::new("disabled").boolean().not_null())
        .col(ColumnDef::new("deleted_at").big_integer().null())
        .foreign_key(ForeignKey::create().from("users", "agency_id").to("agencies", "id"));
    manager.create_table(life(&mut users)).await?;
    index(manager, "users_agency", "users", &["agency_id", "id"], false).await?;
    index(manager, "users_agency_role", "users", &["agency_id", "role_type", "role_level", "id"], false).await?;
    index(manager, "users_agency_email", "users", &["agency_id", "email_key"], true).await?;
    manager
        .create_table(
            Table::create()
                .table("user_locations")
                .col(ColumnDef::new("user_id").text().not_null())
                .col(ColumnDef::new("location_id").text().not_null())
                .primary_key(Index::create().col("user_id").col("location_id"))
                .foreign_key(ForeignKey::create().from("user_locations", "user_id").to("users", "id"))
                .foreign_key(ForeignKey::create().from("user_locations", "location_id").to("locations", "id"))
                .to_owned(),
        )
        .await?;
    index(manager, "user_locations_location", "user_locations", &["location_id", "user_id"], false).await
}

fn id(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).text().not_null().primary_key().to_owned()
}

fn profile(table: &mut TableCreateStatement) {
    for name in ["name", "email", "phone", "address", "city", "state", "postal_code", "country", "time_zone", "website"]
    {
        table.col(ColumnDef::new(name).text().not_null());
    }
}

/// Instants are unix microseconds; a revision counts the row's changes.
fn life(table: &mut TableCreateStatement) -> TableCreateStatement {
    for name in ["created_at", "updated_at", "revision"] {
        table.col(ColumnDef::new(name).big_integer().not_null());
    }
    table.to_owned()
}

async fn index(
    manager: &SchemaManager<'_>,
    name: &'static str,
    table: &'static str,
    columns: &[&'static str],
    unique: bool,
) -> Result<(), DbErr> {
    let mut index = Index::create();
    index.name(name).table(table);
    for column in columns {
        index.col(*column);
    }
    if unique {
        index.unique();
    }
    manager.create_index(index).await
}
