//! Recognisable secrets are run through every path of the real binaries, which log everything that they can log; then each place
//! where one could have come to rest is searched.
//!
//! `cargo test -p keysweep-e2e --test canary -- --nocapture` prints the places.

#![allow(clippy::print_stdout, reason = "a test says what it has seen")]

mod journey;
mod search;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use keysweep_e2e::installation::{Installation, SERVICES};
use keysweep_e2e::metrics::scrape_text;
use keysweep_e2e::process::{Process, run};
use sea_orm::{ConnectionTrait, Statement};
use service_kit::both_databases;
use service_kit::db;
use service_kit::testing::{Kind, TestDatabase};
use tempfile::TempDir;

use journey::Journey;
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

/// The folder in which a database keeps its files.
async fn files_of(database: &TestDatabase) -> PathBuf {
    if database.kind == Kind::Sqlite {
        let path = database.config().sqlite_path().expect("a path");
        return path.parent().expect("a folder").to_path_buf();
    }
    let db = db::connect(&database.config()).await.expect("the database");
    // What is in the server's memory alone is to be in its files.
    db.execute_unprepared("CHECKPOINT").await.expect("a checkpoint");
    let asked = Statement::from_string(db.get_database_backend(), "SHOW data_directory");
    let row = db.query_one_raw(asked).await.expect("an answer").expect("a row");
    row.try_get::<String>("", "data_directory").expect("a folder").into()
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

both_databases! {
    async fn no_secret_comes_to_rest_anywhere(database: TestDatabase) {
        let (secrets, logs) = (TempDir::new().expect("a folder"), TempDir::new().expect("a folder"));
        let installation = Installation::new(database.kind).with_metrics();
        let mut search = Search::default();
        for place in 0..2 {
            search.ring(&std::fs::read_to_string(installation.keyring(place)).expect("a ring"));
        }
        for password in [DATABASE_PASSWORD, SMTP_PASSWORD] {
            search.secret(password);
        }
        run_wrongly(&installation, secrets.path(), &mut search).await;

        let mut processes = Vec::new();
        for (place, name) in SERVICES.into_iter().enumerate() {
            let log = logs.path().join(format!("{name}.log"));
            let settings = settings(&installation, place, secrets.path());
            let mut process = Process::start(name, &["serve"], &settings, &log);
            process.serves(installation.ports[place]).await;
            processes.push(process);
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
            for file in ["cmdline", "environ"] {
                let path = format!("/proc/{}/{file}", processes[place].id());
                search.bytes(&format!("{name}: {file}"), &std::fs::read(path).expect("a running process"));
            }
        }
        // Before the processes end, so that SQLite's log is there too.
        let mut folders = BTreeSet::new();
        for database in &installation.databases {
            folders.insert(files_of(database).await);
        }
        for folder in &folders {
            search.folder("database", folder);
        }
        for process in &mut processes {
            assert!(process.terminate().await.success(), "{}", process.output());
        }
        for folder in &folders {
            search.folder("database, closed", folder);
        }
        search.folder("logs", logs.path());
        search.folder("emails", &installation.folder().join("mail"));
        println!("{}", search.report());
        let found = search.found();
        assert!(found.is_empty(), "secrets were found:\n{}", found.join("\n"));
    }
}
