//! Random quarters with everything that may befall a key, a lot, a process and a clock, compared step by step with a naive model.
//!
//! `KEYSWEEP_PROOF_CASES` says how many quarters are played on each database, `KEYSWEEP_TEST_SEED` plays some again.

mod check;
mod model;
mod play;
mod replica;
mod steps;

use std::cell::RefCell;

use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use service_kit::entropy::{Entropy, OsEntropy};
use service_kit::testing::{Kind, TestDatabase};

use self::play::Totals;

/// Plays quarters on a kind of database; the environment may ask for more than `cases`.
fn run(kind: Kind, cases: u32) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut seed = [0; 32];
    OsEntropy.fill(&mut seed);
    if let Ok(text) = std::env::var("KEYSWEEP_TEST_SEED") {
        seed = hex::decode(text).unwrap().try_into().unwrap();
    }
    let cases = std::env::var("KEYSWEEP_PROOF_CASES").map_or(cases, |text| text.parse().unwrap());
    println!("play it again with KEYSWEEP_TEST_SEED={} KEYSWEEP_PROOF_CASES={cases}", hex::encode(seed));
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let config = Config { cases, max_shrink_iters: 100, failure_persistence: None, ..Config::default() };
    let totals = RefCell::new(Totals::default());
    let result = TestRunner::new_with_rng(config, rng).run(&steps::quarter(), |quarter| {
        let played = runtime.block_on(Box::pin(play::play(TestDatabase::new(kind), quarter)));
        totals.borrow_mut().add(&played);
        Ok(())
    });
    println!("{kind:?}: {:?}", totals.borrow());
    if let Err(error) = result {
        panic!("{error}");
    }
    let totals = totals.borrow();
    assert!(totals.deleted > 0 && totals.rescued > 0, "quarters in which nothing happens prove nothing: {totals:?}");
}

#[test]
fn random_quarters_keep_every_promise_on_sqlite() {
    run(Kind::Sqlite, 24);
}

#[test]
#[cfg_attr(keysweep_no_postgres, ignore = "left out: no PostgreSQL server is installed")]
fn random_quarters_keep_every_promise_on_postgres() {
    run(Kind::Postgres, 8);
}
