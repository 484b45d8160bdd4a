//! Agencies, locations, users and their rules; pure, without time, storage or transport of its own.

pub mod contact;
pub mod profile;
pub mod resources;
pub mod security;
pub mod user;

/// Prefix of an agency's id.
pub const AGENCY_ID: &str = "agy_";
/// Prefix of a location's id.
pub const LOCATION_ID: &str = "loc_";
/// Prefix of a user's id.
pub const USER_ID: &str = "usr_";
