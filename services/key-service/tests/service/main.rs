//! The use cases of keys on real databases, and the whole service over gRPC.

#![allow(clippy::unwrap_used, reason = "a test ends where what it needs is missing")]
#![allow(clippy::print_stdout, reason = "a test says how it is played again, and what it has seen")]

mod audit;
mod ext_authz;
mod figures;
mod generate;
mod grpc;
mod import;
mod keyring;
mod lifecycle;
mod memory;
mod quarters;
mod reveal;
mod support;
mod usage;
mod verify;
