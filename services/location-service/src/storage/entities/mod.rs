//! The tables. Instants are unix microseconds; these types never leave `storage`.

#![expect(unreachable_pub, reason = "the derive makes its types public")]

pub(crate) mod agencies;
pub(crate) mod audit_events;
pub(crate) mod keyring_check;
pub(crate) mod locations;
pub(crate) mod security_settings;
pub(crate) mod user_locations;
pub(crate) mod users;
