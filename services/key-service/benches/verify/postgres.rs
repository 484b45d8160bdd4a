//! What PostgreSQL itself counts: queries for one cold key, and the time that recording uses takes there.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use keysweep_proto::key::v1::{VerifyCode, VerifyKeyRequest};
use sea_orm::sea_query::ArrayType;
use sea_orm::{ConnectionTrait, DbBackend, Statement, TransactionTrait, Value};
use service_kit::clock::{Clock, SystemClock};
use service_kit::time::to_micros;
use tokio::sync::Semaphore;

use crate::child::Server;
use crate::load::call;
use crate::report::{Figure, Report};
use crate::seed;
use crate::slices::Bench;

/// Callers of one cold key.
const CALLERS: usize = 1_000;
/// Distinct keys a second whose uses are recorded.
const USES_PER_S: u64 = 10_000;
/// As many as a debug build manages.
const QUICK_USES_PER_S: u64 = 500;
const UNNEST_BATCH: u64 = 10_000;
/// Coprime to any sensible number of keys: its multiples jump about and repeat late.
const STRIDE: u64 = 7_368_787;

/// Counts the queries that 1,000 callers of one key cause that no cache knows.
pub(crate) async fn single_flight(bench: &Bench<'_>, report: &mut Report) -> anyhow::Result<()> {
    // Nobody else looks keys up by this index: each scan of it is a query.
    let scans = "SELECT idx_scan AS n FROM pg_stat_user_indexes WHERE indexrelname = 'api_keys_selector'";
    tokio::time::sleep(bench.options.counters_are_late_by()).await;
    let before = count(bench, scans).await?;
    let secret = seed::secret(bench.options.keys - 1);
    let gate = Arc::new(Semaphore::new(0));
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (mut client, gate) = (bench.clients(Server::Key).of(caller), gate.clone());
            let request = VerifyKeyRequest { secret: secret.expose().to_owned(), ..Default::default() };
            tokio::spawn(async move {
                gate.acquire().await.map_err(|error| error.to_string())?.forget();
                call(&mut client, request, VerifyCode::Valid).await
            })
        })
        .collect();
    gate.add_permits(CALLERS);
    for caller in callers {
        caller.await?.map_err(anyhow::Error::msg)?;
    }
    tokio::time::sleep(bench.options.counters_are_late_by()).await;
    let queries = (count(bench, scans).await? - before) as f64;
    let what = format!("queries for {CALLERS} callers of one cold key");
    report.figure(Figure::new("postgres", &what, queries, "(goal P4: 1)"));
    Ok(())
}

/// Database time a use: recorded at 10,000 distinct keys a second, the same with three uses a key, and the bound.
pub(crate) async fn recording(bench: &Bench<'_>, report: &mut Report) -> anyhow::Result<()> {
    let (rounds, seconds, per_s) = if bench.options.quick { (1, 1, QUICK_USES_PER_S) } else { (3, 10, USES_PER_S) };
    let uses = seconds * per_s;
    let mut per_use: [Vec<f64>; 3] = Default::default();
    for round in 0..rounds {
        for (place, repeat) in [1, 3].into_iter().enumerate() {
            let begin = (round * 2 + place as u64) * uses;
            let before = active_ms(bench).await?;
            paced(bench, (begin, seconds, per_s), repeat).await?;
            bench.settle(bench.options.settle_wholly()).await?;
            tokio::time::sleep(bench.options.counters_are_late_by()).await;
            let spent = active_ms(bench).await? - before;
            per_use[place].push(spent * 1e3 / uses as f64);
        }
        per_use[2].push(bound(bench, round, uses).await?);
    }
    let [once, thrice, bound] = per_use.map(|mut values| {
        values.sort_unstable_by(f64::total_cmp);
        values[values.len() / 2]
    });
    let mut figure = |what: &str, value: f64, unit: &str| report.figure(Figure::new("postgres", what, value, unit));
    figure("database time a use, 10,000 distinct keys/s", once, "µs");
    figure("database time a key, three uses each within the second", thrice, "µs");
    figure("database time a use, bare UNNEST batches of 10,000", bound, "µs");
    figure("recording ÷ UNNEST bound", once / bound, "(goal P5: at most 1.3)");
    figure("three uses a key ÷ one", thrice / once, "(goal P5: 1)");
    Ok(())
}

/// Calls at a steady pace: so many distinct keys each second, each `repeat` times at once.
async fn paced(bench: &Bench<'_>, (begin, seconds, per_s): (u64, u64, u64), repeat: u64) -> anyhow::Result<()> {
    const TICKS_PER_S: u64 = 50;
    let mut ticks = tokio::time::interval(Duration::from_millis(1_000 / TICKS_PER_S));
    let keys = bench.options.keys;
    let in_flight = Arc::new(Semaphore::new(256));
    let mut calls = tokio::task::JoinSet::new();
    for tick in 0..seconds * TICKS_PER_S {
        ticks.tick().await;
        let first = begin + tick * (per_s / TICKS_PER_S);
        for place in first..first + per_s / TICKS_PER_S {
            let secret = seed::secret(place.wrapping_mul(STRIDE) % keys);
            for caller in 0..repeat {
                let (mut client, free) = (bench.clients(Server::Key).of((place + caller) as usize), in_flight.clone());
                let request = VerifyKeyRequest { secret: secret.expose().to_owned(), ..Default::default() };
                let permit = free.acquire_owned().await?;
                calls.spawn(async move {
                    let answer = call(&mut client, request, VerifyCode::Valid).await;
                    drop(permit);
                    answer.map(drop)
                });
            }
        }
        while let Some(done) = calls.try_join_next() {
            done?.map_err(anyhow::Error::msg)?;
        }
    }
    while let Some(done) = calls.join_next().await {
        done?.map_err(anyhow::Error::msg)?;
    }
    Ok(())
}

/// Database time a use, microseconds, when nothing but batches is stored.
async fn bound(bench: &Bench<'_>, round: u64, uses: u64) -> anyhow::Result<f64> {
    const STORE: &str = "UPDATE api_keys SET last_used_at = uses.used_at \
        FROM unnest($1::text[], $2::bigint[]) AS uses(id, used_at) WHERE api_keys.id = uses.id";
    let before = active_ms(bench).await?;
    for batch in 0..uses.div_ceil(UNNEST_BATCH) {
        let first = (round * 31 + batch) * UNNEST_BATCH;
        let numbers = (first..first + UNNEST_BATCH).map(|place| place.wrapping_mul(STRIDE) % bench.options.keys);
        let mut ids: Vec<String> = numbers.map(seed::key_id).collect();
        ids.sort_unstable();
        ids.dedup();
        let now = to_micros(SystemClock.now());
        let times = vec![Value::BigInt(Some(now)); ids.len()];
        let ids = ids.into_iter().map(Value::from).collect();
        let values = [
            Value::Array(ArrayType::String, Some(Box::new(ids))),
            Value::Array(ArrayType::BigInt, Some(Box::new(times))),
        ];
        bench.seeded.db.execute_raw(Statement::from_sql_and_values(DbBackend::Postgres, STORE, values)).await?;
    }
    tokio::time::sleep(bench.options.counters_are_late_by()).await;
    Ok((active_ms(bench).await? - before) * 1e3 / uses as f64)
}

/// Milliseconds that the database has spent on statements so far.
async fn active_ms(bench: &Bench<'_>) -> anyhow::Result<f64> {
    let sql = "SELECT active_time AS n FROM pg_stat_database WHERE datname = current_database()";
    let row = fresh(bench, sql).await?;
    Ok(row.try_get("", "n")?)
}

async fn count(bench: &Bench<'_>, sql: &str) -> anyhow::Result<i64> {
    Ok(fresh(bench, sql).await?.try_get("", "n")?)
}

async fn fresh(bench: &Bench<'_>, sql: &str) -> anyhow::Result<sea_orm::QueryResult> {
    let tx = bench.seeded.db.begin().await?;
    let row = tx.query_one_raw(Statement::from_string(DbBackend::Postgres, sql)).await?;
    tx.commit().await?;
    row.context("the counters have a row")
}
