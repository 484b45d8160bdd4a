//! From our nouns to the messages of the contract, and back.

use chrono::{DateTime, TimeDelta, Utc};
use keysweep_proto::key::v1 as key;
use keysweep_proto::notification::v1 as proto;
use service_kit::time::{duration_to_proto, to_proto};

use crate::app::ports::Owed;
use crate::app::subscribe::{SubscriptionFault, SubscriptionStatus};
use crate::clients::NAME;
use crate::domain::banner::Banner;
use crate::domain::delivery::{Delivery, DeliveryState, ReceiptState};
use crate::domain::limits::SendLimit;
use crate::domain::notification::{Kind, Notification, NotificationKey, days_left};
use crate::domain::plan::Owner;
use crate::domain::stage::Stage;

pub(super) fn owner(it: Owner) -> key::Owner {
    let agency_id = String::from(it.agency_id);
    let account = match it.location_id {
        None => key::owner::Account::AgencyId(agency_id),
        Some(location_id) => {
            key::owner::Account::Location(key::LocationRef { agency_id, location_id: location_id.into() })
        }
    };
    key::Owner { account: Some(account) }
}

fn stage(it: Stage) -> key::NoticeStage {
    match it {
        Stage::D15 => key::NoticeStage::D15,
        Stage::D7 => key::NoticeStage::D7,
        Stage::D1 => key::NoticeStage::D1,
    }
}

pub(super) fn notification(it: Notification, now: DateTime<Utc>) -> proto::Notification {
    let (kind, notice_stage) = match it.kind {
        Kind::Notice(of) => (proto::NotificationKind::DeletionNotice, stage(of)),
        Kind::Rescued => (proto::NotificationKind::Rescued, key::NoticeStage::Unspecified),
        Kind::Rescheduled => (proto::NotificationKind::Rescheduled, key::NoticeStage::Unspecified),
        Kind::Kept => (proto::NotificationKind::Kept, key::NoticeStage::Unspecified),
        Kind::Deleted => (proto::NotificationKind::Deleted, key::NoticeStage::Unspecified),
    };
    proto::Notification {
        notification_id: it.id.into(),
        user_id: it.user_id.into(),
        agency_id: it.agency_id.into(),
        plan_id: it.plan_id.into(),
        kind: kind.into(),
        stage: notice_stage.into(),
        delete_time: Some(to_proto(it.delete_at)),
        current_delete_time: it.current_delete_at.map(to_proto),
        days_left: days_left(it.current_delete_at, now),
        key_count: it.key_count,
        keys: it.keys.into_iter().map(notification_key).collect(),
        create_time: Some(to_proto(it.created_at)),
        read_time: it.read_at.map(to_proto),
        reason: it.reason,
    }
}

fn notification_key(it: NotificationKey) -> proto::NotificationKey {
    proto::NotificationKey {
        key_id: it.key_id.into(),
        owner: Some(owner(it.owner)),
        owner_name: it.owner_name,
        display_name: it.display_name,
        display_prefix: it.display_prefix,
        create_time: Some(to_proto(it.created_at)),
        last_use_time: it.last_used_at.map(to_proto),
        leave_time: it.left_at.map(to_proto),
    }
}

pub(super) fn banner(it: Banner) -> proto::Banner {
    proto::Banner {
        start_time: Some(to_proto(it.start_at())),
        delete_time: Some(to_proto(it.delete_at)),
        end_time: Some(to_proto(it.delete_at)),
        account: Some(owner(it.account)),
        plan_id: it.plan_id.into(),
        key_count: it.key_count,
    }
}

/// The state that a filter asks for; `Err` for a number that is none.
pub(super) fn state_filter(code: i32) -> Result<Option<DeliveryState>, ()> {
    Ok(match proto::DeliveryState::try_from(code).map_err(|_| ())? {
        proto::DeliveryState::Unspecified => None,
        proto::DeliveryState::Pending => Some(DeliveryState::Pending),
        proto::DeliveryState::Sending => Some(DeliveryState::Sending),
        proto::DeliveryState::Accepted => Some(DeliveryState::Accepted),
        proto::DeliveryState::FailedPermanently => Some(DeliveryState::Failed),
        proto::DeliveryState::Cancelled => Some(DeliveryState::Cancelled),
    })
}

pub(super) fn delivery(it: Delivery) -> proto::Delivery {
    let state = match it.state {
        DeliveryState::Pending => proto::DeliveryState::Pending,
        DeliveryState::Sending => proto::DeliveryState::Sending,
        DeliveryState::Accepted => proto::DeliveryState::Accepted,
        DeliveryState::Failed => proto::DeliveryState::FailedPermanently,
        DeliveryState::Cancelled => proto::DeliveryState::Cancelled,
    };
    let receipt = match it.receipt {
        ReceiptState::NotDue => proto::ReceiptState::NotDue,
        ReceiptState::Owed => proto::ReceiptState::Owed,
        ReceiptState::Recorded => proto::ReceiptState::Recorded,
        ReceiptState::LotClosed => proto::ReceiptState::LotClosed,
        ReceiptState::Refused => proto::ReceiptState::Refused,
        ReceiptState::Undeliverable => proto::ReceiptState::Undeliverable,
    };
    proto::Delivery {
        delivery_id: it.id.into(),
        plan_id: it.plan_id.into(),
        agency_id: it.agency_id.into(),
        stage: stage(it.stage).into(),
        user_id: it.user_id.into(),
        recipient: it.recipient,
        state: state.into(),
        attempt_count: it.attempts,
        last_reply: it.last_reply,
        message_id: format!("<{}>", it.message_id),
        create_time: Some(to_proto(it.created_at)),
        attempt_time: it.attempted_at.map(to_proto),
        next_attempt_time: it.next_attempt_at.map(to_proto),
        settle_time: it.settled_at.map(to_proto),
        receipt_state: receipt.into(),
        receipt_detail: it.receipt_detail,
        in_doubt_count: it.in_doubt,
        send_limit: match it.deferral.map(|deferral| deferral.limit) {
            None => proto::SendLimit::Unspecified,
            Some(SendLimit::PerSecond) => proto::SendLimit::PerSecond,
            Some(SendLimit::PerDay) => proto::SendLimit::PerDay,
        }
        .into(),
    }
}

pub(super) fn subscription(
    status: SubscriptionStatus,
    applied_sequence: i64,
    owed: Owed,
    time: Option<DateTime<Utc>>,
) -> proto::Subscription {
    let lag = status.lag(applied_sequence).map(|lag| TimeDelta::from_std(lag).unwrap_or(TimeDelta::MAX));
    let fault = match status.fault {
        None => proto::SubscriptionFault::Unspecified,
        Some(SubscriptionFault::CursorAhead) => proto::SubscriptionFault::CursorAhead,
        Some(SubscriptionFault::OtherHistory) => proto::SubscriptionFault::OtherHistory,
        Some(SubscriptionFault::EventGap) => proto::SubscriptionFault::EventGap,
        Some(SubscriptionFault::EventUnfit) => proto::SubscriptionFault::EventUnfit,
        Some(SubscriptionFault::Refused) => proto::SubscriptionFault::Refused,
    };
    proto::Subscription {
        subscriber: NAME.to_owned(),
        connected: status.is_connected(),
        applied_sequence,
        head_sequence: status.head_sequence,
        lag_events: (status.head_sequence - applied_sequence).max(0),
        lag: lag.map(duration_to_proto),
        connect_time: status.connected_at.map(to_proto),
        last_message_time: status.last_message_at.map(to_proto),
        last_error: status.last_error,
        receipts_owed: owed.receipts_owed,
        receipts_refused: owed.receipts_refused,
        deliveries_unsettled: owed.deliveries_unsettled,
        fault: fault.into(),
        sweep_time: time.map(to_proto),
    }
}
