//! The binaries of the workspace, as processes.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::process::{Child, Command};
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::wait;

static BINARIES: OnceLock<PathBuf> = OnceLock::new();

/// The path of a binary of the workspace, built if it is not up to date. What is a path already stays it.
///
/// # Panics
/// When it cannot be built.
pub fn binary(name: &str) -> PathBuf {
    let folder = BINARIES.get_or_init(|| {
        // Cargo builds the binaries of a package for that package's tests alone. What it tells a test of its own package
        // would let dependencies look changed: all of them would be built anew.
        let mut cargo = std::process::Command::new(env!("CARGO"));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text == "OUT_DIR" || text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
                cargo.env_remove(&name);
            }
        }
        let built = cargo
            .args(["build", "--workspace", "--bins", "--quiet"])
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
            .status()
            .expect("cargo runs");
        assert!(built.success(), "the binaries do not build");
        let test = std::env::current_exe().expect("a test has a path");
        test.ancestors().nth(2).expect("tests lie in target/debug/deps").to_path_buf()
    });
    folder.join(name)
}

/// A port that nothing listens on. It lies below those that systems lend to outgoing connections, so none of these takes
/// it while its service starts again.
///
/// # Panics
/// When the machine has none.
pub fn free_port() -> u16 {
    const FIRST: u32 = 12_000;
    const COUNT: u32 = 20_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Suites that run at once begin far apart.
    let start = std::process::id().wrapping_mul(7_919);
    let mut candidates = (0..COUNT).map(|_| {
        let place = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        u16::try_from(FIRST + place).expect("a port")
    });
    candidates.find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()).expect("a free port")
}

/// A running binary; killed and gone when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a binary with nothing in its environment but `settings`; its output goes to `log`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(name: &str, arguments: &[&str], settings: &[(&str, String)], log: &Path) -> Self {
        Self::spawn(command(&binary(name), arguments, settings), log)
    }

    /// As [`Process::start`], by a command that becomes the binary: its words, to which those of the binary are added.
    ///
    /// # Panics
    /// As [`Process::start`].
    pub fn start_by(wrapper: &[&str], name: &str, arguments: &[&str], settings: &[(&str, String)], log: &Path) -> Self {
        let (program, first) = wrapper.split_first().expect("a command");
        let binary = binary(name).display().to_string();
        let words = [first, &[&binary], arguments].concat();
        Self::spawn(command(Path::new(program), &words, settings), log)
    }

    fn spawn(mut command: Command, log: &Path) -> Self {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(log).expect("the log opens");
        let child = command
            .stdout(file.try_clone().expect("the log is shared"))
            .stderr(file)
            .spawn()
            .expect("the binary starts");
        Self { child, log: log.to_path_buf() }
    }

    /// Its process id.
    ///
    /// # Panics
    /// When it was waited for already.
    pub fn id(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Whether it has ended.
    ///
    /// # Panics
    /// When the system does not tell.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("its status").is_some()
    }

    /// Waits until it has ended.
    ///
    /// # Panics
    /// When the system does not tell.
    pub async fn ended(&mut self) {
        self.child.wait().await.expect("its status");
    }

    /// What it has printed so far.
    ///
    /// # Panics
    /// When the log cannot be read.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).expect("the log reads")
    }

    /// The memory that it holds at this moment, in bytes.
    ///
    /// # Panics
    /// When it does not run, or the system does not tell.
    pub fn resident_bytes(&self) -> u64 {
        let id = self.id();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
        let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse().expect("a number");
        kilobytes * 1024
    }

    /// The sockets that it holds open at this moment.
    ///
    /// # Panics
    /// When it does not run, or the system does not tell.
    pub fn open_sockets(&self) -> usize {
        let files = std::fs::read_dir(format!("/proc/{}/fd", self.id())).expect("its files");
        let targets = files.flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
        targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
    }

    /// Asks it to stop, as Kubernetes does, and waits until it has.
    ///
    /// # Panics
    /// When it does not stop.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM").await;
        tokio::time::timeout(wait::PATIENCE, self.child.wait()).await.expect("it stops").expect("it is waited for")
    }

    /// Asks it to stop as Ctrl-C does, and waits until it has.
    ///
    /// # Panics
    /// When it does not stop.
    pub async fn interrupt(&mut self) -> ExitStatus {
        self.signal("INT").await;
        tokio::time::timeout(wait::PATIENCE, self.child.wait()).await.expect("it stops").expect("it is waited for")
    }

    /// Lets it abort, as a process does that finds itself broken, and waits until it has.
    ///
    /// # Panics
    /// When it does not stop.
    pub async fn abort(&mut self) -> ExitStatus {
        self.signal("ABRT").await;
        tokio::time::timeout(wait::PATIENCE, self.child.wait()).await.expect("it stops").expect("it is waited for")
    }

    /// Kills it where it stands, as a power cut would.
    ///
    /// # Panics
    /// When it cannot be killed.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("it dies");
    }

    /// Waits until it serves on this port of loopback.
    ///
    /// # Panics
    /// When it ends instead, or does not come to it.
    pub async fn serves(&mut self, port: u16) {
        tokio::select! {
            () = serving(port) => {}
            () = self.ended() => panic!("it ended before it served: {}", self.output()),
        }
    }

    async fn signal(&self, name: &str) {
        let id = self.id().to_string();
        let sent = Command::new("kill").args([format!("-{name}"), id]).status().await;
        assert!(sent.expect("kill runs").success());
    }
}

impl Drop for Process {
    /// Whoever starts the next one on the same port finds it free.
    fn drop(&mut self) {
        while self.child.start_kill().is_ok() && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::yield_now();
        }
    }
}

/// Runs a binary to its end.
///
/// # Panics
/// When it cannot be started.
pub async fn run(name: &str, arguments: &[&str], settings: &[(&str, String)]) -> Output {
    command(&binary(name), arguments, settings).output().await.expect("the binary runs")
}

fn command(program: &Path, arguments: &[&str], settings: &[(&str, String)]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(settings.iter().map(|(name, value)| (name, value))).stdin(Stdio::null());
    command
}

/// Waits until the server on this port of loopback says that it serves.
///
/// # Panics
/// Never: a port makes an endpoint.
pub async fn serving(port: u16) {
    serving_on(Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("an endpoint").connect_lazy()).await;
}

/// Waits until the server behind this channel says that it serves.
pub async fn serving_on(channel: Channel) {
    let health = HealthClient::new(channel);
    wait::until("a server to serve", async || {
        let answer = health.clone().check(HealthCheckRequest { service: String::new() }).await.ok()?;
        (answer.get_ref().status() == ServingStatus::Serving).then_some(())
    })
    .await;
}
