//! News for those who were told of a lot before. They are known without asking anybody, so the news is written in the
//! transaction of the event that brings it: exactly once.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sea_orm::prelude::*;
use sea_orm::sea_query::{Alias, Cond, ExprTrait, Order, Query, SelectStatement};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr};
use service_kit::ids::IdGenerator;

use super::entities::{entries, lots, notice_scopes, stages};
use super::outbox::{News, Told, notify};
use super::stages::stage_of;
use crate::app::ports::StorageError;
use crate::domain::notification::Kind;

/// People handled at once.
const PAGE: u64 = 500;

/// What there is to tell.
pub(super) struct Announcement<'a> {
    pub(super) lot: &'a lots::Model,
    pub(super) kind: Kind,
    pub(super) rescued: Option<Rescued<'a>>,
    pub(super) reason: &'a str,
    /// The event that brings it.
    pub(super) sequence: i64,
    pub(super) now: DateTime<Utc>,
}

/// The key that stays, and the location that owns it; empty for the agency.
#[derive(Clone, Copy)]
pub(super) struct Rescued<'a> {
    pub(super) key_id: &'a str,
    pub(super) location_id: &'a str,
}

/// Somebody who was told before.
struct Known {
    user_id: String,
    stage: i16,
    whole_lot: bool,
}

/// Tells everybody who was told of the lot by an earlier event and still has keys in it, or had the key that stays. Answers the
/// sequence of the last notification.
pub(super) async fn announce(
    tx: &DatabaseTransaction,
    ids: &IdGenerator,
    it: &Announcement<'_>,
    mut sequence: i64,
) -> Result<i64, StorageError> {
    let subject = match it.kind {
        Kind::Rescued => it.rescued.map_or(String::new(), |r| r.key_id.to_owned()),
        Kind::Rescheduled => it.lot.delete_at.to_string(),
        Kind::Notice(_) | Kind::Kept | Kind::Deleted => String::new(),
    };
    let news = News {
        lot: it.lot,
        kind: it.kind,
        subject: &subject,
        key_id: it.rescued.map_or("", |r| r.key_id),
        as_of_sequence: it.sequence,
        reason: it.reason,
        now: it.now,
    };
    let mut after = String::new();
    loop {
        let page = known(tx, it, &after).await?;
        let Some(last) = page.last() else { return Ok(sequence) };
        after.clone_from(&last.user_id);
        let counts = if it.rescued.is_some() { HashMap::new() } else { counts(tx, it, &page).await? };
        let mut told = Vec::with_capacity(page.len());
        for one in page {
            let key_count = match (it.rescued, one.whole_lot) {
                (Some(_), _) => 1,
                (None, true) => it.lot.live_count,
                (None, false) => counts.get(&one.user_id).copied().unwrap_or(0),
            };
            if key_count > 0 {
                told.push(Told {
                    user_id: one.user_id,
                    whole_lot: one.whole_lot,
                    scope_stage: stage_of(one.stage)?,
                    key_count,
                });
            }
        }
        notify(tx, ids, &news, told, &mut sequence).await?;
    }
}

/// The next people who were told by a stage dispatched before this event.
async fn known(tx: &DatabaseTransaction, it: &Announcement<'_>, after: &str) -> Result<Vec<Known>, DbErr> {
    let mut select = Query::select();
    select
        .column((notice_scopes::Entity, notice_scopes::Column::UserId))
        .expr_as(Expr::col((notice_scopes::Entity, notice_scopes::Column::Stage)).max(), Alias::new("last_stage"))
        // The empty location sorts first: where it is among a user's, it is the whole lot.
        .expr_as(
            Expr::col((notice_scopes::Entity, notice_scopes::Column::LocationId)).min(),
            Alias::new("first_location"),
        )
        .from(notice_scopes::Entity)
        .inner_join(
            stages::Entity,
            Cond::all()
                .add(
                    Expr::col((stages::Entity, stages::Column::PlanId))
                        .equals((notice_scopes::Entity, notice_scopes::Column::PlanId)),
                )
                .add(
                    Expr::col((stages::Entity, stages::Column::AgencyId))
                        .equals((notice_scopes::Entity, notice_scopes::Column::AgencyId)),
                )
                .add(
                    Expr::col((stages::Entity, stages::Column::Stage))
                        .equals((notice_scopes::Entity, notice_scopes::Column::Stage)),
                ),
        )
        .and_where(Expr::col((notice_scopes::Entity, notice_scopes::Column::PlanId)).eq(it.lot.plan_id.as_str()))
        .and_where(Expr::col((notice_scopes::Entity, notice_scopes::Column::AgencyId)).eq(it.lot.agency_id.as_str()))
        .and_where(Expr::col((notice_scopes::Entity, notice_scopes::Column::UserId)).gt(after))
        .and_where(Expr::col((stages::Entity, stages::Column::DispatchedAt)).is_not_null())
        .and_where(Expr::col((stages::Entity, stages::Column::AsOfSequence)).lt(it.sequence))
        .group_by_col((notice_scopes::Entity, notice_scopes::Column::UserId))
        .order_by((notice_scopes::Entity, notice_scopes::Column::UserId), Order::Asc)
        .limit(PAGE);
    if let Some(rescued) = it.rescued {
        select.and_where(
            Expr::col((notice_scopes::Entity, notice_scopes::Column::LocationId)).is_in(["", rescued.location_id]),
        );
    }
    let rows = tx.query_all(&select).await?;
    rows.iter()
        .map(|row| {
            let first: String = row.try_get("", "first_location")?;
            Ok(Known {
                user_id: row.try_get("", "user_id")?,
                stage: row.try_get("", "last_stage")?,
                whole_lot: first.is_empty(),
            })
        })
        .collect()
}

/// How many keys still to be deleted each of the location admins among `people` has.
async fn counts(
    tx: &DatabaseTransaction,
    it: &Announcement<'_>,
    people: &[Known],
) -> Result<HashMap<String, i64>, DbErr> {
    let mut counts = HashMap::new();
    let mut by_stage: HashMap<i16, Vec<&str>> = HashMap::new();
    for one in people.iter().filter(|one| !one.whole_lot) {
        by_stage.entry(one.stage).or_default().push(&one.user_id);
    }
    for (stage, users) in by_stage {
        counts.extend(live_counts(tx, it.lot, stage, &users).await?);
    }
    Ok(counts)
}

/// How many keys still to be deleted lie in the locations of each of these users, as collected for a stage.
pub(super) async fn live_counts(
    tx: &DatabaseTransaction,
    lot: &lots::Model,
    stage: i16,
    users: &[&str],
) -> Result<HashMap<String, i64>, DbErr> {
    if users.is_empty() {
        return Ok(HashMap::new());
    }
    let mut select: SelectStatement = Query::select();
    select
        .column((notice_scopes::Entity, notice_scopes::Column::UserId))
        .expr_as(Expr::col((entries::Entity, entries::Column::KeyId)).count(), Alias::new("live"))
        .from(notice_scopes::Entity)
        .inner_join(
            entries::Entity,
            Cond::all()
                .add(
                    Expr::col((entries::Entity, entries::Column::PlanId))
                        .equals((notice_scopes::Entity, notice_scopes::Column::PlanId)),
                )
                .add(
                    Expr::col((entries::Entity, entries::Column::AgencyId))
                        .equals((notice_scopes::Entity, notice_scopes::Column::AgencyId)),
                )
                .add(
                    Expr::col((entries::Entity, entries::Column::LocationId))
                        .equals((notice_scopes::Entity, notice_scopes::Column::LocationId)),
                ),
        )
        .and_where(Expr::col((notice_scopes::Entity, notice_scopes::Column::PlanId)).eq(lot.plan_id.as_str()))
        .and_where(Expr::col((notice_scopes::Entity, notice_scopes::Column::AgencyId)).eq(lot.agency_id.as_str()))
        .and_where(Expr::col((notice_scopes::Entity, notice_scopes::Column::Stage)).eq(stage))
        .and_where(Expr::col((notice_scopes::Entity, notice_scopes::Column::LocationId)).ne(""))
        .and_where(Expr::col((notice_scopes::Entity, notice_scopes::Column::UserId)).is_in(users.iter().copied()))
        .and_where(Expr::col((entries::Entity, entries::Column::LeftSequence)).is_null())
        .group_by_col((notice_scopes::Entity, notice_scopes::Column::UserId));
    let rows = tx.query_all(&select).await?;
    rows.iter().map(|row| Ok((row.try_get("", "user_id")?, row.try_get("", "live")?))).collect()
}
