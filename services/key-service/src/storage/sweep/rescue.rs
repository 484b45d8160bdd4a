//! A key leaves its lot.

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction};
use service_kit::actor::Actor;
use service_kit::time::to_micros;

use super::codes::Coded;
use super::journal::Journal;
use super::lease;
use super::sql::{for_update, last_use, look_up, statement};
use crate::app::sweep::{Lease, ReconcilePage, SweepJobError};
use crate::domain::audit::Origin;
use crate::domain::sweep::schedule::idle_since;
use crate::domain::sweep::{EntryState, Plan, RescueCause};
use crate::storage::StorageError;

/// Entries compared with their keys in one transaction.
const COMPARE_ROWS: i64 = 10_000;

/// Takes a key out of the open plan that lists it, if one does, and tells audit and subscribers; answers the plan.
///
/// For the transaction that uses, revokes or rotates the key, after its own change of the key's row. It locks the heads of audit and
/// history, so it comes after all other locks of the transaction.
///
/// # Errors
/// The database's; the transaction is then to be rolled back.
pub async fn rescue(
    tx: &DatabaseTransaction,
    key_id: &str,
    cause: RescueCause,
    now: DateTime<Utc>,
    actor: &Actor,
) -> Result<Option<String>, StorageError> {
    let mut journal = Journal::of(actor.clone(), String::new(), Origin::default(), now);
    let plan_id = take_out(tx, &mut journal, key_id, cause, now).await?;
    if plan_id.is_some() {
        journal.write(tx).await?;
    }
    Ok(plan_id)
}

/// Marks a key's planned entry as rescued and notes it; answers its plan, none if there is no planned entry.
pub(super) async fn take_out(
    tx: &DatabaseTransaction,
    journal: &mut Journal,
    key_id: &str,
    cause: RescueCause,
    now: DateTime<Utc>,
) -> Result<Option<String>, StorageError> {
    let sql = "UPDATE sweep_entries SET state = $1, cause = $2, ended_at = $3 WHERE key_id = $4 AND state = 1 \
               RETURNING plan_id, agency_id";
    let values = vec![EntryState::Rescued.code().into(), cause.code().into(), to_micros(now).into(), key_id.into()];
    let Some(row) = tx.query_one_raw(statement(tx, sql, values)).await? else { return Ok(None) };
    let plan_id: String = row.try_get("", "plan_id")?;
    let agency_id: String = row.try_get("", "agency_id")?;
    journal.rescued(&plan_id, &agency_id, key_id, cause);
    Ok(Some(plan_id))
}

/// Rescues the planned entries of a plan whose keys were used, ended or rotated while the plan was made.
pub(super) async fn rescue_ineligible(
    db: &DatabaseConnection,
    lease: &Lease,
    plan: &Plan,
    after: Option<(String, String)>,
    now: DateTime<Utc>,
) -> Result<ReconcilePage, SweepJobError> {
    let (agency, key) = after.unwrap_or_default();
    // The stretch first, so that the comparison is bounded by what it reads, not by what it finds.
    let sql = "SELECT agency_id, key_id FROM (SELECT agency_id, key_id FROM sweep_entries \
               WHERE plan_id = $1 AND (agency_id, key_id) > ($2, $3) ORDER BY agency_id, key_id LIMIT $4) AS stretch \
               ORDER BY agency_id DESC, key_id DESC LIMIT 1";
    let from = vec![plan.plan_id.as_str().into(), agency.as_str().into(), key.as_str().into()];
    let stretch = [from.clone(), vec![COMPARE_ROWS.into()]].concat();
    let Some(row) = db.query_one_raw(statement(db, sql, stretch)).await? else {
        return Ok(ReconcilePage { rescued: 0, next: None });
    };
    let last: (String, String) = (row.try_get("", "agency_id")?, row.try_get("", "key_id")?);

    let mut page = ReconcilePage { rescued: 0, next: Some(last.clone()) };
    let used = last_use("k");
    let sql = format!(
        "SELECT k.id FROM sweep_entries e JOIN api_keys k ON k.id = e.key_id \
         WHERE e.plan_id = $1 AND (e.agency_id, e.key_id) > ($2, $3) AND (e.agency_id, e.key_id) <= ($4, $5) AND e.state = 1 \
         AND (k.state <> 1 OR k.revoke_at IS NOT NULL OR {used} > $6) ORDER BY k.id"
    );
    // What the rule asks for. The plan's own cutoff may count a slack, which was for uses that were missing then.
    let idle_since = to_micros(idle_since(plan.delete_at));
    let values = [from, vec![last.0.into(), last.1.into(), idle_since.into()]].concat();
    // A scan of all keys for each stretch is what PostgreSQL may take for cheaper.
    let look = look_up(db).await?;
    let found = look.query_all_raw(statement(&look, sql, values)).await?;
    look.rollback().await?;
    if found.is_empty() {
        return Ok(page);
    }
    let tx = lease::begin(db, lease).await?;
    let mut journal = Journal::of_sweep(now);
    for row in found {
        let key_id: String = row.try_get("", "id")?;
        if let Some(cause) = cause_now(&tx, &key_id, idle_since).await?
            && take_out(&tx, &mut journal, &key_id, cause, now).await?.is_some()
        {
            page.rescued += 1;
        }
    }
    journal.write(&tx).await?;
    tx.commit().await?;
    Ok(page)
}

/// Why a key no longer belongs into a lot, with its row locked.
async fn cause_now(
    tx: &DatabaseTransaction,
    key_id: &str,
    idle_since: i64,
) -> Result<Option<RescueCause>, StorageError> {
    let used = last_use("k");
    let lock = for_update(tx);
    let sql = format!("SELECT k.state, k.revoke_at, {used} AS last_use FROM api_keys k WHERE k.id = $1{lock}");
    let Some(row) = tx.query_one_raw(statement(tx, sql, vec![key_id.into()])).await? else { return Ok(None) };
    let state: i16 = row.try_get("", "state")?;
    let revoke_at: Option<i64> = row.try_get("", "revoke_at")?;
    let last_use: i64 = row.try_get("", "last_use")?;
    Ok(match (state, revoke_at) {
        (1, None) => (last_use > idle_since).then_some(RescueCause::Used),
        (1, Some(_)) => Some(RescueCause::Rotated),
        _ => Some(RescueCause::Revoked),
    })
}
