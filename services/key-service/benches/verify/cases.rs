//! What is measured side by side.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use keysweep_proto::key::v1::VerifyCode;

use crate::child::{Measured, Server};
use crate::load::{Clients, Draw, Walk, call, closed_loop};
use crate::options::Options;
use crate::report::{Figure, Report};
use crate::seed::Seeded;
use crate::slices::{Bench, Target};

/// Callers of the passes that warm a cache.
const WARM_UP_CALLERS: usize = 128;
/// Few enough for every negative cache.
const KNOWN_UNKNOWN: u64 = 1_000;
/// Calls in flight where only one number is asked for.
const USUAL_IN_FLIGHT: usize = 64;

/// All paired cases on one database: the misses while nothing is cached, then the rest.
pub(crate) async fn run(bench: &Bench<'_>, report: &mut Report) -> anyhow::Result<()> {
    let keys = bench.options.keys;
    let echo = Target::new(Server::Echo, Draw::Random(keys));
    let once = Target::new(Server::Key, Draw::Once(Walk::new(keys)));
    if bench.options.wants("miss") {
        // Other rows than those that the candidate is about to ask for, as cold as they.
        let select = Target::new(Server::Select, Draw::Random(keys));
        for in_flight in bench.options.in_flight.clone() {
            bench.paired(report, "miss", in_flight, &[echo.clone(), select.clone()], &once).await?;
        }
    }
    warm(bench.clients(Server::Key), &once.draw, bench.options.quick).await?;
    bench.settle(bench.options.settle_wholly()).await?;
    let draws = [
        ("echo", Draw::Random(keys), Server::Echo),
        ("hit", Draw::Random(keys), Server::Key),
        ("malformed", Draw::Malformed(keys), Server::Key),
        ("unknown-cached", Draw::KnownUnknown(KNOWN_UNKNOWN), Server::Key),
        ("unknown-fresh", Draw::FreshUnknown, Server::Key),
    ];
    for (case, draw, server) in draws {
        if bench.options.wants(case) {
            let candidate = Target::new(server, draw);
            for in_flight in bench.options.in_flight.clone() {
                bench.paired(report, case, in_flight, std::slice::from_ref(&echo), &candidate).await?;
            }
        }
    }
    if bench.options.wants("sizes") {
        for size in sizes(keys) {
            let candidate = Target::new(Server::Key, Draw::Random(size));
            let case = format!("hit of {size}");
            bench.paired(report, &case, USUAL_IN_FLIGHT, std::slice::from_ref(&echo), &candidate).await?;
        }
    }
    if bench.options.wants("sustained") {
        sustained(bench, report).await?;
    }
    Ok(())
}

/// Hits without a pause between them: how many calls a second there are once so many uses wait to be stored that they
/// take turns.
async fn sustained(bench: &Bench<'_>, report: &mut Report) -> anyhow::Result<()> {
    let part = 10 * bench.options.slice();
    let draw = Arc::new(Draw::Random(bench.options.keys));
    let load = async |server, time| {
        let clients = bench.clients(server);
        let load = (&draw, VerifyCode::Valid);
        let slice = closed_loop(clients, USUAL_IN_FLIGHT, load, (Duration::ZERO, time), &bench.measured).await?;
        anyhow::ensure!(slice.errors == 0, "{} errors, the first: {:?}", slice.errors, slice.first_error);
        anyhow::Ok(slice.calls_per_s)
    };
    bench.settle(bench.options.settle_wholly()).await?;
    let echo = load(Server::Echo, part / 2).await?;
    let mut shares = Vec::new();
    for number in 1..=6 {
        shares.push((format!("hits without a pause, part {number} of 6"), load(Server::Key, part).await? / echo));
    }
    shares.push(("echo while those uses are stored".to_owned(), load(Server::Echo, part / 2).await? / echo));
    for (what, share) in shares {
        report.figure(Figure::new(bench.seeded.name(), &what, share, "× echo"));
    }
    Ok(())
}

/// Four sizes, each ten times the one before.
fn sizes(keys: u64) -> impl Iterator<Item = u64> {
    (0..4).rev().map(move |power| (keys / 10_u64.pow(power)).max(1))
}

/// Verifies every key that `once` has left.
async fn warm(clients: &Clients, once: &Arc<Draw>, quiet: bool) -> anyhow::Result<()> {
    let begun = Instant::now();
    let callers: Vec<_> = (0..WARM_UP_CALLERS)
        .map(|caller| {
            let (mut client, once) = (clients.of(caller), once.clone());
            tokio::spawn(async move {
                let mut calls = 0_u64;
                while let Some(request) = once.request() {
                    call(&mut client, request, VerifyCode::Valid).await.map_err(anyhow::Error::msg)?;
                    calls += 1;
                }
                anyhow::Ok(calls)
            })
        })
        .collect();
    let mut calls = 0;
    for caller in callers {
        calls += caller.await?.context("a seeded key does not verify")?;
    }
    if !quiet {
        eprintln!("warmed: {calls} keys in {:.0} s", begun.elapsed().as_secs_f64());
    }
    Ok(())
}

/// Verifies every key once.
pub(crate) async fn warm_all(bench: &Bench<'_>) -> anyhow::Result<()> {
    let once = Arc::new(Draw::Once(Walk::new(bench.options.keys)));
    warm(bench.clients(Server::Key), &once, bench.options.quick).await?;
    bench.settle(bench.options.settle_wholly()).await
}

/// What the real binary holds resident before and after every key was verified once.
pub(crate) async fn memory(options: &Options, seeded: &Seeded, report: &mut Report) -> anyhow::Result<()> {
    let port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
    let mut settings = seeded.settings(port)?;
    settings.extend(options.overrides()?);
    let process = Measured::binary(&settings, port)?;
    let clients = Clients::connect(port, options.connections).await?;
    // Connections, statements and allocator warm, and next to no key cached.
    let first = Arc::new(Draw::Once(Walk::new(options.keys.min(1_000))));
    warm(&clients, &first, true).await?;
    settled(options, seeded).await?;
    let idle = process.resident()?;
    warm(&clients, &Arc::new(Draw::Once(Walk::new(options.keys))), options.quick).await?;
    settled(options, seeded).await?;
    let full = process.resident()?;
    let on = seeded.name();
    report.figure(Figure::new(on, "memory idle, 1,000 keys cached at most", idle as f64 / 1_048_576.0, "MiB"));
    report.figure(Figure::new(on, &format!("memory after {} keys", options.keys), full as f64 / 1_048_576.0, "MiB"));
    let per_key = full.saturating_sub(idle) as f64 / options.keys.saturating_sub(1_000).max(1) as f64;
    report.figure(Figure::new(on, "memory a cached key", per_key, "bytes (goal P3: at most 160)"));
    Ok(())
}

/// Two flushes later, whatever waited to be stored is stored.
async fn settled(options: &Options, seeded: &Seeded) -> anyhow::Result<()> {
    let before = seeded.flushed_through().await?;
    let patience = Instant::now() + options.settle_wholly();
    while seeded.flushed_through().await? < before + 2_500_000 && Instant::now() < patience {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
