//! Recognisable secrets are run through every path of the real binaries, which log everything that they can log; then each place
//! where one could have come to rest is searched.
//!
//! `cargo test -p keysweep-e2e --test canary -- --nocapture` prints the places.

#![allow(clippy::print_stdout, reason = "a test says what it has seen")]

mod journey;
mod memory;
mod places;
mod planted;
mod search;

use std::path::Path;

use keysweep_e2e::installation::{Installation, SERVICES};
use keysweep_e2e::metrics::scrape_text;
use keysweep_e2e::process::{Process, run};
use service_kit::both_databases;
use tempfile::TempDir;

use journey::Journey;
use memory::WITH_CORES;
use places::Places;
use search::Search;

/// The throwaway cluster asks for no password, and is given one all the same.
const DATABASE_PASSWORD: &str = "canary-database-Rk4mV8q2ZtX7";
const SMTP_PASSWORD: &str = "canary-smtp-Jw9dL3nB6sYh0p";

type Settings = Vec<(&'static str, String)>;

/// The environment of a service. What is secret in it comes from a file of the folder `secrets`, so that no environment holds any.
fn settings(installation: &Installation, place: usize, secrets: &Path) -> Settings {
    let in_file = |name: &str, value: &str| {
        let path = secrets.join(format!("{}-{name}", SERVICES[place]));
        std::fs::write(&path, value).expect("a file");
        path.display().to_string()
    };
    let mut settings = installation.settings(place);
    settings.retain(|(name, _)| !["KEYSWEEP_DATABASE__URL", "KEYSWEEP_KEYRING__PATH"].contains(name));
    let url = installation.databases[place].url.replacen("postgres@", &format!("postgres:{DATABASE_PASSWORD}@"), 1);
    settings.push(("KEYSWEEP_DATABASE__URL_FILE", in_file("url", &url)));
    if place < 2 {
        let ring = std::fs::read_to_string(installation.keyring(place)).expect("a ring");
        settings.push(("KEYSWEEP_KEYRING__KEYRING_FILE", in_file("ring", &ring)));
    } else {
        settings.push(("KEYSWEEP_SMTP__HOST", "127.0.0.1".to_owned()));
        settings.push(("KEYSWEEP_SMTP__USERNAME", "keysweep".to_owned()));
        settings.push(("KEYSWEEP_SMTP__PASSWORD_FILE", in_file("smtp", SMTP_PASSWORD)));
    }
    settings.push(("KEYSWEEP_LOG__LEVEL", "trace".to_owned()));
    settings
}

/// Settings of which one is wrong, beside all those secrets.
fn wrong(place: usize, mut right: Settings) -> Vec<Settings> {
    let with = |settings: &Settings, name, value: String| [settings.clone(), vec![(name, value)]].concat();
    right.retain(|(name, _)| *name != "KEYSWEEP_LOG__LEVEL");
    let mut all = vec![with(&right, "KEYSWEEP_LOG__FORMAT", "xml".to_owned())];
    let mut elsewhere = right.clone();
    elsewhere.retain(|(name, _)| *name != "KEYSWEEP_DATABASE__URL_FILE");
    for url in [
        format!("postgres://keysweep:{DATABASE_PASSWORD}@127.0.0.1:1/keys"),
        format!("mysql://root:{DATABASE_PASSWORD}@127.0.0.1/keys"),
        format!("postgres://keysweep:{DATABASE_PASSWORD}@@@:x/keys"),
    ] {
        all.push(with(&elsewhere, "KEYSWEEP_DATABASE__URL", url));
    }
    if place < 2 {
        let mut ringless = right.clone();
        let ring = ringless.iter().position(|(name, _)| *name == "KEYSWEEP_KEYRING__KEYRING_FILE").expect("a ring");
        let text = std::fs::read_to_string(ringless.swap_remove(ring).1).expect("a ring");
        for broken in [text.replace("key = ", "kee = "), text.replace('"', ""), text.replacen("=\"\n", "\"\n", 1)] {
            all.push(with(&ringless, "KEYSWEEP_KEYRING__KEYRING", broken));
        }
    } else {
        all.push(with(&right, "KEYSWEEP_SMTP__TLS", "none".to_owned()));
    }
    all
}

async fn run_wrongly(installation: &Installation, secrets: &Path, search: &mut Search) {
    for (place, name) in SERVICES.into_iter().enumerate() {
        for (number, wrong) in wrong(place, settings(installation, place, secrets)).into_iter().enumerate() {
            let output = run(name, &["serve"], &wrong).await;
            assert!(!output.status.success(), "{name} {number}: {output:?}");
            search.bytes(&format!("{name}, wrong configuration {number}: output"), &output.stdout);
            search.bytes(&format!("{name}, wrong configuration {number}: errors"), &output.stderr);
        }
    }
}

/// Starts a service in the places that are searched.
async fn start(installation: &Installation, place: usize, secrets: &Path, places: &Places) -> Process {
    let name = SERVICES[place];
    let mut settings = settings(installation, place, secrets);
    settings.extend([
        ("KEYSWEEP_TRACES__OTLP_ENDPOINT", places.collected_at.clone()),
        ("KEYSWEEP_TRACES__SAMPLE_RATIO", "1".to_owned()),
        // What a panic tells, it tells in full.
        ("RUST_BACKTRACE", "full".to_owned()),
    ]);
    let cores = places.cores.path().display().to_string();
    let log = places.logs.path().join(format!("{name}.log"));
    let wrapper = [WITH_CORES.as_slice(), &[&cores]].concat();
    let mut process = Process::start_by(&wrapper, name, &["serve"], &settings, &log);
    process.serves(installation.ports[place]).await;
    process
}

both_databases! {
    async fn no_secret_comes_to_rest_anywhere(database: TestDatabase) {
        let secrets = TempDir::new().expect("a folder");
        let installation = Installation::new(database.kind).with_metrics();
        let places = Places::of(&installation.databases, &installation.folder().join("mail")).await;
        let mut search = Search::default();
        for place in 0..2 {
            search.ring(&std::fs::read_to_string(installation.keyring(place)).expect("a ring"));
        }
        for password in [DATABASE_PASSWORD, SMTP_PASSWORD] {
            search.secret(password);
        }
        run_wrongly(&installation, secrets.path(), &mut search).await;

        let mut processes = Vec::new();
        for place in 0..SERVICES.len() {
            processes.push(start(&installation, place, secrets.path(), &places).await);
        }
        let mut journey = Journey::new(installation.clients(), secrets.path());
        journey.go(&format!("http://127.0.0.1:{}", installation.ports[0])).await;
        for secret in &journey.secrets {
            search.secret(secret);
        }
        for (what, answer) in &journey.refusals {
            search.bytes(&format!("refusal: {what}"), answer.as_bytes());
        }
        let commands: [(usize, &[&str]); 4] =
            [(0, &["rotate-master-key"]), (1, &["rotate-master-key"]), (0, &["audit", "verify"]), (0, &["check-config"])];
        for (place, arguments) in commands {
            let output = run(SERVICES[place], arguments, &settings(&installation, place, secrets.path())).await;
            assert!(output.status.success(), "{output:?}");
            let what = format!("{} {}", SERVICES[place], arguments.join(" "));
            search.bytes(&format!("{what}: output"), &output.stdout);
            search.bytes(&format!("{what}: errors"), &output.stderr);
        }
        search.bytes("key-service import: output", &journey.import_output);
        for (place, name) in SERVICES.into_iter().enumerate() {
            let metrics = scrape_text(installation.metrics_address(place)).await;
            search.bytes(&format!("{name}: metrics"), metrics.as_bytes());
            let cmdline = std::fs::read(format!("/proc/{}/cmdline", processes[place].id())).expect("a running process");
            search.bytes(&format!("{name}: cmdline"), &cmdline);
            // Root alone may read this.
            if let Ok(environ) = std::fs::read(format!("/proc/{}/environ", processes[place].id())) {
                search.bytes(&format!("{name}: environ"), &environ);
            }
        }
        // Before the processes end, so that SQLite's log is there too.
        places.look_at_databases(&mut search, &installation.databases, "open").await;
        for process in &mut processes {
            assert!(process.terminate().await.success(), "{}", process.output());
        }
        places.look_at_databases(&mut search, &installation.databases, "closed").await;
        // One that is broken off with a secret in its memory.
        let mut process = start(&installation, 0, secrets.path(), &places).await;
        journey.use_imported().await;
        process.abort().await;
        places.look(&mut search);
        println!("{}", search.report());
        let found = search.found();
        assert!(found.is_empty(), "secrets were found:\n{}", found.join("\n"));
    }
}
