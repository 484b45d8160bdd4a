//! Random quarters: whatever happens in whatever order, what was promised holds.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use service_kit::testing::Kind;

use super::*;

/// One thing that happens, hours after the one before.
#[derive(Debug, Clone)]
enum Act {
    Tick,
    Use(usize),
    /// A use whose rescue is lost.
    Slip(usize),
    Deliver {
        agency: usize,
        stage: usize,
        hours_ago: i64,
    },
    Nobody {
        agency: usize,
        stage: usize,
    },
    Hold(usize),
    Release(usize),
    Revoke(usize),
}

const KEYS: usize = 8;
const AGENCIES: usize = 3;

fn act() -> impl Strategy<Value = (i64, Act)> {
    let wait = prop_oneof![3 => 0i64..12, 2 => 12i64..72];
    let what = prop_oneof![
        4 => Just(Act::Tick),
        2 => (0..KEYS).prop_map(Act::Use),
        1 => (0..KEYS).prop_map(Act::Slip),
        9 => (0..AGENCIES, 0usize..3, -1i64..30)
            .prop_map(|(agency, stage, hours_ago)| Act::Deliver { agency, stage, hours_ago }),
        1 => (0..AGENCIES, 0usize..3).prop_map(|(agency, stage)| Act::Nobody { agency, stage }),
        1 => (0..AGENCIES).prop_map(Act::Hold),
        1 => (0..AGENCIES).prop_map(Act::Release),
        1 => (0..KEYS).prop_map(Act::Revoke),
    ];
    (wait, what)
}

fn key_id(n: usize) -> String {
    format!("key_{n}")
}

fn agency_id(n: usize) -> String {
    format!("agy_{}", n % AGENCIES)
}

struct Played {
    house: House,
    /// Every use, by key.
    uses: HashMap<String, DateTime<Utc>>,
    delete_at: HashMap<String, i64>,
}

impl Played {
    async fn act(&mut self, act: &Act) {
        let house = &self.house;
        let now = house.clock.now();
        match act {
            Act::Tick => {
                house.tick_at(now).await;
            }
            Act::Use(n) => {
                if house.use_key(&key_id(*n)).await.unwrap().is_some() {
                    self.uses.insert(key_id(*n), now);
                }
            }
            Act::Slip(n) => {
                if house.key_state(&key_id(*n)).await == 1 {
                    house.set(&key_id(*n), api_keys::Column::LastUsedAt, to_micros(now)).await;
                    self.uses.insert(key_id(*n), now);
                }
            }
            Act::Deliver { agency, stage, hours_ago } => {
                let at = now - TimeDelta::hours(*hours_ago);
                let kind = NoticeKind::Delivered { at, in_app_count: 1, emails_accepted: 1 };
                self.notice(*agency, *stage, kind).await;
            }
            Act::Nobody { agency, stage } => {
                self.notice(*agency, *stage, NoticeKind::Undeliverable(HoldReason::NoAgencyAdmin)).await;
            }
            // Both may be refused in the lot's state: that is an answer like others.
            Act::Hold(agency) => {
                let plan_id = house.plan().await.plan.plan_id;
                let _ = house.service.hold_lot(&plan_id, &agency_id(*agency), operator("hold")).await;
            }
            Act::Release(agency) => {
                let plan_id = house.plan().await.plan.plan_id;
                let _ = house.service.release_lot(&plan_id, &agency_id(*agency), operator("release")).await;
            }
            Act::Revoke(n) => {
                if house.key_state(&key_id(*n)).await == 1 {
                    house.set(&key_id(*n), api_keys::Column::State, 2_i16).await;
                }
            }
        }
    }

    async fn notice(&self, agency: usize, stage: usize, kind: NoticeKind) {
        let house = &self.house;
        let plan_id = house.plan().await.plan.plan_id;
        let notice = Notice { plan_id, agency_id: agency_id(agency), stage: Stage::ALL[stage], kind };
        house.store.record_notices(&[notice], house.clock.now()).await.unwrap();
    }

    async fn check(&mut self, announced: &HashSet<String>) {
        let lots: HashMap<String, lots::Model> = lots::Entity::find()
            .all(&self.house.db)
            .await
            .unwrap()
            .into_iter()
            .map(|lot| (lot.agency_id.clone(), lot))
            .collect();
        for (agency, lot) in &lots {
            let before = self.delete_at.insert(agency.clone(), lot.delete_at);
            assert!(before.is_none_or(|before| before <= lot.delete_at), "the deletion of {agency} moved earlier");
        }
        for key in api_keys::Entity::find().all(&self.house.db).await.unwrap() {
            let Some(deleted_at) = key.deleted_at else { continue };
            assert!(announced.contains(&key.id), "{} was never announced", key.id);
            let last_use = self.uses.get(&key.id).copied().unwrap_or(from_micros(key.created_at));
            assert!(from_micros(deleted_at) - last_use >= TimeDelta::days(90), "{} was used at {last_use}", key.id);
            let lot = &lots[&key.agency_id];
            assert!(deleted_at >= lot.delete_at && deleted_at <= lot.last_delete_at);
            let receipts = self.house.lot(&key.agency_id).await.lot.receipts;
            for stage in Stage::ALL {
                let receipt = receipts.get(stage).expect("a deleted key's lot has every receipt");
                assert!(to_micros(receipt.delivered_at + stage.lead()) <= deleted_at);
            }
            assert_eq!(self.house.entry_state(&key.id).await, DELETED);
        }
    }
}

async fn play(kind: Kind, acts: Vec<(i64, Act)>) -> u64 {
    let house = House::with(TestDatabase::new(kind), small_batches(2)).await;
    for n in 0..KEYS {
        house.key_of(&key_id(n), &agency_id(n), (n % 2 == 0).then_some("loc_1"), None).await;
    }
    house.tick_at(plan_time()).await;
    let announced: HashSet<String> =
        entries::Entity::find().all(&house.db).await.unwrap().into_iter().map(|entry| entry.key_id).collect();
    assert_eq!(announced.len(), KEYS);
    let mut played = Played { house, uses: HashMap::new(), delete_at: HashMap::new() };
    for (wait, act) in &acts {
        played.house.clock.advance(TimeDelta::hours(*wait));
        played.act(act).await;
        played.check(&announced).await;
    }
    // However it went, within the quarter every entry is deleted, rescued or says why not.
    let end = (d() + TimeDelta::days(14) + TICK).max(played.house.clock.now());
    played.house.tick_at(end).await;
    played.check(&announced).await;
    let view = played.house.plan().await;
    assert_eq!(view.counts.planned, 0);
    assert_eq!(view.plan.state, crate::domain::sweep::PlanState::Completed);
    played.house.events().await;
    u64::try_from(view.counts.deleted).unwrap()
}

fn run(kind: Kind, cases: u32) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut seed = [0; 32];
    service_kit::entropy::Entropy::fill(&service_kit::entropy::OsEntropy, &mut seed);
    if let Ok(text) = std::env::var("KEYSWEEP_TEST_SEED") {
        seed = hex::decode(text).unwrap().try_into().unwrap();
    }
    println!("play it again with KEYSWEEP_TEST_SEED={}", hex::encode(seed));
    let rng = proptest::test_runner::TestRng::from_seed(proptest::test_runner::RngAlgorithm::ChaCha, &seed);
    let config = Config { cases, max_shrink_iters: 200, failure_persistence: None, ..Config::default() };
    let deleted = std::cell::Cell::new(0);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let result = runner.run(&(prop::collection::vec(act(), 20..70), prop::bool::ANY), |(acts, told)| {
        // Half of the quarters begin with every notice in time, so that keys are really deleted.
        let mut all = Vec::new();
        if told {
            for (wait, stage) in [(6, 0), (8 * 24, 1), (6 * 24, 2)] {
                for agency in 0..AGENCIES {
                    let deliver = Act::Deliver { agency, stage, hours_ago: 0 };
                    all.push((if agency == 0 { wait } else { 0 }, deliver));
                }
            }
        }
        all.extend(acts);
        deleted.set(deleted.get() + runtime.block_on(Box::pin(play(kind, all))));
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    assert!(deleted.get() > 0, "quarters in which nothing is deleted prove nothing");
}

#[test]
fn random_quarters_keep_every_promise_on_sqlite() {
    run(Kind::Sqlite, 24);
}

#[test]
#[cfg_attr(keysweep_no_postgres, ignore = "left out: no PostgreSQL server is installed")]
fn random_quarters_keep_every_promise_on_postgres() {
    run(Kind::Postgres, 12);
}
