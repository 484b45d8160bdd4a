//! How much there is of what.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, Statement, TransactionTrait};
use service_kit::time::to_micros;

use super::{SqlStore, StorageError, sweep};
use crate::app::audit::AuditStore;
use crate::app::figures::{FiguresStore, KeyCounts};
use crate::domain::audit::KEY_IMPORTED;
use crate::domain::key::ApiKeyState;
use crate::domain::sweep::{LotState, PlanState};

/// Rotations read at once.
const PAGE: u32 = 1_000;

#[async_trait]
impl FiguresStore for SqlStore {
    async fn count_keys(&self) -> Result<(KeyCounts, i64), StorageError> {
        // One statement, so that number and place are of the same moment.
        let sql = "SELECT h.sequence, k.state, k.keys FROM audit_head h \
                   LEFT JOIN (SELECT state, COUNT(*) AS keys FROM api_keys GROUP BY state) k ON 1 = 1 WHERE h.id = 1";
        let tx = self.db.begin().await?;
        sweep::without_parallel_workers(&tx).await?;
        let rows = tx.query_all_raw(Statement::from_string(tx.get_database_backend(), sql)).await?;
        tx.commit().await?;
        let (mut counts, mut place) = (KeyCounts::default(), 0);
        for row in rows {
            place = row.try_get("", "sequence")?;
            let (state, keys): (Option<i16>, Option<i64>) = (row.try_get("", "state")?, row.try_get("", "keys")?);
            if let (Some(code), Some(keys)) = (state, keys) {
                let state = ApiKeyState::from_code(code)
                    .ok_or_else(|| StorageError::Internal(format!("api_keys.state is {code} somewhere")))?;
                counts.add(state, keys);
            }
        }
        Ok((counts, place))
    }

    async fn counted_since(&self, after: i64) -> Result<(KeyCounts, i64), StorageError> {
        let through = self.head().await?.sequence;
        let mut change = KeyCounts::default();
        if through == after {
            return Ok((change, through));
        }
        let sql = "SELECT action, COUNT(*) AS events FROM audit_events \
                   WHERE sequence > $1 AND sequence <= $2 AND action LIKE 'key.%' GROUP BY action";
        let mut rotations = 0;
        for row in self.db.query_all_raw(self.statement(sql, [after, through])).await? {
            let (action, events): (String, i64) = (row.try_get("", "action")?, row.try_get("", "events")?);
            match action.as_str() {
                "key.generated" | KEY_IMPORTED => change.active += events,
                "key.rotated" => rotations = events,
                "key.revoked" | "key.overlap_ended" => change.ended(ApiKeyState::Revoked, events),
                "key.deleted" => change.ended(ApiKeyState::Deleted, events),
                _ => {}
            }
        }
        if rotations > 0 {
            // Each made a successor.
            change.active += rotations;
            change.ended(ApiKeyState::Revoked, self.rotations_at_once(after, through).await?);
        }
        Ok((change, through))
    }

    async fn plans(&self) -> Result<Vec<(PlanState, i64)>, StorageError> {
        sweep::plans_by_state(&self.db).await
    }

    async fn newest_lots(&self) -> Result<Vec<(LotState, i64)>, StorageError> {
        sweep::newest_lots_by_state(&self.db).await
    }
}

impl SqlStore {
    fn statement<const N: usize>(&self, sql: &str, values: [i64; N]) -> Statement {
        Statement::from_sql_and_values(self.db.get_database_backend(), sql, values.map(Into::into))
    }

    /// The rotations without an overlap, which ended the old key there and then.
    async fn rotations_at_once(&self, mut after: i64, through: i64) -> Result<i64, StorageError> {
        let sql = "SELECT sequence, occurred_at, detail FROM audit_events \
                   WHERE sequence > $1 AND sequence <= $2 AND action = 'key.rotated' ORDER BY sequence LIMIT $3";
        let mut at_once = 0;
        loop {
            let rows = self.db.query_all_raw(self.statement(sql, [after, through, i64::from(PAGE)])).await?;
            for row in &rows {
                let (occurred_at, detail): (i64, String) =
                    (row.try_get("", "occurred_at")?, row.try_get("", "detail")?);
                at_once += i64::from(revoked_at(&detail).is_some_and(|at| to_micros(at) <= occurred_at));
            }
            match rows.last() {
                Some(last) if rows.len() >= PAGE as usize => after = last.try_get("", "sequence")?,
                _ => return Ok(at_once),
            }
        }
    }
}

/// The end of the old secret, as a rotation's event tells it.
fn revoked_at(detail: &str) -> Option<DateTime<Utc>> {
    let detail: serde_json::Value = serde_json::from_str(detail).ok()?;
    serde_json::from_value(detail.get("revoke_time")?.clone()).ok()
}
