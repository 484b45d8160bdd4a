//! Tells people what the quarterly sweep is about to delete: in their inboxes, by banner and by email.
//!
//! Its nouns: the *projection*, what it knows of key-service's plans, lots and entries; a *stage* of a lot (D15, D7, D1); a
//! *notification* in a user's inbox; a *banner* of an account; a *delivery*, one email to one person; and a *receipt*, by which
//! key-service learns that a stage's notices are out.
//!
//! It guarantees that each event of key-service is applied once and in order, whoever is restarted; that a user has one
//! notification for each stage of a lot; that an email is sent at least once, and again only with the same Message-ID; that a
//! receipt is handed in only when the notifications are committed and at least one email is accepted, with none left
//! open; and that a lot whose people cannot be told is reported, not passed over.
//!
//! It does *not* decide what is deleted or when, know any secret, or keep people: who is told is asked of location-service at
//! the moment of telling.

pub mod app;
pub mod clients;
pub mod config;
pub mod domain;
pub mod email;
pub mod grpc;
mod jobs;
mod metrics;
pub mod rebuild_command;
mod run;
pub mod storage;

pub use config::Config;
pub use run::{NotificationService, run};
