//! Plans of the quarterly sweep: lots, entries, receipts, and the durable history of events.

use sea_orm_migration::prelude::*;

pub(crate) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0002_sweep"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        create_plans(manager).await?;
        create_lots(manager).await?;
        create_entries(manager).await?;
        create_history(manager).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in [
            "sweep_subscribers",
            "sweep_head",
            "sweep_events",
            "sweep_entries",
            "sweep_receipts",
            "sweep_lots",
            "sweep_plans",
        ] {
            manager.drop_table(Table::drop().table(table).to_owned()).await?;
        }
        Ok(())
    }
}

fn text(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).text().not_null().to_owned()
}

fn instant(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).big_integer().not_null().to_owned()
}

fn code(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).small_integer().not_null().to_owned()
}

async fn create_plans(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    manager
        .create_table(
            Table::create()
                .table("sweep_plans")
                .col(text("plan_id").primary_key())
                // One plan for each deletion instant, whoever else tries.
                .col(instant("delete_at").unique_key())
                .col(instant("idle_since_at"))
                .col(instant("last_delete_at"))
                .col(instant("stage_window_ms"))
                .col(code("state"))
                .col(text("state_reason"))
                .col(instant("created_at"))
                .col(ColumnDef::new("confirmed_at").big_integer())
                .col(ColumnDef::new("published_at").big_integer())
                .col(ColumnDef::new("completed_at").big_integer())
                .col(instant("entry_count"))
                .col(instant("lot_count"))
                .col(instant("active_key_count"))
                .to_owned(),
        )
        .await
}

async fn create_lots(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    manager
        .create_table(
            Table::create()
                .table("sweep_lots")
                .col(text("plan_id"))
                .col(text("agency_id"))
                .col(code("state"))
                .col(instant("delete_at"))
                .col(instant("last_delete_at"))
                .col(instant("entry_count"))
                .col(ColumnDef::new("hold_reason").small_integer())
                .col(text("state_reason"))
                .col(text("swept_through"))
                .primary_key(Index::create().col("plan_id").col("agency_id"))
                .to_owned(),
        )
        .await?;
    // Small: only lots that are not closed.
    manager
        .create_index(
            Index::create()
                .name("sweep_lots_due")
                .table("sweep_lots")
                .col("delete_at")
                .and_where(Expr::cust("state IN (1, 2)"))
                .to_owned(),
        )
        .await?;
    manager
        .create_index(
            Index::create()
                .name("sweep_lots_held")
                .table("sweep_lots")
                .col("hold_reason")
                .and_where(Expr::cust("state = 2"))
                .to_owned(),
        )
        .await?;
    manager
        .create_table(
            Table::create()
                .table("sweep_receipts")
                .col(text("plan_id"))
                .col(text("agency_id"))
                .col(code("stage"))
                .col(instant("delivered_at"))
                .col(instant("acknowledged_at"))
                .col(instant("in_app_count"))
                .col(instant("emails_accepted"))
                .primary_key(Index::create().col("plan_id").col("agency_id").col("stage"))
                .to_owned(),
        )
        .await
}

async fn create_entries(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    manager
        .create_table(
            Table::create()
                .table("sweep_entries")
                .col(text("plan_id"))
                .col(text("agency_id"))
                .col(text("key_id"))
                .col(ColumnDef::new("location_id").text())
                .col(text("display_name"))
                .col(text("display_prefix"))
                .col(instant("created_at"))
                .col(ColumnDef::new("last_used_at").big_integer())
                .col(code("state"))
                .col(ColumnDef::new("cause").small_integer())
                .col(ColumnDef::new("ended_at").big_integer())
                .primary_key(Index::create().col("plan_id").col("agency_id").col("key_id"))
                .to_owned(),
        )
        .await?;
    // A key stands in at most one open plan, and a use finds its entry here.
    manager
        .create_index(
            Index::create()
                .name("sweep_entries_planned_key")
                .table("sweep_entries")
                .unique()
                .col("key_id")
                .and_where(Expr::cust("state = 1"))
                .to_owned(),
        )
        .await
}

async fn create_history(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    manager
        .create_table(
            Table::create()
                .table("sweep_events")
                .col(instant("sequence").primary_key())
                .col(instant("occurred_at"))
                .col(text("plan_id"))
                .col(text("payload"))
                .to_owned(),
        )
        .await?;
    manager
        .create_index(
            Index::create().name("sweep_events_plan").table("sweep_events").col("plan_id").col("sequence").to_owned(),
        )
        .await?;
    manager
        .create_table(
            Table::create().table("sweep_head").col(code("id").primary_key()).col(instant("sequence")).to_owned(),
        )
        .await?;
    manager
        .create_table(
            Table::create()
                .table("sweep_subscribers")
                .col(text("name").primary_key())
                .col(instant("sequence"))
                .col(instant("seen_at"))
                .to_owned(),
        )
        .await?;
    manager
        .execute(
            Query::insert()
                .into_table("sweep_head")
                .columns(["id", "sequence"])
                .values_panic([1_i16.into(), 0_i64.into()])
                .to_owned(),
        )
        .await
}
