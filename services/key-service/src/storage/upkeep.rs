//! Upkeep in the database.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use serde_json::json;
use service_kit::actor::Actor;
use service_kit::db::begin_write;
use service_kit::idempotency;
use service_kit::time::to_micros;

use super::entities::api_keys::{Column, Entity};
use super::keys::{SqlStore, end};
use super::{StorageError, audit};
use crate::app::upkeep::UpkeepStore;
use crate::domain::audit::{NewAuditEvent, Origin};
use crate::domain::key::ApiKeyState;

#[async_trait]
impl UpkeepStore for SqlStore {
    async fn end_overlaps(&self, now: DateTime<Utc>, limit: u32) -> Result<u64, StorageError> {
        let over = || {
            Entity::find()
                .filter(Column::State.eq(ApiKeyState::Active.code()))
                .filter(Column::RevokeAt.lte(to_micros(now)))
                // As its index says.
                .filter(Column::PepperVersion.is_not_null())
        };
        // Nothing has ended, nearly always: that is found out without the write lock.
        if over().one(&self.db).await?.is_none() {
            return Ok(0);
        }
        let tx = begin_write(&self.db).await?;
        let rows = over().order_by_asc(Column::Id).limit(u64::from(limit)).lock_exclusive().all(&tx).await?;
        let ended = end(Entity::update_many())
            .col_expr(Column::Revision, Expr::col(Column::Revision).add(1))
            .filter(Column::Id.is_in(rows.iter().map(|row| row.id.as_str())))
            .exec(&tx)
            .await?;
        let events = rows.into_iter().map(|row| NewAuditEvent {
            occurred_at: now,
            actor: Actor::Service("key-service".to_owned()),
            action: "key.overlap_ended",
            agency_id: Some(row.agency_id),
            key_id: Some(row.id),
            plan_id: None,
            reason: String::new(),
            request_id: String::new(),
            origin: Origin::default(),
            detail: json!({ "successor_key_id": row.successor_id }),
        });
        audit::append(&tx, events.collect()).await?;
        tx.commit().await?;
        Ok(ended.rows_affected)
    }

    async fn forget_requests(&self, now: DateTime<Utc>) -> Result<u64, StorageError> {
        Ok(idempotency::purge(&self.db, now - idempotency::MEMORY).await?)
    }
}
