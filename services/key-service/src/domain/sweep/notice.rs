//! What a report about the notices of a lot does to it.

use std::fmt;

use chrono::{DateTime, TimeDelta, Utc};

use super::lot::{HoldReason, Lot, LotState, Receipt, Stage};
use super::plan::Plan;
use super::schedule::ceil_to_hour;

/// How far two clocks that both tell the time may differ; beyond it what they date is impossible.
const CLOCK_SKEW: TimeDelta = TimeDelta::seconds(10);

/// When a report was sent, and when it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passage {
    /// By the clock that dates the deliveries. None: it was not told, so that clock may stand anywhere.
    pub sent_at: Option<DateTime<Utc>>,
    /// By the sweep's clock.
    pub arrived_at: DateTime<Utc>,
}

impl Passage {
    /// The earliest and the latest instant by the sweep's clock at which that may have happened which the sender dates `at`.
    ///
    /// What the report took on its way counts as if the sender's clock were behind by it; nothing happens after the arrival.
    #[must_use]
    pub fn span(&self, at: DateTime<Utc>) -> (DateTime<Utc>, DateTime<Utc>) {
        let Self { sent_at, arrived_at } = *self;
        let Some(sent_at) = sent_at else { return (at.min(arrived_at), arrived_at) };
        let corrected = at + (arrived_at - sent_at);
        (corrected.min(at).min(arrived_at), corrected.max(at).min(arrived_at))
    }

    /// Whether the sender dates `at` after its own report.
    fn foretells(&self, at: DateTime<Utc>) -> bool {
        at > self.sent_at.unwrap_or(self.arrived_at) + CLOCK_SKEW
    }
}

/// A report about the notices of one stage of one lot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The plan.
    pub plan_id: String,
    /// The lot's agency.
    pub agency_id: String,
    /// The stage.
    pub stage: Stage,
    /// What happened.
    pub kind: NoticeKind,
}

/// What happened to the notices of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoticeKind {
    /// All are out.
    Delivered {
        /// When the last was delivered, by the sender's clock.
        at: DateTime<Utc>,
        /// In-app notifications made.
        in_app_count: i64,
        /// Emails that the mail server accepted.
        emails_accepted: i64,
    },
    /// Nobody can be told.
    Undeliverable(HoldReason),
}

/// Why a report does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such lot.
    UnknownLot,
    /// The stage before it has no receipt.
    BeforePredecessor(Stage),
    /// Delivered after it was reported.
    InTheFuture,
    /// Delivered before the plan was published.
    BeforePlan,
    /// Delivered before the stage's window.
    TooEarly {
        /// When the window opens.
        opens_at: DateTime<Utc>,
    },
    /// A stage needs an in-app notification.
    NoInApp,
    /// D15 needs an accepted email.
    NoEmail,
    /// A count below zero.
    NegativeCount,
    /// Only an operator holds by word.
    OperatorHold,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownLot => f.write_str("the plan has no lot of this agency"),
            Self::BeforePredecessor(stage) => {
                write!(f, "the {stage} notices come first and have no receipt")
            }
            Self::InTheFuture => f.write_str("deliver_time lies after the report"),
            Self::BeforePlan => f.write_str("deliver_time lies before the plan was published"),
            Self::TooEarly { opens_at } => write!(f, "the stage's window opens only at {}", opens_at.to_rfc3339()),
            Self::NoInApp => f.write_str("a stage needs at least one in-app notification"),
            Self::NoEmail => f.write_str("the D15 stage needs at least one accepted email"),
            Self::NegativeCount => f.write_str("counts must not be negative"),
            Self::OperatorHold => f.write_str("an operator's hold is made by HoldLot"),
        }
    }
}

/// What is to become of a lot after a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// Nothing is to be done: recorded before, or held already.
    Known,
    /// The lot is closed.
    Closed,
    /// The report does not fit.
    Refused(Refusal),
    /// The lot is to be held.
    Hold(HoldReason),
    /// The receipt is to be kept.
    Record(Outcome),
}

/// What a kept receipt changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The receipt.
    pub receipt: Receipt,
    /// When the lot will be deleted from now on.
    pub delete_at: DateTime<Utc>,
    /// Whether that lies past the plan's last date: the lot waits for the next quarter, and `delete_at` is as before.
    pub defer: bool,
    /// Whether the receipt proves that somebody can be told after all.
    pub ends_hold: bool,
}

impl Outcome {
    /// Whether the deletion moves.
    #[must_use]
    pub fn moves(&self, lot: &Lot) -> bool {
        self.delete_at != lot.delete_at
    }
}

/// Judges a report about a lot.
#[must_use]
pub fn judge(plan: &Plan, lot: &Lot, notice: &Notice, passage: &Passage) -> Judgement {
    let stage = notice.stage;
    if lot.receipts.get(stage).is_some() {
        return Judgement::Known;
    }
    if lot.state.is_closed() {
        return Judgement::Closed;
    }
    if let Some(before) = stage.predecessor()
        && lot.receipts.get(before).is_none()
    {
        return Judgement::Refused(Refusal::BeforePredecessor(before));
    }
    match notice.kind {
        NoticeKind::Undeliverable(HoldReason::Operator) => Judgement::Refused(Refusal::OperatorHold),
        NoticeKind::Undeliverable(_) if lot.state == LotState::Held => Judgement::Known,
        NoticeKind::Undeliverable(reason) => Judgement::Hold(reason),
        NoticeKind::Delivered { at, in_app_count, emails_accepted } => {
            // In doubt people were told late.
            let (earliest, delivered_at) = passage.span(at);
            let acknowledged_at = passage.arrived_at;
            let receipt = Receipt { stage, delivered_at, acknowledged_at, in_app_count, emails_accepted };
            match check(plan, lot, &receipt, earliest, passage.foretells(at)) {
                Err(refusal) => Judgement::Refused(refusal),
                Ok(()) => Judgement::Record(outcome(plan, lot, receipt)),
            }
        }
    }
}

/// Whether a receipt is possible, for a delivery at `earliest` at the earliest.
fn check(plan: &Plan, lot: &Lot, receipt: &Receipt, earliest: DateTime<Utc>, foretold: bool) -> Result<(), Refusal> {
    let opens_at = lot.delete_at - receipt.stage.lead() - plan.stage_window;
    if receipt.in_app_count < 0 || receipt.emails_accepted < 0 {
        Err(Refusal::NegativeCount)
    } else if receipt.in_app_count == 0 {
        Err(Refusal::NoInApp)
    } else if receipt.stage == Stage::D15 && receipt.emails_accepted == 0 {
        Err(Refusal::NoEmail)
    } else if foretold {
        Err(Refusal::InTheFuture)
    } else if plan.published_at.is_none_or(|published| receipt.delivered_at + CLOCK_SKEW < published) {
        Err(Refusal::BeforePlan)
    } else if earliest + CLOCK_SKEW < opens_at {
        Err(Refusal::TooEarly { opens_at })
    } else {
        Ok(())
    }
}

fn outcome(plan: &Plan, lot: &Lot, receipt: Receipt) -> Outcome {
    let owed = lot.delete_at.max(ceil_to_hour(receipt.delivered_at + receipt.stage.lead()));
    // A receipt on time leaves the instant alone, also where it is no full hour.
    let on_time = receipt.delivered_at + receipt.stage.lead() <= lot.delete_at;
    let wanted = if on_time { lot.delete_at } else { owed };
    let defer = wanted > plan.last_delete_at;
    Outcome {
        receipt,
        delete_at: if defer { lot.delete_at } else { wanted },
        defer,
        ends_hold: lot.state == LotState::Held
            && matches!(lot.hold_reason, Some(HoldReason::NoAgencyAdmin | HoldReason::AllAddressesRefused)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::lot::{Receipts, lot_gate};
    use super::super::plan::PlanState;
    use super::super::schedule;
    use super::*;

    const TICK: TimeDelta = TimeDelta::microseconds(1);

    fn d() -> DateTime<Utc> {
        DateTime::parse_from_rfc3339("2027-01-01T00:00:00Z").unwrap().to_utc()
    }

    fn plan() -> Plan {
        let published = d() - TimeDelta::days(15) - TimeDelta::hours(6);
        Plan {
            plan_id: "plan_1".into(),
            delete_at: d(),
            idle_since: schedule::idle_since(d()),
            last_delete_at: schedule::last_delete_at(d()),
            stage_window: TimeDelta::hours(6),
            state: PlanState::Open,
            state_reason: String::new(),
            created_at: published,
            confirmed_at: None,
            published_at: Some(published),
            completed_at: None,
            entry_count: 1,
            lot_count: 1,
            active_key_count: 1,
        }
    }

    fn lot() -> Lot {
        Lot {
            plan_id: "plan_1".into(),
            agency_id: "agy_1".into(),
            state: LotState::Open,
            delete_at: d(),
            entry_count: 1,
            hold_reason: None,
            state_reason: String::new(),
            receipts: Receipts::default(),
        }
    }

    fn notice(stage: Stage, kind: NoticeKind) -> Notice {
        Notice { plan_id: "plan_1".into(), agency_id: "agy_1".into(), stage, kind }
    }

    fn delivered(stage: Stage, at: DateTime<Utc>) -> Notice {
        notice(stage, NoticeKind::Delivered { at, in_app_count: 1, emails_accepted: 1 })
    }

    fn with(mut lot: Lot, stages: &[Stage]) -> Lot {
        for &stage in stages {
            let at = d() - stage.lead();
            lot.receipts.insert(Receipt {
                stage,
                delivered_at: at,
                acknowledged_at: at,
                in_app_count: 1,
                emails_accepted: 1,
            });
        }
        lot
    }

    /// Of a sender whose clock stands as this one, without any delay.
    fn at_once(now: DateTime<Utc>) -> Passage {
        Passage { sent_at: Some(now), arrived_at: now }
    }

    fn judge_at(lot: &Lot, notice: &Notice, now: DateTime<Utc>) -> Judgement {
        judge(&plan(), lot, notice, &at_once(now))
    }

    fn refused(lot: &Lot, notice: &Notice, now: DateTime<Utc>) -> Refusal {
        match judge_at(lot, notice, now) {
            Judgement::Refused(refusal) => refusal,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    fn recorded(lot: &Lot, notice: &Notice, now: DateTime<Utc>) -> Outcome {
        match judge_at(lot, notice, now) {
            Judgement::Record(outcome) => outcome,
            other => panic!("expected a record, got {other:?}"),
        }
    }

    #[test]
    fn a_receipt_on_its_mark_moves_nothing_and_one_late_moves_to_the_hour() {
        let mark = d() - Stage::D15.lead();
        let on_time = recorded(&lot(), &delivered(Stage::D15, mark), mark);
        assert!(!on_time.moves(&lot()) && !on_time.defer);
        let late = recorded(&lot(), &delivered(Stage::D15, mark + TICK), mark + TICK);
        assert_eq!((late.delete_at, late.moves(&lot())), (d() + TimeDelta::hours(1), true));
        let last = recorded(&lot(), &delivered(Stage::D15, mark + TimeDelta::days(14)), d());
        assert_eq!((last.delete_at, last.defer), (d() + TimeDelta::days(14), false));
        let past = recorded(&lot(), &delivered(Stage::D15, mark + TimeDelta::days(14) + TICK), d());
        assert_eq!((past.delete_at, past.defer), (d(), true));
    }

    #[test]
    fn after_a_move_the_next_stage_is_owed_from_the_new_instant() {
        let moved = Lot { delete_at: d() + TimeDelta::days(3), ..with(lot(), &[Stage::D15]) };
        let old_mark = d() - Stage::D7.lead();
        assert!(matches!(refused(&moved, &delivered(Stage::D7, old_mark), old_mark), Refusal::TooEarly { .. }));
        let new_mark = moved.delete_at - Stage::D7.lead();
        assert!(!recorded(&moved, &delivered(Stage::D7, new_mark), new_mark).moves(&moved));
    }

    #[test]
    fn a_window_opens_on_the_microsecond_but_for_what_clocks_may_differ() {
        let opens = d() - Stage::D7.lead() - TimeDelta::hours(6);
        let (lot, early) = (with(lot(), &[Stage::D15]), opens - CLOCK_SKEW);
        assert_eq!(refused(&lot, &delivered(Stage::D7, early - TICK), opens), Refusal::TooEarly { opens_at: opens });
        assert!(!recorded(&lot, &delivered(Stage::D7, early), opens).moves(&lot));
    }

    #[test]
    fn a_delivery_counts_as_late_as_it_may_have_been_by_the_clock_of_the_sweep() {
        let (arrived_at, hour) = (d(), TimeDelta::hours(1));
        let span = |sent_at, at| Passage { sent_at, arrived_at }.span(at);
        let (sent, long_ago) = (d() - hour, d() - TimeDelta::days(3));
        assert_eq!(span(Some(d()), long_ago), (long_ago, long_ago), "kept back for days by a clock that is right");
        assert_eq!(span(Some(sent), long_ago), (long_ago, long_ago + hour), "the clock is behind, or the way was long");
        assert_eq!(span(Some(sent), sent), (sent, d()));
        assert_eq!(span(Some(sent), sent + TICK), (sent + TICK, d()), "nothing is delivered after it was reported");
        assert_eq!(span(Some(d() + hour), long_ago), (long_ago - hour, long_ago), "the clock is ahead");
        assert_eq!(span(Some(d() + hour), d() + hour), (d(), d()));
        assert_eq!(span(None, long_ago), (long_ago, d()), "nobody knows where that clock stands");
        assert_eq!(span(None, d() + TICK), (d(), d()));
    }

    #[test]
    fn a_sender_whose_clock_is_behind_moves_the_lot_by_as_much() {
        let mark = d() - Stage::D15.lead();
        let told = |sent_at, arrived_at| {
            let judgement = judge(&plan(), &lot(), &delivered(Stage::D15, mark), &Passage { sent_at, arrived_at });
            let Judgement::Record(outcome) = judgement else { panic!("{judgement:?}") };
            (outcome.receipt.delivered_at, outcome.delete_at)
        };
        let late = mark + TimeDelta::hours(5);
        let moved = (late, d() + TimeDelta::hours(5));
        assert_eq!(told(Some(mark), late), moved, "it says that it is no later than the mark");
        assert_eq!(told(None, late), moved, "it says nothing");
        assert_eq!(told(Some(late), late), (mark, d()), "it was right, and cut off for so long");
    }

    #[test]
    fn stages_come_in_order() {
        let now = d();
        assert_eq!(refused(&lot(), &delivered(Stage::D7, now), now), Refusal::BeforePredecessor(Stage::D15));
        assert_eq!(
            refused(&with(lot(), &[Stage::D15]), &delivered(Stage::D1, now), now),
            Refusal::BeforePredecessor(Stage::D7)
        );
        let nobody = notice(Stage::D7, NoticeKind::Undeliverable(HoldReason::NoAgencyAdmin));
        assert_eq!(refused(&lot(), &nobody, now), Refusal::BeforePredecessor(Stage::D15));
    }

    #[test]
    fn impossible_times_and_counts_are_refused() {
        let now = d() - Stage::D15.lead();
        let published = plan().published_at.unwrap();
        assert_eq!(refused(&lot(), &delivered(Stage::D15, now + CLOCK_SKEW + TICK), now), Refusal::InTheFuture);
        recorded(&lot(), &delivered(Stage::D15, now + CLOCK_SKEW), now);
        let before = published - CLOCK_SKEW;
        assert_eq!(refused(&lot(), &delivered(Stage::D15, before - TICK), now), Refusal::BeforePlan);
        recorded(&lot(), &delivered(Stage::D15, before), now);
        let counts = |in_app_count, emails_accepted| {
            notice(Stage::D15, NoticeKind::Delivered { at: now, in_app_count, emails_accepted })
        };
        assert_eq!(refused(&lot(), &counts(1, 0), now), Refusal::NoEmail);
        assert_eq!(refused(&lot(), &counts(0, 1), now), Refusal::NoInApp);
        assert_eq!(refused(&lot(), &counts(1, -1), now), Refusal::NegativeCount);
        let operator = notice(Stage::D15, NoticeKind::Undeliverable(HoldReason::Operator));
        assert_eq!(refused(&lot(), &operator, now), Refusal::OperatorHold);
        let d7 = notice(
            Stage::D7,
            NoticeKind::Delivered { at: now + TimeDelta::days(8), in_app_count: 1, emails_accepted: 0 },
        );
        recorded(&with(lot(), &[Stage::D15]), &d7, d());
    }

    #[test]
    fn every_refusal_says_why() {
        let table = [
            (Refusal::UnknownLot, "no lot of this agency"),
            (Refusal::BeforePredecessor(Stage::D15), "the D15 notices come first"),
            (Refusal::InTheFuture, "after the report"),
            (Refusal::BeforePlan, "before the plan was published"),
            (Refusal::TooEarly { opens_at: d() }, "opens only at 2027-01-01T00:00:00+00:00"),
            (Refusal::NoInApp, "in-app notification"),
            (Refusal::NoEmail, "accepted email"),
            (Refusal::NegativeCount, "must not be negative"),
            (Refusal::OperatorHold, "made by HoldLot"),
        ];
        for (refusal, words) in table {
            assert!(refusal.to_string().contains(words), "{refusal}");
        }
    }

    #[test]
    fn repeats_and_closed_lots_change_nothing() {
        let now = d();
        let known = with(lot(), &[Stage::D15]);
        assert_eq!(judge_at(&known, &delivered(Stage::D15, now), now), Judgement::Known);
        let closed = Lot { state: LotState::Executed, ..known };
        assert_eq!(judge_at(&closed, &delivered(Stage::D15, now), now), Judgement::Known);
        assert_eq!(judge_at(&closed, &delivered(Stage::D7, now), now), Judgement::Closed);
    }

    #[test]
    fn nobody_to_tell_holds_once_and_a_receipt_ends_only_that() {
        let now = d() - Stage::D15.lead();
        let nobody = notice(Stage::D15, NoticeKind::Undeliverable(HoldReason::NoAgencyAdmin));
        assert_eq!(judge_at(&lot(), &nobody, now), Judgement::Hold(HoldReason::NoAgencyAdmin));
        for (reason, ends) in
            [(HoldReason::NoAgencyAdmin, true), (HoldReason::AllAddressesRefused, true), (HoldReason::Operator, false)]
        {
            let held = Lot { state: LotState::Held, hold_reason: Some(reason), ..lot() };
            assert_eq!(judge_at(&held, &nobody, now), Judgement::Known);
            assert_eq!(recorded(&held, &delivered(Stage::D15, now), now).ends_hold, ends, "{reason:?}");
        }
    }

    proptest! {
        /// Whatever is reported in whatever order: the instant never moves earlier, and every kept receipt has its lead.
        #[test]
        fn delete_at_only_moves_later_and_every_receipt_keeps_its_lead(
            reports in prop::collection::vec((0usize..3, -400i64..900, 0i64..3, 0i64..3), 1..40)
        ) {
            let plan = plan();
            let mut lot = lot();
            for (stage, hours, in_app_count, emails_accepted) in reports {
                let at = d() + TimeDelta::hours(hours) + TimeDelta::microseconds(hours);
                let report = notice(Stage::ALL[stage], NoticeKind::Delivered { at, in_app_count, emails_accepted });
                let before = lot.delete_at;
                if let Judgement::Record(outcome) = judge(&plan, &lot, &report, &at_once(at)) {
                    lot.delete_at = outcome.delete_at;
                    lot.receipts.insert(outcome.receipt);
                    if outcome.defer {
                        lot.state = LotState::Deferred;
                    }
                }
                prop_assert!(lot.delete_at >= before);
                prop_assert!(lot.delete_at <= plan.last_delete_at);
                if lot.state == LotState::Open {
                    for receipt in lot.receipts.iter() {
                        prop_assert!(receipt.delivered_at + receipt.stage.lead() <= lot.delete_at);
                    }
                    let open = lot_gate(&lot, plan.last_delete_at, lot.delete_at).is_empty();
                    prop_assert_eq!(open, lot.receipts.iter().count() == 3);
                }
            }
        }
    }
}
