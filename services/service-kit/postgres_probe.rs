//! Build script of the crates with PostgreSQL tests: where no server is installed, those tests are left out, and say so.

#![expect(clippy::print_stdout, reason = "a build script speaks to cargo on its standard output")]

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=/usr/lib/postgresql");
    println!("cargo::rerun-if-env-changed=PATH");
    println!("cargo::rustc-check-cfg=cfg(keysweep_no_postgres)");
    let on_path = std::env::var_os("PATH").map(|p| std::env::split_paths(&p).collect::<Vec<_>>()).unwrap_or_default();
    let debian = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|e| e.path().join("bin"));
    let found =
        debian.chain(on_path).any(|folder: PathBuf| folder.join("initdb").exists() && folder.join("postgres").exists());
    if !found {
        println!("cargo::rustc-cfg=keysweep_no_postgres");
    }
}
