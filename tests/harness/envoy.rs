//! The real Envoy, with the configuration of `deploy/components/envoy`.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::process::free_port;
use crate::wait;

/// The addresses in the example: the public one, key-service, the API.
const PUBLIC: &str = "address: 0.0.0.0, port_value: 8080 }";
const KEYSWEEP: &str = "address: key-service, port_value: 50051 }";
const API: &str = "address: api, port_value: 8000 }";

/// The example itself.
pub fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/components/envoy/envoy.yaml")
}

/// Lets Envoy itself judge a configuration.
///
/// # Panics
/// When Envoy cannot be started.
pub async fn validate(configuration: &Path) -> Output {
    command(configuration).args(["--mode", "validate"]).output().await.expect("envoy runs")
}

/// Envoy on a port of loopback; stopped when dropped.
#[derive(Debug)]
pub struct Envoy {
    /// Its public port.
    pub port: u16,
    _folder: TempDir,
    _child: Child,
}

impl Envoy {
    /// Starts it with the example, moved to ports of loopback and with `changes` (old text, new text), and waits until it
    /// listens.
    ///
    /// # Panics
    /// When the example lacks a text that is to be changed, or Envoy cannot be started.
    pub async fn start(key_service: u16, api: u16, changes: &[(&str, &str)]) -> Self {
        let (folder, port) = (tempfile::tempdir().expect("a temporary folder"), free_port());
        let moved = |port: u16| format!("address: 127.0.0.1, port_value: {port} }}");
        let (public, keysweep, api) = (moved(port), moved(key_service), moved(api));
        let ports = [(PUBLIC, public.as_str()), (KEYSWEEP, keysweep.as_str()), (API, api.as_str())];
        let mut text = std::fs::read_to_string(example()).expect("the example");
        for (old, new) in ports.iter().chain(changes) {
            assert_eq!(text.matches(old).count(), 1, "the example says {old:?} once");
            text = text.replace(old, new);
        }
        let configuration = folder.path().join("envoy.yaml");
        std::fs::write(&configuration, text).expect("a configuration");
        let log = std::fs::File::create(folder.path().join("envoy.log")).expect("a log");
        let child = command(&configuration)
            .args(["--log-level", "warning"])
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("envoy runs");
        wait::until("Envoy to listen", async || TcpStream::connect(("127.0.0.1", port)).await.ok()).await;
        Self { port, _folder: folder, _child: child }
    }
}

/// Several may run beside each other, so that none may look for one before it.
fn command(configuration: &Path) -> Command {
    let mut command = Command::new("envoy");
    command.arg("-c").arg(configuration).args(["--disable-hot-restart", "--concurrency", "1"]).stdin(Stdio::null());
    command
}
