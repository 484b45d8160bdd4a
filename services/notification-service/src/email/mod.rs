//! Email: letters put into words, and the two ways to send them.
//!
//! A letter is one MIME message for one recipient: a text and an HTML part that say the same, and, where it has too many keys to
//! read inline, the whole list as CSV. It loads nothing from anywhere and tells nobody that it was read.

mod context;
mod csv;
mod maildir;
mod message;
mod smtp;
mod when;

pub use maildir::Maildir;
pub use message::Writer;
pub use smtp::{SmtpOptions, SmtpTransport, Tls};
