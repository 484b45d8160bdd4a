//! What attempts came to.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use sea_orm::prelude::*;
use sea_orm::sea_query::{Alias, ExprTrait, Func, IntoIden, Query, TableRef, ValueTuple};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, Value};
use service_kit::time::to_micros;

use super::entities::deliveries;
use super::stages::{key_of, lock_all, settle_all};
use super::{Store, limits};
use crate::app::ports::{ClaimedDelivery, StorageError};
use crate::domain::delivery::{Contact, DeliveryState, Verdict};
use crate::domain::text::shortened;
use crate::metrics::EMAIL_LEASES_LOST;

/// A server's last answer is kept up to this length.
const REPLY_CHARS: usize = 1_000;

impl Store {
    pub(super) async fn record_verdicts(
        &self,
        owner: &str,
        verdicts: &[(ClaimedDelivery, Verdict)],
        now: DateTime<Utc>,
    ) -> Result<(), StorageError> {
        if verdicts.is_empty() {
            return Ok(());
        }
        let keys: BTreeSet<_> = verdicts.iter().map(|(delivery, _)| key_of(&delivery.stage)).collect();
        let tx = self.begin_on_queue().await?;
        let stages = lock_all(&tx, &keys).await?;
        write(&tx, owner, verdicts, now).await?;
        settle_all(&tx, stages, now).await?;
        self.give_back(&tx, verdicts, now).await?;
        tx.commit().await?;
        Ok(())
    }

    /// What no server looked at does not count against the day.
    async fn give_back(
        &self,
        tx: &DatabaseTransaction,
        verdicts: &[(ClaimedDelivery, Verdict)],
        now: DateTime<Utc>,
    ) -> Result<(), StorageError> {
        let unseen = |verdict: &Verdict| match verdict {
            Verdict::Retry { contact, .. } => *contact == Contact::None,
            Verdict::Untried => true,
            Verdict::Accepted { .. } | Verdict::Failed { .. } => false,
        };
        let count = verdicts.iter().filter(|(_, verdict)| unseen(verdict)).count() as u64;
        if count == 0 || self.limits.per_day == 0 {
            return Ok(());
        }
        let mut book = limits::lock(tx).await?;
        book.give_back(count, now);
        limits::write(tx, &book).await
    }
}

/// One row of the values that the deliveries are updated from.
fn row(delivery: &ClaimedDelivery, verdict: &Verdict, now: DateTime<Utc>) -> ValueTuple {
    let settled = Some(to_micros(now));
    let since = delivery.deferred_since;
    let (state, reply, settled_at, next_attempt_at, since) = match verdict {
        Verdict::Accepted { reply } => (DeliveryState::Accepted, Some(reply), settled, None, None),
        Verdict::Failed { reply } => (DeliveryState::Failed, Some(reply), settled, None, since),
        Verdict::Retry { at, deferred_since, reply, .. } => {
            (DeliveryState::Pending, Some(reply), None, Some(to_micros(*at)), *deferred_since)
        }
        Verdict::Untried => (DeliveryState::Pending, None, None, Some(to_micros(now)), since),
    };
    let doubt = matches!(verdict, Verdict::Retry { contact: Contact::InDoubt, .. });
    let attempts = delivery.attempt - i32::from(*verdict == Verdict::Untried);
    ValueTuple::Many(vec![
        delivery.id.as_str().into(),
        delivery.attempt.into(),
        state.code().into(),
        attempts.into(),
        Value::from(reply.map(|reply| shortened(reply, REPLY_CHARS))),
        settled_at.into(),
        next_attempt_at.into(),
        since.map(to_micros).into(),
        i32::from(doubt).into(),
    ])
}

/// Writes all verdicts by one statement. An attempt that is no longer this owner's is passed over.
async fn write(
    tx: &DatabaseTransaction,
    owner: &str,
    verdicts: &[(ClaimedDelivery, Verdict)],
    now: DateTime<Utc>,
) -> Result<(), DbErr> {
    use deliveries::{Column, Entity};
    // Both databases call the columns of a list of values so.
    let [id, attempt, state, attempts, reply, settled_at, next_attempt_at, since, doubt] =
        [1, 2, 3, 4, 5, 6, 7, 8, 9].map(|n| Expr::col((Alias::new("verdict"), Alias::new(format!("column{n}")))));
    let old = |column: Column| Expr::col((Entity, column));
    let kept = |new: Expr, column: Column| Expr::from(Func::coalesce([new, old(column)]));
    let tried = Expr::case(attempts.clone().eq(0), Value::BigInt(None)).finally(old(Column::AttemptedAt));
    let rows = verdicts.iter().map(|(delivery, verdict)| row(delivery, verdict, now)).collect();
    let mut update = Query::update();
    update
        .table(Entity)
        .from(TableRef::ValuesList(rows, Alias::new("verdict").into_iden()))
        .values([
            (Column::State, state),
            (Column::Attempts, attempts),
            (Column::AttemptedAt, tried.into()),
            (Column::LastReply, kept(reply, Column::LastReply)),
            (Column::SettledAt, settled_at),
            (Column::NextAttemptAt, kept(next_attempt_at, Column::NextAttemptAt)),
            (Column::DeferredSinceAt, since),
            (Column::InDoubtCount, old(Column::InDoubtCount).add(doubt)),
            (Column::LeaseOwner, Expr::value(None::<String>)),
            (Column::LeaseUntil, Expr::value(None::<i64>)),
        ])
        .and_where(old(Column::DeliveryId).eq(id))
        .and_where(old(Column::Attempts).eq(attempt))
        // Not by the index of states: each of these emails has its key.
        .and_where(old(Column::State).add(0).eq(DeliveryState::Sending.code()))
        .and_where(old(Column::LeaseOwner).eq(owner));
    let written = tx.execute(&update).await?.rows_affected();
    let lost = (verdicts.len() as u64).saturating_sub(written);
    if lost > 0 {
        metrics::counter!(EMAIL_LEASES_LOST.name).increment(lost);
        tracing::warn!(lost, "attempts outlived their leases; their outcomes are not recorded");
    }
    Ok(())
}
