//! The contract's side: requests are read and checked whole, use cases called, answers and errors put into words.

mod convert;
mod ext_authz;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod import;
mod keys;
mod requests;
mod status;
pub mod sweep;

pub use ext_authz::ExtAuthz;
pub use keys::KeyApi;
