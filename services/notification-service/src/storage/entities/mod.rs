//! The tables, as they are. They stay inside `storage`.

#![allow(
    missing_docs,
    unreachable_pub,
    reason = "columns are explained in the modules' first lines and by their names"
)]

pub(crate) mod deliveries;
pub(crate) mod entries;
pub(crate) mod heads;
pub(crate) mod location_names;
pub(crate) mod lots;
pub(crate) mod notice_scopes;
pub(crate) mod notifications;
pub(crate) mod plans;
pub(crate) mod send_books;
pub(crate) mod stage_recipients;
pub(crate) mod stages;
