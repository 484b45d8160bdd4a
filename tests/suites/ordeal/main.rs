//! The three services under faults: several processes of each, which crash at any commit, are cut off, come back after weeks and have
//! wrong clocks, before a mail server of many moods; the invariants are judged after every step.
//!
//! `KEYSWEEP_ORDEAL_QUARTERS=2000 cargo test --release -p keysweep-e2e --test ordeal -- --nocapture` lives as many quarters, four a
//! life; `KEYSWEEP_ORDEAL_SEED` begins with that seed, and shows every step where it is the only life.

mod faults;
mod ledger;
mod life;
mod link;
mod people;
mod replica;
mod site;
mod world;

use std::time::Instant;

use futures::{StreamExt, stream};
use ledger::Totals;
use life::{Outcome, live};
use mimalloc::MiMalloc;
use service_kit::entropy::{Entropy, OsEntropy};

/// The services' own.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Quarters of one life, in the long form and in the bounded one.
const LIFE: u64 = 4;
const SHORT_LIFE: u64 = 2;
/// Seeds that are always tried.
const FIXED: [u64; 2] = [1, 2];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn add(all: &mut Totals, one: Totals) {
    all.quarters += one.quarters;
    all.steps += one.steps;
    all.crashes += one.crashes;
    all.crashes_at_commits += one.crashes_at_commits;
    all.absences += one.absences;
    all.partitions += one.partitions;
    all.jumps += one.jumps;
    all.uses += one.uses;
    all.rescues += one.rescues;
    all.deletions += one.deletions;
    all.notices += one.notices;
    all.mails += one.mails;
    all.doubled += one.doubled;
    all.executed += one.executed;
    all.put_off += one.put_off;
}

/// The last steps before a violation that are worth a look.
const LAST_STEPS: usize = 60;

/// Lives that are lived at a time in the long form: most of one is waiting for threads, sockets and files.
const AT_A_TIME: usize = 6;

#[expect(clippy::print_stdout, reason = "the totals are for whoever runs the long form")]
async fn ordeal(quarters: u64, life: u64, at_a_time: usize, seeds: impl Iterator<Item = u64>, loud: bool) {
    let (began, mut all, mut lives, mut broken) = (Instant::now(), Totals::default(), 0, Vec::new());
    let lengths = (0..quarters).step_by(life as usize).map(|lived| life.min(quarters - lived));
    let mut outcomes = stream::iter(seeds.zip(lengths).map(|(seed, length)| async move {
        println!("KEYSWEEP_ORDEAL_SEED={seed}");
        let outcome = Box::pin(live(seed, length, loud)).await;
        (seed, outcome.unwrap_or_else(|error| panic!("seed {seed}: {error:#}")))
    }))
    .buffer_unordered(at_a_time);
    while let Some((seed, Outcome { totals, violations, trace })) = outcomes.next().await {
        add(&mut all, totals);
        lives += 1;
        if !violations.is_empty() {
            println!("seed {seed}: {} violations: {violations:#?}", violations.len());
            trace.iter().skip(trace.len().saturating_sub(LAST_STEPS)).for_each(|line| println!("  {line}"));
            broken.push(seed);
        }
    }
    println!("{lives} seeds, {all:?}, {} violating seeds, {:.0} s", broken.len(), began.elapsed().as_secs_f64());
    assert!(broken.is_empty(), "violated under the seeds {broken:?}: KEYSWEEP_ORDEAL_SEED=… repeats one");
    assert!(all.crashes > 0 && all.deletions > 0, "nothing was tried: {all:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_invariant_holds_whatever_fails() {
    let mut drawn = [0; 8];
    OsEntropy.fill(&mut drawn);
    let fresh = u64::from_le_bytes(drawn) >> 16;
    match (number("KEYSWEEP_ORDEAL_QUARTERS"), number("KEYSWEEP_ORDEAL_SEED")) {
        (None, None) => ordeal(3 * SHORT_LIFE, SHORT_LIFE, 1, FIXED.into_iter().chain(fresh..), false).await,
        (None, Some(seed)) => ordeal(LIFE, LIFE, 1, seed.., true).await,
        (Some(quarters), seed) => ordeal(quarters, LIFE, AT_A_TIME, seed.unwrap_or(fresh).., false).await,
    }
}
