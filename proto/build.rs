//! Compiles the contracts with protox, so that no protoc needs to be installed.

use std::path::PathBuf;

const PROTOS: &[&str] = &[
    "keysweep/error/v1/error_reason.proto",
    "keysweep/key/v1/api_key.proto",
    "keysweep/key/v1/key_service.proto",
    "keysweep/key/v1/sweep_service.proto",
    "keysweep/location/v1/user_service.proto",
    "keysweep/location/v2/agency_service.proto",
    "keysweep/location/v2/api_key.proto",
    "keysweep/location/v2/location_service.proto",
    "keysweep/location/v2/user_service.proto",
    "keysweep/notification/v1/notification_service.proto",
    "envoy/service/auth/v3/external_auth.proto",
    // For reflection: clients decode the details of errors by it.
    "google/rpc/error_details.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for folder in ["envoy", "google", "keysweep", "udpa", "validate", "xds"] {
        println!("cargo::rerun-if-changed={folder}");
    }
    let mut compiler = protox::Compiler::new(["."])?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(PROTOS)?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // As encoded by protox: reflection clients then see the comments too.
    std::fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure()
        .extern_path(".google.rpc.Status", "::tonic_types::Status")
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
