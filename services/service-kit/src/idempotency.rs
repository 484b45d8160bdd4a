//! Requests that may be repeated: what a `request_id` did before is remembered for 24 hours.

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::ActiveValue::Set;
use sea_orm::{ColumnTrait, ConnectionTrait, DbErr, EntityTrait, QueryFilter};
use sea_orm_migration::SchemaManager;
use sea_orm_migration::prelude::{ColumnDef, Index, Table};
use sha2::{Digest, Sha256};

use crate::time::{from_micros, to_micros};

/// For how long a repeated request is recognised.
pub const MEMORY: TimeDelta = TimeDelta::hours(24);
/// What a caller is told whose `request_id` was used for other contents.
pub const REUSED: &str = "the request_id was used within 24 h for a call with other contents";

mod entity {
    use sea_orm::entity::prelude::*;

    #[sea_orm::model]
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "requests")]
    pub(super) struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub method: String,
        #[sea_orm(primary_key, auto_increment = false)]
        pub scope: String,
        #[sea_orm(primary_key, auto_increment = false)]
        pub request_id: String,
        pub fingerprint: Vec<u8>,
        pub resource_id: String,
        pub payload: Option<Vec<u8>>,
        pub created_at: i64,
    }

    impl ActiveModelBehavior for ActiveModel {}
}

/// Names one request: the same key with another fingerprint is a misuse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestKey {
    /// The method, so that methods do not share their callers' ids.
    pub method: &'static str,
    /// Within which the id is unique, such as the agency.
    pub scope: String,
    /// The caller's id; not empty.
    pub request_id: String,
    /// Digest of the request's contents, see [`fingerprint`].
    pub fingerprint: [u8; 32],
}

/// What is remembered of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recall {
    /// Nothing within 24 hours.
    New,
    /// The same request made this resource.
    Replay {
        /// The resource's id.
        resource_id: String,
        /// What the service kept for the replay.
        payload: Option<Vec<u8>>,
    },
    /// The id was used for other contents.
    Reused,
}

/// Digest of a request's parts, in order; no two different lists of parts share one.
pub fn fingerprint(parts: &[&[u8]]) -> [u8; 32] {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}

/// Looks a request up. What is older than [`MEMORY`] is forgotten here and now.
///
/// # Errors
/// As the database has them.
pub async fn recall(db: &impl ConnectionTrait, key: &RequestKey, now: DateTime<Utc>) -> Result<Recall, DbErr> {
    let id = (key.method.to_owned(), key.scope.clone(), key.request_id.clone());
    let Some(row) = entity::Entity::find_by_id(id.clone()).one(db).await? else {
        return Ok(Recall::New);
    };
    if now >= from_micros(row.created_at) + MEMORY {
        entity::Entity::delete_by_id(id).exec(db).await?;
        return Ok(Recall::New);
    }
    if row.fingerprint != key.fingerprint {
        return Ok(Recall::Reused);
    }
    Ok(Recall::Replay { resource_id: row.resource_id, payload: row.payload })
}

/// Remembers what a request made, in the transaction that makes it. When two calls race, one of them fails here with a
/// unique violation: its transaction is rolled back and [`recall`] then finds the other's result.
///
/// # Errors
/// As the database has them.
pub async fn record(
    db: &impl ConnectionTrait,
    key: &RequestKey,
    resource_id: &str,
    payload: Option<Vec<u8>>,
    now: DateTime<Utc>,
) -> Result<(), DbErr> {
    let row = entity::ActiveModel {
        method: Set(key.method.to_owned()),
        scope: Set(key.scope.clone()),
        request_id: Set(key.request_id.clone()),
        fingerprint: Set(key.fingerprint.to_vec()),
        resource_id: Set(resource_id.to_owned()),
        payload: Set(payload),
        created_at: Set(to_micros(now)),
    };
    entity::Entity::insert(row).exec_without_returning(db).await.map(drop)
}

/// Forgets the requests made before `before`; answers how many.
///
/// # Errors
/// As the database has them.
pub async fn purge(db: &impl ConnectionTrait, before: DateTime<Utc>) -> Result<u64, DbErr> {
    let deleted =
        entity::Entity::delete_many().filter(entity::Column::CreatedAt.lt(to_micros(before))).exec(db).await?;
    Ok(deleted.rows_affected)
}

/// Creates the table; for a service's first migration.
///
/// # Errors
/// As the database has them.
pub async fn create_table(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let table = Table::create()
        .table("requests")
        .col(ColumnDef::new("method").text().not_null())
        .col(ColumnDef::new("scope").text().not_null())
        .col(ColumnDef::new("request_id").text().not_null())
        .col(ColumnDef::new("fingerprint").binary().not_null())
        .col(ColumnDef::new("resource_id").text().not_null())
        .col(ColumnDef::new("payload").binary().null())
        .col(ColumnDef::new("created_at").big_integer().not_null())
        .primary_key(Index::create().col("method").col("scope").col("request_id"))
        .to_owned();
    manager.create_table(table).await?;
    manager
        .create_index(Index::create().name("requests_created_at").table("requests").col("created_at").to_owned())
        .await
}

/// Drops the table; for a service's first migration.
///
/// # Errors
/// As the database has them.
pub async fn drop_table(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    manager.drop_table(Table::drop().table("requests").to_owned()).await
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;
    use crate::db::{begin_write, connect, is_unique_violation, migrate};
    use sea_orm_migration::{MigrationName, MigrationTrait, MigratorTrait, async_trait};

    struct Migrator;
    struct First;

    impl MigrationName for First {
        fn name(&self) -> &str {
            "m0001_requests"
        }
    }

    #[async_trait::async_trait]
    impl MigrationTrait for First {
        async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
            create_table(manager).await
        }
        async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
            drop_table(manager).await
        }
    }

    impl MigratorTrait for Migrator {
        fn migrations() -> Vec<Box<dyn MigrationTrait>> {
            vec![Box::new(First)]
        }
    }

    fn key(contents: &[u8]) -> RequestKey {
        RequestKey {
            method: "Make",
            scope: "agy_1".into(),
            request_id: "r1".into(),
            fingerprint: fingerprint(&[contents]),
        }
    }

    crate::both_databases! {
        async fn a_request_is_remembered_for_exactly_a_day(database: TestDatabase) {
            let db = connect(&database.config()).await.expect("connects");
            migrate::<Migrator>(&db).await.expect("migrates");
            migrate::<Migrator>(&db).await.expect("migrates again");
            let made = from_micros(1_700_000_000_000_000);
            assert_eq!(recall(&db, &key(b"a"), made).await, Ok(Recall::New));
            record(&db, &key(b"a"), "key_1", Some(vec![7]), made).await.expect("records");
            let last = made + MEMORY - TimeDelta::microseconds(1);
            let replay = Recall::Replay { resource_id: "key_1".into(), payload: Some(vec![7]) };
            assert_eq!(recall(&db, &key(b"a"), last).await, Ok(replay));
            assert_eq!(recall(&db, &key(b"b"), last).await, Ok(Recall::Reused));
            assert_eq!(recall(&db, &key(b"b"), made + MEMORY).await, Ok(Recall::New));
        }

        async fn of_two_racing_calls_one_records(database: TestDatabase) {
            let db = connect(&database.config()).await.expect("connects");
            migrate::<Migrator>(&db).await.expect("migrates");
            let now = from_micros(1_700_000_000_000_000);
            let attempt = || async {
                let tx = begin_write(&db).await?;
                record(&tx, &key(b"a"), "key_1", None, now).await?;
                tx.commit().await
            };
            let (first, second) = tokio::join!(attempt(), attempt());
            let lost: Vec<_> = [first, second].into_iter().filter_map(Result::err).collect();
            assert_eq!(lost.len(), 1);
            assert!(is_unique_violation(&lost[0]), "{lost:?}");
        }
    }
}
