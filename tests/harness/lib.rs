//! The harness of the end-to-end suites: the real binaries as processes, real databases, a real SMTP server, the real
//! Envoy and Prometheus.
//!
//! It guarantees that whatever a test starts is gone when the test is, and that nothing outside this machine is contacted.
//! It does *not* replace any part of keysweep: no suite runs against a stand-in of a service or a database.

pub mod account;
pub mod chaos;
pub mod collector;
pub mod commits;
pub mod disk;
pub mod envoy;
pub mod installation;
pub mod metrics;
pub mod post;
pub mod process;
pub mod prometheus;
pub mod replica;
pub mod shared_name;
pub mod smtp;

pub use service_kit::testing::wait;
