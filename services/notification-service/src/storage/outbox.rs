//! Writing notifications and emails.

use chrono::{DateTime, Utc};
use sea_orm::prelude::*;
use sea_orm::{ActiveValue::Set, DatabaseTransaction, DbErr};
use service_kit::ids::IdGenerator;
use service_kit::time::to_micros;

use super::entities::{deliveries, lots, notifications};
use crate::app::ports::StageId;
use crate::domain::delivery::DeliveryState;
use crate::domain::ids::{DELIVERY_PREFIX, NOTIFICATION_PREFIX};
use crate::domain::notification::Kind;
use crate::domain::stage::Stage;

/// One user's part of a notification that several get.
pub(super) struct Told {
    pub(super) user_id: String,
    pub(super) whole_lot: bool,
    /// The stage whose people define what the user is told about.
    pub(super) scope_stage: Stage,
    pub(super) key_count: i64,
}

/// What all of them are told.
pub(super) struct News<'a> {
    pub(super) lot: &'a lots::Model,
    pub(super) kind: Kind,
    /// Tells apart notifications of one kind about one lot.
    pub(super) subject: &'a str,
    /// The one key it is about; empty for all of the user's.
    pub(super) key_id: &'a str,
    /// The keys are those that had not left the lot when this event was applied.
    pub(super) as_of_sequence: i64,
    pub(super) reason: &'a str,
    pub(super) now: DateTime<Utc>,
}

/// Makes notifications, each at most once whoever tries again; answers how many were new. `sequence` is moved on.
pub(super) async fn notify(
    tx: &DatabaseTransaction,
    ids: &IdGenerator,
    news: &News<'_>,
    told: Vec<Told>,
    sequence: &mut i64,
) -> Result<u64, DbErr> {
    if told.is_empty() {
        return Ok(0);
    }
    let rows: Vec<_> = told
        .into_iter()
        .map(|one| {
            *sequence += 1;
            notifications::ActiveModel {
                notification_id: Set(ids.next(NOTIFICATION_PREFIX, news.now)),
                sequence: Set(*sequence),
                user_id: Set(one.user_id),
                plan_id: Set(news.lot.plan_id.clone()),
                agency_id: Set(news.lot.agency_id.clone()),
                kind: Set(news.kind.code()),
                subject: Set(news.subject.to_owned()),
                scope_stage: Set(Some(one.scope_stage.code())),
                whole_lot: Set(one.whole_lot),
                key_id: Set(news.key_id.to_owned()),
                delete_at: Set(news.lot.delete_at),
                as_of_sequence: Set(news.as_of_sequence),
                key_count: Set(one.key_count),
                reason: Set(news.reason.to_owned()),
                created_at: Set(to_micros(news.now)),
                read_at: Set(None),
            }
        })
        .collect();
    let once = sea_orm::sea_query::OnConflict::columns([
        notifications::Column::PlanId,
        notifications::Column::AgencyId,
        notifications::Column::Kind,
        notifications::Column::Subject,
        notifications::Column::UserId,
    ])
    .do_nothing()
    .to_owned();
    notifications::Entity::insert_many(rows).on_conflict(once).exec_without_returning(tx).await
}

/// An email to one admin.
pub(super) struct Addressee {
    pub(super) user_id: String,
    pub(super) recipient: String,
    pub(super) name: String,
}

/// Queues emails, one for each admin. The stage has `first_turn` of them already.
pub(super) async fn queue(
    tx: &DatabaseTransaction,
    ids: &IdGenerator,
    mail_domain: &str,
    id: &StageId,
    to: Vec<Addressee>,
    first_turn: i64,
    now: DateTime<Utc>,
) -> Result<u64, DbErr> {
    if to.is_empty() {
        return Ok(0);
    }
    let rows: Vec<_> = to
        .into_iter()
        .zip(first_turn..)
        .map(|(one, turn)| {
            let delivery_id = ids.next(DELIVERY_PREFIX, now);
            deliveries::ActiveModel {
                message_id: Set(format!("{delivery_id}@{mail_domain}")),
                delivery_id: Set(delivery_id),
                plan_id: Set(id.plan_id.as_str().to_owned()),
                agency_id: Set(id.agency_id.as_str().to_owned()),
                stage: Set(id.stage.code()),
                user_id: Set(one.user_id),
                recipient: Set(one.recipient),
                name: Set(one.name),
                state: Set(DeliveryState::Pending.code()),
                attempts: Set(0),
                last_reply: Set(String::new()),
                created_at: Set(to_micros(now)),
                attempted_at: Set(None),
                next_attempt_at: Set(to_micros(now)),
                deferred_since_at: Set(None),
                settled_at: Set(None),
                lease_owner: Set(None),
                lease_until: Set(None),
                turn: Set(turn),
                in_doubt_count: Set(0),
            }
        })
        .collect();
    let once = sea_orm::sea_query::OnConflict::columns([
        deliveries::Column::PlanId,
        deliveries::Column::AgencyId,
        deliveries::Column::Stage,
        deliveries::Column::UserId,
    ])
    .do_nothing()
    .to_owned();
    deliveries::Entity::insert_many(rows).on_conflict(once).exec_without_returning(tx).await
}
