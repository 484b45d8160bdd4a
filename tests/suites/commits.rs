//! One process of each service on PostgreSQL through a whole quarter, killed where it stands once before and once after every commit
//! that it makes, each named by the statements that wrote in it.
//!
//! `cargo test -p keysweep-e2e --test commits -- --nocapture` prints the names.

#[expect(dead_code, reason = "each suite uses a part of it")]
mod desk;
#[expect(dead_code, reason = "each suite uses a part of it")]
mod town;

use std::time::Duration;

use chrono::TimeDelta;
use desk::cadence;
use keysweep_e2e::commits::CommitProxy;
use service_kit::clock::{Clock, SystemClock};
use tokio::time::Instant;
use town::{SERVICES, Town};

/// So long a stage may stand still before time leaps on.
const STRETCH: Duration = Duration::from_secs(5);

/// Tables of which each must have been written by a commit at which its process died, before and after.
const WRITTEN: [(usize, &[&str]); 2] = [
    (
        0,
        &[
            "sweep_lease",
            "sweep_plans",
            "sweep_entries",
            "sweep_lots",
            "sweep_receipts",
            "sweep_events",
            "sweep_subscribers",
            "api_keys",
            "audit_events",
            "usage_writers",
        ],
    ),
    (2, &["heads", "plans", "lots", "entries", "stages", "stage_recipients", "notifications", "deliveries"]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    any(keysweep_no_postgres, keysweep_no_aiosmtpd, keysweep_no_faketime),
    ignore = "left out: PostgreSQL's server, aiosmtpd or libfaketime is not installed"
)]
async fn a_process_may_die_before_and_after_every_commit() {
    let (began, clock) = (SystemClock.now(), Instant::now());
    let (sweep_at, day) = cadence(began);
    let mut town = Town::new(1, day).await;
    // What a dead process may have lost is counted for so long.
    town.sweep.push(("KEYSWEEP_USAGE__RECORDING_SLACK_MS", "1000".to_owned()));
    for service in [0, 2] {
        let proxy = CommitProxy::before(&town.databases[service].url).await;
        town.urls[service] = proxy.url();
        town.watchers[service] = Some(proxy);
    }
    town.start_all().await;
    let accounts = town.populate(began - TimeDelta::days(700)).await;
    town.watchers.iter().flatten().for_each(CommitProxy::arm);

    town.announce(sweep_at, STRETCH, async |_, _| {}).await;
    town.leap_to(sweep_at + TimeDelta::minutes(1)).await;
    town.finish(STRETCH).await;
    town.watchers.iter().flatten().for_each(CommitProxy::disarm);
    // Who died last comes back.
    town.finish(STRETCH).await;

    let (mails, doubled) = town.check(0, &accounts).await;
    let mut kills = 0;
    for (service, tables) in WRITTEN {
        let points = town.watchers[service].as_ref().expect("a proxy").points();
        for (name, point) in &points {
            kills += u32::from(point.before) + u32::from(point.after);
            println!("{}: {name}: {point:?}", SERVICES[service]);
        }
        for table in tables {
            let written = |name: &str| name.split(", ").any(|write| write.split(' ').nth(1) == Some(table));
            let died = points.iter().any(|(name, point)| written(name) && point.before && point.after);
            assert!(died, "no death around {table}");
        }
    }
    town.kill_all().await;
    println!(
        "{kills} kills around commits; {mails} emails, {doubled} of them doubled where in doubt; {:.0} s",
        clock.elapsed().as_secs_f64()
    );
}
