//! The contracts of keysweep and the code generated from them; nothing else.
//!
//! A module per package, by the package's path: [`key::v1`], [`location::v2`], [`location::v1`], [`notification::v1`] and
//! [`error::v1`]. The protos carry the documentation: meaning, units, limits and the errors of each method.
//! [`envoy`] is the contract of others that keysweep serves: external authorization.

// Generated code is not held to the workspace's lints.
#![allow(missing_docs, unreachable_pub, rust_2018_idioms, clippy::all, clippy::pedantic)]

/// All contracts as an encoded `FileDescriptorSet`, comments included, for gRPC server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Envoy's contract of external authorization, vendored: see `proto/envoy/README.md`.
pub mod envoy {
    /// `envoy.config`.
    pub mod config {
        /// `envoy.config.core`.
        pub mod core {
            /// `envoy.config.core.v3`.
            pub mod v3 {
                tonic::include_proto!("envoy.config.core.v3");
            }
        }
    }
    /// `envoy.service`.
    pub mod service {
        /// `envoy.service.auth`.
        pub mod auth {
            /// `envoy.service.auth.v3`.
            pub mod v3 {
                tonic::include_proto!("envoy.service.auth.v3");
            }
        }
    }
    /// `envoy.type`.
    pub mod r#type {
        /// `envoy.type.v3`.
        pub mod v3 {
            tonic::include_proto!("envoy.r#type.v3");
        }
    }
}

/// What [`envoy`] refers to.
mod xds {
    pub mod core {
        pub mod v3 {
            tonic::include_proto!("xds.core.v3");
        }
    }
}

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
