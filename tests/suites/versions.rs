//! Two versions of each service side by side on one database, through a whole quarter: the older migrates and begins, the newer migrates
//! over it, each calls the other, all go back to the older and forward again.
//!
//! `deploy/upgrade-check REVISION` builds the older from its sources and runs this. Without, both are of this version.

#![allow(clippy::print_stdout, reason = "a test says what it has seen")]

#[expect(dead_code, reason = "each suite uses a part of it")]
mod desk;
#[expect(dead_code, reason = "each suite uses a part of it")]
mod town;

use std::path::PathBuf;
use std::time::Duration;

use chrono::TimeDelta;
use desk::cadence;
use keysweep::clients::Clients;
use service_kit::clock::{Clock, SystemClock};
use tokio::time::Instant;
use town::{AGENCIES, IDLE_KEYS, SERVICES, Town, banners};

/// So long the replicas may work on a stage before time leaps on.
const STRETCH: Duration = Duration::from_secs(20);

/// A replica of each of two versions.
const REPLICAS: usize = 2;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    any(keysweep_no_postgres, keysweep_no_aiosmtpd, keysweep_no_faketime),
    ignore = "left out: PostgreSQL's server, aiosmtpd or libfaketime is not installed"
)]
async fn two_versions_share_a_database_through_a_quarter() {
    let older = std::env::var_os("KEYSWEEP_OLD_BINARIES").map(PathBuf::from);
    println!(
        "the older version is {}",
        older.as_ref().map_or("this one".into(), |folder| folder.display().to_string())
    );
    let (began, clock) = (SystemClock.now(), Instant::now());
    let (sweep_at, day) = cadence(began);
    let mut town = Town::new(REPLICAS, day).await;
    town.versions = vec![older.clone(); REPLICAS];
    // As on Kubernetes: a command migrates, the services do not.
    town.settings.push(("KEYSWEEP_DATABASE__MIGRATE_ON_START", "false".to_owned()));
    town.migrate(0).await;
    town.start_all().await;
    let accounts = town.populate(began - TimeDelta::days(700)).await;

    town.crossed = true;
    // In each stage the replicas are replaced one by one, one of them by the other version.
    let both = [vec![None, older.clone()], vec![older.clone(), None]];
    let mut turn = 0;
    town.announce(sweep_at, STRETCH, async |town, stage| {
        println!("{stage:?}");
        // The newer has something to do the first time alone, and does it while the older works.
        town.versions = both[turn % both.len()].clone();
        town.migrate(turn % REPLICAS).await;
        for replica in 0..REPLICAS {
            for service in 0..SERVICES.len() {
                if let Some(mut process) = town.running[replica][service].take() {
                    assert!(process.terminate().await.success(), "{}", process.output());
                }
                town.start(service, replica).await;
            }
        }
        turn += 1;
    })
    .await;
    // The way back, and forth again.
    for versions in [vec![older.clone(); REPLICAS], vec![None, older.clone()]] {
        town.versions = versions;
        town.leap_to(sweep_at - TimeDelta::hours(12)).await;
        for account in &accounts {
            let expected =
                async |clients: &Clients| banners(clients, account).await.is_some_and(|shown| shown.len() == 2);
            town.until("the banners", STRETCH, expected).await;
        }
    }
    town.leap_to(sweep_at + TimeDelta::minutes(1)).await;
    town.finish(STRETCH).await;

    for replica in 0..REPLICAS {
        let (mails, doubled) = town.check(replica, &accounts).await;
        println!("{mails} emails, {doubled} of them doubled where in doubt, as {:?} tells it", town.versions[replica]);
    }
    town.kill_all().await;
    println!(
        "{AGENCIES} lots told, {} keys deleted, {AGENCIES} kept; {:.0} s",
        AGENCIES * IDLE_KEYS,
        clock.elapsed().as_secs_f64()
    );
}
