//! Background work: each job is idempotent, and does what is due whenever it is asked.

mod overlaps;
mod requests;
pub mod sweeper;
mod usage;

pub use overlaps::EndOverlaps;
pub use requests::ForgetRequests;
pub use usage::FlushUses;
