//! A throwaway PostgreSQL cluster for the tests of one process.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// The cluster. It listens on a Unix socket in its own folder and nowhere else.
struct Cluster {
    socket: PathBuf,
    data: String,
    options: String,
    /// Stops the cluster and removes its folder when this process, by whatever end, closes its input.
    _watchdog: Child,
}

static CLUSTER: OnceLock<Cluster> = OnceLock::new();
static SHARED_BUFFERS: OnceLock<&'static str> = OnceLock::new();
static DATABASES: AtomicU32 = AtomicU32::new(0);

/// The URL of a new, empty database.
pub(super) fn new_database() -> String {
    let name = new_name();
    execute(&format!("CREATE DATABASE {name}"));
    url(&name)
}

/// A database whose files lie in a folder of the test's; dropped with this.
#[derive(Debug)]
pub(super) struct Housed {
    name: String,
}

impl Housed {
    /// A new, empty one.
    pub(super) fn new(folder: &Path) -> Self {
        let (name, place) = (new_name(), folder.join("postgres"));
        std::fs::create_dir(&place).expect("a folder");
        let place = place.display().to_string();
        if is_root() {
            run(Command::new("chown").args([SERVER_USER, &place]));
        }
        execute(&format!("CREATE TABLESPACE {name} LOCATION '{place}'"));
        execute(&format!("CREATE DATABASE {name} TABLESPACE {name}"));
        Self { name }
    }

    pub(super) fn url(&self) -> String {
        url(&self.name)
    }
}

impl Drop for Housed {
    fn drop(&mut self) {
        execute(&format!("DROP DATABASE {} WITH (FORCE)", self.name));
        execute(&format!("DROP TABLESPACE {}", self.name));
    }
}

fn new_name() -> String {
    format!("t{}", DATABASES.fetch_add(1, Ordering::Relaxed))
}

fn url(name: &str) -> String {
    let socket = CLUSTER.get_or_init(start).socket.display().to_string();
    format!("postgres://postgres@localhost/{name}?host={}", socket.replace('/', "%2F"))
}

fn execute(sql: &str) {
    let socket = CLUSTER.get_or_init(start).socket.display().to_string();
    run(Command::new(tool("psql")).args(["-h", &socket, "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-qc", sql]));
}

/// Gives the server more shared memory than its own default of 128 MiB.
pub(super) fn share(buffers: &'static str) {
    assert!(CLUSTER.get().is_none(), "the server runs already");
    let _ = SHARED_BUFFERS.set(buffers);
}

/// Restarts the cluster: in an orderly way, which breaks off what is under way, or as after a crash of the server.
pub(super) fn restart(crash: bool) {
    let cluster = CLUSTER.get_or_init(start);
    let mode = if crash { "immediate" } else { "fast" };
    let log = format!("{}/server.log", cluster.data);
    run(&mut unprivileged(
        &tool("pg_ctl"),
        &["-D", &cluster.data, "-m", mode, "-o", &cluster.options, "-l", &log, "-w", "restart"],
    ));
}

fn start() -> Cluster {
    let folder = tempfile::Builder::new().prefix("keysweep-pg-").tempdir().expect("a temporary folder").keep();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).expect("permissions");
    let data = folder.join("data");
    let (data_text, socket) = (data.display().to_string(), folder.display().to_string());
    run(&mut unprivileged(
        &tool("initdb"),
        &["-D", &data_text, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
    ));
    // A test's data need not outlive the machine.
    let shared = SHARED_BUFFERS.get().map(|buffers| format!(" -c shared_buffers={buffers}")).unwrap_or_default();
    let options = format!(
        "-k {socket} -c listen_addresses='' -c fsync=off -c synchronous_commit=off -c full_page_writes=off -c max_connections=400{shared}"
    );
    let log = data.join("server.log").display().to_string();
    run(&mut unprivileged(&tool("pg_ctl"), &["-D", &data_text, "-o", &options, "-l", &log, "-w", "start"]));
    let script = format!(
        "trap '' INT TERM; cat >/dev/null; {} >/dev/null 2>&1; rm -rf {socket}",
        shell(&unprivileged(&tool("pg_ctl"), &["-D", &data_text, "-m", "immediate", "stop"]))
    );
    let watchdog = Command::new("sh")
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("sh");
    Cluster { socket: folder, data: data_text, options, _watchdog: watchdog }
}

/// A program of the server: on the path, or where Debian puts it.
fn tool(name: &str) -> PathBuf {
    let debian = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|e| e.path().join("bin"));
    let on_path = std::env::var_os("PATH").map(|p| std::env::split_paths(&p).collect::<Vec<_>>()).unwrap_or_default();
    debian
        .chain(on_path)
        .map(|folder| folder.join(name))
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("{name} is not installed"))
}

/// The user that the server's package made.
const SERVER_USER: &str = "postgres";

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout.trim_ascii() == b"0")
}

/// The server refuses to run as root: it then runs as a user of its own.
fn unprivileged(program: &Path, arguments: &[&str]) -> Command {
    let mut command = if is_root() {
        let mut command = Command::new("setpriv");
        command
            .args([format!("--reuid={SERVER_USER}"), format!("--regid={SERVER_USER}"), "--clear-groups".to_owned()])
            .arg(program);
        command
    } else {
        Command::new(program)
    };
    command.args(arguments).current_dir("/tmp").stdin(Stdio::null());
    command
}

fn shell(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| format!("'{}'", word.to_string_lossy())).collect::<Vec<_>>().join(" ")
}

fn run(command: &mut Command) {
    // The output goes to a file, not a pipe: the server inherits it and would keep a pipe open.
    let mut log = tempfile::tempfile().expect("a temporary file");
    let status = command.stdout(log.try_clone().expect("log")).stderr(log.try_clone().expect("log")).status();
    if !status.as_ref().is_ok_and(std::process::ExitStatus::success) {
        let mut text = String::new();
        let _ = std::io::Seek::rewind(&mut log).and_then(|()| std::io::Read::read_to_string(&mut log, &mut text));
        panic!("{command:?}: {status:?}\n{text}");
    }
}
