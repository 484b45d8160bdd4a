//! Several key-service processes on one PostgreSQL: what is changed through one holds for all within 5 s, also where
//! notifications are lost; and who cannot hear nor read says that it does not know.
//!
//! `KEYSWEEP_REVOCATIONS=1000 cargo test -p keysweep-e2e --test replicas -- --nocapture` tries as many revocations, and prints
//! the longest and the median time until the other replica refused.

mod desk;

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use desk::{Desk, cadence, legacy_row, legacy_secret};
use futures::future::join_all;
use keysweep::clients::made_for;
use keysweep_e2e::chaos::{ChaosProxy, Network};
use keysweep_e2e::replica::{ADMIN, KeyFleet, KeyReplica};
use keysweep_e2e::wait;
use keysweep_proto::key::v1 as key;
use keysweep_proto::key::v1::VerifyCode;
use service_kit::clock::{Clock, SystemClock};
use service_kit::testing::{Kind, TestDatabase};
use service_kit::time::to_proto;
use tokio::time::Instant;
use tonic::Code;

/// The published bound.
const BOUND: Duration = Duration::from_secs(5);
/// Revocations under way at once in the long form.
const AT_ONCE: usize = 20;

fn revocations() -> usize {
    let given = std::env::var("KEYSWEEP_REVOCATIONS").ok();
    given.map_or(20, |text| text.parse().expect("KEYSWEEP_REVOCATIONS is a number"))
}

/// Two replicas; the second reaches the database through a proxy.
struct Pair {
    one: KeyReplica,
    other: KeyReplica,
    proxy: ChaosProxy,
    fleet: KeyFleet,
    database: TestDatabase,
}

impl Pair {
    async fn start() -> Self {
        Self::with(KeyFleet::new(), TestDatabase::new(Kind::Postgres), &[]).await
    }

    async fn with(fleet: KeyFleet, database: TestDatabase, settings: &[(&str, &str)]) -> Self {
        let proxy = ChaosProxy::before(&database.url).await;
        let one = fleet.start("one", &database.url, settings).await;
        let soon = ("KEYSWEEP_DATABASE__ACQUIRE_TIMEOUT_MS", "1000");
        let other = fleet.start("other", &proxy.url(), &[settings, &[soon]].concat()).await;
        Self { one, other, proxy, fleet, database }
    }

    /// A key that the other replica answers from memory.
    async fn known_key(&self) -> (String, String) {
        let (key_id, secret) = self.one.generate("agy_1").await;
        for _ in 0..2 {
            assert_eq!(self.other.code(&secret).await, Ok(VerifyCode::Valid));
        }
        (key_id, secret)
    }

    /// Asks the other replica until it answers `code`; how long after `changed` it was first heard.
    async fn heard(&self, secret: &str, scopes: &[&str], code: VerifyCode, changed: Instant) -> Duration {
        wait::until("the other replica to hear of a change", async || {
            let asked = Instant::now();
            let answer = self.other.verify(secret, scopes).await.expect("an answer").code();
            let late = asked.duration_since(changed);
            assert!(answer == code || late < BOUND, "{answer:?} {late:?} after the change");
            (answer == code).then(|| changed.elapsed())
        })
        .await
    }

    async fn revoke_one(&self) -> Duration {
        let (key_id, secret) = self.known_key().await;
        self.one.revoke(&key_id).await;
        self.heard(&secret, &[], VerifyCode::Revoked, Instant::now()).await
    }

    /// So many revocations, some at once; how long each took to be heard, the shortest first.
    async fn revoke_many(&self, count: usize) -> Vec<Duration> {
        let mut times = Vec::new();
        for begun in (0..count).step_by(AT_ONCE) {
            times.extend(join_all((begun..count.min(begun + AT_ONCE)).map(|_| self.revoke_one())).await);
        }
        times.sort_unstable();
        times
    }
}

#[expect(clippy::print_stdout, reason = "the times are for whoever runs the long form")]
fn tell(what: &str, times: &[Duration]) -> Duration {
    let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
    println!("{what}: {} revocations, median {median:.1?}, longest {longest:.1?}", times.len());
    longest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(keysweep_no_postgres, ignore = "left out: no PostgreSQL server is installed")]
async fn a_revocation_holds_for_every_replica() {
    let pair = Pair::start().await;
    let longest = tell("notified", &pair.revoke_many(revocations()).await);
    assert!(longest < BOUND);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(keysweep_no_postgres, ignore = "left out: no PostgreSQL server is installed")]
async fn a_revocation_holds_also_where_notifications_are_lost() {
    let pair = Pair::start().await;
    pair.proxy.set(Network::Deaf);
    let longest = tell("notifications lost", &pair.revoke_many(revocations()).await);
    assert!(longest < BOUND);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(keysweep_no_postgres, ignore = "left out: no PostgreSQL server is installed")]
async fn every_other_change_is_heard_as_well() {
    let pair = Pair::start().await;
    for network in [Network::Whole, Network::Deaf] {
        pair.proxy.set(network);
        let mut keys = pair.one.clients.keys.clone();

        let (key_id, secret) = pair.known_key().await;
        let rotate = key::RotateApiKeyRequest { key_id, overlap: None, request_id: String::new() };
        let successor = keys.rotate_api_key(made_for(ADMIN, rotate).expect("an actor")).await.expect("a successor");
        pair.heard(&secret, &[], VerifyCode::Revoked, Instant::now()).await;
        assert_eq!(pair.other.code(&successor.get_ref().secret).await, Ok(VerifyCode::Valid));

        let (key_id, secret) = pair.known_key().await;
        assert_eq!(pair.other.verify(&secret, &["read"]).await.expect("an answer").code(), VerifyCode::Valid);
        let scopes = key::ApiKey { key_id: key_id.clone(), scopes: vec!["write".to_owned()], ..Default::default() };
        let update = key::UpdateApiKeyRequest { api_key: Some(scopes), ..Default::default() };
        keys.update_api_key(made_for(ADMIN, update).expect("an actor")).await.expect("new scopes");
        pair.heard(&secret, &["read"], VerifyCode::InsufficientScope, Instant::now()).await;

        // In memory again, with the new scopes.
        assert_eq!(pair.other.verify(&secret, &["write"]).await.expect("an answer").code(), VerifyCode::Valid);
        let expire_time = Some(to_proto(SystemClock.now() + chrono::TimeDelta::milliseconds(300)));
        let expiry = key::ApiKey { key_id, expire_time, ..Default::default() };
        let update = key::UpdateApiKeyRequest { api_key: Some(expiry), ..Default::default() };
        keys.update_api_key(made_for(ADMIN, update).expect("an actor")).await.expect("an expiry");
        pair.heard(&secret, &[], VerifyCode::Expired, Instant::now()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(keysweep_no_postgres, ignore = "left out: no PostgreSQL server is installed")]
async fn a_replica_that_cannot_hear_nor_read_says_so() {
    let pair = Pair::start().await;
    let (key_id, secret) = pair.known_key().await;
    pair.proxy.set(Network::Silent);
    // It answers from memory for a while: nothing says yet that it has missed anything.
    assert_eq!(pair.other.code(&secret).await, Ok(VerifyCode::Valid));
    pair.one.revoke(&key_id).await;
    let revoked = Instant::now();
    let mut unavailable = 0;
    while unavailable < 3 {
        let asked = Instant::now();
        let answer = pair.other.code(&secret).await;
        let late = asked.duration_since(revoked);
        match answer {
            Ok(VerifyCode::Valid) => assert!(late < BOUND, "VALID {late:?} after the revocation"),
            other => {
                assert_eq!(other, Err(Code::Unavailable), "{late:?} after the revocation");
                unavailable += u32::from(late >= BOUND);
            }
        }
        // A call at a time: what is asked for often is the time, not the server.
        tokio::task::yield_now().await;
    }
    pair.proxy.set(Network::Whole);
    let heard = wait::until("the other replica to read again", async || match pair.other.code(&secret).await {
        Err(code) => {
            assert_eq!(code, Code::Unavailable);
            None
        }
        Ok(code) => Some(code),
    })
    .await;
    assert_eq!(heard, VerifyCode::Revoked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(keysweep_no_postgres, ignore = "left out: no PostgreSQL server is installed")]
async fn a_replica_whose_connections_were_cut_finds_back() {
    let pair = Pair::start().await;
    let (key_id, secret) = pair.known_key().await;
    pair.proxy.set(Network::Cut);
    pair.one.revoke(&key_id).await;
    pair.proxy.set(Network::Whole);
    let revoked = Instant::now();
    wait::until("the other replica to refuse", async || match pair.other.code(&secret).await {
        Ok(VerifyCode::Revoked) => Some(()),
        Ok(VerifyCode::Valid) | Err(Code::Unavailable) => {
            assert!(revoked.elapsed() < BOUND, "not heard {:?} after the revocation", revoked.elapsed());
            None
        }
        other => panic!("{other:?}"),
    })
    .await;
}

/// The entry of a key in the only plan, as a replica tells it; none: nothing is planned.
async fn entry(replica: &KeyReplica, key_id: &str) -> Option<key::Entry> {
    let mut sweeps = replica.clients.sweeps.clone();
    let plans = sweeps.list_sweep_plans(key::ListSweepPlansRequest::default()).await.expect("plans").into_inner();
    let plan_id = plans.sweep_plans.first()?.plan_id.clone();
    let request = key::ListEntriesRequest { plan_id, ..Default::default() };
    let listed = sweeps.list_entries(request).await.expect("entries").into_inner().entries;
    listed.into_iter().find(|entry| entry.key_id == key_id)
}

/// Lets the sweep come to what is due at an instant. By the real processes' clock the desk's lease is one of the future, and they
/// may take it back in between.
async fn sweep_until(desk: &Desk, at: DateTime<Utc>, replica: &KeyReplica, key_id: &str, state: key::EntryState) {
    wait::until("the sweep", async || {
        desk.advance(at).await;
        (entry(replica, key_id).await?.state() == state).then_some(())
    })
    .await;
}

/// Membership of a plan, and a deletion, hold for whoever has the key in memory: a key that was refused for a scope it lacks is
/// kept there, and no such call is a use.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(keysweep_no_postgres, ignore = "left out: no PostgreSQL server is installed")]
async fn a_plan_and_its_deletions_hold_for_every_replica() {
    let (fleet, database) = (KeyFleet::new(), TestDatabase::new(Kind::Postgres));
    let began = SystemClock.now();
    let (sweep_at, day) = cadence(began);
    let rows = ["used", "idle"].map(|one| legacy_row("agy_1", one, None, began - TimeDelta::days(700)));
    let desk = Desk::open(&database.config(), &fleet.keyring(), day, sweep_at - TimeDelta::days(20)).await;
    desk.import(rows.to_vec()).await;
    desk.close().await;
    let pair = Pair::with(fleet, database, &[("KEYSWEEP_SWEEP__DAY", &day.to_string())]).await;

    // Not planned yet, and in both memories.
    for (replica, one) in [(&pair.one, "used"), (&pair.other, "used"), (&pair.one, "idle"), (&pair.other, "idle")] {
        let answer = replica.verify(&legacy_secret(one), &["pay"]).await.expect("an answer");
        assert_eq!(answer.code(), VerifyCode::InsufficientScope);
    }
    let mut keys = pair.one.clients.keys.clone();
    let listed = keys.list_api_keys(made_for(ADMIN, key::ListApiKeysRequest::default()).expect("an actor")).await;
    let listed = listed.expect("keys").into_inner().api_keys;
    let id_of = |reference: &str| {
        let key = listed.iter().find(|key| key.external_reference == reference).expect("an imported key");
        key.key_id.clone()
    };
    let (used, idle) = (id_of("used"), id_of("idle"));
    let plan_at = sweep_at - TimeDelta::days(15) - TimeDelta::hours(5);
    let desk = Desk::open(&pair.database.config(), &pair.fleet.keyring(), day, plan_at).await;
    sweep_until(&desk, plan_at, &pair.one, &used, key::EntryState::Planned).await;

    // Planned: the first use, wherever, rescues it, and both say so.
    let answer = pair.other.verify(&legacy_secret("used"), &[]).await.expect("an answer");
    assert_eq!(answer.code(), VerifyCode::Valid);
    assert!(!answer.plan_id.is_empty(), "the use of a planned key names no plan");
    for replica in [&pair.one, &pair.other] {
        assert_eq!(entry(replica, &used).await.map(|entry| entry.state()), Some(key::EntryState::Rescued));
        let again = replica.verify(&legacy_secret("used"), &[]).await.expect("an answer");
        assert_eq!((again.code(), again.plan_id.as_str()), (VerifyCode::Valid, ""));
    }

    // Deleted by a process that is neither.
    pair.proxy.set(Network::Deaf);
    desk.sweep(sweep_at, "agy_1").await;
    sweep_until(&desk, sweep_at, &pair.one, &idle, key::EntryState::Deleted).await;
    desk.close().await;
    let deleted = Instant::now();
    for replica in [&pair.one, &pair.other] {
        wait::until("the deletion to be heard of", async || {
            let asked = Instant::now();
            let code = replica.verify(&legacy_secret("idle"), &["pay"]).await.expect("an answer").code();
            let late = asked.duration_since(deleted);
            assert!(code == VerifyCode::DeletedBySweep || late < BOUND, "{code:?} {late:?} after the deletion");
            (code == VerifyCode::DeletedBySweep).then_some(())
        })
        .await;
        assert_eq!(replica.code(&legacy_secret("used")).await, Ok(VerifyCode::Valid));
    }
}
