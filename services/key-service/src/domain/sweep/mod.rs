//! The rules of the sweep as pure functions: dates, notices, gates, events.
//!
//! Nothing here reads a clock or a database: every instant is passed in, so that each rule can be tested at ± 1 µs.

pub mod clock;
pub mod entry;
pub mod event;
pub mod lot;
pub mod notice;
pub mod plan;
pub mod schedule;
pub mod usage;

pub use clock::{clock_wait, offset_wait};
pub use entry::{Entry, EntryBlock, EntryState, KeyFacts, RescueCause, entry_gate};
pub use event::{EventPayload, KeyRange, NewEvent, StoredEvent};
pub use lot::{HoldReason, Lot, LotBlock, LotCounts, LotState, Receipt, Receipts, Stage, lot_gate, waits_for};
pub use notice::{Judgement, Notice, NoticeKind, Outcome, Passage, Refusal, judge};
pub use plan::{Breaker, Plan, PlanState};
pub use schedule::{Cadence, CadenceError, IDLE_DAYS, LAST_DELETE_DAYS, SweepPolicy};
pub use usage::{UsageVerdict, UsageWriter, judge_usage};
