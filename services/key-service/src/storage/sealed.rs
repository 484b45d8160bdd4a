//! Where sealed secrets lie.

use service_kit::keyring::{SealedColumn, VersionIn};

use crate::app::keys::seal_context;

/// Of keys, for `RevealKey`; and of calls that may be repeated, where the installation keeps nothing but hashes of keys.
pub const SEALED: [SealedColumn; 2] = [
    SealedColumn {
        table: "api_keys",
        key: &["id"],
        sealed: "sealed_secret",
        version: VersionIn::Column("master_version"),
        bound_to: &["id"],
        binding,
    },
    SealedColumn {
        table: "requests",
        key: &["method", "scope", "request_id"],
        sealed: "payload",
        version: VersionIn::Prefix,
        bound_to: &["resource_id"],
        binding,
    },
];

fn binding(bound_to: &[String]) -> Vec<u8> {
    seal_context(&bound_to.concat())
}
