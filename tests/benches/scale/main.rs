//! What a sweep costs beside the database's own bounds, in one run: plan, stream, projection, first notices, deletion.
//!
//! `cargo bench -p keysweep-e2e --bench scale`, with options after `--`:
//!
//! | option | default | |
//! | --- | --- | --- |
//! | `--keys N` | 1000000 | keys in the database, all ACTIVE |
//! | `--stale N` | a tenth | those that nobody has used for 90 days |
//! | `--database D` | both | `sqlite` or `postgres` |
//! | `--sizes` | | four sizes up to `--keys` with as many stale keys, and four numbers of stale keys among as many: the plot |
//! | `--plot FILE` | target/bench/scale.svg | where the plot goes |
//! | `--verify` | | verification beside each step, instead of bounds |
//! | `--quick` | | seconds instead of minutes: shows that everything runs, measures nothing |
//!
//! PostgreSQL is a throwaway cluster, which does not flush to disk, with 1 GiB of shared memory. Keys, agencies and people are written by the database itself; the keys of an
//! agency lie scattered among those of all others, and one agency owns a fortieth of all keys, each in a location of its own.
//! key-service, location-service and notification-service run each in a process of its own (this program again), with a
//! clock that this one moves and jobs that it activates, but for those that keep verification going, which run each second; between them is
//! real gRPC.
//!
//! - *plan*: the transaction that makes it. Bound: its own `INSERT … SELECT` into a table with the same indexes.
//! - *stream and project*: from the plan's commit until notification-service has committed all of it. Bound: the rows of the projection into a
//!   table with the same indexes, by binary COPY on PostgreSQL, by `INSERT … SELECT` on SQLite.
//! - *stream alone*: a client that reads and drops it.
//! - *dispatch of D15*: inboxes and queued emails of every lot, its people asked of location-service.
//! - *deletion*: the sweeper's activations at the deletion instant, all receipts given: gate, tombstones, audit, events. Bounds, in batches of
//!   1,000, each a transaction: a DELETE that asks the same of a key, in the order of the keys, from a table without other indexes; the same DELETE lot by lot, with all
//!   indexes; and the three rows that the rules ask to be written for a key (tombstone, entry, audit event), lot by lot, and nothing else.
//!
//! `--verify` has eight callers verify 256 keys all the time, each its next as soon as it has an answer.
//!
//! Memory is what each process has resident when idle and at its most. The longest batch is the sweeper's own figure.

#![expect(clippy::print_stderr, reason = "a benchmark tells whoever ran it how far it is")]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use mimalloc::MiMalloc;
use service_kit::testing::{Kind, TestDatabase};

mod beside;
mod bounds;
mod child;
mod measure;
mod plot;
mod report;
mod seed;

use child::Role;
use seed::Size;

/// key-service's own.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// What a sweep costs beside the database's own bounds
#[derive(Parser, Debug)]
struct Options {
    /// Keys in the database
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// Keys that nobody has used for 90 days; a tenth if not given
    #[arg(long)]
    stale: Option<u64>,
    /// Only this database: sqlite or postgres
    #[arg(long)]
    database: Option<String>,
    /// Several sizes up to that of --keys, for the plot
    #[arg(long)]
    sizes: bool,
    /// Where the plot is written
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Verification beside each step, instead of bounds
    #[arg(long)]
    verify: bool,
    /// Few keys: shows in seconds that everything runs, and measures nothing
    #[arg(long)]
    quick: bool,
    /// Serve, as a process that is measured; the bench starts it itself
    #[arg(long, hide = true)]
    serve: Option<Role>,
    /// Where the clock of such a process begins
    #[arg(long, hide = true, default_value_t = 0)]
    start: i64,
    /// What cargo passes to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    fn wanted(&self) -> Vec<Size> {
        let keys = if self.quick { self.keys.min(8_000) } else { self.keys };
        let stale = self.stale.unwrap_or(keys / 10);
        if !self.sizes {
            return vec![Size { keys, stale }];
        }
        let grown = [4, 3, 2, 1].map(|part| Size { keys: keys / part, stale: stale / 4 });
        let staler = [3, 2, 1].map(|part| Size { keys, stale: stale / part });
        [grown.as_slice(), staler.as_slice()].concat()
    }

    /// Verifications beside nothing, if there are any: some ten seconds of them.
    fn verified(&self) -> Option<usize> {
        self.verify.then_some(if self.quick { 2_000 } else { 200_000 })
    }
}

/// The server's own default of 128 MiB is a quarter of 1,000,000 keys; who has ten times as many gives it more.
const SHARED_BUFFERS: &str = "1GB";

async fn run(options: &Options) -> anyhow::Result<()> {
    TestDatabase::share_memory(SHARED_BUFFERS);
    let mut outcomes = Vec::new();
    for (kind, wanted) in [(Kind::Postgres, "postgres"), (Kind::Sqlite, "sqlite")] {
        if options.database.as_deref().is_some_and(|only| only != wanted) {
            continue;
        }
        if kind == Kind::Postgres && cfg!(keysweep_no_postgres) {
            eprintln!("PostgreSQL: left out, no server is installed");
            continue;
        }
        for size in options.wanted() {
            eprintln!("{}: {} keys, {} stale", report::name(kind), size.keys, size.stale);
            let outcome = measure::run(kind, size, options.verified()).await?;
            report::print(&outcome);
            outcomes.push(outcome);
        }
    }
    report::write(&outcomes, options.plot.as_deref())
}

fn main() -> ExitCode {
    let options = Options::parse();
    // As the binaries are run.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let done = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        runtime.block_on(async {
            match options.serve {
                Some(role) => child::serve(role, options.start).await,
                None => run(&options).await,
            }
        })
    });
    service_kit::cli::exit_code(done)
}
