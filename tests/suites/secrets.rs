//! What operators do with secrets and with the audit, by the commands of the real binaries.

#![allow(clippy::print_stdout, reason = "a test says what it has seen")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use keysweep::clients::{Clients, made_for};
use keysweep_e2e::account::create_account;
use keysweep_e2e::installation::Installation;
use keysweep_e2e::process::{Process, run};
use keysweep_e2e::replica::{ADMIN, KeyFleet, KeyReplica};
use keysweep_e2e::wait;
use keysweep_proto::key::v1 as key;
use keysweep_proto::location::v2 as location;
use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};
use service_kit::both_databases;
use service_kit::clock::{Clock, SystemClock};
use service_kit::db;
use service_kit::entropy::OsEntropy;
use service_kit::keyring::KeyRing;
use service_kit::time::to_proto;
use tokio_util::sync::CancellationToken;

const AGENCY: &str = "agy_1";
/// Eight batches of the rotation.
const IMPORTED: usize = 4_000;

/// The last secret of a kind in a fresh ring, with this version.
fn fresh(kind: &str, version: u32) -> String {
    let text = KeyRing::generate(&OsEntropy).to_string();
    let start = text.find(&format!("[[{kind}]]")).expect("the kind");
    let part = text[start..].split("\n\n").next().expect("its table");
    format!("\n{}\n", part.replace("version = 1", &format!("version = {version}")))
}

/// A number that a query answers.
async fn number(db: &DatabaseConnection, sql: &str) -> i64 {
    let row = db.query_one_raw(Statement::from_string(db.get_database_backend(), sql)).await.expect("a query");
    row.expect("a row").try_get("", "n").expect("a number")
}

fn legacy_secret(number: usize) -> String {
    format!("legacy-secret-{number:08}")
}

async fn import(clients: &Clients) {
    let row = |number: usize| key::ImportRow {
        owner: Some(key::Owner { account: Some(key::owner::Account::AgencyId(AGENCY.to_owned())) }),
        credential: Some(key::import_row::Credential::Secret(legacy_secret(number))),
        create_time: Some(to_proto(SystemClock.now())),
        external_reference: number.to_string(),
        ..Default::default()
    };
    let rows: Vec<_> = (0..IMPORTED).map(row).collect();
    let chunks: Vec<_> = rows.chunks(1_000).map(|rows| key::ImportApiKeysRequest { rows: rows.to_vec() }).collect();
    let request = made_for("service/importer", tokio_stream::iter(chunks)).expect("an actor");
    let done = clients.keys.clone().import_api_keys(request).await.expect("an import").into_inner();
    assert_eq!(done.imported_count, i64::try_from(IMPORTED).expect("a number"), "{done:?}");
}

async fn reveal(clients: &Clients, key_id: &str) -> Result<String, tonic::Status> {
    let request = made_for(ADMIN, key::RevealKeyRequest { key_id: key_id.to_owned() }).expect("an actor");
    Ok(clients.keys.clone().reveal_key(request).await?.into_inner().secret)
}

/// A generation that may be repeated: the key's secret.
async fn generate(replica: &KeyReplica) -> String {
    let account = key::owner::Account::AgencyId(AGENCY.to_owned());
    let request = key::GenerateApiKeyRequest {
        owner: Some(key::Owner { account: Some(account) }),
        request_id: "once".to_owned(),
        ..Default::default()
    };
    let made = replica.clients.keys.clone().generate_api_key(made_for(ADMIN, request).expect("an actor")).await;
    made.expect("a key").into_inner().secret
}

/// Reveals and verifies keys without end; answers how often.
async fn use_keys(clients: Clients, key_ids: Vec<(String, usize)>, end: CancellationToken, uses: Arc<AtomicU64>) {
    for (key_id, number) in key_ids.iter().cycle() {
        if end.is_cancelled() {
            return;
        }
        assert_eq!(reveal(&clients, key_id).await.expect("it is shown"), legacy_secret(*number));
        let request = key::VerifyKeyRequest { secret: legacy_secret(*number), ..Default::default() };
        assert!(clients.keys.clone().verify_key(request).await.expect("an answer").into_inner().valid);
        uses.fetch_add(1, Ordering::Relaxed);
    }
}

async fn ids(db: &DatabaseConnection) -> Vec<(String, usize)> {
    let sql = "SELECT id, external_reference FROM api_keys WHERE external_reference IS NOT NULL ORDER BY id";
    let rows = db.query_all_raw(Statement::from_string(db.get_database_backend(), sql)).await.expect("a query");
    let read = |row: &sea_orm::QueryResult| {
        let reference: String = row.try_get("", "external_reference").expect("a reference");
        (row.try_get("", "id").expect("an id"), reference.parse().expect("a number"))
    };
    rows.iter().map(read).collect()
}

const HASHES_ALONE: (&str, &str) = ("KEYSWEEP_KEYS__RECOVERABLE", "false");
const REVEALS: (&str, &str) = ("KEYSWEEP_REVEAL__PER_MINUTE", "1000000");

both_databases! {
    async fn a_master_key_is_rotated_beside_a_replica_whatever_is_killed(database: TestDatabase) {
        let fleet = KeyFleet::new();
        let ring = std::fs::read_to_string(fleet.keyring()).expect("a ring");
        let mut replica = fleet.start("hashes-alone", &database.url, &[HASHES_ALONE]).await;
        let repeatable = generate(&replica).await;
        assert!(replica.process.terminate().await.success());
        let mut replica = fleet.start("old-ring", &database.url, &[]).await;
        import(&replica.clients).await;
        assert!(replica.process.terminate().await.success());

        std::fs::write(fleet.keyring(), format!("{ring}{}", fresh("master", 2))).expect("a ring");
        let replica = fleet.start("new-ring", &database.url, &[REVEALS]).await;
        let db = db::connect(&database.config()).await.expect("the database");
        let (end, uses) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
        let busy = tokio::spawn(use_keys(replica.clients.clone(), ids(&db).await, end.clone(), uses.clone()));

        let anew = "SELECT COUNT(*) AS n FROM api_keys WHERE master_version = 2 AND external_reference IS NOT NULL";
        let settings = fleet.settings(&database.url);
        let folder = tempfile::tempdir().expect("a folder");
        let mut kills = 0;
        for round in 0..3 {
            let before = number(&db, anew).await;
            let log = folder.path().join(format!("{round}.log"));
            let mut command = Process::start("key-service", &["rotate-master-key"], &settings, &log);
            let more = wait::until("a batch or the end", async || {
                let now = number(&db, anew).await;
                (now > before || command.has_ended()).then_some(now)
            });
            let now = more.await;
            command.kill().await;
            kills += u32::from(usize::try_from(now).expect("a number") < IMPORTED);
        }
        let done = run("key-service", &["rotate-master-key"], &settings).await;
        let told = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success(), "{told}{}", String::from_utf8_lossy(&done.stderr));
        assert!(told.contains("master 1 is no longer needed in this database"), "{told}");
        println!("{kills} kills before the end, {} uses meanwhile; then:\n{told}", uses.load(Ordering::Relaxed));
        assert!(kills > 0, "no kill met the rotation");
        assert_eq!(number(&db, "SELECT COUNT(*) AS n FROM api_keys WHERE master_version = 1").await, 0);
        let again = run("key-service", &["rotate-master-key"], &settings).await;
        assert!(String::from_utf8_lossy(&again.stdout).contains("\n0 secrets sealed anew under master 2"), "{again:?}");
        end.cancel();
        busy.await.expect("every secret was shown and verified meanwhile");
        assert!(uses.load(Ordering::Relaxed) > 0);
        drop(replica);

        // Without the old master key everything is still there.
        let (peppers, masters) = ring.split_once("[[master]]").expect("a ring");
        let both = std::fs::read_to_string(fleet.keyring()).expect("a ring");
        let second = both.rsplit_once("[[master]]").expect("a ring").1;
        std::fs::write(fleet.keyring(), format!("{peppers}[[master]]{second}")).expect("a ring");
        let replica = fleet.start("without-the-old-one", &database.url, &[REVEALS]).await;
        for (key_id, number) in ids(&db).await.iter().step_by(97) {
            assert_eq!(reveal(&replica.clients, key_id).await.expect("it is shown"), legacy_secret(*number));
        }
        assert_eq!(generate(&replica).await, repeatable, "the repeated call shows its secret");
        drop(replica);
        // Without the new one nothing starts.
        std::fs::write(fleet.keyring(), format!("{peppers}[[master]]{masters}")).expect("a ring");
        let refused = run("key-service", &["serve"], &settings).await;
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && said.contains("the key ring lacks master 2"), "{said}");
    }

    async fn keys_of_locations_are_sealed_anew(database: TestDatabase) {
        let mut installation = Installation::new(database.kind);
        let _key_service = installation.start(0).await;
        let mut process = installation.start(1).await;
        let clients = installation.clients();
        let account = create_account(&clients).await;
        let opt_out = location::UpdateSecuritySettingsRequest {
            agency_id: account.agency_id.clone(),
            enhanced_account_security: false,
            acknowledge_risk: true,
            ..Default::default()
        };
        let opt_out = made_for(&account.admin, opt_out).expect("an actor");
        clients.agencies.clone().update_security_settings(opt_out).await.expect("it opts out");
        let create = location::CreateLocationRequest {
            agency_id: account.agency_id.clone(),
            location: Some(location::Location { name: "Till".into(), country: "US".into(), ..Default::default() }),
            ..Default::default()
        };
        let made = clients.locations.clone().create_location(made_for(&account.admin, create).expect("an actor")).await;
        let made = made.expect("a location").into_inner();
        assert!(made.api_key.starts_with("ksw_loc_"), "{made:?}");
        assert!(process.terminate().await.success());

        let ring = std::fs::read_to_string(installation.keyring(1)).expect("a ring");
        let second = fresh("master", 2);
        std::fs::write(installation.keyring(1), format!("{ring}{second}")).expect("a ring");
        let process = installation.start(1).await;
        let done = run("location-service", &["rotate-master-key"], &installation.settings(1)).await;
        let told = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success() && told.contains("\n1 secrets sealed anew under master 2\n"), "{done:?}");
        drop(process);
        // Neither the old master key nor the old pepper is needed.
        let pepper = fresh("pepper", 2);
        installation.set(1, "KEYSWEEP_KEYRING__PATH", "");
        installation.set(1, "KEYSWEEP_KEYRING__KEYRING", format!("{pepper}{second}"));
        let _process = installation.start(1).await;
        let request = location::GetLocationRequest { location_id: made.location_id };
        let there = clients.locations.clone().get_location(made_for(&account.admin, request).expect("an actor")).await;
        assert_eq!(there.expect("it is there").into_inner().api_key, made.api_key);
    }

    async fn the_audit_is_proven_without_a_service(database: TestDatabase) {
        let fleet = KeyFleet::new();
        let settings = fleet.settings(&database.url);
        let replica = fleet.start("first", &database.url, &[]).await;
        for _ in 0..3 {
            replica.generate(AGENCY).await;
        }
        let request = key::ListAuditEventsRequest::default();
        let events = replica.clients.keys.clone().list_audit_events(request).await.expect("a list").into_inner().audit_events;
        let peers: BTreeSet<_> = events.iter().map(|event| event.peer_address.split(':').next().unwrap_or_default()).collect();
        assert_eq!(peers, BTreeSet::from(["127.0.0.1"]), "{events:?}");
        assert!(events.iter().all(|event| event.actor == ADMIN && !event.request_id.is_empty()), "{events:?}");
        drop(replica);

        let verify = async |arguments: &[&str]| {
            let output = run("key-service", &[&["audit", "verify"][..], arguments].concat(), &settings).await;
            let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            (output.status.code(), said)
        };
        let (code, said) = verify(&[]).await;
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("the audit chain is whole: 3 events"), "{said}");
        let noted = said.split("noted elsewhere: ").nth(1).expect("its end").trim().to_owned();
        assert_eq!(verify(&["--noted", &noted]).await.0, Some(0));

        let db = db::connect(&database.config()).await.expect("the database");
        let execute = async |sql: &str| db.execute_unprepared(sql).await.expect("a statement");
        execute("UPDATE audit_events SET actor = 'user/usr_eve' WHERE sequence = 2").await;
        let (code, said) = verify(&[]).await;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("the audit chain is broken at event 2"), "{said}");
        execute(&format!("UPDATE audit_events SET actor = '{ADMIN}' WHERE sequence = 2")).await;
        assert_eq!(verify(&[]).await.0, Some(0));

        // Who cuts the tail and moves the head leaves a chain that is whole; what was noted tells.
        execute("DELETE FROM audit_events WHERE sequence = 3").await;
        execute("UPDATE audit_head SET sequence = 2, hash = (SELECT hash FROM audit_events WHERE sequence = 2)").await;
        assert_eq!(verify(&[]).await.0, Some(0));
        let (code, said) = verify(&["--noted", &noted]).await;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("the audit chain is broken at event 3"), "{said}");
    }
}
