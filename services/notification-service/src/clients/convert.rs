//! From the peers' messages to our nouns, and back.

use chrono::{DateTime, Utc};
use keysweep_proto::key::v1 as key;
use keysweep_proto::key::v1::sweep_event::Payload as ProtoPayload;
use keysweep_proto::location::v2 as location;
use prost_types::Timestamp;
use service_kit::time::{duration_from_proto, from_proto, to_proto};

use crate::app::ports::{OwedReceipt, PeerError, PlanMessage, ReceiptAnswer, StageNews};
use crate::domain::event::{Payload, SweepEvent};
use crate::domain::plan::{Entry, HoldReason, Owner, RescueCause};
use crate::domain::recipient::{AgencyFacts, Reach, Recipient, RecipientChunk};
use crate::domain::stage::Stage;

fn malformed(what: &str) -> PeerError {
    PeerError::Refused(format!("a message of the peer is malformed: {what}"))
}

fn instant(at: Option<Timestamp>, what: &str) -> Result<DateTime<Utc>, PeerError> {
    at.as_ref().and_then(from_proto).ok_or_else(|| malformed(what))
}

fn required(text: String, what: &str) -> Result<String, PeerError> {
    if text.is_empty() { Err(malformed(what)) } else { Ok(text) }
}

pub(super) fn message(it: key::SubscribeSweepPlansResponse) -> Result<PlanMessage, PeerError> {
    let server_time = it.server_time.map(|at| instant(Some(at), "server_time")).transpose()?;
    Ok(PlanMessage { event: it.event.map(event).transpose()?, head_sequence: it.head_sequence, server_time })
}

fn event(it: key::SweepEvent) -> Result<SweepEvent, PeerError> {
    Ok(SweepEvent {
        sequence: it.sequence,
        happened_at: instant(it.event_time, "event_time")?,
        plan_id: required(it.plan_id, "plan_id")?.into(),
        payload: payload(it.payload.ok_or_else(|| malformed("an event of an unknown kind"))?)?,
    })
}

fn payload(it: ProtoPayload) -> Result<Payload, PeerError> {
    Ok(match it {
        ProtoPayload::PlanPublished(p) => Payload::PlanPublished {
            delete_at: instant(p.delete_time, "plan_published.delete_time")?,
            idle_since_at: instant(p.idle_since_time, "plan_published.idle_since_time")?,
            last_delete_at: instant(p.last_delete_time, "plan_published.last_delete_time")?,
            stage_window: p
                .stage_window
                .as_ref()
                .and_then(duration_from_proto)
                .ok_or_else(|| malformed("plan_published.stage_window"))?,
        },
        ProtoPayload::PlanEntries(p) => {
            Payload::PlanEntries(p.entries.into_iter().map(entry).collect::<Result<_, _>>()?)
        }
        ProtoPayload::PlanSealed(p) => Payload::PlanSealed { entry_count: p.entry_count, lot_count: p.lot_count },
        ProtoPayload::EntryRescued(p) => Payload::EntryRescued {
            cause: cause(p.cause())?,
            rescued_at: instant(p.rescue_time, "entry_rescued.rescue_time")?,
            agency_id: required(p.agency_id, "entry_rescued.agency_id")?.into(),
            key_id: required(p.key_id, "entry_rescued.key_id")?.into(),
        },
        ProtoPayload::LotRescheduled(p) => Payload::LotRescheduled {
            delete_at: instant(p.delete_time, "lot_rescheduled.delete_time")?,
            agency_id: required(p.agency_id, "lot_rescheduled.agency_id")?.into(),
        },
        ProtoPayload::LotHeld(p) => Payload::LotHeld {
            hold_reason: hold_reason(p.hold_reason())?,
            agency_id: required(p.agency_id, "lot_held.agency_id")?.into(),
            reason: p.reason,
        },
        ProtoPayload::LotReleased(p) => {
            Payload::LotReleased { agency_id: required(p.agency_id, "lot_released.agency_id")?.into() }
        }
        ProtoPayload::LotExecuted(p) => Payload::LotExecuted {
            deleted_count: p.deleted_count,
            executed_at: instant(p.execute_time, "lot_executed.execute_time")?,
            agency_id: required(p.agency_id, "lot_executed.agency_id")?.into(),
        },
        ProtoPayload::LotDeferred(p) => Payload::LotDeferred {
            agency_id: required(p.agency_id, "lot_deferred.agency_id")?.into(),
            reason: p.reason,
        },
        ProtoPayload::PlanCompleted(_) => Payload::PlanCompleted,
        ProtoPayload::PlanCancelled(p) => Payload::PlanCancelled { reason: p.reason },
    })
}

fn entry(it: key::Entry) -> Result<Entry, PeerError> {
    let owner = it.owner.and_then(|owner| owner.account).ok_or_else(|| malformed("entry.owner"))?;
    let owner = match owner {
        key::owner::Account::AgencyId(id) => {
            Owner { agency_id: required(id, "entry.owner.agency_id")?.into(), location_id: None }
        }
        key::owner::Account::Location(it) => Owner {
            agency_id: required(it.agency_id, "entry.owner.location.agency_id")?.into(),
            location_id: Some(required(it.location_id, "entry.owner.location.location_id")?.into()),
        },
    };
    Ok(Entry {
        key_id: required(it.key_id, "entry.key_id")?.into(),
        owner,
        display_name: it.display_name,
        display_prefix: it.display_prefix,
        created_at: instant(it.create_time, "entry.create_time")?,
        last_used_at: it.last_use_time.map(|at| instant(Some(at), "entry.last_use_time")).transpose()?,
        idle_days: it.idle_days,
    })
}

fn cause(it: key::RescueCause) -> Result<RescueCause, PeerError> {
    match it {
        key::RescueCause::Unspecified => Err(malformed("entry_rescued.cause")),
        key::RescueCause::Used => Ok(RescueCause::Used),
        key::RescueCause::Revoked => Ok(RescueCause::Revoked),
        key::RescueCause::Rotated => Ok(RescueCause::Rotated),
    }
}

fn hold_reason(it: key::HoldReason) -> Result<HoldReason, PeerError> {
    match it {
        key::HoldReason::Unspecified => Err(malformed("lot_held.hold_reason")),
        key::HoldReason::Operator => Ok(HoldReason::Operator),
        key::HoldReason::NoAgencyAdmin => Ok(HoldReason::NoAgencyAdmin),
        key::HoldReason::AllAddressesRefused => Ok(HoldReason::AllAddressesRefused),
    }
}

pub(super) fn notice(it: &OwedReceipt) -> key::StageNotice {
    let stage = match it.id.stage {
        Stage::D15 => key::NoticeStage::D15,
        Stage::D7 => key::NoticeStage::D7,
        Stage::D1 => key::NoticeStage::D1,
    };
    let mut notice = key::StageNotice {
        plan_id: it.id.plan_id.as_str().to_owned(),
        agency_id: it.id.agency_id.as_str().to_owned(),
        stage: stage.into(),
        ..key::StageNotice::default()
    };
    match &it.news {
        StageNews::Delivered { delivered_at, in_app, emails } => {
            notice.deliver_time = Some(to_proto(*delivered_at));
            notice.in_app_count = *in_app;
            notice.emails_accepted = *emails;
        }
        StageNews::Undeliverable(reason) => {
            notice.undeliverable = match reason {
                HoldReason::Operator => key::HoldReason::Operator,
                HoldReason::NoAgencyAdmin => key::HoldReason::NoAgencyAdmin,
                HoldReason::AllAddressesRefused => key::HoldReason::AllAddressesRefused,
            }
            .into();
        }
    }
    notice
}

pub(super) fn answer(it: key::NoticeResult) -> Result<ReceiptAnswer, PeerError> {
    match it.outcome() {
        key::NoticeOutcome::Unspecified => Err(malformed("the outcome of a receipt")),
        key::NoticeOutcome::Recorded => Ok(ReceiptAnswer::Recorded),
        key::NoticeOutcome::LotClosed => Ok(ReceiptAnswer::LotClosed),
        key::NoticeOutcome::Refused => Ok(ReceiptAnswer::Refused(it.detail)),
    }
}

pub(super) fn chunk(it: location::ListNoticeRecipientsResponse) -> Result<RecipientChunk, PeerError> {
    let agency =
        (!it.agency_name.is_empty()).then_some(AgencyFacts { name: it.agency_name, time_zone: it.agency_time_zone });
    let recipients = it.recipients.into_iter().map(recipient).collect::<Result<_, _>>()?;
    let named =
        |one: location::LocationName| Ok((required(one.location_id, "location_names.location_id")?.into(), one.name));
    let locations = it.location_names.into_iter().map(named).collect::<Result<_, PeerError>>()?;
    Ok(RecipientChunk { agency, recipients, locations })
}

fn recipient(it: location::NoticeRecipient) -> Result<Recipient, PeerError> {
    Ok(Recipient {
        user_id: required(it.user_id, "recipients.user_id")?.into(),
        email: it.email,
        first_name: it.first_name,
        last_name: it.last_name,
        reach: if it.agency_admin {
            Reach::WholeLot
        } else {
            Reach::Locations(it.location_ids.into_iter().map(Into::into).collect())
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_refused_and_named() {
        let empty = key::SubscribeSweepPlansResponse { event: Some(key::SweepEvent::default()), ..Default::default() };
        let Err(PeerError::Refused(text)) = message(empty) else { panic!("taken") };
        assert!(text.contains("event_time"), "{text}");
        let heartbeat = key::SubscribeSweepPlansResponse { head_sequence: 7, ..Default::default() };
        assert_eq!(message(heartbeat).ok(), Some(PlanMessage { event: None, head_sequence: 7, server_time: None }));
        assert!(entry(key::Entry { key_id: "key_1".into(), ..Default::default() }).is_err());
        assert!(answer(key::NoticeResult::default()).is_err());
    }

    #[test]
    fn a_receipt_says_when_or_why_not() {
        let id = crate::app::ports::StageId { plan_id: "plan_1".into(), agency_id: "agy_1".into(), stage: Stage::D7 };
        let told = notice(&OwedReceipt {
            id: id.clone(),
            news: StageNews::Delivered {
                delivered_at: service_kit::time::from_micros(5_000_000),
                in_app: 3,
                emails: 0,
            },
        });
        assert_eq!(
            (told.stage(), told.in_app_count, told.deliver_time.map(|t| t.seconds)),
            (key::NoticeStage::D7, 3, Some(5))
        );
        let untold = notice(&OwedReceipt { id, news: StageNews::Undeliverable(HoldReason::NoAgencyAdmin) });
        assert_eq!((untold.undeliverable(), untold.deliver_time), (key::HoldReason::NoAgencyAdmin, None));
    }
}
