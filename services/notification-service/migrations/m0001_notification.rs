//! The projection of key-service's plans, the notices made from it, and what of them is still owed.

use sea_orm_migration::prelude::*;

/// The first migration.
#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

fn text(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).text().not_null().to_owned()
}

fn big(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).big_integer().not_null().to_owned()
}

fn maybe_big(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).big_integer().null().to_owned()
}

fn small(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).small_integer().not_null().to_owned()
}

fn maybe_small(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).small_integer().null().to_owned()
}

fn integer(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).integer().not_null().to_owned()
}

fn flag(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).boolean().not_null().to_owned()
}

fn table(name: &'static str, columns: Vec<ColumnDef>, key: &[&'static str]) -> TableCreateStatement {
    let mut table = Table::create();
    table.table(name);
    for column in columns {
        table.col(column);
    }
    let mut primary = Index::create();
    for column in key {
        primary.col(*column);
    }
    table.primary_key(&mut primary).to_owned()
}

fn index(name: &'static str, table: &'static str, columns: &[&'static str]) -> IndexCreateStatement {
    let mut index = Index::create();
    index.name(name).table(table);
    for column in columns {
        index.col(*column);
    }
    index
}

/// What follows from key-service's events alone.
fn projection() -> Vec<TableCreateStatement> {
    vec![
        table("heads", vec![small("id"), big("applied_sequence"), big("notification_sequence")], &["id"]),
        table(
            "plans",
            vec![
                text("plan_id"),
                small("state"),
                text("state_reason"),
                big("delete_at"),
                big("idle_since_at"),
                big("last_delete_at"),
                big("stage_window_ms"),
                big("published_at"),
                maybe_big("sealed_sequence"),
                maybe_big("closed_sequence"),
                big("entry_count"),
                big("lot_count"),
            ],
            &["plan_id"],
        ),
        table(
            "lots",
            vec![
                text("plan_id"),
                text("agency_id"),
                small("state"),
                maybe_small("hold_reason"),
                text("state_reason"),
                big("delete_at"),
                big("entry_count"),
                big("live_count"),
                maybe_big("closed_sequence"),
            ],
            &["plan_id", "agency_id"],
        ),
        table(
            "entries",
            vec![
                text("plan_id"),
                text("agency_id"),
                text("key_id"),
                text("location_id"),
                text("display_name"),
                text("display_prefix"),
                big("created_at"),
                maybe_big("last_used_at"),
                integer("idle_days"),
                maybe_big("left_at"),
                maybe_big("left_sequence"),
                maybe_small("left_cause"),
            ],
            &["plan_id", "agency_id", "key_id"],
        ),
    ]
}

/// Who is to be told, and how far that is.
fn stages() -> Vec<TableCreateStatement> {
    vec![
        table(
            "stages",
            vec![
                text("plan_id"),
                text("agency_id"),
                small("stage"),
                small("state"),
                big("due_at"),
                big("wait_sequence"),
                ColumnDef::new("lease_owner").text().null().to_owned(),
                maybe_big("lease_until"),
                integer("collections"),
                text("agency_name"),
                text("agency_time_zone"),
                maybe_big("as_of_sequence"),
                maybe_big("announced_delete_at"),
                maybe_big("dispatched_at"),
                maybe_big("delivered_at"),
                big("key_count"),
                big("in_app_count"),
                big("emails_accepted"),
                maybe_small("hold_reason"),
                flag("report_owed"),
                text("receipt_detail"),
                maybe_big("acknowledged_at"),
            ],
            &["plan_id", "agency_id", "stage"],
        ),
        table(
            "stage_recipients",
            vec![
                text("plan_id"),
                text("agency_id"),
                small("stage"),
                text("user_id"),
                text("email"),
                text("first_name"),
                text("last_name"),
                flag("agency_admin"),
            ],
            &["plan_id", "agency_id", "stage", "user_id"],
        ),
        table(
            "notice_scopes",
            vec![text("plan_id"), text("agency_id"), small("stage"), text("location_id"), text("user_id")],
            &["plan_id", "agency_id", "stage", "location_id", "user_id"],
        ),
        table(
            "location_names",
            vec![text("plan_id"), text("agency_id"), text("location_id"), text("name")],
            &["plan_id", "agency_id", "location_id"],
        ),
    ]
}

/// What is told.
fn notices() -> Vec<TableCreateStatement> {
    vec![
        table(
            "notifications",
            vec![
                text("notification_id"),
                big("sequence"),
                text("user_id"),
                text("plan_id"),
                text("agency_id"),
                small("kind"),
                text("subject"),
                maybe_small("scope_stage"),
                flag("whole_lot"),
                text("key_id"),
                big("delete_at"),
                big("as_of_sequence"),
                big("key_count"),
                text("reason"),
                big("created_at"),
                maybe_big("read_at"),
            ],
            &["notification_id"],
        ),
        table(
            "deliveries",
            vec![
                text("delivery_id"),
                text("plan_id"),
                text("agency_id"),
                small("stage"),
                text("user_id"),
                text("recipient"),
                text("name"),
                small("state"),
                integer("attempts"),
                text("last_reply"),
                text("message_id"),
                big("created_at"),
                maybe_big("attempted_at"),
                big("next_attempt_at"),
                maybe_big("deferred_since_at"),
                maybe_big("settled_at"),
                ColumnDef::new("lease_owner").text().null().to_owned(),
                maybe_big("lease_until"),
            ],
            &["delivery_id"],
        ),
    ]
}

fn indexes() -> Vec<IndexCreateStatement> {
    vec![
        index("lots_agency", "lots", &["agency_id", "delete_at"]),
        index("entries_owner", "entries", &["plan_id", "agency_id", "location_id", "key_id"]),
        index("stages_due", "stages", &["state", "due_at"]),
        index("stages_report_owed", "stages", &["report_owed"]),
        index("notice_scopes_user", "notice_scopes", &["plan_id", "agency_id", "user_id", "stage"]),
        index("notifications_inbox", "notifications", &["user_id", "sequence"]),
        index("notifications_unread", "notifications", &["user_id", "read_at"]),
        // Exactly once: one notification of a kind about a subject for each user of a lot.
        index("notifications_once", "notifications", &["plan_id", "agency_id", "kind", "subject", "user_id"])
            .unique()
            .to_owned(),
        index("deliveries_once", "deliveries", &["plan_id", "agency_id", "stage", "user_id"]).unique().to_owned(),
        index("deliveries_due", "deliveries", &["state", "next_attempt_at"]),
    ]
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in projection().into_iter().chain(stages()).chain(notices()) {
            manager.create_table(table).await?;
        }
        for index in indexes() {
            manager.create_index(index).await?;
        }
        let head = Query::insert()
            .into_table("heads")
            .columns(["id", "applied_sequence", "notification_sequence"])
            .values_panic([1.into(), 0i64.into(), 0i64.into()])
            .to_owned();
        manager.execute(head).await?;
        service_kit::idempotency::create_table(manager).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        service_kit::idempotency::drop_table(manager).await?;
        for name in [
            "deliveries",
            "notifications",
            "location_names",
            "notice_scopes",
            "stage_recipients",
            "stages",
            "entries",
            "lots",
            "plans",
            "heads",
        ] {
            manager.drop_table(Table::drop().table(name).to_owned()).await?;
        }
        Ok(())
    }
}
