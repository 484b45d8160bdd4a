//! The inboxes.

use std::collections::HashMap;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sea_orm::prelude::*;
use sea_orm::{Condition, ConnectionTrait, QueryOrder, QuerySelect};
use service_kit::idempotency::{self, Recall, RequestKey};
use service_kit::time::{from_micros, to_micros};

use super::entities::{entries, heads, location_names, lots, notice_scopes, notifications, stages};
use super::{Store, corrupt};
use crate::app::ports::{InboxStore, MarkError, Marked, Selection, StorageError};
use crate::domain::ids::{NotificationId, UserId};
use crate::domain::notification::{InboxPage, Kind, LISTED_KEYS, Notification, NotificationKey};
use crate::domain::plan::{LotState, Owner};
use crate::domain::stage::Stage;

/// Locations asked about in one query.
const LOCATIONS: usize = 1_000;

#[async_trait]
impl InboxStore for Store {
    async fn list(
        &self,
        user: &UserId,
        unread_only: bool,
        before: Option<i64>,
        limit: u32,
    ) -> Result<InboxPage, StorageError> {
        let mut query = notifications::Entity::find().filter(notifications::Column::UserId.eq(user.as_str()));
        if unread_only {
            query = query.filter(notifications::Column::ReadAt.is_null());
        }
        if let Some(before) = before {
            query = query.filter(notifications::Column::Sequence.lt(before));
        }
        let rows =
            query.order_by_desc(notifications::Column::Sequence).limit(u64::from(limit) + 1).all(&self.db).await?;
        self.page(user, rows, limit).await
    }

    async fn follow(&self, user: &UserId, after: i64, limit: u32) -> Result<InboxPage, StorageError> {
        let rows = notifications::Entity::find()
            .filter(notifications::Column::UserId.eq(user.as_str()))
            .filter(notifications::Column::Sequence.gt(after))
            .order_by_asc(notifications::Column::Sequence)
            .limit(u64::from(limit) + 1)
            .all(&self.db)
            .await?;
        self.page(user, rows, limit).await
    }

    async fn position(&self, user: &UserId, id: &NotificationId) -> Result<Option<i64>, StorageError> {
        let found = notifications::Entity::find_by_id(id.as_str())
            .filter(notifications::Column::UserId.eq(user.as_str()))
            .one(&self.db)
            .await?;
        Ok(found.map(|row| row.sequence))
    }

    async fn head(&self) -> Result<i64, StorageError> {
        let head = heads::Entity::find().one(&self.db).await?.ok_or_else(|| corrupt("head"))?;
        Ok(head.notification_sequence)
    }

    async fn mark_read(
        &self,
        user: &UserId,
        selection: &Selection,
        request_id: &str,
        now: DateTime<Utc>,
    ) -> Result<Marked, MarkError> {
        match self.try_mark(user, selection, request_id, now).await {
            // The other of two equal calls was faster: its result is this one's too.
            Err(Mark::Db(error)) if service_kit::db::is_unique_violation(&error) => {
                self.try_mark(user, selection, request_id, now).await.map_err(Mark::into_port)
            }
            other => other.map_err(Mark::into_port),
        }
    }
}

enum Mark {
    Port(MarkError),
    Db(DbErr),
}

impl From<DbErr> for Mark {
    fn from(error: DbErr) -> Self {
        Self::Db(error)
    }
}

impl Mark {
    fn into_port(self) -> MarkError {
        match self {
            Self::Port(error) => error,
            Self::Db(error) => MarkError::Storage(error.into()),
        }
    }
}

async fn unread(db: &impl ConnectionTrait, user: &UserId) -> Result<i64, DbErr> {
    let count = notifications::Entity::find()
        .filter(notifications::Column::UserId.eq(user.as_str()))
        .filter(notifications::Column::ReadAt.is_null())
        .count(db)
        .await?;
    Ok(i64::try_from(count).unwrap_or(i64::MAX))
}

impl Store {
    async fn try_mark(
        &self,
        user: &UserId,
        selection: &Selection,
        request_id: &str,
        now: DateTime<Utc>,
    ) -> Result<Marked, Mark> {
        let ids: &[NotificationId] = match selection {
            Selection::All => &[],
            Selection::Ids(ids) => ids,
        };
        let ids: Vec<&str> = ids.iter().map(NotificationId::as_str).collect();
        let parts: Vec<&[u8]> = ids.iter().map(|id| id.as_bytes()).collect();
        let key = RequestKey {
            method: "MarkNotificationsRead",
            scope: user.as_str().to_owned(),
            request_id: request_id.to_owned(),
            fingerprint: idempotency::fingerprint(&parts),
        };
        let tx = self.begin().await?;
        let known = if request_id.is_empty() { Recall::New } else { idempotency::recall(&tx, &key, now).await? };
        match known {
            Recall::Reused => return Err(Mark::Port(MarkError::Reused)),
            Recall::Replay { resource_id, .. } => {
                // What was marked then is what the request marked, now as before.
                return Ok(Marked { marked: resource_id.parse().unwrap_or(0), unread: unread(&tx, user).await? });
            }
            Recall::New => {}
        }
        let mine = Condition::all().add(notifications::Column::UserId.eq(user.as_str()));
        let chosen = match selection {
            Selection::All => mine,
            Selection::Ids(_) => {
                let chosen = mine.add(notifications::Column::NotificationId.is_in(ids.iter().copied()));
                let found: Vec<String> = notifications::Entity::find()
                    .select_only()
                    .column(notifications::Column::NotificationId)
                    .filter(chosen.clone())
                    .into_tuple()
                    .all(&tx)
                    .await?;
                if let Some(missing) = ids.iter().find(|id| !found.iter().any(|f| f == *id)) {
                    return Err(Mark::Port(MarkError::NotFound((*missing).into())));
                }
                chosen
            }
        };
        let marked = notifications::Entity::update_many()
            .col_expr(notifications::Column::ReadAt, Expr::value(to_micros(now)))
            .filter(chosen)
            .filter(notifications::Column::ReadAt.is_null())
            .exec(&tx)
            .await?;
        let marked = i64::try_from(marked.rows_affected).unwrap_or(i64::MAX);
        if !request_id.is_empty() {
            idempotency::record(&tx, &key, &marked.to_string(), None, now).await?;
        }
        let unread = unread(&tx, user).await?;
        tx.commit().await?;
        Ok(Marked { marked, unread })
    }

    async fn page(
        &self,
        user: &UserId,
        mut rows: Vec<notifications::Model>,
        limit: u32,
    ) -> Result<InboxPage, StorageError> {
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let mut read = Reading { store: self, names: HashMap::new() };
        let mut listed = Vec::with_capacity(rows.len());
        for row in rows {
            listed.push(read.notification(row).await?);
        }
        Ok(InboxPage { notifications: listed, more, unread: unread(&self.db, user).await? })
    }
}

/// The reading of one page, which names the same accounts again and again.
struct Reading<'a> {
    store: &'a Store,
    /// By (plan, agency, location); the agency's own under the empty location.
    names: HashMap<(String, String, String), String>,
}

impl Reading<'_> {
    async fn notification(&mut self, row: notifications::Model) -> Result<Notification, StorageError> {
        let db = &self.store.db;
        let stage = row.scope_stage.and_then(Stage::from_code);
        let kind = Kind::from_code(row.kind, stage).ok_or_else(|| corrupt("notification kind"))?;
        let lot_id = (row.plan_id.clone(), row.agency_id.clone());
        // A projection that was rebuilt from another history may not know the lot.
        let mut delete_at = None;
        if let Some(lot) = lots::Entity::find_by_id(lot_id).one(db).await? {
            let state = LotState::from_code(lot.state).ok_or_else(|| corrupt("lot state"))?;
            delete_at = state.is_live().then(|| from_micros(lot.delete_at));
        }
        let scope = self.scope(&row).await?;
        let found = self.first_keys(&row, &scope).await?;
        let concerned = delete_at.is_some()
            && kind != Kind::Rescued
            && (found.iter().any(|entry| entry.left_sequence.is_none())
                || (found.len() as u64 == LISTED_KEYS && self.any_left(&row, &scope).await?));
        let mut keys = Vec::with_capacity(found.len());
        for entry in found {
            keys.push(self.key(entry).await?);
        }
        Ok(Notification {
            id: row.notification_id.into(),
            sequence: row.sequence,
            user_id: row.user_id.into(),
            agency_id: row.agency_id.into(),
            plan_id: row.plan_id.into(),
            kind,
            delete_at: from_micros(row.delete_at),
            current_delete_at: delete_at.filter(|_| concerned),
            key_count: row.key_count,
            keys,
            created_at: from_micros(row.created_at),
            read_at: row.read_at.map(from_micros),
            reason: row.reason,
        })
    }

    /// The locations that a location admin's notification is about, sorted; `None` for the whole lot or one key.
    async fn scope(&self, row: &notifications::Model) -> Result<Option<Vec<String>>, StorageError> {
        if row.whole_lot || !row.key_id.is_empty() {
            return Ok(None);
        }
        let locations: Vec<String> = notice_scopes::Entity::find()
            .select_only()
            .column(notice_scopes::Column::LocationId)
            .filter(notice_scopes::Column::PlanId.eq(&row.plan_id))
            .filter(notice_scopes::Column::AgencyId.eq(&row.agency_id))
            .filter(notice_scopes::Column::UserId.eq(&row.user_id))
            .filter(notice_scopes::Column::Stage.eq(row.scope_stage.unwrap_or_default()))
            .order_by_asc(notice_scopes::Column::LocationId)
            .into_tuple()
            .all(&self.store.db)
            .await?;
        Ok(Some(locations))
    }

    /// The first keys that the notification was about when it was made.
    async fn first_keys(
        &self,
        row: &notifications::Model,
        scope: &Option<Vec<String>>,
    ) -> Result<Vec<entries::Model>, StorageError> {
        let lot = entries::Entity::find()
            .filter(entries::Column::PlanId.eq(&row.plan_id))
            .filter(entries::Column::AgencyId.eq(&row.agency_id));
        if !row.key_id.is_empty() {
            return Ok(lot.filter(entries::Column::KeyId.eq(&row.key_id)).all(&self.store.db).await?);
        }
        let told = lot
            .filter(
                Condition::any()
                    .add(entries::Column::LeftSequence.is_null())
                    .add(entries::Column::LeftSequence.gt(row.as_of_sequence)),
            )
            .order_by_asc(entries::Column::LocationId)
            .order_by_asc(entries::Column::KeyId);
        let Some(scope) = scope else { return Ok(told.limit(LISTED_KEYS).all(&self.store.db).await?) };
        let mut found = Vec::new();
        for locations in scope.chunks(LOCATIONS) {
            let left = LISTED_KEYS - found.len() as u64;
            let some = told
                .clone()
                .filter(entries::Column::LocationId.is_in(locations))
                .limit(left)
                .all(&self.store.db)
                .await?;
            found.extend(some);
            if found.len() as u64 >= LISTED_KEYS {
                break;
            }
        }
        Ok(found)
    }

    /// Whether any key that the notification is about is still to be deleted.
    async fn any_left(&self, row: &notifications::Model, scope: &Option<Vec<String>>) -> Result<bool, StorageError> {
        let live = entries::Entity::find()
            .filter(entries::Column::PlanId.eq(&row.plan_id))
            .filter(entries::Column::AgencyId.eq(&row.agency_id))
            .filter(entries::Column::LeftSequence.is_null());
        let Some(scope) = scope else { return Ok(live.one(&self.store.db).await?.is_some()) };
        for locations in scope.chunks(LOCATIONS) {
            if live.clone().filter(entries::Column::LocationId.is_in(locations)).one(&self.store.db).await?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn key(&mut self, entry: entries::Model) -> Result<NotificationKey, StorageError> {
        let owner_name = self.name(&entry).await?;
        Ok(NotificationKey {
            key_id: entry.key_id.into(),
            owner: Owner {
                agency_id: entry.agency_id.into(),
                location_id: (!entry.location_id.is_empty()).then(|| entry.location_id.into()),
            },
            owner_name,
            display_name: entry.display_name,
            display_prefix: entry.display_prefix,
            created_at: from_micros(entry.created_at),
            last_used_at: entry.last_used_at.map(from_micros),
            left_at: entry.left_at.map(from_micros),
        })
    }

    async fn name(&mut self, entry: &entries::Model) -> Result<String, StorageError> {
        let account = (entry.plan_id.clone(), entry.agency_id.clone(), entry.location_id.clone());
        if let Some(name) = self.names.get(&account) {
            return Ok(name.clone());
        }
        let db = &self.store.db;
        let name = if entry.location_id.is_empty() {
            let first = stages::Entity::find_by_id((entry.plan_id.clone(), entry.agency_id.clone(), Stage::D15.code()))
                .one(db)
                .await?;
            first.map(|stage| stage.agency_name)
        } else {
            location_names::Entity::find_by_id(account.clone()).one(db).await?.map(|location| location.name)
        };
        let name = name.unwrap_or_default();
        self.names.insert(account, name.clone());
        Ok(name)
    }
}
