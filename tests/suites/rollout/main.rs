//! Three replicas of each service behind one name, with certificates, as real processes on one PostgreSQL: all are restarted one after the
//! other, as a rolling upgrade does, at the beginning and at the end of a quarter's notices and under load, and no call fails.
//!
//! `cargo test -p keysweep-e2e --test rollout -- --nocapture` prints what was called, and how often a call was made again.

#![allow(clippy::print_stdout, reason = "a test says what it has seen")]

#[expect(dead_code, reason = "each suite uses a part of it")]
#[path = "../desk.rs"]
mod desk;
mod load;
#[expect(dead_code, reason = "each suite uses a part of it")]
#[path = "../town.rs"]
mod town;

use std::time::Duration;

use chrono::TimeDelta;
use desk::cadence;
use keysweep_proto::key::v1::NoticeStage;
use service_kit::clock::{Clock, SystemClock};
use tokio::time::Instant;
use town::{AGENCIES, Account, IDLE_KEYS, SERVICES, Town};

use load::{Load, Tally};

const REPLICAS: u8 = 3;
/// So long the replicas may work on a stage before time leaps on.
const STRETCH: Duration = Duration::from_secs(20);
/// Of a replica that stops: so long health says so before it takes no more calls.
const NOTICE_MS: &str = "300";

/// Stops each replica of each service as Kubernetes does, and starts another in its place; answers how often the services made
/// a call to each other again.
async fn roll(town: &mut Town, account: &Account, tally: &Tally, round: u64) -> usize {
    let before = told(town);
    let mut load = Load::start(town, account, tally, round);
    load.goes_on().await;
    for service in 0..SERVICES.len() {
        for replica in 0..usize::from(REPLICAS) {
            let mut process = town.running[replica][service].take().expect("it runs");
            assert!(process.terminate().await.success(), "{}", process.output());
            load.goes_on().await;
            town.start(service, replica).await;
            load.goes_on().await;
        }
    }
    load.stop().await;
    let lines: Vec<_> =
        told(town).into_iter().zip(before).map(|(now, before)| now[before.len()..].to_owned()).collect();
    let failed: Vec<_> =
        lines.iter().flat_map(|lines| lines.lines()).filter(|line| line.contains("job failed")).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    lines.iter().map(|lines| lines.matches("the call is made again").count()).sum()
}

/// What each replica, and those before it, have told so far.
fn told(town: &Town) -> Vec<String> {
    town.running.iter().flatten().map(|process| process.as_ref().expect("it runs").output()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    any(keysweep_no_postgres, keysweep_no_aiosmtpd, keysweep_no_faketime, keysweep_no_mount),
    ignore = "left out: PostgreSQL's server, aiosmtpd or libfaketime is not installed, or nothing may be mounted"
)]
async fn a_rolling_restart_fails_no_call_and_the_quarter_ends_well() {
    let (began, clock) = (SystemClock.now(), Instant::now());
    let (sweep_at, day) = cadence(began);
    let mut town = Town::behind_one_name(REPLICAS, day).await;
    town.settings.push(("KEYSWEEP_SERVER__DRAIN_NOTICE_MS", NOTICE_MS.to_owned()));
    town.start_all().await;
    let accounts = town.populate(began - TimeDelta::days(700)).await;

    let (tally, mut restarts, mut among) = (Tally::default(), 0, 0);
    let rolled = async |town: &mut Town, stage| {
        if stage != NoticeStage::D7 {
            among += roll(town, &accounts[0], &tally, restarts).await;
            restarts += u64::from(REPLICAS) * SERVICES.len() as u64;
        }
    };
    town.announce(sweep_at, STRETCH, rolled).await;
    town.leap_to(sweep_at + TimeDelta::minutes(1)).await;
    town.finish(STRETCH).await;

    let (mails, doubled) = town.check(2, &accounts).await;
    town.kill_all().await;
    print!("{tally}");
    println!(
        "{restarts} restarts, {among} calls between services repeated; {AGENCIES} lots told, {} keys deleted, {AGENCIES} kept; \
         {mails} emails, {doubled} of them doubled; {:.0} s",
        AGENCIES * IDLE_KEYS,
        clock.elapsed().as_secs_f64()
    );
    // A caller has one connection to each replica, which it loses once; a call more than it has under way at that time is lost to nothing.
    let repeated: u64 = tally.calls().values().map(|calls| calls.repeated).sum();
    assert!(repeated <= restarts * load::CALLERS, "{repeated} calls were made again");
}
