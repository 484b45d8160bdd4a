//! Receipts and reports of notices, applied to their lots.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sea_orm::sea_query::Expr;
use sea_orm::{
    ActiveValue::Set, ColumnTrait, DatabaseConnection, DatabaseTransaction, EntityTrait, QueryFilter, QuerySelect,
};
use serde_json::json;
use service_kit::db::begin_write;
use service_kit::time::to_micros;

use super::closing;
use super::codes::{self, Coded};
use super::deletion::receipts_of;
use super::entities::{lots, plans, receipts};
use super::journal::Journal;
use crate::app::sweep::{NoticeReply, NoticeResult};
use crate::domain::sweep::{
    EventPayload, HoldReason, Judgement, Lot, LotState, Notice, Outcome, Passage, Plan, Receipt, Refusal, judge,
};
use crate::storage::StorageError;

/// Lots of one transaction: few enough that nobody waits long for their locks.
const LOTS: usize = 100;

/// Applies notices to their lots. Lots are locked in the order of (plan, agency); the notices of one lot apply in their order.
pub(super) async fn record(
    db: &DatabaseConnection,
    notices: &[Notice],
    passage: &Passage,
) -> Result<Vec<NoticeResult>, StorageError> {
    let mut by_lot: BTreeMap<(&str, &str), Vec<usize>> = BTreeMap::new();
    for (index, notice) in notices.iter().enumerate() {
        by_lot.entry((&notice.plan_id, &notice.agency_id)).or_default().push(index);
    }
    let mut results: BTreeMap<usize, NoticeResult> = BTreeMap::new();
    let groups: Vec<_> = by_lot.into_iter().collect();
    for chunk in groups.chunks(LOTS) {
        let mut done = record_chunk(db, notices, chunk, passage).await;
        if matches!(done, Err(StorageError::Conflict(_))) {
            done = record_chunk(db, notices, chunk, passage).await;
        }
        results.extend(done?);
    }
    Ok(results.into_values().collect())
}

type Group<'a> = ((&'a str, &'a str), Vec<usize>);

async fn record_chunk(
    db: &DatabaseConnection,
    notices: &[Notice],
    groups: &[Group<'_>],
    passage: &Passage,
) -> Result<Vec<(usize, NoticeResult)>, StorageError> {
    let tx = begin_write(db).await?;
    let mut journal = Journal::of_sweep(passage.arrived_at);
    let mut results = Vec::new();
    for ((plan_id, agency_id), indices) in groups {
        let Some((plan, mut lot)) = lock(&tx, plan_id, agency_id).await? else {
            let detail = Refusal::UnknownLot.to_string();
            let unknown = NoticeResult { reply: NoticeReply::Refused, delete_at: None, detail };
            results.extend(indices.iter().map(|&index| (index, unknown.clone())));
            continue;
        };
        for &index in indices {
            let Some(notice) = notices.get(index) else { continue };
            results.push((index, apply(&tx, &mut journal, &plan, &mut lot, notice, passage).await?));
        }
    }
    journal.write(&tx).await?;
    tx.commit().await?;
    Ok(results)
}

async fn lock(tx: &DatabaseTransaction, plan_id: &str, agency_id: &str) -> Result<Option<(Plan, Lot)>, StorageError> {
    let key = (plan_id.to_owned(), agency_id.to_owned());
    let Some(lot) = lots::Entity::find_by_id(key).lock_exclusive().one(tx).await? else { return Ok(None) };
    let Some(plan) = plans::Entity::find_by_id(plan_id).one(tx).await? else { return Ok(None) };
    let receipts = receipts_of(tx, plan_id, &[agency_id]).await?.remove(agency_id).unwrap_or_default();
    Ok(Some((codes::plan(plan)?, codes::lot(lot, receipts)?)))
}

/// Applies one notice to its locked lot, which is kept up to date for the next.
async fn apply(
    tx: &DatabaseTransaction,
    journal: &mut Journal,
    plan: &Plan,
    lot: &mut Lot,
    notice: &Notice,
    passage: &Passage,
) -> Result<NoticeResult, StorageError> {
    let (reply, detail) = match judge(plan, lot, notice, passage) {
        Judgement::Known => (NoticeReply::Recorded, String::new()),
        Judgement::Closed => (NoticeReply::LotClosed, String::new()),
        Judgement::Refused(refusal) => (NoticeReply::Refused, refusal.to_string()),
        Judgement::Hold(reason) => {
            hold(tx, journal, lot, reason, reason.words()).await?;
            (NoticeReply::Recorded, String::new())
        }
        Judgement::Record(outcome) => {
            keep(tx, journal, lot, &outcome, passage.arrived_at).await?;
            (NoticeReply::Recorded, String::new())
        }
    };
    Ok(NoticeResult { reply, delete_at: Some(lot.delete_at), detail })
}

/// Keeps a receipt with all that follows from it.
async fn keep(
    tx: &DatabaseTransaction,
    journal: &mut Journal,
    lot: &mut Lot,
    outcome: &Outcome,
    now: DateTime<Utc>,
) -> Result<(), StorageError> {
    insert(tx, lot, &outcome.receipt).await?;
    lot.receipts.insert(outcome.receipt);
    let stage = outcome.receipt.stage;
    if outcome.ends_hold {
        release(tx, journal, lot, &format!("the {stage} notices were delivered")).await?;
    }
    if outcome.defer {
        let mut reason = format!("the {stage} notices were delivered too late for the plan's last date");
        if lot.state == LotState::Held {
            reason = format!("{reason}; held until then: {}", lot.state_reason);
        }
        closing::defer(tx, journal, &lot.plan_id, &lot.agency_id, &reason, now).await?;
        lot.state = LotState::Deferred;
        lot.hold_reason = None;
        lot.state_reason = reason;
    } else if outcome.moves(lot) {
        let previous_delete_at = lot.delete_at;
        lot.delete_at = outcome.delete_at;
        lots::Entity::update_many()
            .col_expr(lots::Column::DeleteAt, Expr::value(to_micros(lot.delete_at)))
            .filter(lots::Column::PlanId.eq(&lot.plan_id))
            .filter(lots::Column::AgencyId.eq(&lot.agency_id))
            .exec(tx)
            .await?;
        let detail =
            json!({ "previous_delete_time": previous_delete_at, "delete_time": lot.delete_at, "stage": stage.word() });
        journal.lot("lot.rescheduled", &lot.plan_id, &lot.agency_id, "", detail);
        let (agency_id, delete_at) = (lot.agency_id.clone(), lot.delete_at);
        journal.event(&lot.plan_id, EventPayload::LotRescheduled { agency_id, previous_delete_at, delete_at, stage });
    }
    Ok(())
}

async fn insert(tx: &DatabaseTransaction, lot: &Lot, receipt: &Receipt) -> Result<(), StorageError> {
    let row = receipts::ActiveModel {
        plan_id: Set(lot.plan_id.clone()),
        agency_id: Set(lot.agency_id.clone()),
        stage: Set(receipt.stage.code()),
        delivered_at: Set(to_micros(receipt.delivered_at)),
        acknowledged_at: Set(to_micros(receipt.acknowledged_at)),
        in_app_count: Set(receipt.in_app_count),
        emails_accepted: Set(receipt.emails_accepted),
    };
    receipts::Entity::insert(row).exec_without_returning(tx).await?;
    Ok(())
}

/// Holds a lot, whose row is locked.
pub(super) async fn hold(
    tx: &DatabaseTransaction,
    journal: &mut Journal,
    lot: &mut Lot,
    hold_reason: HoldReason,
    words: &str,
) -> Result<(), StorageError> {
    set_hold(tx, lot, Some(hold_reason), words).await?;
    journal.lot("lot.held", &lot.plan_id, &lot.agency_id, words, json!({ "hold_reason": hold_reason.word() }));
    let (agency_id, reason) = (lot.agency_id.clone(), words.to_owned());
    journal.event(&lot.plan_id, EventPayload::LotHeld { agency_id, hold_reason, reason });
    Ok(())
}

/// Ends the hold of a lot, whose row is locked.
pub(super) async fn release(
    tx: &DatabaseTransaction,
    journal: &mut Journal,
    lot: &mut Lot,
    words: &str,
) -> Result<(), StorageError> {
    set_hold(tx, lot, None, "").await?;
    journal.lot("lot.released", &lot.plan_id, &lot.agency_id, words, json!({}));
    let (agency_id, reason) = (lot.agency_id.clone(), words.to_owned());
    journal.event(&lot.plan_id, EventPayload::LotReleased { agency_id, reason });
    Ok(())
}

async fn set_hold(
    tx: &DatabaseTransaction,
    lot: &mut Lot,
    reason: Option<HoldReason>,
    words: &str,
) -> Result<(), StorageError> {
    lot.state = if reason.is_some() { LotState::Held } else { LotState::Open };
    lot.hold_reason = reason;
    lot.state_reason = words.to_owned();
    lots::Entity::update_many()
        .col_expr(lots::Column::State, Expr::value(lot.state.code()))
        .col_expr(lots::Column::HoldReason, Expr::value(reason.map(Coded::code)))
        .col_expr(lots::Column::StateReason, Expr::value(words))
        .filter(lots::Column::PlanId.eq(&lot.plan_id))
        .filter(lots::Column::AgencyId.eq(&lot.agency_id))
        .exec(tx)
        .await?;
    Ok(())
}
