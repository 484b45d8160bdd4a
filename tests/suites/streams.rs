//! Many subscribers that read nothing, before one real key-service: what they have not read stays on disk.
//!
//! `KEYSWEEP_SUBSCRIBERS=1000 cargo test -p keysweep-e2e --test streams -- --nocapture` has so many of them, and prints what they cost.

#[expect(dead_code, reason = "each suite uses a part of it")]
mod desk;

use std::time::Duration;

use chrono::TimeDelta;
use desk::{Desk, cadence};
use futures::future::try_join_all;
use keysweep_e2e::replica::{KeyFleet, KeyReplica};
use keysweep_proto::key::v1 as key;
use keysweep_proto::key::v1::sweep_service_client::SweepServiceClient;
use sea_orm::ConnectionTrait;
use service_kit::clock::{Clock, SystemClock};
use service_kit::db;
use service_kit::testing::{Kind, TestDatabase};
use service_kit::time::to_micros;
use tokio::time::Instant;
use tonic::Streaming;
use tonic::transport::Endpoint;

/// Keys of the plan: thirty chunks of entries, some 250 KB each, that nobody reads.
const KEYS: usize = 30_000;
/// For each hundred of them: each is sent entries that are read from disk for it.
const PATIENCE_A_HUNDRED: Duration = Duration::from_secs(60);
/// Memory that has not moved for so many looks stands still.
const LOOKS: usize = 20;
const LOOK: Duration = Duration::from_millis(250);
/// What one connection takes before it is read, as gRPC has it by default.
const WINDOW: u32 = 65_535;
/// A message on its way for each, in a buffer that doubles as it grows; all that they could read would be ten times as much.
const MOST_A_SUBSCRIBER: u64 = 768 * 1024;

type Events = Streaming<key::SubscribeSweepPlansResponse>;

/// A subscription on a connection of its own.
async fn subscribe(endpoint: String) -> Result<Events, tonic::Status> {
    let endpoint = Endpoint::from_shared(endpoint).expect("an endpoint");
    let channel = endpoint.initial_connection_window_size(WINDOW).initial_stream_window_size(WINDOW).connect_lazy();
    let request = key::SubscribeSweepPlansRequest { subscriber: "slow".to_owned(), ..Default::default() };
    Ok(SweepServiceClient::new(channel).subscribe_sweep_plans(request).await?.into_inner())
}

/// A database with a large plan that was just published.
async fn planned(database: &TestDatabase, fleet: &KeyFleet) -> u32 {
    let began = SystemClock.now();
    let (sweep_at, day) = cadence(began);
    let desk = Desk::open(&database.config(), &fleet.keyring(), day, sweep_at - TimeDelta::days(16)).await;
    let db = db::connect(&database.config()).await.expect("the database");
    let created = to_micros(began - TimeDelta::days(700));
    let sql = format!(
        "INSERT INTO api_keys (id, agency_id, location_id, display_name, display_prefix, scopes, allowed_cidrs, created_at, state, \
         selector, revision) SELECT 'key_0194f7e0000070008000' || lpad(n::text, 12, '0'), 'agy_0194f7e00000700080000000000000', \
         'loc_0194f7e00000700080000000' || lpad((n / 5)::text, 8, '0'), 'till ' || n, 'ksw_loc_abcd', '[]', '[]', {created}, 1, \
         convert_to(lpad(n::text, 16, '0'), 'UTF8'), 1 FROM generate_series(1, {KEYS}) AS n"
    );
    db.execute_unprepared(&sql).await.expect("keys");
    desk.advance(sweep_at - TimeDelta::days(15) - TimeDelta::hours(5)).await;
    desk.close().await;
    day
}

/// The memory of a process whose subscribers have all they take: then it stands still.
async fn at_rest(replica: &KeyReplica, patience: Duration) -> u64 {
    let (begun, mut before, mut calm) = (Instant::now(), 0, 0);
    while calm < LOOKS {
        assert!(begun.elapsed() < patience, "its memory does not come to rest: {before} bytes");
        tokio::time::sleep(LOOK).await;
        let now = replica.process.resident_bytes();
        calm = if now.abs_diff(before) < now / 500 { calm + 1 } else { 0 };
        before = now;
    }
    before
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(keysweep_no_postgres, ignore = "left out: no PostgreSQL server is installed")]
async fn subscribers_that_read_nothing_cost_a_message_each() {
    let (database, fleet) = (TestDatabase::new(Kind::Postgres), KeyFleet::new());
    let day = planned(&database, &fleet).await.to_string();
    let settings = [("KEYSWEEP_SWEEP__DAY", day.as_str()), ("KEYSWEEP_DATABASE__ACQUIRE_TIMEOUT_MS", "600000")];
    let replica = fleet.start("one", &database.url, &settings).await;
    let idle = replica.process.resident_bytes();
    let subscribers = std::env::var("KEYSWEEP_SUBSCRIBERS").map_or(100, |text| text.parse().expect("a number"));
    let endpoints = (0..subscribers).map(|_| subscribe(replica.endpoint.clone()));
    let mut streams = try_join_all(endpoints).await.expect("all are subscribed");
    let full = at_rest(&replica, PATIENCE_A_HUNDRED * u32::try_from(subscribers / 100 + 1).expect("a number")).await;
    let each = full.saturating_sub(idle) / subscribers as u64;
    println!(
        "{subscribers} subscribers that read nothing: {} MiB resident, {} MiB without them, {} KiB each",
        full >> 20,
        idle >> 20,
        each >> 10
    );
    assert!(each <= MOST_A_SUBSCRIBER, "{each} bytes a subscriber");
    // One that begins to read at last finds everything.
    let mut late = streams.pop().expect("a stream");
    let (mut entries, mut sealed) = (0, false);
    while !sealed {
        let message = late.message().await.expect("a message").expect("no end");
        match message.event.and_then(|event| event.payload) {
            Some(key::sweep_event::Payload::PlanEntries(chunk)) => entries += chunk.entries.len(),
            Some(key::sweep_event::Payload::PlanSealed(_)) => sealed = true,
            _ => {}
        }
    }
    assert_eq!(entries, KEYS);
}
