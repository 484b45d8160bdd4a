//! Requests checked and turned into what the use cases take; every fault of a request is named at once.

use chrono::{DateTime, Utc};
use keysweep_proto::key::v1 as proto;
use service_kit::time::from_proto;
use service_kit::violations::Violations;

use crate::app::sweep::SweepError;
use crate::domain::sweep::{EntryState, HoldReason, LotState, Notice, NoticeKind, PlanState, Stage};

fn settle(faults: Violations) -> Result<(), SweepError> {
    faults.into_result().map_err(SweepError::Invalid)
}

/// Who subscribes, and from where.
pub(super) fn subscription(request: &proto::SubscribeSweepPlansRequest) -> Result<(), SweepError> {
    let mut faults = Violations::default();
    let name = request.subscriber.as_bytes();
    let allowed = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
    if !(1..=64).contains(&name.len()) || !name.iter().all(allowed) {
        faults.push("subscriber", "must be 1 to 64 of a-z, 0-9 and -");
    }
    if request.after_sequence < 0 {
        faults.push("after_sequence", "must not be negative");
    }
    settle(faults)
}

/// A state that this version does not know; none is then filtered by, and the fault is told.
fn unknown_state<T>(faults: &mut Violations) -> Option<T> {
    faults.push("state", "is no known state");
    None
}

/// The state of a filter; unspecified: every state.
pub(super) fn plan_state(state: i32, faults: &mut Violations) -> Option<PlanState> {
    match proto::PlanState::try_from(state) {
        Err(_) => unknown_state(faults),
        Ok(proto::PlanState::Unspecified) => None,
        Ok(proto::PlanState::AwaitingConfirmation) => Some(PlanState::AwaitingConfirmation),
        Ok(proto::PlanState::Open) => Some(PlanState::Open),
        Ok(proto::PlanState::Completed) => Some(PlanState::Completed),
        Ok(proto::PlanState::Cancelled) => Some(PlanState::Cancelled),
    }
}

/// The state of a filter; unspecified: every state.
pub(super) fn lot_state(state: i32, faults: &mut Violations) -> Option<LotState> {
    match proto::LotState::try_from(state) {
        Err(_) => unknown_state(faults),
        Ok(proto::LotState::Unspecified) => None,
        Ok(proto::LotState::Open) => Some(LotState::Open),
        Ok(proto::LotState::Held) => Some(LotState::Held),
        Ok(proto::LotState::Executed) => Some(LotState::Executed),
        Ok(proto::LotState::Deferred) => Some(LotState::Deferred),
        Ok(proto::LotState::Cancelled) => Some(LotState::Cancelled),
    }
}

/// The state of a filter; unspecified: every state.
pub(super) fn entry_state(state: i32, faults: &mut Violations) -> Option<EntryState> {
    match proto::EntryState::try_from(state) {
        Err(_) => unknown_state(faults),
        Ok(proto::EntryState::Unspecified) => None,
        Ok(proto::EntryState::Planned) => Some(EntryState::Planned),
        Ok(proto::EntryState::Rescued) => Some(EntryState::Rescued),
        Ok(proto::EntryState::Deleted) => Some(EntryState::Deleted),
        Ok(proto::EntryState::Spared) => Some(EntryState::Spared),
    }
}

/// The instant of a preview.
pub(super) fn as_of(stamp: Option<&prost_types::Timestamp>, faults: &mut Violations) -> Option<DateTime<Utc>> {
    let at = from_proto(stamp?).filter(|at| at.timestamp() >= 0);
    if at.is_none() {
        faults.push("as_of_time", "must lie in the years 1970 to 9999");
    }
    at
}

/// Notices of one call.
const MAX_NOTICES: usize = 1_000;

/// The notices of one call, in their order, and when they were sent.
pub(super) fn notices(
    request: proto::AcknowledgeNoticesRequest,
) -> Result<(Vec<Notice>, Option<DateTime<Utc>>), SweepError> {
    let mut faults = Violations::default();
    let sent_at = request.send_time.as_ref().and_then(from_proto);
    if request.send_time.is_some() && sent_at.is_none() {
        faults.push("send_time", "must lie in the years 1 to 9999");
    }
    let mut parsed = Vec::with_capacity(request.notices.len().min(MAX_NOTICES));
    if (1..=MAX_NOTICES).contains(&request.notices.len()) {
        for (index, request) in request.notices.into_iter().enumerate() {
            parsed.extend(notice(&mut faults, &format!("notices[{index}]"), request));
        }
    } else {
        faults.push("notices", "must be 1 to 1,000 notices");
    }
    settle(faults)?;
    Ok((parsed, sent_at))
}

fn notice(faults: &mut Violations, path: &str, request: proto::StageNotice) -> Option<Notice> {
    for (name, value) in [("plan_id", &request.plan_id), ("agency_id", &request.agency_id)] {
        if value.is_empty() {
            faults.push(format!("{path}.{name}"), "is required");
        }
    }
    let stage = match proto::NoticeStage::try_from(request.stage) {
        Ok(proto::NoticeStage::D15) => Some(Stage::D15),
        Ok(proto::NoticeStage::D7) => Some(Stage::D7),
        Ok(proto::NoticeStage::D1) => Some(Stage::D1),
        Ok(proto::NoticeStage::Unspecified) | Err(_) => None,
    };
    if stage.is_none() {
        faults.push(format!("{path}.stage"), "must be D15, D7 or D1");
    }
    let kind = match proto::HoldReason::try_from(request.undeliverable) {
        Ok(proto::HoldReason::Unspecified) => match request.deliver_time.as_ref().and_then(from_proto) {
            Some(at) => Some(NoticeKind::Delivered {
                at,
                in_app_count: request.in_app_count,
                emails_accepted: request.emails_accepted,
            }),
            None => {
                faults.push(format!("{path}.deliver_time"), "is required, in the years 1 to 9999");
                None
            }
        },
        Ok(proto::HoldReason::Operator) => Some(NoticeKind::Undeliverable(HoldReason::Operator)),
        Ok(proto::HoldReason::NoAgencyAdmin) => Some(NoticeKind::Undeliverable(HoldReason::NoAgencyAdmin)),
        Ok(proto::HoldReason::AllAddressesRefused) => Some(NoticeKind::Undeliverable(HoldReason::AllAddressesRefused)),
        Err(_) => {
            faults.push(format!("{path}.undeliverable"), "is no known reason");
            None
        }
    };
    Some(Notice { plan_id: request.plan_id, agency_id: request.agency_id, stage: stage?, kind: kind? })
}
