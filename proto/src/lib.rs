//! The contracts of keysweep and the code generated from them; nothing else.
//!
//! A module per package, by the package's path: [`key::v1`], [`location::v2`], [`location::v1`], [`notification::v1`] and
//! [`error::v1`]. The protos carry the documentation: meaning, units, limits and the errors of each method.

// Generated code is not held to the workspace's lints.
#![allow(missing_docs, unreachable_pub, rust_2018_idioms, clippy::all, clippy::pedantic)]

/// All contracts as an encoded `FileDescriptorSet`, comments included, for gRPC server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// `keysweep.error`: the reasons that errors carry.
pub mod error {
    /// `keysweep.error.v1`.
    pub mod v1 {
        tonic::include_proto!("keysweep.error.v1");
    }
}

/// `keysweep.key`: key-service.
pub mod key {
    /// `keysweep.key.v1`.
    pub mod v1 {
        tonic::include_proto!("keysweep.key.v1");
    }
}

/// `keysweep.location`: location-service.
pub mod location {
    /// `keysweep.location.v1`, the legacy user API.
    pub mod v1 {
        tonic::include_proto!("keysweep.location.v1");
    }
    /// `keysweep.location.v2`.
    pub mod v2 {
        tonic::include_proto!("keysweep.location.v2");
    }
}

/// `keysweep.notification`: notification-service.
pub mod notification {
    /// `keysweep.notification.v1`.
    pub mod v1 {
        tonic::include_proto!("keysweep.notification.v1");
    }
}
