//! key-service killed where it stands, again and again, while it verifies: what was answered OK is never forgotten further
//! than the recording slack, and a planned key that was answered OK outlives its sweep.
//!
//! `KEYSWEEP_KILL_ROUNDS=1000 cargo test -p keysweep-e2e --test kills -- --nocapture` kills as often; `KEYSWEEP_KILL_SEED` repeats
//! the instants of a run.

mod desk;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use desk::{Desk, cadence, legacy_row, legacy_secret};
use keysweep_e2e::replica::{KeyFleet, KeyReplica};
use keysweep_proto::key::v1 as key;
use keysweep_proto::key::v1::VerifyCode;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};
use service_kit::both_databases;
use service_kit::clock::{Clock, SystemClock};
use service_kit::db::{self, DatabaseConfig};
use service_kit::entropy::{Entropy, OsEntropy};
use service_kit::time::{from_micros, to_micros};

/// Keys that are used in every round.
const LIVE: usize = 24;
/// Planned keys that are used in one round, and first there.
const PLANNED_A_ROUND: usize = 3;
/// Planned keys that nobody uses: they must be deleted, or the sweep proves nothing.
const IDLE: usize = 5;
const CALLERS: usize = 6;
/// Short, so that a round has uses on both sides of it.
const SLACK: TimeDelta = TimeDelta::milliseconds(300);
/// A round's load goes on for so long at most.
const LONGEST: Duration = Duration::from_millis(600);

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// The database, seen from outside.
struct Watch(DatabaseConnection);

impl Watch {
    async fn open(config: &DatabaseConfig) -> Self {
        Self(db::connect(config).await.expect("the database"))
    }

    /// Stored use and state of each key of an agency, by reference.
    async fn keys(&self, agency: &str) -> BTreeMap<String, (Option<DateTime<Utc>>, i16)> {
        let sql = format!(
            "SELECT external_reference, last_used_at, state FROM api_keys WHERE agency_id = '{agency}' \
             AND external_reference IS NOT NULL"
        );
        let rows = self.0.query_all_raw(Statement::from_string(self.0.get_database_backend(), sql)).await;
        let read = |row: sea_orm::QueryResult| {
            let used_at: Option<i64> = row.try_get("", "last_used_at").expect("an instant");
            let state = row.try_get("", "state").expect("a state");
            (row.try_get("", "external_reference").expect("a reference"), (used_at.map(from_micros), state))
        };
        rows.expect("keys").into_iter().map(read).collect()
    }

    /// The planned keys whose entries are still to be deleted.
    async fn still_planned(&self) -> BTreeSet<String> {
        // 1 is PLANNED.
        let sql =
            "SELECT k.external_reference FROM sweep_entries e JOIN api_keys k ON k.id = e.key_id WHERE e.state = 1";
        let rows = self.0.query_all_raw(Statement::from_string(self.0.get_database_backend(), sql)).await;
        rows.expect("entries").iter().map(|row| row.try_get("", "external_reference").expect("a reference")).collect()
    }
}

/// One caller until the server is gone: the keys that were answered OK, and when they were last asked for.
async fn caller(
    replica: key::key_service_client::KeyServiceClient<tonic::transport::Channel>,
    keys: Vec<String>,
) -> Uses {
    let (mut replica, mut uses) = (replica, Uses::default());
    for reference in keys.iter().cycle() {
        let sent = SystemClock.now();
        let request = key::VerifyKeyRequest { secret: legacy_secret(reference), ..Default::default() };
        let Ok(answer) = replica.verify_key(request).await else { break };
        assert_eq!(answer.get_ref().code(), VerifyCode::Valid, "{reference}");
        uses.calls += 1;
        uses.rescues += u64::from(!answer.get_ref().plan_id.is_empty());
        uses.latest.insert(reference.clone(), sent);
    }
    uses
}

#[derive(Debug, Default)]
struct Uses {
    calls: u64,
    rescues: u64,
    /// When a call that was answered OK was last sent, by key.
    latest: BTreeMap<String, DateTime<Utc>>,
}

impl Uses {
    fn add(&mut self, other: Self) {
        self.calls += other.calls;
        self.rescues += other.rescues;
        for (reference, sent) in other.latest {
            let latest = self.latest.entry(reference).or_insert(sent);
            *latest = sent.max(*latest);
        }
    }
}

/// Load until the process is killed, at an instant of the generator's choice.
async fn round(mut replica: KeyReplica, keys: &[String], random: &mut StdRng) -> Uses {
    let callers: Vec<_> = (0..CALLERS)
        .map(|number| {
            let mut own = keys.to_vec();
            own.rotate_left(number * keys.len() / CALLERS);
            tokio::spawn(caller(replica.clients.keys.clone(), own))
        })
        .collect();
    // Not a wait for anything: the kill may come at any instant.
    tokio::time::sleep(LONGEST.mul_f64(random.random_range(0.0..1.0))).await;
    replica.process.kill().await;
    let mut uses = Uses::default();
    for caller in callers {
        uses.add(caller.await.expect("a caller"));
    }
    uses
}

/// No key that was answered OK has a stored use older than that by more than the slack; answers which are older at all.
async fn check_stored(watch: &Watch, all: &Uses, seed: u64, round: usize) -> BTreeSet<String> {
    let mut stored = watch.keys("agy_live").await;
    stored.extend(watch.keys("agy_planned").await);
    let planned = watch.still_planned().await;
    let mut behind = BTreeSet::new();
    for (reference, sent) in &all.latest {
        let (used_at, _) = stored[reference];
        let used_at = used_at.unwrap_or_default();
        let lost = *sent - used_at;
        assert!(lost < SLACK, "{reference}: {lost} lost in round {round} of seed {seed}");
        assert!(!planned.contains(reference), "{reference} is still planned after round {round} of seed {seed}");
        if lost > TimeDelta::zero() {
            behind.insert(reference.clone());
        }
    }
    behind
}

both_databases! {
    #[expect(clippy::print_stdout, reason = "what was done is for whoever runs the long form")]
    async fn what_was_answered_ok_survives_kills(database: TestDatabase) {
        let rounds = number("KEYSWEEP_KILL_ROUNDS").unwrap_or(10) as usize;
        let mut drawn = [0; 8];
        OsEntropy.fill(&mut drawn);
        let seed = number("KEYSWEEP_KILL_SEED").unwrap_or(u64::from_le_bytes(drawn));
        println!("{:?}: {rounds} rounds, KEYSWEEP_KILL_SEED={seed}", database.kind);
        let mut random = StdRng::seed_from_u64(seed);
        let fleet = KeyFleet::new();
        let began = SystemClock.now();
        let (sweep_at, day) = cadence(began);

        let live: Vec<_> = (0..LIVE).map(|n| format!("live-{n}")).collect();
        let planned: Vec<_> = (0..rounds * PLANNED_A_ROUND).map(|n| format!("planned-{n}")).collect();
        let long_ago = began - TimeDelta::days(700);
        let mut rows: Vec<_> = live.iter().map(|one| legacy_row("agy_live", one, Some(began), long_ago)).collect();
        rows.extend(planned.iter().map(|one| legacy_row("agy_planned", one, None, long_ago)));
        rows.extend((0..IDLE).map(|n| legacy_row("agy_planned", &format!("idle-{n}"), None, long_ago)));
        let desk = Desk::open(&database.config(), &fleet.keyring(), day, sweep_at - TimeDelta::days(16)).await;
        desk.import(rows).await;
        desk.advance(sweep_at - TimeDelta::days(15) - TimeDelta::hours(5)).await;
        desk.close().await;

        let watch = Watch::open(&database.config()).await;
        assert_eq!(watch.still_planned().await.len(), planned.len() + IDLE);
        let (slack, day_text) = (SLACK.num_milliseconds().to_string(), day.to_string());
        let settings = [("KEYSWEEP_USAGE__RECORDING_SLACK_MS", slack.as_str()), ("KEYSWEEP_SWEEP__DAY", &day_text)];
        let (mut all, mut behind) = (Uses::default(), 0);
        for (number, fresh) in planned.chunks(PLANNED_A_ROUND).enumerate() {
            let replica = fleet.start("killed", &database.url, &settings).await;
            let uses = round(replica, &[&live, fresh].concat(), &mut random).await;
            let used: BTreeSet<_> = uses.latest.keys().cloned().collect();
            all.add(uses);
            behind += check_stored(&watch, &all, seed, number).await.intersection(&used).count();
        }

        let answered: BTreeSet<_> = all.latest.keys().filter(|one| one.starts_with("planned")).cloned().collect();
        let desk = Desk::open(&database.config(), &fleet.keyring(), day, sweep_at - TimeDelta::days(15)).await;
        desk.sweep(sweep_at, "agy_planned").await;
        desk.close().await;
        let after = watch.keys("agy_planned").await;
        let deleted: BTreeSet<_> = after.iter().filter(|(_, (_, state))| *state == 3).map(|(one, _)| one.clone()).collect();
        assert!((0..IDLE).all(|n| deleted.contains(&format!("idle-{n}"))), "the sweep deleted nothing: {deleted:?}");
        let wrong: Vec<_> = answered.intersection(&deleted).collect();
        assert!(wrong.is_empty(), "deleted although answered OK, seed {seed}: {wrong:?}");
        println!(
            "{:?}: {} kills, {} calls answered OK; {} times a key's last use was lost within the slack, never beyond; {} planned keys \
             answered OK and kept ({} rescues told), {} deleted; {:.0} s",
            database.kind, rounds, all.calls, behind, answered.len(), all.rescues, deleted.len(),
            (to_micros(SystemClock.now()) - to_micros(began)) as f64 / 1e6
        );
    }
}
