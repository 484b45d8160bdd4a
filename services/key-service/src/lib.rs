//! Under construction.

pub mod app;
pub mod domain;
pub mod grpc;
pub mod jobs;
pub mod storage;
