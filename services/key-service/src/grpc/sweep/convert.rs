//! The domain's values as messages.

use chrono::{DateTime, Utc};
use keysweep_proto::key::v1 as proto;
use service_kit::time::{duration_to_proto, to_proto};

use crate::app::sweep::{AgencyTotal, LotView, NoticeReply, NoticeResult, PlanComparison, PlanView};
use crate::domain::sweep::{
    Entry, EntryState, EventPayload, HoldReason, LotState, PlanState, Receipt, RescueCause, Stage,
};

fn stage(stage: Stage) -> i32 {
    match stage {
        Stage::D15 => proto::NoticeStage::D15,
        Stage::D7 => proto::NoticeStage::D7,
        Stage::D1 => proto::NoticeStage::D1,
    }
    .into()
}

fn hold_reason(reason: HoldReason) -> i32 {
    match reason {
        HoldReason::Operator => proto::HoldReason::Operator,
        HoldReason::NoAgencyAdmin => proto::HoldReason::NoAgencyAdmin,
        HoldReason::AllAddressesRefused => proto::HoldReason::AllAddressesRefused,
    }
    .into()
}

fn rescue_cause(cause: RescueCause) -> i32 {
    match cause {
        RescueCause::Used => proto::RescueCause::Used,
        RescueCause::Revoked => proto::RescueCause::Revoked,
        RescueCause::Rotated => proto::RescueCause::Rotated,
    }
    .into()
}

/// A plan with its counts.
pub(super) fn plan(view: PlanView) -> proto::SweepPlan {
    let PlanView { plan, counts, last_sequence } = view;
    let state = match plan.state {
        PlanState::AwaitingConfirmation => proto::PlanState::AwaitingConfirmation,
        PlanState::Open => proto::PlanState::Open,
        PlanState::Completed => proto::PlanState::Completed,
        PlanState::Cancelled => proto::PlanState::Cancelled,
    };
    proto::SweepPlan {
        plan_id: plan.plan_id,
        delete_time: Some(to_proto(plan.delete_at)),
        state: state.into(),
        idle_since_time: Some(to_proto(plan.idle_since)),
        create_time: Some(to_proto(plan.created_at)),
        publish_time: plan.published_at.map(to_proto),
        complete_time: plan.completed_at.map(to_proto),
        entry_count: plan.entry_count,
        lot_count: plan.lot_count,
        planned_count: counts.planned,
        rescued_count: counts.rescued,
        deleted_count: counts.deleted,
        spared_count: counts.spared,
        active_key_count: plan.active_key_count,
        state_reason: plan.state_reason,
        last_sequence,
    }
}

/// A lot with its counts.
pub(super) fn lot(view: LotView) -> proto::Lot {
    let LotView { lot, counts, waits_for } = view;
    let state = match lot.state {
        LotState::Open => proto::LotState::Open,
        LotState::Held => proto::LotState::Held,
        LotState::Executed => proto::LotState::Executed,
        LotState::Deferred => proto::LotState::Deferred,
        LotState::Cancelled => proto::LotState::Cancelled,
    };
    proto::Lot {
        plan_id: lot.plan_id,
        agency_id: lot.agency_id,
        state: state.into(),
        delete_time: Some(to_proto(lot.delete_at)),
        entry_count: lot.entry_count,
        planned_count: counts.planned,
        rescued_count: counts.rescued,
        deleted_count: counts.deleted,
        receipts: lot.receipts.iter().map(receipt).collect(),
        hold_reason: lot.hold_reason.map_or(proto::HoldReason::Unspecified.into(), hold_reason),
        state_reason: lot.state_reason,
        waits_for,
    }
}

fn receipt(receipt: &Receipt) -> proto::StageReceipt {
    proto::StageReceipt {
        stage: stage(receipt.stage),
        deliver_time: Some(to_proto(receipt.delivered_at)),
        acknowledge_time: Some(to_proto(receipt.acknowledged_at)),
        in_app_count: receipt.in_app_count,
        emails_accepted: receipt.emails_accepted,
    }
}

/// An entry of a sweep at `delete_at`.
pub(super) fn entry(entry: Entry, delete_at: DateTime<Utc>) -> proto::Entry {
    let idle_days = i32::try_from(entry.idle_days(delete_at)).unwrap_or(i32::MAX);
    let state = match entry.state {
        EntryState::Planned => proto::EntryState::Planned,
        EntryState::Rescued => proto::EntryState::Rescued,
        EntryState::Deleted => proto::EntryState::Deleted,
        EntryState::Spared => proto::EntryState::Spared,
    };
    let agency_id = entry.agency_id;
    let account = match entry.location_id {
        Some(location_id) => proto::owner::Account::Location(proto::LocationRef { agency_id, location_id }),
        None => proto::owner::Account::AgencyId(agency_id),
    };
    proto::Entry {
        key_id: entry.key_id,
        owner: Some(proto::Owner { account: Some(account) }),
        display_name: entry.display_name,
        display_prefix: entry.display_prefix,
        create_time: Some(to_proto(entry.created_at)),
        last_use_time: entry.last_used_at.map(to_proto),
        idle_days,
        state: state.into(),
        rescue_cause: entry.cause.map_or(proto::RescueCause::Unspecified.into(), rescue_cause),
        end_time: entry.ended_at.map(to_proto),
    }
}

/// The totals of an agency.
pub(super) fn agency_total(total: AgencyTotal) -> proto::AgencyTotal {
    proto::AgencyTotal {
        agency_id: total.agency_id,
        agency_key_count: total.agency_keys,
        location_key_count: total.location_keys,
        location_count: total.locations,
    }
}

/// A preview beside the last plan.
pub(super) fn comparison(beside: PlanComparison) -> proto::PlanComparison {
    let PlanComparison { plan_id, keys, agencies } = beside;
    proto::PlanComparison {
        plan_id,
        new_key_count: keys.new,
        gone_key_count: keys.gone,
        same_key_count: keys.same,
        new_agency_count: agencies.new,
        gone_agency_count: agencies.gone,
        same_agency_count: agencies.same,
    }
}

/// What a notice did.
pub(super) fn notice_result(result: NoticeResult) -> proto::NoticeResult {
    let outcome = match result.reply {
        NoticeReply::Recorded => proto::NoticeOutcome::Recorded,
        NoticeReply::LotClosed => proto::NoticeOutcome::LotClosed,
        NoticeReply::Refused => proto::NoticeOutcome::Refused,
    };
    proto::NoticeResult { outcome: outcome.into(), delete_time: result.delete_at.map(to_proto), detail: result.detail }
}

/// What happened; `None` for a chunk of entries, which is read from its plan first.
pub(super) fn payload(payload: EventPayload) -> Option<proto::sweep_event::Payload> {
    use proto::sweep_event::Payload;
    Some(match payload {
        EventPayload::PlanEntries(_) => return None,
        EventPayload::PlanPublished { delete_at, idle_since, last_delete_at, stage_window_ms } => {
            Payload::PlanPublished(proto::PlanPublished {
                delete_time: Some(to_proto(delete_at)),
                idle_since_time: Some(to_proto(idle_since)),
                last_delete_time: Some(to_proto(last_delete_at)),
                stage_window: Some(duration_to_proto(EventPayload::stage_window(stage_window_ms))),
            })
        }
        EventPayload::PlanSealed { entry_count, lot_count } => {
            Payload::PlanSealed(proto::PlanSealed { entry_count, lot_count })
        }
        EventPayload::EntryRescued { agency_id, key_id, cause, rescued_at } => {
            Payload::EntryRescued(proto::EntryRescued {
                agency_id,
                key_id,
                cause: rescue_cause(cause),
                rescue_time: Some(to_proto(rescued_at)),
            })
        }
        EventPayload::LotRescheduled { agency_id, previous_delete_at, delete_at, stage: cause } => {
            Payload::LotRescheduled(proto::LotRescheduled {
                agency_id,
                previous_delete_time: Some(to_proto(previous_delete_at)),
                delete_time: Some(to_proto(delete_at)),
                cause: stage(cause),
            })
        }
        EventPayload::LotHeld { agency_id, hold_reason: why, reason } => {
            Payload::LotHeld(proto::LotHeld { agency_id, hold_reason: hold_reason(why), reason })
        }
        EventPayload::LotReleased { agency_id, reason } => {
            Payload::LotReleased(proto::LotReleased { agency_id, reason })
        }
        EventPayload::LotExecuted { agency_id, deleted_count, rescued_count, executed_at } => {
            Payload::LotExecuted(proto::LotExecuted {
                agency_id,
                deleted_count,
                rescued_count,
                execute_time: Some(to_proto(executed_at)),
            })
        }
        EventPayload::LotDeferred { agency_id, reason } => {
            Payload::LotDeferred(proto::LotDeferred { agency_id, reason })
        }
        EventPayload::PlanCompleted { deleted_count, rescued_count, spared_count } => {
            Payload::PlanCompleted(proto::PlanCompleted { deleted_count, rescued_count, spared_count })
        }
        EventPayload::PlanCancelled { reason } => Payload::PlanCancelled(proto::PlanCancelled { reason }),
    })
}
