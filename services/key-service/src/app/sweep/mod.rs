//! The use cases of the sweep and the ports they need.
//!
//! [`Sweeper`] does what is due, [`SweepService`] answers notices, operators and readers, [`EventSignal`] wakes the subscribers.
//! A use case reads the clock once; a port method is one transaction.

mod error;
mod leadership;
mod pace;
mod ports;
mod rest;
mod service;
mod signal;
mod sweeper;
mod tick;

pub use error::SweepError;
pub use leadership::Leadership;
pub use ports::{
    AgencyTotal, BatchOrder, Command, DeskError, Difference, DueLot, EntryFilter, History, Lease, LeaseAnswer,
    LocalUses, LotFilter, LotOrder, LotOutcome, LotView, NoticeReply, NoticeResult, PlanComparison, PlanDraft,
    PlanFilter, PlanView, Preview, PreviewFilter, ReconcilePage, SweepDesk, SweepFeed, SweepJobError, SweepJobs,
    SweepLease, SweepReads, SweepStore,
};
pub use service::{OperatorCall, Subscription, SweepService};
pub use signal::EventSignal;
pub use sweeper::{Sweeper, SweeperParts};
pub use tick::{SweepStanding, SweepTick};
