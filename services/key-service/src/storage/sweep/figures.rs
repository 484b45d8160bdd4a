//! Plans and lots, counted.

use sea_orm::{ConnectionTrait, DatabaseConnection};

use super::codes::Coded;
use super::sql::statement;
use crate::domain::sweep::{LotState, PlanState};
use crate::storage::StorageError;

/// All plans by state: four a year.
pub(in crate::storage) async fn plans_by_state(db: &DatabaseConnection) -> Result<Vec<(PlanState, i64)>, StorageError> {
    by_state(db, "SELECT state, COUNT(*) AS number FROM sweep_plans GROUP BY state").await
}

/// The lots of the plan with the latest deletion, by state: a range of the primary key.
pub(in crate::storage) async fn newest_lots_by_state(
    db: &DatabaseConnection,
) -> Result<Vec<(LotState, i64)>, StorageError> {
    let sql = "SELECT state, COUNT(*) AS number FROM sweep_lots \
               WHERE plan_id = (SELECT plan_id FROM sweep_plans ORDER BY delete_at DESC LIMIT 1) GROUP BY state";
    by_state(db, sql).await
}

async fn by_state<S: Coded>(db: &DatabaseConnection, sql: &str) -> Result<Vec<(S, i64)>, StorageError> {
    let rows = db.query_all_raw(statement(db, sql, Vec::new())).await?;
    rows.into_iter().map(|row| Ok((S::decode(row.try_get("", "state")?)?, row.try_get("", "number")?))).collect()
}
