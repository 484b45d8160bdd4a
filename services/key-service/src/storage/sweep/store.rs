//! The ports of the sweep over one database.

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::DatabaseConnection;
use service_kit::page::Page;
use service_kit::time::to_micros;

use super::{closing, deletion, desk, feed, lease, notices, planning, reads, rescue, retention};
use crate::app::sweep::{
    BatchOrder, Command, DeskError, DueLot, EntryFilter, History, Lease, LeaseAnswer, LotFilter, LotOutcome,
    NoticeResult, PlanDraft, PlanFilter, PlanView, Preview, PreviewFilter, ReconcilePage, SweepDesk, SweepFeed,
    SweepJobError, SweepJobs, SweepLease, SweepReads,
};
use crate::domain::sweep::{
    Entry, HoldReason, KeyRange, Lot, LotCounts, Notice, Passage, Plan, PlanState, StoredEvent, UsageWriter,
};
use crate::storage::StorageError;

/// The sweep's part of the database.
#[derive(Debug, Clone)]
pub struct SqlSweepStore {
    db: DatabaseConnection,
}

impl SqlSweepStore {
    /// Over a database that has this version's schema.
    #[must_use]
    pub fn new(db: DatabaseConnection) -> Self {
        Self { db }
    }
}

type Pair = (String, String);

#[async_trait]
impl SweepLease for SqlSweepStore {
    async fn database_time(&self) -> Result<Option<DateTime<Utc>>, StorageError> {
        lease::database_time(&self.db).await
    }

    async fn take_lease(&self, owner: &str, lasts: TimeDelta, at: DateTime<Utc>) -> Result<LeaseAnswer, StorageError> {
        lease::take(&self.db, owner, lasts, at).await
    }

    async fn give_back(&self, held: &Lease) -> Result<(), StorageError> {
        lease::give_back(&self.db, held).await
    }
}

#[async_trait]
impl SweepJobs for SqlSweepStore {
    async fn usage_writers(&self) -> Result<Vec<UsageWriter>, StorageError> {
        reads::writers(&self.db).await
    }

    async fn plan_for(&self, delete_at: DateTime<Utc>) -> Result<Option<Plan>, StorageError> {
        reads::plan_for(&self.db, to_micros(delete_at)).await
    }

    async fn plans_in(&self, state: PlanState) -> Result<Vec<Plan>, StorageError> {
        reads::plans_in(&self.db, state).await
    }

    async fn make_plan(
        &self,
        lease: &Lease,
        draft: &PlanDraft,
        now: DateTime<Utc>,
    ) -> Result<Option<Plan>, SweepJobError> {
        planning::make(&self.db, lease, draft, now).await
    }

    async fn publish_confirmed(
        &self,
        lease: &Lease,
        plan_id: &str,
        idle_since: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Result<Option<Plan>, SweepJobError> {
        planning::publish_confirmed(&self.db, lease, plan_id, idle_since, now).await
    }

    async fn cancel_unpublished(
        &self,
        lease: &Lease,
        plan_id: &str,
        reason: &str,
        now: DateTime<Utc>,
    ) -> Result<bool, SweepJobError> {
        planning::cancel_unpublished(&self.db, lease, plan_id, reason, now).await
    }

    async fn rescue_ineligible(
        &self,
        lease: &Lease,
        plan: &Plan,
        after: Option<Pair>,
        now: DateTime<Utc>,
    ) -> Result<ReconcilePage, SweepJobError> {
        rescue::rescue_ineligible(&self.db, lease, plan, after, now).await
    }

    async fn defer_overdue(&self, lease: &Lease, limit: u32, now: DateTime<Utc>) -> Result<u64, SweepJobError> {
        closing::defer_overdue(&self.db, lease, limit, now).await
    }

    async fn due_lots(&self, after: Option<Pair>, limit: u32, now: DateTime<Utc>) -> Result<Vec<DueLot>, StorageError> {
        deletion::due_lots(&self.db, after, limit, now).await
    }

    async fn delete_batch(
        &self,
        lease: &Lease,
        order: &BatchOrder,
        now: DateTime<Utc>,
    ) -> Result<Vec<LotOutcome>, SweepJobError> {
        deletion::delete_batch(&self.db, lease, order, now).await
    }

    async fn close_emptied(&self, lease: &Lease, limit: u32, now: DateTime<Utc>) -> Result<u64, SweepJobError> {
        closing::close_emptied(&self.db, lease, limit, now).await
    }

    async fn forget_events(&self, lease: &Lease, before: DateTime<Utc>, limit: u32) -> Result<u64, SweepJobError> {
        retention::forget_events(&self.db, lease, before, limit).await
    }

    async fn held_lots(&self) -> Result<Vec<(HoldReason, i64)>, StorageError> {
        reads::held_lots(&self.db).await
    }

    async fn complete_plan(&self, lease: &Lease, plan_id: &str, now: DateTime<Utc>) -> Result<bool, SweepJobError> {
        closing::complete_plan(&self.db, lease, plan_id, now).await
    }
}

#[async_trait]
impl SweepDesk for SqlSweepStore {
    async fn record_notices(&self, notices: &[Notice], passage: &Passage) -> Result<Vec<NoticeResult>, StorageError> {
        notices::record(&self.db, notices, passage).await
    }

    async fn confirm_plan(&self, plan_id: &str, by: &Command, now: DateTime<Utc>) -> Result<(), DeskError> {
        desk::confirm_plan(&self.db, plan_id, by, now).await
    }

    async fn cancel_plan(&self, plan_id: &str, by: &Command, now: DateTime<Utc>) -> Result<(), DeskError> {
        desk::cancel_plan(&self.db, plan_id, by, now).await
    }

    async fn hold_lot(
        &self,
        plan_id: &str,
        agency_id: &str,
        by: &Command,
        now: DateTime<Utc>,
    ) -> Result<(), DeskError> {
        desk::hold_lot(&self.db, plan_id, agency_id, by, now).await
    }

    async fn release_lot(
        &self,
        plan_id: &str,
        agency_id: &str,
        by: &Command,
        now: DateTime<Utc>,
    ) -> Result<(), DeskError> {
        desk::release_lot(&self.db, plan_id, agency_id, by, now).await
    }
}

#[async_trait]
impl SweepReads for SqlSweepStore {
    async fn plan(&self, plan_id: &str) -> Result<Option<PlanView>, StorageError> {
        reads::plan(&self.db, plan_id).await
    }

    async fn plans(&self, filter: PlanFilter, page: &Page) -> Result<Vec<PlanView>, StorageError> {
        reads::plans(&self.db, filter, page).await
    }

    async fn lot(&self, plan_id: &str, agency_id: &str) -> Result<Option<(Lot, LotCounts)>, StorageError> {
        reads::lot(&self.db, plan_id, agency_id).await
    }

    async fn lots(&self, filter: &LotFilter, page: &Page) -> Result<Vec<(Lot, LotCounts)>, StorageError> {
        reads::lots(&self.db, filter, page).await
    }

    async fn entries(&self, filter: &EntryFilter, after: Option<Pair>, limit: u32) -> Result<Vec<Entry>, StorageError> {
        reads::entries(&self.db, filter, after, limit).await
    }

    async fn preview(&self, filter: &PreviewFilter, agencies: u32) -> Result<Preview, StorageError> {
        reads::preview(&self.db, filter, agencies).await
    }

    async fn preview_entries(
        &self,
        filter: &PreviewFilter,
        after: Option<Pair>,
        limit: u32,
    ) -> Result<Vec<Entry>, StorageError> {
        reads::preview_entries(&self.db, filter, after, limit).await
    }
}

#[async_trait]
impl SweepFeed for SqlSweepStore {
    async fn history(&self) -> Result<History, StorageError> {
        feed::history(&self.db).await
    }

    async fn events_after(&self, sequence: i64, limit: u32) -> Result<Vec<StoredEvent>, StorageError> {
        feed::events_after(&self.db, sequence, limit).await
    }

    async fn chunk(&self, plan_id: &str, range: &KeyRange) -> Result<(DateTime<Utc>, Vec<Entry>), StorageError> {
        feed::chunk(&self.db, plan_id, range).await
    }

    async fn note_subscriber(&self, name: &str, sequence: i64, now: DateTime<Utc>) -> Result<(), StorageError> {
        feed::note_subscriber(&self.db, name, sequence, now).await
    }
}
