//! `keysweep quarter`: a whole quarter on a simulated clock, and what became of every promise.

mod calendar;
mod facts;
mod fate;
mod import;
mod place;
mod play;
mod promises;
mod timeline;
mod world;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{bail, ensure};
use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use clap::Args;
use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, Table, TableComponent, presets};
use service_kit::clock::{Clock, SimulatedClock, SystemClock};
use service_kit::telemetry::{LogConfig, init_logging};

use crate::suite::{Mail, Plan, Suite};
use calendar::{IDLE, midnight, next_sweep};
use place::Place;
use play::{Notes, Play};
pub use promises::Promise;
use timeline::{Timeline, Topic, count};
use world::World;

/// What `keysweep quarter` can be told
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// How many agencies
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub agencies: u32,
    /// How many locations, spread over the agencies
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub locations: u32,
    /// How many keys
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub keys: u32,
    /// Determines who does what when
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// First day of the quarter whose sweep is played, such as 2027-01-01; the next one unless said otherwise
    #[arg(long, value_name = "DATE", value_parser = parse_sweep)]
    pub sweep: Option<DateTime<Utc>>,
    /// PostgreSQL server on which three databases are made for the time being, instead of SQLite
    #[arg(long, value_name = "URL")]
    pub database_url: Option<String>,
    /// SMTP server for the emails, such as 127.0.0.1:1025; without it they become files
    #[arg(long, value_name = "HOST:PORT", value_parser = crate::up::parse_smtp)]
    pub smtp: Option<(String, u16)>,
    /// Keys to take over instead of generating some, as `key-service import` reads them: shows what the next sweep would do
    #[arg(long, value_name = "CSV", conflicts_with_all = ["agencies", "locations", "keys"])]
    pub import: Option<PathBuf>,
    /// Have notification-service stopped from 16 to 10 days before the sweep
    #[arg(long)]
    pub outage: bool,
    /// Keep databases and emails in this folder, which must be empty or missing
    #[arg(long, value_name = "FOLDER")]
    pub keep: Option<PathBuf>,
    /// What the services log: error, warn, info, debug, or a filter
    #[arg(long, default_value = "error", value_name = "LEVEL")]
    pub log: String,
}

/// What became of a quarter.
#[derive(Debug)]
pub struct Outcome {
    /// Every promise.
    pub promises: Vec<Promise>,
}

impl Outcome {
    /// The faults of all promises that were broken.
    pub fn faults(&self) -> Vec<String> {
        let broken = self.promises.iter().filter(|promise| !promise.is_kept());
        broken.flat_map(|promise| promise.faults.iter().map(|fault| format!("{}: {fault}", promise.promise))).collect()
    }
}

fn parse_sweep(text: &str) -> Result<DateTime<Utc>, String> {
    let day: NaiveDate = text.parse().map_err(|_| "must be a date such as 2027-01-01")?;
    let at = midnight(day);
    if next_sweep(at - TimeDelta::days(2)) == at {
        Ok(at)
    } else {
        Err("sweeps are on the first of January, April, July and October".to_owned())
    }
}

/// Plays a quarter for a person: the timeline, then the table of promises.
///
/// # Errors
/// When a service fails, or a promise was broken.
pub async fn run(options: Options) -> anyhow::Result<()> {
    init_logging(&LogConfig { level: options.log.clone(), format: "text".to_owned() })?;
    let started = Instant::now();
    let outcome = play(&options, true).await?;
    let broken = outcome.promises.iter().filter(|promise| !promise.is_kept()).count();
    report(&outcome, started);
    if broken > 0 {
        bail!("{broken} of {} promises were broken", outcome.promises.len());
    }
    Ok(())
}

/// Plays a quarter and checks every promise; with `visible`, the timeline goes to standard output.
///
/// # Errors
/// When a service fails or the options do not fit. A broken promise is no error but part of the outcome.
pub async fn play(options: &Options, visible: bool) -> anyhow::Result<Outcome> {
    // A file's keys have their own past: their quarter is the one that has begun.
    let now = SystemClock.now();
    let sweep = options.sweep.unwrap_or_else(|| next_sweep(now));
    let start = if options.import.is_some() { now } else { sweep - IDLE - TimeDelta::hours(12) };
    ensure!(start < sweep, "the sweep of {} lies in the past", sweep.format("%-d %B %Y"));

    let clock = Arc::new(SimulatedClock::new(start));
    let place = Place::find(options).await?;
    let result = play_in(options, visible, clock, sweep, &place).await;
    place.leave(result.is_ok()).await?;
    result
}

async fn play_in(
    options: &Options,
    visible: bool,
    clock: Arc<SimulatedClock>,
    sweep: DateTime<Utc>,
    place: &Place,
) -> anyhow::Result<Outcome> {
    let mail = match &options.smtp {
        Some((host, port)) => Mail::Smtp { host: host.clone(), port: *port },
        None => Mail::Maildir(place.folder.join("mail")),
    };
    let plan = Plan {
        databases: place.databases.clone(),
        keyrings: place.keyrings(),
        ports: [0; 3],
        mail,
        // No limit: the wall clock would hold up the simulated one.
        mails_per_second: Some(0),
        clock: clock.clone(),
        seed: Some(options.seed),
    };
    let suite = Suite::start(plan).await?;
    let clients = suite.clients()?;
    let mut play = Play {
        suite,
        clients,
        clock,
        world: World::default(),
        sweep,
        timeline: Timeline::new(visible),
        notes: Notes::default(),
    };
    introduce(&play, options, place);
    populate(&mut play, options).await?;
    play.run(options.seed, options.outage).await?;
    let promises = promises::check(&play, &place.folder, place.keeps_files()).await?;
    play.suite.stop().await?;
    Ok(Outcome { promises })
}

fn introduce(play: &Play, options: &Options, place: &Place) {
    let where_to = options
        .smtp
        .as_ref()
        .map_or_else(|| "emails to files".to_owned(), |(host, port)| format!("emails to {host}:{port}"));
    play.timeline.plain(&format!(
        "\n  keysweep · the quarter before {} · seed {} · {} · {where_to}\n",
        play.sweep.format("%-d %B %Y"),
        options.seed,
        place.kind(),
    ));
}

async fn populate(play: &mut Play, options: &Options) -> anyhow::Result<()> {
    let now = play.clock.now();
    if let Some(file) = &options.import {
        let refused = import::take_over(play, file, now).await?;
        let text = format!(
            "{} of {} taken over from a file",
            count_of(play.world.keys.len(), "key"),
            count_of(play.world.agencies.len(), "agency")
        );
        play.timeline.line(now, Topic::World, &text);
        if refused > 0 {
            play.timeline.line(
                now,
                Topic::World,
                &format!(
                    "{} refused: `key-service import` says why",
                    count(i64::try_from(refused).unwrap_or(i64::MAX), "row")
                ),
            );
        }
        return Ok(());
    }
    let (agencies, locations, keys) = (options.agencies as usize, options.locations as usize, options.keys as usize);
    play.world = World::populate(&play.clients, agencies, locations, options.seed).await?;
    let people: usize = play.world.agencies.iter().map(|a| a.admins.len()).sum::<usize>()
        + play.world.locations.iter().map(|l| l.admins.len()).sum::<usize>();
    let text = format!(
        "{} and {} with {}; no key yet",
        count_of(agencies, "agency"),
        count_of(locations, "location"),
        count_of(people, "admin")
    );
    play.timeline.line(now, Topic::World, &text);
    let bar = play.timeline.bar(u64::from(options.keys), "keys");
    play.world.generate_keys(&play.clients, keys, options.seed, now, |n| bar.inc(n)).await?;
    bar.finish_and_clear();
    play.timeline.line(
        now,
        Topic::World,
        &format!("{} generated, each because an admin asked for it", count_of(keys, "key")),
    );
    let busy = count_of(play.busy(), "key");
    play.timeline.line(now, Topic::Use, &format!("{busy} will be used now and then; the others fall idle"));
    Ok(())
}

fn count_of(number: usize, noun: &str) -> String {
    count(i64::try_from(number).unwrap_or(i64::MAX), noun)
}

#[expect(clippy::print_stdout, reason = "the table is what the person who typed the command waits for")]
fn report(outcome: &Outcome, started: Instant) {
    let mut table = Table::new();
    table
        .load_preset(presets::UTF8_HORIZONTAL_ONLY)
        .remove_style(TableComponent::HorizontalLines)
        .remove_style(TableComponent::MiddleIntersections)
        .set_content_arrangement(ContentArrangement::Dynamic);
    if !table.is_tty() {
        table.set_width(TABLE_WIDTH);
    }
    table.set_header(["promised", "owed", "happened", ""]);
    for promise in &outcome.promises {
        let (mark, color) = if promise.is_kept() { ("kept", Color::Green) } else { ("BROKEN", Color::Red) };
        table.add_row([
            Cell::new(promise.promise),
            Cell::new(&promise.expected),
            Cell::new(&promise.happened),
            Cell::new(mark).fg(color).set_alignment(CellAlignment::Right),
        ]);
    }
    println!("\n{table}");
    for promise in outcome.promises.iter().filter(|promise| !promise.is_kept()) {
        println!("\n  {} was broken {} times:", promise.promise, promise.faults.len());
        for fault in promise.faults.iter().take(10) {
            println!("    {fault}");
        }
    }
    let peak = peak_memory().map(|mebibytes| format!(", {mebibytes} MiB of memory at most")).unwrap_or_default();
    println!("\n  {:.1} s for a quarter{peak}.", started.elapsed().as_secs_f64());
}

/// Columns of the table where nobody watches: what a log or a page shows without wrapping.
const TABLE_WIDTH: u16 = 132;

/// The most memory that this process has had resident, in MiB, where the system tells.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kibibytes / 1_024)
}
