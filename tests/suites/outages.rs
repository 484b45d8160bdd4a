//! Databases that fail: full disks, PostgreSQL restarted or cut off in the middle of everything. Nothing is lost or done
//! twice, the services go on by themselves, and what cannot be answered meanwhile is answered UNAVAILABLE.

#[expect(dead_code, reason = "each suite uses a part of it")]
mod desk;
#[expect(dead_code, reason = "each suite uses a part of it")]
mod town;

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use desk::{Desk, cadence, legacy_row, legacy_secret};
use keysweep_e2e::chaos::{ChaosProxy, Network};
use keysweep_e2e::disk::SmallDisk;
use keysweep_e2e::replica::KeyFleet;
use keysweep_e2e::wait;
use keysweep_proto::key::v1 as key;
use keysweep_proto::key::v1::VerifyCode;
use sea_orm::{ConnectionTrait, Statement};
use service_kit::clock::{Clock, SystemClock};
use service_kit::db::{self, DatabaseConfig};
use service_kit::testing::{Kind, TestDatabase};
use tokio::sync::Mutex;
use tonic::Code;
use town::Town;

/// All tests of this process share one PostgreSQL, so that one at a time may restart it.
static SERVER: Mutex<()> = Mutex::const_new(());

/// Keys of the sweep that meets a full disk: more than one batch of a deletion.
const IDLE: usize = 2_500;

/// A test of a database on a small disk, on both kinds.
macro_rules! on_small_disks {
    ($(async fn $name:ident($kind:ident: Kind) $body:block)+) => {
        $(
            mod $name {
                use super::*;

                async fn case($kind: Kind) $body

                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                #[cfg_attr(keysweep_no_mount, ignore = "left out: no small disk can be mounted here")]
                async fn sqlite() {
                    Box::pin(case(Kind::Sqlite)).await;
                }

                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                #[cfg_attr(
                    any(keysweep_no_mount, keysweep_no_postgres),
                    ignore = "left out: no small disk can be mounted here, or no PostgreSQL server is installed"
                )]
                async fn postgres() {
                    let _alone = SERVER.lock().await;
                    Box::pin(case(Kind::Postgres)).await;
                }
            }
        )+
    };
}

on_small_disks! {
    async fn a_full_disk_is_told_and_forgotten_once_there_is_room(kind: Kind) {
        let (disk, fleet) = (SmallDisk::mount(32), KeyFleet::new());
        let database = TestDatabase::within(kind, disk.path());
        let mut replica = fleet.start("full", &database.url, &[]).await;
        let mut made = Vec::new();
        for _ in 0..20 {
            made.push(replica.generate("agy_full").await.1);
        }
        let keys = replica.clients.keys.clone();
        let generate = async || {
            let account = key::owner::Account::AgencyId("agy_full".to_owned());
            let owner = Some(key::Owner { account: Some(account) });
            let request = key::GenerateApiKeyRequest { owner, ..Default::default() };
            let request = keysweep::clients::made_for(keysweep_e2e::replica::ADMIN, request).expect("an actor");
            keys.clone().generate_api_key(request).await
        };
        for round in 0..3 {
            disk.fill();
            // What the database had room for already may still be written.
            let mut refusals = 0;
            while refusals < 20 {
                match generate().await {
                    Ok(answer) => made.push(answer.into_inner().secret),
                    Err(refused) => {
                        assert_eq!(refused.code(), Code::Unavailable, "round {round}: {refused:?}");
                        refusals += 1;
                    }
                }
            }
            for secret in &made {
                let code = replica.code(secret).await;
                assert!(matches!(code, Ok(VerifyCode::Valid) | Err(Code::Unavailable)), "round {round}: {code:?}");
            }
            disk.free();
            made.push(wait::until("the service to go on", async || generate().await.ok()).await.into_inner().secret);
            for _ in 0..20 {
                made.push(generate().await.expect("there is room").into_inner().secret);
            }
        }
        // Whatever was answered is on the disk, and not in the memory of a process alone.
        replica.process.kill().await;
        let replica = fleet.start("full", &database.url, &[]).await;
        for secret in &made {
            assert_eq!(replica.code(secret).await, Ok(VerifyCode::Valid));
        }
        let proof = replica.clients.keys.clone().verify_audit_chain(key::VerifyAuditChainRequest {}).await;
        assert!(proof.expect("an answer").get_ref().intact);
    }

    async fn a_sweep_that_meets_a_full_disk_goes_on_where_it_stopped(kind: Kind) {
        let (disk, fleet, began) = (SmallDisk::mount(48), KeyFleet::new(), SystemClock.now());
        let (sweep_at, day) = cadence(began);
        let database = TestDatabase::within(kind, disk.path());
        let config = DatabaseConfig { max_connections: 4, acquire_timeout_ms: 5_000, ..database.config() };
        let desk = Desk::open(&config, &fleet.keyring(), day, sweep_at - TimeDelta::days(16)).await;
        let names: Vec<_> = (0..IDLE).map(|n| format!("idle-{n}")).collect();
        let long_ago = began - TimeDelta::days(700);
        desk.import(names.iter().map(|name| legacy_row("agy_full", name, None, long_ago)).collect()).await;
        let watch = db::connect(&config).await.expect("the database");
        let count = async |sql: &str| -> i64 {
            let row = watch.query_one_raw(Statement::from_string(watch.get_database_backend(), sql)).await;
            row.expect("a count").expect("a row").try_get("", "n").expect("a number")
        };

        // The journal's room is given back first, or there would be some left.
        let fill = async || {
            if kind == Kind::Sqlite {
                watch.execute_unprepared("PRAGMA wal_checkpoint(TRUNCATE)").await.expect("a checkpoint");
            }
            disk.fill();
        };
        let planned_at = sweep_at - TimeDelta::days(15) - TimeDelta::hours(5);
        fill().await;
        let failed = desk.try_advance(planned_at).await.expect_err("there is no room for a plan");
        let full = if kind == Kind::Sqlite { "database or disk is full" } else { "No space left on device" };
        assert!(format!("{failed:#}").contains(full), "{failed:#}");
        assert_eq!(count("SELECT COUNT(*) AS n FROM sweep_entries").await, 0, "a plan is made whole or not at all");
        disk.free();
        desk.advance(planned_at).await;
        assert_eq!(count("SELECT COUNT(*) AS n FROM sweep_entries").await, IDLE as i64);

        desk.announce(sweep_at, "agy_full").await;
        fill().await;
        desk.try_advance(sweep_at).await.expect_err("there is no room for the tombstones' audit");
        let before = count("SELECT COUNT(*) AS n FROM api_keys WHERE state = 3").await;
        assert_eq!(count("SELECT COUNT(*) AS n FROM audit_events WHERE action = 'key.deleted'").await, before);
        disk.free();
        desk.advance(sweep_at).await;
        assert_eq!(count("SELECT COUNT(*) AS n FROM api_keys WHERE state = 3").await, IDLE as i64);
        assert_eq!(count("SELECT COUNT(*) AS n FROM audit_events WHERE action = 'key.deleted'").await, IDLE as i64);
        assert_eq!(count("SELECT COUNT(*) AS n FROM sweep_events WHERE payload LIKE '%plan_completed%'").await, 1);
        let request = key::VerifyKeyRequest { secret: legacy_secret("idle-0"), ..Default::default() };
        let answer = desk.clients.keys.clone().verify_key(request).await.expect("an answer");
        assert_eq!(answer.get_ref().code(), VerifyCode::DeletedBySweep);
        let proof = desk.clients.keys.clone().verify_audit_chain(key::VerifyAuditChainRequest {}).await;
        assert!(proof.expect("an answer").get_ref().intact);
        desk.close().await;
    }
}

/// So long a stage may stand still before time leaps on.
const STRETCH: Duration = Duration::from_secs(20);
/// When something happens after a stage has begun: not a wait for anything, what is under way then is what the processes do by
/// themselves.
const PAUSES: [Duration; 3] = [Duration::from_millis(20), Duration::from_millis(150), Duration::from_millis(400)];

/// A quarter in which something `happens` at the beginning of each stage and of the deletion: everything is done once.
async fn quarter(
    mut town: Town,
    (began, sweep_at): (DateTime<Utc>, DateTime<Utc>),
    mut happens: impl AsyncFnMut(Option<key::NoticeStage>),
) {
    town.start_all().await;
    let accounts = town.populate(began - TimeDelta::days(700)).await;
    town.announce(sweep_at, STRETCH, async |_, stage| happens(Some(stage)).await).await;
    town.leap_to(sweep_at + TimeDelta::minutes(1)).await;
    happens(None).await;
    town.finish(STRETCH).await;
    town.check(0, &accounts).await;
    town.kill_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    any(keysweep_no_postgres, keysweep_no_aiosmtpd, keysweep_no_faketime),
    ignore = "left out: PostgreSQL's server, aiosmtpd or libfaketime is not installed"
)]
async fn a_quarter_with_restarts_of_postgres_does_everything_once() {
    let (_alone, began) = (SERVER.lock().await, SystemClock.now());
    let (sweep_at, day) = cadence(began);
    let town = Town::new(1, day).await;
    for database in &town.databases {
        // A restart as after a crash is to lose nothing that was committed.
        let db = db::connect(&database.config()).await.expect("the database");
        let name = database.url.split(['/', '?']).nth(3).expect("a name");
        db.execute_unprepared(&format!("ALTER DATABASE {name} SET synchronous_commit = on")).await.expect("set");
    }
    quarter(town, (began, sweep_at), async |stage| {
        let crash = stage != Some(key::NoticeStage::D7);
        for pause in PAUSES {
            tokio::time::sleep(pause).await;
            tokio::task::spawn_blocking(move || TestDatabase::restart_server(crash)).await.expect("it comes up again");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    any(keysweep_no_postgres, keysweep_no_aiosmtpd, keysweep_no_faketime),
    ignore = "left out: PostgreSQL's server, aiosmtpd or libfaketime is not installed"
)]
async fn a_quarter_with_cut_connections_does_everything_once() {
    let (_alone, began) = (SERVER.lock().await, SystemClock.now());
    let (sweep_at, day) = cadence(began);
    let (mut town, mut proxies) = (Town::new(1, day).await, Vec::new());
    for service in 0..3 {
        let proxy = ChaosProxy::before(&town.databases[service].url).await;
        town.urls[service] = proxy.url();
        proxies.push(proxy);
    }
    quarter(town, (began, sweep_at), async |_| {
        for (pause, network) in PAUSES.into_iter().zip([Network::Cut, Network::Silent, Network::Cut]) {
            tokio::time::sleep(pause).await;
            proxies.iter().for_each(|proxy| proxy.set(network));
            tokio::time::sleep(pause).await;
            proxies.iter().for_each(|proxy| proxy.set(Network::Whole));
        }
    })
    .await;
}
