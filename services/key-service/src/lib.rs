//! key-service: keeps the API keys of agencies and their locations, verifies them, and sweeps away the unused ones.
//!
//! Its nouns: a *key* owned by an agency or a location; its *secret*, shown to a logged-in person and kept as a keyed
//! hash and, where the installation allows, sealed; a *use*; an *audit event* in a hash chain; and the *plan*, *lots*
//! and *entries* of a quarterly sweep.
//!
//! It guarantees that a key comes into being only by an explicit call for a person or by an import; that a call repeated
//! under its `request_id` within 24 h makes no second key; that a use is either stored, or younger than the recording
//! slack, before its caller is told VALID; that no secret stands in a log, an error or a debug text; and that every
//! change of a key stands in the audit. It does *not* know whether an agency, a location or a user exists, or what a
//! role may do: its callers vouch for that, and name the actor. It sends no notice: it publishes plans for who does.
//!
//! `domain` ← `app` ← {`grpc`, `storage`, `jobs`, `clients`} ← [`run`] ← `main`.

pub mod app;
pub mod clients;
pub mod commands;
mod config;
pub mod domain;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod grpc;
pub mod jobs;
mod metrics;
mod run;
pub mod storage;

pub use clients::import_csv;
pub use config::{Config, DEFAULTS, KeysConfig, RevealConfig, SweepConfig, UsageConfig, VerificationConfig};
pub use run::{KeyService, run};
