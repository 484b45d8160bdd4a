//! How fast the first notices of a large plan go out by email, and that none is lost or doubled when the process dies over it.
//!
//! `cargo bench -p notification-service --bench mail`
//!
//! Runs the real binary against a mail server in a process of its own, which speaks SMTP, takes everything and notes each
//! Message-ID, and against peers in this one. 100,000 emails, five to an agency, are dispatched first and held back by a daily
//! limit; then the limit is lifted and the clock started. After 40 % the binary is killed (SIGKILL) and started again. It prints
//! the rates, the largest resident memory, and from the mail server's own book how many emails are missing, doubled, and
//! doubled without being counted as in doubt; the exit code is 0 only if there are none of the first and the last.
//!
//! Arguments after `--` choose among `letter`, `sqlite` and `postgres`. It runs on SQLite in a temporary folder, then on PostgreSQL: on the empty database that `KEYSWEEP_BENCH_POSTGRES` names by
//! its URL, or else on a throwaway cluster, which does not flush to disk, where a server is installed. Before, one letter with
//! 250,000 keys is sent, for the memory that it needs. `KEYSWEEP_BENCH_MAILS` changes the number of emails,
//! `KEYSWEEP_BENCH_CONNECTIONS` that of connections to the mail server, `KEYSWEEP_BENCH_LOCATIONS` that of the letter's keys.

#![expect(clippy::print_stdout, reason = "a benchmark speaks to whoever ran it")]
#![allow(missing_docs, unreachable_pub, dead_code, reason = "the peers are those of the tests")]

#[path = "../../tests/support/peer.rs"]
mod peer;
mod sink;

use std::collections::HashMap;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use keysweep_proto::notification::v1::notification_service_client::NotificationServiceClient;
use keysweep_proto::notification::v1::{GetSubscriptionRequest, Subscription};
use sea_orm::{ConnectionTrait, Statement};
use secrecy::SecretString;
use service_kit::clock::{Clock, SystemClock};
use service_kit::db::{self, DatabaseConfig};
use service_kit::testing::{Kind, TestDatabase};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use peer::Peer;
use sink::Sink;

const ADMINS: usize = 5;
const KEYS: usize = 3;
const KILLED_AT: f64 = 0.4;
/// Short, and with it the leases that the killed process leaves behind.
const SMTP_TIMEOUT_MS: u64 = 5_000;

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// The real binary.
struct Service {
    child: Child,
    api: NotificationServiceClient<Channel>,
}

impl Service {
    async fn start(settings: &[(&str, String)], log: &Path) -> anyhow::Result<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        let child = Command::new(env!("CARGO_BIN_EXE_notification-service"))
            .arg("serve")
            .env_clear()
            .env("KEYSWEEP_SERVER__LISTEN", format!("127.0.0.1:{port}"))
            .envs(settings.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("the binary starts")?;
        let channel = Endpoint::from_shared(format!("http://127.0.0.1:{port}"))?.connect_lazy();
        let service = Self { child, api: NotificationServiceClient::new(channel) };
        for _ in 0..1_000 {
            if service.subscription().await.is_some() {
                return Ok(service);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        anyhow::bail!("the service does not start")
    }

    async fn subscription(&self) -> Option<Subscription> {
        Some(self.api.clone().get_subscription(GetSubscriptionRequest {}).await.ok()?.into_inner())
    }

    /// The largest resident memory so far, MiB.
    fn peak_mib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0");
        peak.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
    }

    fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// A plan, due now, with as many agencies as the emails need.
fn plan(peer: &Peer, mails: usize, now: DateTime<Utc>) -> usize {
    let agencies: Vec<String> = (0..mails.div_ceil(ADMINS)).map(|n| format!("agy_{n:06}")).collect();
    let keys: Vec<[String; KEYS]> =
        (0..agencies.len()).map(|n| std::array::from_fn(|k| format!("key_{n:06}_{k}"))).collect();
    for agency in &agencies {
        for admin in 0..ADMINS {
            peer.admin(agency, &format!("usr_{agency}_{admin}"), &format!("admin{admin}@{agency}.example"));
        }
    }
    let listed: Vec<_> =
        agencies.iter().zip(&keys).flat_map(|(a, keys)| keys.iter().map(|k| (a.as_str(), "", k.as_str()))).collect();
    peer.plan("plan_1", now, now + TimeDelta::days(15) + TimeDelta::hours(5), &listed);
    agencies.len() * ADMINS
}

/// What the database says of each email: by Message-ID, its state and whether it is counted as in doubt.
async fn deliveries(config: &DatabaseConfig) -> anyhow::Result<HashMap<String, (i16, bool)>> {
    let db = db::connect(config).await?;
    let sql = "SELECT message_id, state, in_doubt_count FROM deliveries";
    let rows = db.query_all_raw(Statement::from_string(db.get_database_backend(), sql)).await?;
    let of = |row: &sea_orm::QueryResult| -> Result<_, sea_orm::DbErr> {
        let in_doubt: i32 = row.try_get("", "in_doubt_count")?;
        Ok((row.try_get("", "message_id")?, (row.try_get("", "state")?, in_doubt > 0)))
    };
    let all = rows.iter().map(of).collect::<Result<_, _>>()?;
    db.close().await?;
    Ok(all)
}

/// Waits until so many emails are taken; answers how many were and when.
async fn until_taken(sink: &mut Sink, most: usize) -> anyhow::Result<(usize, Instant)> {
    loop {
        let taken = sink.taken()?;
        if taken >= most {
            return Ok((taken, Instant::now()));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people to read")]
fn rate(count: usize, from: Instant, to: Instant) -> f64 {
    count as f64 / (to - from).as_secs_f64()
}

async fn measure(config: &DatabaseConfig, url: &str, name: &str) -> anyhow::Result<bool> {
    let (mails, connections) = (number("KEYSWEEP_BENCH_MAILS", 100_000), number("KEYSWEEP_BENCH_CONNECTIONS", 16));
    let folder = tempfile::tempdir()?;
    let (log, end) = (folder.path().join("service.log"), CancellationToken::new());
    let peer = Peer::new(Arc::new(SystemClock));
    let mails = plan(&peer, mails, SystemClock.now());
    let peers = format!("http://{}", peer.serve(None, end.clone()).await);
    let mut sink = Sink::start()?;
    let (held_back, freely) =
        (settings(url, &peers, &sink, connections, 1), settings(url, &peers, &sink, connections, 0));

    let begun = Instant::now();
    let mut service = Service::start(&held_back, &log).await?;
    let dispatched = async |service: &Service| {
        let subscription = service.subscription().await;
        subscription.is_some_and(|it| it.deliveries_unsettled + 1 >= mails as i64)
    };
    while !dispatched(&service).await {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let lots = mails / ADMINS;
    println!(
        "{name}: {lots} lots dispatched in {:.1} s, {:.0} lots/s",
        begun.elapsed().as_secs_f64(),
        rate(lots, begun, Instant::now())
    );
    let idle = service.peak_mib();
    service.kill()?;

    let mut service = Service::start(&freely, &log).await?;
    let (early, from) = until_taken(&mut sink, mails / 100).await?;
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share")]
    let (before, to) = until_taken(&mut sink, (mails as f64 * KILLED_AT) as usize).await?;
    let first_rate = rate(before - early, from, to);
    let peak = service.peak_mib();
    service.kill()?;

    let mut service = Service::start(&freely, &log).await?;
    let at_restart = sink.taken()?;
    let (again, from) = until_taken(&mut sink, at_restart + mails / 100).await?;
    let (after, to) = until_taken(&mut sink, mails - mails / 100).await?;
    let second_rate = rate(after - again, from, to);
    // What the killed process had claimed comes when its leases have run out.
    while service.subscription().await.is_none_or(|it| it.deliveries_unsettled > 0 || it.receipts_owed > 0) {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let peak = peak.max(service.peak_mib());
    service.kill()?;
    end.cancel();

    let (book, known) = (sink.book()?, deliveries(config).await?);
    let missing = known.keys().filter(|id| !book.contains_key(*id)).count();
    let doubled: Vec<_> = book.iter().filter(|(_, count)| **count > 1).collect();
    let undoubted = doubled.iter().filter(|(id, _)| !known.get(*id).is_some_and(|one| one.1)).count();
    let unaccepted = known.values().filter(|one| one.0 != 3).count();
    println!(
        "{name}: {mails} emails over {connections} connections: {first_rate:.0}/s, after the kill {second_rate:.0}/s"
    );
    println!("{name}: largest resident memory {peak} MiB ({idle} MiB while dispatching)");
    println!(
        "{name}: {} Message-IDs taken of {}, {missing} missing, {unaccepted} not recorded as accepted, {} doubled, {undoubted} of them not counted as in doubt",
        book.len(),
        known.len(),
        doubled.len()
    );
    Ok(missing == 0 && undoubted == 0 && unaccepted == 0 && known.len() == mails)
}

/// One agency with a key in each of 250,000 locations: what its one letter needs.
async fn long_letter() -> anyhow::Result<()> {
    let (folder, end) = (tempfile::tempdir()?, CancellationToken::new());
    let db = TestDatabase::new(Kind::Sqlite);
    let (peer, mut sink) = (Peer::new(Arc::new(SystemClock)), Sink::start()?);
    let named: Vec<_> = (0..number("KEYSWEEP_BENCH_LOCATIONS", 250_000))
        .map(|n| (format!("loc_{n:08}"), format!("key_{n:08}")))
        .collect();
    let listed: Vec<_> = named.iter().map(|(location, key)| ("agy_big", location.as_str(), key.as_str())).collect();
    peer.admin("agy_big", "usr_a", "admin@agy-big.example");
    let now = SystemClock.now();
    peer.plan("plan_1", now, now + TimeDelta::days(15) + TimeDelta::hours(5), &listed);
    let peers = format!("http://{}", peer.serve(None, end.clone()).await);
    let begun = Instant::now();
    let mut service =
        Service::start(&settings(&db.url, &peers, &sink, 1, 0), &folder.path().join("service.log")).await?;
    let idle = service.peak_mib();
    while sink.taken()? == 0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (took, peak) = (begun.elapsed().as_secs_f64(), service.peak_mib());
    println!(
        "one letter with {} keys: sent {took:.1} s after the first event, largest resident memory {peak} MiB ({idle} MiB at the start)",
        named.len()
    );
    service.kill()?;
    end.cancel();
    Ok(())
}

fn settings(url: &str, peers: &str, sink: &Sink, connections: usize, per_day: usize) -> Vec<(&'static str, String)> {
    let level = std::env::var("KEYSWEEP_BENCH_LOG").unwrap_or_else(|_| "warn".to_owned());
    vec![
        ("KEYSWEEP_DATABASE__URL", url.to_owned()),
        ("KEYSWEEP_KEY_SERVICE__ENDPOINT", peers.to_owned()),
        ("KEYSWEEP_LOCATION_SERVICE__ENDPOINT", peers.to_owned()),
        ("KEYSWEEP_SMTP__HOST", "127.0.0.1".to_owned()),
        ("KEYSWEEP_SMTP__PORT", sink.port.to_string()),
        ("KEYSWEEP_SMTP__TLS", "none".to_owned()),
        ("KEYSWEEP_SMTP__TIMEOUT_MS", SMTP_TIMEOUT_MS.to_string()),
        ("KEYSWEEP_MAIL__MAX_PER_SECOND", "0".to_owned()),
        ("KEYSWEEP_MAIL__MAX_PER_DAY", per_day.to_string()),
        ("KEYSWEEP_MAIL__CONNECTIONS", connections.to_string()),
        ("KEYSWEEP_METRICS__LISTEN", String::new()),
        ("KEYSWEEP_LOG__LEVEL", level),
    ]
}

async fn all() -> anyhow::Result<bool> {
    // Cargo passes --bench on.
    let named: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |name: &str| named.is_empty() || named.iter().any(|one| one == name);
    if wanted("letter") {
        long_letter().await?;
    }
    let mut well = true;
    let sqlite = TestDatabase::new(Kind::Sqlite);
    if wanted("sqlite") {
        well &= measure(&sqlite.config(), &sqlite.url, "SQLite").await?;
    }
    if !wanted("postgres") {
        println!("PostgreSQL: left out, not asked for");
    } else if let Ok(url) = std::env::var("KEYSWEEP_BENCH_POSTGRES") {
        let config = DatabaseConfig { url: SecretString::from(url.clone()), ..sqlite.config() };
        well &= measure(&config, &url, "PostgreSQL").await?;
    } else if cfg!(keysweep_no_postgres) {
        println!("PostgreSQL: left out, no server is installed");
    } else {
        let throwaway = TestDatabase::new(Kind::Postgres);
        well &= measure(&throwaway.config(), &throwaway.url, "PostgreSQL").await?;
    }
    ensure!(well, "emails were lost or doubled");
    Ok(well)
}

fn main() -> ExitCode {
    if sink::is_asked_for() {
        return sink::serve();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    service_kit::cli::exit_code(runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(all())).map(|_| ()))
}
