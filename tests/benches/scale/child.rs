//! A service in a process of its own, whose clock and jobs this benchmark moves.

use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use futures::future::BoxFuture;
use key_service::KeyService;
use location_service::LocationService;
use notification_service::NotificationService;
use serde::{Deserialize, Serialize};
use service_kit::Deps;
use service_kit::cli::{CommonConfig, Service};
use service_kit::clock::Clock;
use service_kit::entropy::OsEntropy;
use service_kit::jobs::JobRegistry;
use service_kit::telemetry;
use service_kit::time::{from_micros, truncate};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Which service a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Role {
    Key,
    Location,
    Notification,
}

/// The real time, moved forward: leases and batches last as long as they do.
#[derive(Debug)]
struct MovedClock {
    begun: Instant,
    start: DateTime<Utc>,
    moved: watch::Sender<TimeDelta>,
}

impl MovedClock {
    fn move_to(&self, at: DateTime<Utc>) {
        let left = at - self.now();
        self.moved.send_modify(|moved| *moved += left.max(TimeDelta::zero()));
    }

    /// Waits until nothing is left, however the clock is moved meanwhile.
    fn wait(&self, left: impl Fn() -> Duration + Send) -> impl Future<Output = ()> + Send {
        let mut moves = self.moved.subscribe();
        async move {
            // The sender lives as long as the clock: a move is all that can end this early.
            while !left().is_zero() && tokio::time::timeout(left(), moves.changed()).await.is_ok() {}
        }
    }
}

impl Clock for MovedClock {
    fn now(&self) -> DateTime<Utc> {
        truncate(self.start + *self.moved.borrow() + self.begun.elapsed())
    }

    fn lived(&self) -> Duration {
        self.begun.elapsed() + self.moved.borrow().to_std().unwrap_or_default()
    }

    fn database_now(&self) -> Option<DateTime<Utc>> {
        Some(self.now())
    }

    fn sleep(&self, by: Duration) -> BoxFuture<'_, ()> {
        let until = self.lived() + by;
        Box::pin(self.wait(move || until.saturating_sub(self.lived())))
    }

    fn sleep_until(&self, at: DateTime<Utc>) -> BoxFuture<'_, ()> {
        Box::pin(self.wait(move || (at - self.now()).to_std().unwrap_or_default()))
    }
}

/// What a process is asked, a line each.
#[derive(Debug, Serialize, Deserialize)]
enum Ask {
    /// Moves the clock to this instant, unix microseconds.
    At(i64),
    /// Activates a job.
    Job(String),
}

/// What a job took, and its report.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) seconds: f64,
    pub(crate) detail: serde_json::Value,
    error: Option<String>,
}

/// Serves until the standard input ends, from `start` on.
pub(crate) async fn serve(role: Role, start: i64) -> anyhow::Result<()> {
    match role {
        Role::Key => serve_as::<KeyService>(start).await,
        Role::Location => serve_as::<LocationService>(start).await,
        Role::Notification => serve_as::<NotificationService>(start).await,
    }
}

/// What verification from memory depends on goes on by itself: hearing what others have changed, and storing uses.
const EVERYDAY: [&str; 2] = ["follow_changes", "flush_uses"];

#[expect(clippy::print_stdout, reason = "the answers are for the process that started this one")]
async fn serve_as<S: Service + 'static>(start: i64) -> anyhow::Result<()>
where
    S::Config: 'static,
{
    let config: S::Config = service_kit::config::load(S::DEFAULTS, None)?;
    telemetry::init_logging(config.log())?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let port = listener.local_addr()?.port();
    let clock =
        Arc::new(MovedClock { begun: Instant::now(), start: from_micros(start), moved: watch::Sender::default() });
    let jobs = JobRegistry::driven().except(&EVERYDAY);
    let deps = Deps { clock: clock.clone(), entropy: Arc::new(OsEntropy), jobs: jobs.clone() };
    let shutdown = CancellationToken::new();
    let service = tokio::spawn(S::run(config, deps, listener, shutdown.clone()));
    println!("{port}");
    std::io::stdout().flush()?;
    let runtime = tokio::runtime::Handle::current();
    let asked = move || -> anyhow::Result<()> {
        for line in std::io::stdin().lines() {
            let mut answer = Answer::default();
            match serde_json::from_str(&line?)? {
                Ask::At(at) => clock.move_to(from_micros(at)),
                Ask::Job(name) => {
                    let begun = Instant::now();
                    match runtime.block_on(jobs.activate(&name)) {
                        Ok(report) => answer.detail = report.detail,
                        Err(error) => answer.error = Some(format!("{error:#}")),
                    }
                    answer.seconds = begun.elapsed().as_secs_f64();
                }
            }
            println!("{}", serde_json::to_string(&answer)?);
            std::io::stdout().flush()?;
        }
        Ok(())
    };
    tokio::task::spawn_blocking(asked).await??;
    shutdown.cancel();
    service.await?
}

/// A process that serves; killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    pub(crate) port: u16,
}

impl Process {
    /// This program again, as [`serve`].
    pub(crate) fn start(role: Role, start: i64, settings: &[(&str, String)]) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(format!("--serve={}", format!("{role:?}").to_lowercase()))
            .arg(format!("--start={start}"))
            .env_clear()
            .envs(settings.iter().map(|(name, value)| (name, value)))
            .env("KEYSWEEP_LOG__LEVEL", "warn")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the process to be measured")?;
        let input = child.stdin.take().context("its input")?;
        let mut output = BufReader::new(child.stdout.take().context("its output")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        let port = line.trim().parse().with_context(|| format!("{role:?} did not start"))?;
        Ok(Self { child, input, output, port })
    }

    fn ask(&mut self, ask: &Ask) -> anyhow::Result<Answer> {
        writeln!(self.input, "{}", serde_json::to_string(ask)?)?;
        self.input.flush()?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let answer: Answer = serde_json::from_str(&line).with_context(|| format!("after {ask:?}: {line:?}"))?;
        match &answer.error {
            Some(error) => anyhow::bail!("{ask:?}: {error}"),
            None => Ok(answer),
        }
    }

    /// Moves its clock forward.
    pub(crate) fn at(&mut self, at: i64) -> anyhow::Result<()> {
        self.ask(&Ask::At(at)).map(drop)
    }

    /// Activates a job and waits for its report.
    pub(crate) fn job(&mut self, name: &str) -> anyhow::Result<Answer> {
        self.ask(&Ask::Job(name.to_owned()))
    }

    /// A line of its status in /proc, MiB.
    fn status(&self, line: &str) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let found = status.lines().find_map(|text| text.strip_prefix(line)).context("no such line")?;
        Ok(found.trim_start_matches(':').trim().trim_end_matches(" kB").trim().parse::<f64>()? / 1_024.0)
    }

    /// Memory resident now, MiB.
    pub(crate) fn resident(&self) -> anyhow::Result<f64> {
        self.status("VmRSS")
    }

    /// The most memory that was ever resident, MiB.
    pub(crate) fn peak(&self) -> anyhow::Result<f64> {
        self.status("VmHWM")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
