//! The part of a plan that belongs to one agency, and the gate before its deletion.

use std::fmt;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

/// One notice of a lot, by its lead time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Stage {
    /// 15 days before: in-app and by email.
    D15,
    /// 7 days before, in-app.
    D7,
    /// 1 day before, in-app.
    D1,
}

impl Stage {
    /// In the order in which they are due.
    pub const ALL: [Self; 3] = [Self::D15, Self::D7, Self::D1];

    /// How long before the deletion the notice must have been delivered.
    #[must_use]
    pub fn lead(self) -> TimeDelta {
        match self {
            Self::D15 => TimeDelta::days(15),
            Self::D7 => TimeDelta::days(7),
            Self::D1 => TimeDelta::days(1),
        }
    }

    /// The stage that must be receipted first.
    #[must_use]
    pub fn predecessor(self) -> Option<Self> {
        match self {
            Self::D15 => None,
            Self::D7 => Some(Self::D15),
            Self::D1 => Some(Self::D7),
        }
    }

    /// The stage as one word for the audit.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::D15 => "d15",
            Self::D7 => "d7",
            Self::D1 => "d1",
        }
    }

    fn index(self) -> usize {
        match self {
            Self::D15 => 0,
            Self::D7 => 1,
            Self::D1 => 2,
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::D15 => "D15",
            Self::D7 => "D7",
            Self::D1 => "D1",
        })
    }
}

/// The receipt of one stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// The stage.
    pub stage: Stage,
    /// When its last notice was delivered.
    pub delivered_at: DateTime<Utc>,
    /// When the receipt was recorded.
    pub acknowledged_at: DateTime<Utc>,
    /// In-app notifications made.
    pub in_app_count: i64,
    /// Emails that the mail server accepted.
    pub emails_accepted: i64,
}

/// The receipts of a lot: at most one a stage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Receipts([Option<Receipt>; 3]);

impl Receipts {
    /// The receipt of a stage.
    #[must_use]
    pub fn get(&self, stage: Stage) -> Option<&Receipt> {
        self.0[stage.index()].as_ref()
    }

    /// Keeps a receipt; one that is there already stays.
    pub fn insert(&mut self, receipt: Receipt) {
        self.0[receipt.stage.index()].get_or_insert(receipt);
    }

    /// In the order of the stages.
    pub fn iter(&self) -> impl Iterator<Item = &Receipt> {
        self.0.iter().flatten()
    }
}

impl FromIterator<Receipt> for Receipts {
    fn from_iter<I: IntoIterator<Item = Receipt>>(receipts: I) -> Self {
        let mut all = Self::default();
        receipts.into_iter().for_each(|receipt| all.insert(receipt));
        all
    }
}

/// The life of a lot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LotState {
    /// Published.
    Open,
    /// Not deleted while this lasts.
    Held,
    /// Closed: every entry was deleted or left it.
    Executed,
    /// Closed without deletion: its keys wait for the next quarter.
    Deferred,
    /// Closed with its plan.
    Cancelled,
}

impl LotState {
    /// Every state.
    pub const ALL: [Self; 5] = [Self::Open, Self::Held, Self::Executed, Self::Deferred, Self::Cancelled];

    /// Whether nothing more will happen to the lot.
    #[must_use]
    pub fn is_closed(self) -> bool {
        match self {
            Self::Open | Self::Held => false,
            Self::Executed | Self::Deferred | Self::Cancelled => true,
        }
    }

    /// The state in words.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "OPEN",
            Self::Held => "HELD",
            Self::Executed => "EXECUTED",
            Self::Deferred => "DEFERRED",
            Self::Cancelled => "CANCELLED",
        }
    }
}

/// Why a lot is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum HoldReason {
    /// An operator held it; only an operator ends that.
    Operator,
    /// The agency has no admin to tell. Ends when notices reach one.
    NoAgencyAdmin,
    /// Every agency admin's address was refused for good. Ends when notices reach one.
    AllAddressesRefused,
}

impl HoldReason {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::Operator, Self::NoAgencyAdmin, Self::AllAddressesRefused];

    /// The reason as one word for the audit.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::NoAgencyAdmin => "no_agency_admin",
            Self::AllAddressesRefused => "all_addresses_refused",
        }
    }

    /// The reason as the contract names it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "OPERATOR",
            Self::NoAgencyAdmin => "NO_AGENCY_ADMIN",
            Self::AllAddressesRefused => "ALL_ADDRESSES_REFUSED",
        }
    }

    /// The reason in words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Operator => "held by an operator",
            Self::NoAgencyAdmin => "the agency has no admin to tell",
            Self::AllAddressesRefused => "every agency admin's address was refused for good",
        }
    }
}

/// Entries of a lot or a plan by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LotCounts {
    /// Still to be deleted.
    pub planned: i64,
    /// Left.
    pub rescued: i64,
    /// Deleted.
    pub deleted: i64,
    /// Spared until the next quarter.
    pub spared: i64,
}

/// The part of a plan that belongs to one agency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lot {
    /// The plan.
    pub plan_id: String,
    /// The agency.
    pub agency_id: String,
    /// Where it stands.
    pub state: LotState,
    /// When it will be deleted; never moves earlier.
    pub delete_at: DateTime<Utc>,
    /// Keys listed when the plan was made.
    pub entry_count: i64,
    /// Why it is held; set exactly while it is.
    pub hold_reason: Option<HoldReason>,
    /// The hold, deferral or cancellation in words.
    pub state_reason: String,
    /// The receipts so far.
    pub receipts: Receipts,
}

/// One cause for not deleting a lot at an instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LotBlock {
    /// It is held.
    Held(HoldReason),
    /// It is closed.
    Closed(LotState),
    /// The stage was never acknowledged.
    ReceiptMissing(Stage),
    /// The stage was delivered too late for the deletion instant.
    ReceiptLate {
        /// The stage.
        stage: Stage,
        /// When it was delivered.
        delivered_at: DateTime<Utc>,
    },
    /// Its time has not come.
    NotYet {
        /// When it comes.
        delete_at: DateTime<Utc>,
    },
    /// Its time, or now, is past the plan's last date.
    TooLate {
        /// The plan's last date.
        last_delete_at: DateTime<Utc>,
    },
}

impl fmt::Display for LotBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stamp = |at: &DateTime<Utc>| at.to_rfc3339_opts(SecondsFormat::AutoSi, true);
        match self {
            Self::Held(reason) => f.write_str(reason.words()),
            Self::Closed(state) => write!(f, "the lot is closed: {}", state.as_str()),
            Self::ReceiptMissing(stage) => write!(f, "no receipt of the {stage} notices"),
            Self::ReceiptLate { stage, delivered_at } => {
                write!(f, "the {stage} notices were delivered too late, at {}", stamp(delivered_at))
            }
            Self::NotYet { delete_at } => write!(f, "its time comes at {}", stamp(delete_at)),
            Self::TooLate { last_delete_at } => {
                write!(f, "the plan's last date was {}", stamp(last_delete_at))
            }
        }
    }
}

/// Whether a lot may be deleted at `now`: empty if so, else every cause against it.
///
/// The only place where this is decided; the deletion's statement repeats it on the database.
#[must_use]
pub fn lot_gate(lot: &Lot, last_delete_at: DateTime<Utc>, now: DateTime<Utc>) -> Vec<LotBlock> {
    let mut blocks = Vec::new();
    match (lot.state, lot.hold_reason) {
        (LotState::Open, None) => {}
        (LotState::Open | LotState::Held, reason) => {
            blocks.push(LotBlock::Held(reason.unwrap_or(HoldReason::Operator)));
        }
        (closed @ (LotState::Executed | LotState::Deferred | LotState::Cancelled), _) => {
            blocks.push(LotBlock::Closed(closed));
        }
    }
    for stage in Stage::ALL {
        match lot.receipts.get(stage) {
            None => blocks.push(LotBlock::ReceiptMissing(stage)),
            Some(receipt) if receipt.delivered_at > lot.delete_at - stage.lead() => {
                blocks.push(LotBlock::ReceiptLate { stage, delivered_at: receipt.delivered_at });
            }
            Some(_) => {}
        }
    }
    if now < lot.delete_at {
        blocks.push(LotBlock::NotYet { delete_at: lot.delete_at });
    }
    if lot.delete_at > last_delete_at || now > last_delete_at {
        blocks.push(LotBlock::TooLate { last_delete_at });
    }
    blocks
}

/// Why an open or held lot is not deleted at `now`, besides that its time has not come; nothing for a closed one.
#[must_use]
pub fn waits_for(lot: &Lot, last_delete_at: DateTime<Utc>, now: DateTime<Utc>) -> Vec<String> {
    if lot.state.is_closed() {
        return Vec::new();
    }
    lot_gate(lot, last_delete_at, now)
        .iter()
        .filter(|block| !matches!(block, LotBlock::NotYet { .. }))
        .map(ToString::to_string)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: TimeDelta = TimeDelta::microseconds(1);

    fn d() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).unwrap()
    }

    fn last() -> DateTime<Utc> {
        d() + TimeDelta::days(14)
    }

    fn receipt(stage: Stage, delivered_at: DateTime<Utc>) -> Receipt {
        Receipt { stage, delivered_at, acknowledged_at: delivered_at, in_app_count: 1, emails_accepted: 1 }
    }

    fn ready() -> Lot {
        Lot {
            plan_id: "plan_1".into(),
            agency_id: "agy_1".into(),
            state: LotState::Open,
            delete_at: d(),
            entry_count: 1,
            hold_reason: None,
            state_reason: String::new(),
            receipts: Stage::ALL.iter().map(|&stage| receipt(stage, d() - stage.lead())).collect(),
        }
    }

    #[test]
    fn the_gate_opens_exactly_at_its_instant_and_closes_after_the_last() {
        assert_eq!(lot_gate(&ready(), last(), d()), vec![]);
        assert_eq!(lot_gate(&ready(), last(), d() - TICK), vec![LotBlock::NotYet { delete_at: d() }]);
        assert_eq!(lot_gate(&ready(), last(), last()), vec![]);
        assert_eq!(lot_gate(&ready(), last(), last() + TICK), vec![LotBlock::TooLate { last_delete_at: last() }]);
        let at_last = Lot { delete_at: last(), ..ready() };
        assert_eq!(lot_gate(&at_last, last(), last()), vec![]);
        let beyond = Lot { delete_at: last() + TICK, ..ready() };
        let too_late = LotBlock::TooLate { last_delete_at: last() };
        let early = lot_gate(&beyond, last(), last());
        assert_eq!(early, vec![LotBlock::NotYet { delete_at: last() + TICK }, too_late], "it says so before its time");
        assert_eq!(lot_gate(&beyond, last(), last() + TICK), vec![too_late]);
    }

    #[test]
    fn each_receipt_is_needed_with_its_lead() {
        for stage in Stage::ALL {
            let without: Receipts = ready().receipts.iter().filter(|r| r.stage != stage).copied().collect();
            let lot = Lot { receipts: without, ..ready() };
            assert_eq!(lot_gate(&lot, last(), d()), vec![LotBlock::ReceiptMissing(stage)]);

            let late = d() - stage.lead() + TICK;
            let receipts = without.iter().copied().chain([receipt(stage, late)]).collect();
            let lot = Lot { receipts, ..ready() };
            assert_eq!(lot_gate(&lot, last(), d()), vec![LotBlock::ReceiptLate { stage, delivered_at: late }]);
        }
    }

    #[test]
    fn only_an_open_lot_passes() {
        for state in LotState::ALL.into_iter().filter(|state| *state != LotState::Open) {
            assert_eq!(lot_gate(&Lot { state, ..ready() }, last(), d()).len(), 1, "{state:?}");
        }
        let odd = Lot { hold_reason: Some(HoldReason::Operator), ..ready() };
        assert_eq!(lot_gate(&odd, last(), d()), vec![LotBlock::Held(HoldReason::Operator)]);
    }

    #[test]
    fn every_value_has_its_word() {
        assert_eq!(Stage::ALL.map(Stage::word), ["d15", "d7", "d1"]);
        assert_eq!(Stage::ALL.map(|stage| stage.to_string()), ["D15", "D7", "D1"]);
        let states = ["OPEN", "HELD", "EXECUTED", "DEFERRED", "CANCELLED"];
        assert_eq!(LotState::ALL.map(LotState::as_str), states);
        let words = ["operator", "no_agency_admin", "all_addresses_refused"];
        assert_eq!(HoldReason::ALL.map(HoldReason::word), words);
        assert_eq!(HoldReason::ALL.map(HoldReason::as_str), words.map(str::to_uppercase));
    }

    #[test]
    fn waiting_is_said_in_words() {
        let lot = Lot { receipts: Receipts::default(), ..ready() };
        assert_eq!(
            waits_for(&lot, last(), d() - TimeDelta::days(30)),
            ["no receipt of the D15 notices", "no receipt of the D7 notices", "no receipt of the D1 notices"]
        );
        let held = Lot { state: LotState::Held, hold_reason: Some(HoldReason::NoAgencyAdmin), ..ready() };
        assert_eq!(waits_for(&held, last(), d()), ["the agency has no admin to tell"]);
        assert!(waits_for(&ready(), last(), d() - TICK).is_empty());
        assert!(waits_for(&Lot { state: LotState::Executed, ..lot }, last(), d()).is_empty());
    }

    #[test]
    fn a_recorded_receipt_stays() {
        let mut receipts = ready().receipts;
        receipts.insert(receipt(Stage::D7, d()));
        assert_eq!(receipts.get(Stage::D7).unwrap().delivered_at, d() - TimeDelta::days(7));
    }
}
