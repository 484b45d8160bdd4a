//! The audit as the log of what changed for verification.

use async_trait::async_trait;
use sea_orm::sea_query::{Expr, ExprTrait, Order, Query};
use sea_orm::{ConnectionTrait, JoinType};

use super::{SqlStore, StorageError};
use crate::app::audit::AuditStore;
use crate::app::verify::{ChangeLog, KeyChange};
use crate::domain::audit::{CHANGES_OF_VERIFICATION, KEY_IMPORTED};
use crate::domain::key::Selector;

/// The channel on which PostgreSQL tells replicas to read the log.
pub const KEY_CHANGES: &str = "keysweep_key_changes";

#[async_trait]
impl ChangeLog for SqlStore {
    async fn last_change(&self) -> Result<i64, StorageError> {
        Ok(self.head().await?.sequence)
    }

    async fn changes(&self, after: i64, through: i64, limit: u32) -> Result<Vec<KeyChange>, StorageError> {
        let query = Query::select()
            .column(("a", "sequence"))
            .column(("a", "action"))
            .column(("k", "selector"))
            .from_as("audit_events", "a")
            .join_as(JoinType::InnerJoin, "api_keys", "k", Expr::col(("k", "id")).equals(("a", "key_id")))
            .and_where(Expr::col(("a", "sequence")).gt(after))
            .and_where(Expr::col(("a", "sequence")).lte(through))
            .and_where(Expr::col(("a", "action")).is_in(CHANGES_OF_VERIFICATION))
            .order_by(("a", "sequence"), Order::Asc)
            .limit(u64::from(limit))
            .to_owned();
        let mut changes = Vec::new();
        for row in self.db.query_all(&query).await? {
            let selector: Vec<u8> = row.try_get("", "selector")?;
            let action: String = row.try_get("", "action")?;
            changes.push(KeyChange {
                sequence: row.try_get("", "sequence")?,
                selector: Selector::from_bytes(&selector)
                    .ok_or_else(|| StorageError::Internal("api_keys.selector is not 16 bytes".to_owned()))?,
                imported: action == KEY_IMPORTED,
            });
        }
        Ok(changes)
    }
}
