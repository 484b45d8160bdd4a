//! Fair turns, counted doubts and shared send limits for emails; the last applied event beside the cursor.

use sea_orm_migration::prelude::*;

/// The second migration.
#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

const INDEXES: [(&str, &[&str]); 2] = [
    ("deliveries_turn", &["state", "turn", "next_attempt_at"]),
    // Whether a stage has an email left to settle, however many it has.
    ("deliveries_open", &["plan_id", "agency_id", "stage", "state"]),
];

fn column(table: &'static str, column: &mut ColumnDef) -> TableAlterStatement {
    Table::alter().table(table).add_column(column).to_owned()
}

fn big(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).big_integer().not_null().to_owned()
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.alter_table(column("deliveries", big("turn").default(0))).await?;
        let in_doubt = &mut ColumnDef::new("in_doubt_count");
        manager.alter_table(column("deliveries", in_doubt.integer().not_null().default(0))).await?;
        manager.alter_table(column("heads", ColumnDef::new("applied_event").text().not_null().default(""))).await?;
        for (name, columns) in INDEXES {
            let mut index = Index::create();
            index.name(name).table("deliveries");
            for column in columns {
                index.col(*column);
            }
            manager.create_index(index).await?;
        }
        let table = Table::create()
            .table("send_books")
            .col(ColumnDef::new("id").small_integer().not_null().primary_key())
            .col(big("day"))
            .col(big("day_count"))
            .col(big("next_slot_at"))
            .to_owned();
        manager.create_table(table).await?;
        let book = Query::insert()
            .into_table("send_books")
            .columns(["id", "day", "day_count", "next_slot_at"])
            .values_panic([1.into(), 0i64.into(), 0i64.into(), 0i64.into()])
            .to_owned();
        manager.execute(book).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table("send_books").to_owned()).await?;
        for (name, _) in INDEXES {
            manager.drop_index(Index::drop().name(name).table("deliveries").to_owned()).await?;
        }
        for (table, name) in [("heads", "applied_event"), ("deliveries", "in_doubt_count"), ("deliveries", "turn")] {
            manager.alter_table(Table::alter().table(table).drop_column(name).to_owned()).await?;
        }
        Ok(())
    }
}
