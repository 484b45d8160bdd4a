//! Three replicas of each service, as real processes on one PostgreSQL, killed at random through a whole quarter.
//!
//! `KEYSWEEP_FLEET_KILLS=50 cargo test -p keysweep-e2e --test fleet -- --nocapture` kills as often in each
//! stage; `KEYSWEEP_FLEET_SEED` repeats the choice of victims and the waits.

#[expect(dead_code, reason = "each suite uses a part of it")]
mod desk;
#[expect(dead_code, reason = "each suite uses a part of it")]
mod town;

use std::time::Duration;

use chrono::TimeDelta;
use desk::cadence;
use keysweep::clients::Clients;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use service_kit::clock::{Clock, SystemClock};
use service_kit::entropy::{Entropy, OsEntropy};
use tokio::time::Instant;
use town::{AGENCIES, IDLE_KEYS, Town, banners, number};

const REPLICAS: usize = 3;
/// So long the replicas may work on a stage before time leaps on.
const STRETCH: Duration = Duration::from_secs(20);

/// Kills replicas at random, so many times, and starts each again.
async fn havoc(town: &mut Town, random: &mut StdRng, kills: usize) {
    for _ in 0..kills {
        let (service, replica) = (random.random_range(0..3), random.random_range(0..REPLICAS));
        // The load of this test is what the replicas do by themselves: it goes on for a moment.
        tokio::time::sleep(Duration::from_millis(random.random_range(0..300))).await;
        if let Some(mut process) = town.running[replica][service].take() {
            process.kill().await;
        }
        town.start(service, replica).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    any(keysweep_no_postgres, keysweep_no_aiosmtpd, keysweep_no_faketime),
    ignore = "left out: PostgreSQL's server, aiosmtpd or libfaketime is not installed"
)]
async fn a_quarter_with_kills_does_everything_once() {
    let kills = number("KEYSWEEP_FLEET_KILLS").unwrap_or(4) as usize;
    let mut drawn = [0; 8];
    OsEntropy.fill(&mut drawn);
    let seed = number("KEYSWEEP_FLEET_SEED").unwrap_or(u64::from_le_bytes(drawn));
    println!("{kills} kills a stage, KEYSWEEP_FLEET_SEED={seed}");
    let (began, clock, mut random) = (SystemClock.now(), Instant::now(), StdRng::seed_from_u64(seed));
    let (sweep_at, day) = cadence(began);
    let mut town = Town::new(REPLICAS, day).await;
    town.start_all().await;
    let accounts = town.populate(began - TimeDelta::days(700)).await;

    town.announce(sweep_at, STRETCH, async |town, _| havoc(town, &mut random, kills).await).await;
    town.leap_to(sweep_at - TimeDelta::hours(12)).await;
    havoc(&mut town, &mut random, kills).await;
    for account in &accounts {
        let expected = async |clients: &Clients| banners(clients, account).await.is_some_and(|shown| shown.len() == 2);
        town.until("the banners", STRETCH, expected).await;
        let shown = banners(&town.clients(1), account).await.expect("banners");
        assert_ne!(shown[0], shown[1], "one for the agency, one for its location");
    }
    town.leap_to(sweep_at + TimeDelta::minutes(1)).await;
    havoc(&mut town, &mut random, kills).await;
    town.finish(STRETCH).await;

    let (mails, doubled) = town.check(2, &accounts).await;
    town.kill_all().await;
    println!(
        "{} kills and {} leaps of all nine; {AGENCIES} lots told, {} keys deleted, {AGENCIES} kept; {mails} emails, {doubled} of them \
         doubled where in doubt; {:.0} s",
        5 * kills,
        5,
        AGENCIES * IDLE_KEYS,
        clock.elapsed().as_secs_f64()
    );
}
