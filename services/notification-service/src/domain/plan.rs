//! Plans, lots and entries as key-service's events tell them.

use chrono::{DateTime, Utc};

use super::ids::{AgencyId, KeyId, LocationId};

/// The life of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanState {
    /// Its lots are being announced and deleted.
    Open,
    /// Every lot is closed.
    Completed,
    /// Ended without going on.
    Cancelled,
}

impl PlanState {
    /// The number that stands for the state in the database.
    pub fn code(self) -> i16 {
        match self {
            Self::Open => 1,
            Self::Completed => 2,
            Self::Cancelled => 3,
        }
    }
}

/// The life of a lot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LotState {
    /// Notices go out, and deletion follows.
    Open,
    /// Not deleted while this lasts.
    Held,
    /// Closed: every entry was deleted or had left.
    Executed,
    /// Closed: its keys wait for the next quarter.
    Deferred,
    /// Closed with its plan.
    Cancelled,
}

impl LotState {
    const ALL: [Self; 5] = [Self::Open, Self::Held, Self::Executed, Self::Deferred, Self::Cancelled];

    /// The number that stands for the state in the database.
    pub fn code(self) -> i16 {
        match self {
            Self::Open => 1,
            Self::Held => 2,
            Self::Executed => 3,
            Self::Deferred => 4,
            Self::Cancelled => 5,
        }
    }

    /// The state of a number in the database.
    pub fn from_code(code: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.code() == code)
    }

    /// Whether its keys are still to be deleted, now or when a hold ends.
    pub fn is_live(self) -> bool {
        match self {
            Self::Open | Self::Held => true,
            Self::Executed | Self::Deferred | Self::Cancelled => false,
        }
    }
}

/// Why a lot is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldReason {
    /// An operator held it.
    Operator,
    /// The agency has no admin to tell.
    NoAgencyAdmin,
    /// Every agency admin's address was refused for good.
    AllAddressesRefused,
}

impl HoldReason {
    const ALL: [Self; 3] = [Self::Operator, Self::NoAgencyAdmin, Self::AllAddressesRefused];

    /// The number that stands for the reason in the database.
    pub fn code(self) -> i16 {
        match self {
            Self::Operator => 1,
            Self::NoAgencyAdmin => 2,
            Self::AllAddressesRefused => 3,
        }
    }

    /// The reason of a number in the database.
    pub fn from_code(code: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.code() == code)
    }

    /// The name, as in logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Operator => "OPERATOR",
            Self::NoAgencyAdmin => "NO_AGENCY_ADMIN",
            Self::AllAddressesRefused => "ALL_ADDRESSES_REFUSED",
        }
    }
}

/// Why a key left its lot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RescueCause {
    /// It was used.
    Used,
    /// A person revoked it.
    Revoked,
    /// It was rotated.
    Rotated,
}

impl RescueCause {
    /// The number that stands for the cause in the database.
    pub fn code(self) -> i16 {
        match self {
            Self::Used => 1,
            Self::Revoked => 2,
            Self::Rotated => 3,
        }
    }
}

/// The account that owns a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// The agency, or the agency of the location.
    pub agency_id: AgencyId,
    /// The location; `None` where the agency itself owns the key.
    pub location_id: Option<LocationId>,
}

/// One key in a lot, with the evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key_id: KeyId,
    /// The account that owns it.
    pub owner: Owner,
    /// Its name for people; may be empty.
    pub display_name: String,
    /// The first characters of its secret; may be empty.
    pub display_prefix: String,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// Its last use when the plan was made.
    pub last_used_at: Option<DateTime<Utc>>,
    /// Whole days that it will have been idle at the plan's deletion instant.
    pub idle_days: i32,
}
