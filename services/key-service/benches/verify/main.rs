//! What `VerifyKey` costs beside a bare tonic unary echo, in one run.
//!
//! `cargo bench -p key-service --bench verify`, with options after `--`:
//!
//! | option | default | |
//! | --- | --- | --- |
//! | `--keys N` | 1000000 | keys in each database, all ACTIVE and used just now |
//! | `--rounds N` | 9 | paired slices of each measurement |
//! | `--slice-ms N`, `--lead-ms N` | 1000, 500 | length of a slice, and of the load before it |
//! | `--in-flight A,B` | 1,16,64,256 | calls in flight, over `--connections` (4) |
//! | `--only CASE,…` | all | `miss`, `single-flight`, `echo`, `hit`, `malformed`, `unknown-cached`, `unknown-fresh`, `sizes`, `sustained`, `recording`, `memory` |
//! | `--database D` | both | `sqlite` or `postgres` |
//! | `--set NAME=VALUE` | | a setting of key-service, by its name in the environment |
//! | `--plot FILE` | target/bench/verify.svg | where the plot goes |
//! | `--quick` | | seconds instead of half an hour: shows that everything runs, measures nothing |
//!
//! PostgreSQL is a throwaway cluster, or the empty database that `KEYSWEEP_BENCH_POSTGRES` names by its URL.
//!
//! The load runs in this process; echo and key-service (`key_service::run`) run in another, on one tokio runtime, with the
//! same settings of tonic's server. Both take the same requests and answer as many bytes. A candidate's slice lies between
//! two of its reference, and the ratio is the median over the rounds of candidate ÷ mean of the two. Every slice begins in
//! the middle of its own load, so that what is flushed during it is paid for by it, and the next waits two seconds for uses to be stored. A call
//! that is not answered as it should be is an error, and no call; with any error the run fails.
//!
//! - *echo*: the echo beside itself, which shows the noise. *hit*: random keys, all verified before; each use is recorded.
//! - *malformed*: a wrong checksum. *unknown-cached*, *unknown-fresh*: well-formed secrets of no key, a thousand over and over, and
//!   never the same.
//! - *miss*: keys that were never asked for, beside the echo and beside an echo that reads the row by one bare prepared SELECT
//!   through a pool of the same size. *single-flight*: 1,000 callers of one cold key, counted by PostgreSQL.
//! - *sizes*: hits among ever more keys. *sustained*: hits for a minute without a pause, when uses wait their turn to be
//!   stored, and the echo right after, while they are: how much of a flush a reference may bear. *recording*: database time a use (`pg_stat_database.active_time`) at 10,000 distinct
//!   keys a second, beside bare UNNEST batches. *memory*: what the real binary holds resident, before and after every key was verified.

#![expect(clippy::print_stderr, reason = "a benchmark tells whoever ran it how far it is")]

use std::process::ExitCode;

use mimalloc::MiMalloc;
use service_kit::testing::Kind;

/// The binary's own.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

mod cases;
mod child;
mod echo;
mod load;
mod options;
mod plot;
mod postgres;
mod report;
mod seed;
mod slices;

use options::Options;
use report::Report;
use seed::Seeded;
use slices::Bench;

async fn run(options: &Options) -> anyhow::Result<()> {
    let mut report = Report::default();
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let name = if kind == Kind::Sqlite { "sqlite" } else { "postgres" };
        if !options.wants_database(name) {
            continue;
        }
        if kind == Kind::Postgres && cfg!(keysweep_no_postgres) && std::env::var_os("KEYSWEEP_BENCH_POSTGRES").is_none()
        {
            eprintln!("PostgreSQL: left out, no server is installed and KEYSWEEP_BENCH_POSTGRES is not set");
            continue;
        }
        let begun = std::time::Instant::now();
        let seeded = Seeded::new(kind, options.keys).await?;
        eprintln!("{name}: {} keys seeded in {:.0} s", options.keys, begun.elapsed().as_secs_f64());
        measure(options, &seeded, &mut report).await?;
    }
    report.finish(options.plot.as_deref())
}

async fn measure(options: &Options, seeded: &Seeded, report: &mut Report) -> anyhow::Result<()> {
    let bench = Bench::start(options, seeded, &[]).await?;
    let postgres = seeded.kind == Kind::Postgres;
    if postgres && options.wants("single-flight") {
        postgres::single_flight(&bench, report).await?;
    }
    cases::run(&bench, report).await?;
    drop(bench);
    if postgres && options.wants("recording") {
        // All that is asked for is stored at once: what it costs is the question, not what the setting allows.
        let bench = Bench::start(options, seeded, &[("KEYSWEEP_USAGE__FLUSH_MAX_KEYS", "1000000")]).await?;
        cases::warm_all(&bench).await?;
        postgres::recording(&bench, report).await?;
    }
    if options.wants("memory") {
        cases::memory(options, seeded, report).await?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let options = Options::read();
    // As the binaries are run, both the load and what it is put on.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let done = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        runtime.block_on(async { if options.serve { child::serve().await } else { run(&options).await } })
    });
    service_kit::cli::exit_code(done)
}
