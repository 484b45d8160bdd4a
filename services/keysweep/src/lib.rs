//! The launcher: all three services of keysweep in one process, on one machine.
//!
//! Its nouns: the [`suite::Suite`] of running services with their [`clients::Clients`]; [`up`], which runs them for a person;
//! and [`quarter`], which plays a whole quarter on a simulated clock and compares what happened with what was promised.
//!
//! It guarantees that the services run the code that their own binaries run, over real gRPC and real databases. It does
//! *not* speak mTLS, run replicas, or do anything a deployment should rely on beyond one machine.

pub mod clients;
pub mod quarter;
pub mod suite;
pub mod up;
