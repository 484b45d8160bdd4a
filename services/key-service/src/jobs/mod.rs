//! Background work: each job is idempotent, and does what is due whenever it is asked.

mod changes;
mod figures;
mod overlaps;
mod requests;
pub mod sweeper;
mod usage;

pub use changes::FollowChanges;
pub use figures::CountFigures;
pub use overlaps::EndOverlaps;
pub use requests::ForgetRequests;
pub use usage::FlushUses;
