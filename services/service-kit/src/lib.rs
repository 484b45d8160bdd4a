//! What every keysweep service needs and no business knows.
//!
//! Its nouns: a [`clock::Clock`] and an [`entropy::Entropy`] that are passed, never fetched; ids, instants and page tokens; the
//! [`actor::Actor`] a call is made for and the [`context::RequestContext`] it travels in; field violations and gRPC
//! statuses; [`auth::Trust`] between services; configuration in layers; a database connection that is tuned and migrated; a ring of secrets; idempotent
//! requests; reconcilers; and a gRPC server and client with the habits of the house.
//!
//! It guarantees that a wrong configuration is refused with every fault listed before a port is bound, that a server
//! drains in the right order, that a caller reaches what the policy lists and nothing else, and that secrets it holds cannot be
//! printed. It does *not* know what a key, an agency or a
//! notice is, and it owns no table but that of idempotent requests.

pub mod actor;
pub mod auth;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod context;
pub mod db;
pub mod entropy;
pub mod idempotency;
pub mod ids;
pub mod jobs;
pub mod keyring;
pub mod memory;
pub mod notify;
pub mod page;
pub mod rows;
pub mod server;
pub mod status;
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
pub mod time;
pub mod violations;

/// What a service is given rather than fetches: time, randomness, and the registry its jobs run in.
#[derive(Clone, Debug)]
pub struct Deps {
    /// The only source of the current time.
    pub clock: clock::SharedClock,
    /// The only source of randomness.
    pub entropy: entropy::SharedEntropy,
    /// Where the service spawns its reconcilers, so that a harness can drive and await them.
    pub jobs: jobs::JobRegistry,
}

impl Deps {
    /// The system's clock and random generator, as the binaries run.
    pub fn system() -> Self {
        Self {
            clock: std::sync::Arc::new(clock::SystemClock),
            entropy: std::sync::Arc::new(entropy::OsEntropy),
            jobs: jobs::JobRegistry::default(),
        }
    }
}
