//! Where PostgreSQL's server, aiosmtpd, Envoy, kubectl, Prometheus or libfaketime is not installed, or nothing may be mounted, the tests
//! that need it are left out, and say so.

use std::path::PathBuf;
use std::process::{Command, Stdio};

fn main() {
    println!("cargo::rerun-if-env-changed=PATH");
    println!("cargo::rerun-if-changed=/usr/lib/postgresql");
    println!("cargo::rustc-check-cfg=cfg(keysweep_no_postgres)");
    println!("cargo::rustc-check-cfg=cfg(keysweep_no_aiosmtpd)");
    println!("cargo::rustc-check-cfg=cfg(keysweep_no_envoy)");
    let on_path = std::env::var_os("PATH").map(|p| std::env::split_paths(&p).collect::<Vec<_>>()).unwrap_or_default();
    let debian = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|e| e.path().join("bin"));
    if !debian.chain(on_path).any(|folder: PathBuf| folder.join("initdb").exists() && folder.join("postgres").exists())
    {
        println!("cargo::rustc-cfg=keysweep_no_postgres");
    }
    if !answers(Command::new("python3").args(["-c", "import aiosmtpd"])) {
        println!("cargo::rustc-cfg=keysweep_no_aiosmtpd");
    }
    println!("cargo::rustc-check-cfg=cfg(keysweep_no_faketime)");
    let folders = ["/usr/lib/x86_64-linux-gnu/faketime", "/usr/lib/aarch64-linux-gnu/faketime", "/usr/lib/faketime"];
    let library =
        folders.iter().map(|folder| PathBuf::from(folder).join("libfaketimeMT.so.1")).find(|path| path.exists());
    match library {
        Some(path) => println!("cargo::rustc-env=KEYSWEEP_FAKETIME={}", path.display()),
        None => println!("cargo::rustc-cfg=keysweep_no_faketime"),
    }
    // Root alone may, and not in every container.
    println!("cargo::rustc-check-cfg=cfg(keysweep_no_mount)");
    let folder = std::env::var_os("OUT_DIR").map(|folder| PathBuf::from(folder).join("mount")).unwrap_or_default();
    let mounted = std::fs::create_dir_all(&folder).is_ok()
        && answers(Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "keysweep"]).arg(&folder));
    if !(mounted && answers(Command::new("umount").arg(&folder))) {
        println!("cargo::rustc-cfg=keysweep_no_mount");
    }
    println!("cargo::rustc-check-cfg=cfg(keysweep_no_prometheus)");
    if !answers(Command::new("prometheus").arg("--version")) {
        println!("cargo::rustc-cfg=keysweep_no_prometheus");
    }
    println!("cargo::rustc-check-cfg=cfg(keysweep_no_kubectl)");
    if !answers(Command::new("kubectl").args(["version", "--client"])) {
        println!("cargo::rustc-cfg=keysweep_no_kubectl");
    }
    if !answers(Command::new("envoy").arg("--version")) {
        println!("cargo::rustc-cfg=keysweep_no_envoy");
    }
}

fn answers(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}
