//! What is in a process's memory stays there: no core file, and no look from outside.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use keysweep_e2e::account::{create_account, generate, verify};
use keysweep_e2e::installation::{Installation, SERVICES};
use keysweep_e2e::process::Process;
use keysweep_e2e::wait;
use service_kit::testing::Kind;
use tokio::process::Command;

/// Lets a process write core files of any size into the folder that is added.
pub(crate) const WITH_CORES: [&str; 3] =
    ["/bin/sh", "-c", "cd \"$0\" && { ulimit -c unlimited || true; } && exec \"$@\""];

/// Makes root a user like any other: one that may do with its own processes what it likes, and with those of the system nothing.
fn without_rights() -> &'static [&'static str] {
    let root = std::fs::metadata("/proc/self").expect("a process").uid() == 0;
    if root { &["setpriv", "--bounding-set=-all", "--inh-caps=-all"] } else { &[] }
}

/// Whether another process of the same user can read what the system tells of the process under this name.
async fn can_read(process: u32, name: &str) -> bool {
    let file = format!("/proc/{process}/{name}");
    let words = [without_rights(), &["head", "-c", "1", &file]].concat();
    let output = Command::new(words[0]).args(&words[1..]).output().await.expect("head runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() || said.contains("Permission denied"), "{said}");
    output.status.success()
}

fn files(folder: &Path) -> Vec<std::ffi::OsString> {
    std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").file_name()).collect()
}

#[tokio::test]
async fn no_core_file_is_written_and_nobody_looks_into_a_process() {
    let folder = tempfile::tempdir().expect("a folder");
    let cores = folder.path().join("cores");
    std::fs::create_dir(&cores).expect("a folder");
    let place = cores.display().to_string();
    let wrapper = [without_rights(), &WITH_CORES, &[&place]].concat();
    // What the system does with a process that does not mind.
    let mut other = Command::new(wrapper[0]).args(&wrapper[1..]).args(["sleep", "60"]).spawn().expect("it starts");
    let id = other.id().expect("it runs");
    // Until it has given up its rights, too.
    wait::until("a process to be looked into", async || can_read(id, "environ").await.then_some(())).await;
    assert!(Command::new("kill").args(["-ABRT", &id.to_string()]).status().await.expect("kill runs").success());
    let ended = other.wait().await.expect("it ends");
    println!("a process that does not mind leaves a core file here: {}", ended.core_dumped());
    for core in files(&cores) {
        std::fs::remove_file(cores.join(core)).expect("it is removed");
    }

    let installation = Installation::new(Kind::Sqlite);
    let mut processes = Vec::new();
    for (number, name) in SERVICES.into_iter().enumerate() {
        let log = folder.path().join(format!("{name}.log"));
        let mut process = Process::start_by(&wrapper, name, &["serve"], &installation.settings(number), &log);
        process.serves(installation.ports[number]).await;
        processes.push(process);
    }
    let clients = installation.clients();
    let account = create_account(&clients).await;
    let made = generate(&clients, &account, "k1").await.expect("a key");
    assert!(verify(&clients, &made.secret).await.valid);
    for process in &mut processes {
        assert!(can_read(process.id(), "status").await, "the test looks at the wrong place");
        for name in ["environ", "mem"] {
            assert!(!can_read(process.id(), name).await, "{name} of {process:?} can be read");
        }
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.id())).expect("its limits");
        let limit = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).expect("a limit");
        assert_eq!(limit.split_whitespace().collect::<Vec<_>>(), ["0", "0", "bytes"]);
        let ended = process.abort().await;
        assert!(ended.signal().is_some() && !ended.core_dumped(), "{ended:?}");
    }
    assert_eq!(files(&cores), Vec::<std::ffi::OsString>::new());
}
