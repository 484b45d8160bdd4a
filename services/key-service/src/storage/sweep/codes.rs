//! The numbers and rows of the database as the domain's values, and back.

use chrono::TimeDelta;
use service_kit::time::{from_micros, to_micros};

use super::entities::{entries, events, lots, plans, receipts};
use crate::domain::sweep::{
    Entry, EntryState, EventPayload, HoldReason, Lot, LotCounts, LotState, Plan, PlanState, Receipt, Receipts,
    RescueCause, Stage, StoredEvent,
};
use crate::storage::StorageError;

/// A value that stands as a small number in the database.
pub(super) trait Coded: Copy + 'static {
    /// The column, for the message about a number that stands for nothing.
    const COLUMN: &'static str;
    /// Every value.
    const VALUES: &'static [Self];
    /// The value's number.
    fn code(self) -> i16;

    /// The value of a stored number.
    fn decode(code: i16) -> Result<Self, StorageError> {
        let known = Self::VALUES.iter().copied().find(|value| value.code() == code);
        known.ok_or_else(|| StorageError::Internal(format!("{} holds {code}, which stands for nothing", Self::COLUMN)))
    }
}

impl Coded for PlanState {
    const COLUMN: &'static str = "sweep_plans.state";
    const VALUES: &'static [Self] = &Self::ALL;

    fn code(self) -> i16 {
        match self {
            Self::AwaitingConfirmation => 1,
            Self::Open => 2,
            Self::Completed => 3,
            Self::Cancelled => 4,
        }
    }
}

impl Coded for LotState {
    const COLUMN: &'static str = "sweep_lots.state";
    const VALUES: &'static [Self] = &Self::ALL;

    fn code(self) -> i16 {
        match self {
            Self::Open => 1,
            Self::Held => 2,
            Self::Executed => 3,
            Self::Deferred => 4,
            Self::Cancelled => 5,
        }
    }
}

impl Coded for HoldReason {
    const COLUMN: &'static str = "sweep_lots.hold_reason";
    const VALUES: &'static [Self] = &Self::ALL;

    fn code(self) -> i16 {
        match self {
            Self::Operator => 1,
            Self::NoAgencyAdmin => 2,
            Self::AllAddressesRefused => 3,
        }
    }
}

impl Coded for EntryState {
    const COLUMN: &'static str = "sweep_entries.state";
    const VALUES: &'static [Self] = &Self::ALL;

    fn code(self) -> i16 {
        match self {
            Self::Planned => 1,
            Self::Rescued => 2,
            Self::Deleted => 3,
            Self::Spared => 4,
        }
    }
}

impl Coded for RescueCause {
    const COLUMN: &'static str = "sweep_entries.cause";
    const VALUES: &'static [Self] = &Self::ALL;

    fn code(self) -> i16 {
        match self {
            Self::Used => 1,
            Self::Revoked => 2,
            Self::Rotated => 3,
        }
    }
}

impl Coded for Stage {
    const COLUMN: &'static str = "sweep_receipts.stage";
    const VALUES: &'static [Self] = &Self::ALL;

    fn code(self) -> i16 {
        match self {
            Self::D15 => 1,
            Self::D7 => 2,
            Self::D1 => 3,
        }
    }
}

/// A plan as stored.
pub(super) fn plan(row: plans::Model) -> Result<Plan, StorageError> {
    Ok(Plan {
        plan_id: row.plan_id,
        delete_at: from_micros(row.delete_at),
        idle_since: from_micros(row.idle_since_at),
        last_delete_at: from_micros(row.last_delete_at),
        stage_window: TimeDelta::try_milliseconds(row.stage_window_ms).unwrap_or_default(),
        state: PlanState::decode(row.state)?,
        state_reason: row.state_reason,
        created_at: from_micros(row.created_at),
        confirmed_at: row.confirmed_at.map(from_micros),
        published_at: row.published_at.map(from_micros),
        completed_at: row.completed_at.map(from_micros),
        entry_count: row.entry_count,
        lot_count: row.lot_count,
        active_key_count: row.active_key_count,
    })
}

/// A plan to be stored.
pub(super) fn plan_row(plan: &Plan) -> plans::Model {
    plans::Model {
        plan_id: plan.plan_id.clone(),
        delete_at: to_micros(plan.delete_at),
        idle_since_at: to_micros(plan.idle_since),
        last_delete_at: to_micros(plan.last_delete_at),
        stage_window_ms: plan.stage_window.num_milliseconds(),
        state: plan.state.code(),
        state_reason: plan.state_reason.clone(),
        created_at: to_micros(plan.created_at),
        confirmed_at: plan.confirmed_at.map(to_micros),
        published_at: plan.published_at.map(to_micros),
        completed_at: plan.completed_at.map(to_micros),
        entry_count: plan.entry_count,
        lot_count: plan.lot_count,
        active_key_count: plan.active_key_count,
    }
}

/// A lot as stored, with its receipts.
pub(super) fn lot(row: lots::Model, receipts: Receipts) -> Result<Lot, StorageError> {
    Ok(Lot {
        plan_id: row.plan_id,
        agency_id: row.agency_id,
        state: LotState::decode(row.state)?,
        delete_at: from_micros(row.delete_at),
        entry_count: row.entry_count,
        hold_reason: row.hold_reason.map(HoldReason::decode).transpose()?,
        state_reason: row.state_reason,
        receipts,
    })
}

/// A receipt as stored.
pub(super) fn receipt(row: &receipts::Model) -> Result<Receipt, StorageError> {
    Ok(Receipt {
        stage: Stage::decode(row.stage)?,
        delivered_at: from_micros(row.delivered_at),
        acknowledged_at: from_micros(row.acknowledged_at),
        in_app_count: row.in_app_count,
        emails_accepted: row.emails_accepted,
    })
}

/// An entry as stored.
pub(super) fn entry(row: entries::Model) -> Result<Entry, StorageError> {
    Ok(Entry {
        agency_id: row.agency_id,
        location_id: row.location_id,
        key_id: row.key_id,
        display_name: row.display_name,
        display_prefix: row.display_prefix,
        created_at: from_micros(row.created_at),
        last_used_at: row.last_used_at.map(from_micros),
        state: EntryState::decode(row.state)?,
        cause: row.cause.map(RescueCause::decode).transpose()?,
        ended_at: row.ended_at.map(from_micros),
    })
}

/// An event as stored.
pub(super) fn event(row: events::Model) -> Result<StoredEvent, StorageError> {
    let payload: EventPayload = serde_json::from_str(&row.payload)
        .map_err(|error| StorageError::Internal(format!("event {} cannot be read: {error}", row.sequence)))?;
    Ok(StoredEvent { sequence: row.sequence, occurred_at: from_micros(row.occurred_at), plan_id: row.plan_id, payload })
}

/// Adds the number of entries in a state.
pub(super) fn count(counts: &mut LotCounts, state: i16, number: i64) -> Result<(), StorageError> {
    match EntryState::decode(state)? {
        EntryState::Planned => counts.planned += number,
        EntryState::Rescued => counts.rescued += number,
        EntryState::Deleted => counts.deleted += number,
        EntryState::Spared => counts.spared += number,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: Coded + PartialEq + std::fmt::Debug>() {
        for (number, value) in T::VALUES.iter().enumerate() {
            assert_eq!(usize::try_from(value.code()).ok(), Some(number + 1), "{}", T::COLUMN);
            assert_eq!(T::decode(value.code()).unwrap(), *value);
        }
        assert!(T::decode(0).is_err());
        assert!(T::decode(99).is_err());
    }

    #[test]
    fn codes_are_dense_and_lead_back() {
        check::<PlanState>();
        check::<LotState>();
        check::<HoldReason>();
        check::<EntryState>();
        check::<RescueCause>();
        check::<Stage>();
    }
}
