//! The process that is measured: echo, SELECT and key-service on one runtime, apart from the load.

use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use key_service::{Config, DEFAULTS, KeyService};
use service_kit::cli::Service;
use service_kit::{Deps, db, telemetry};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::echo::Echo;
use crate::seed::Ring;

/// What the process serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    /// A bare echo.
    Echo,
    /// An echo that reads the row first.
    Select,
    /// key-service itself.
    Key,
}

/// Serves all three until the standard input ends; prints their ports.
#[expect(clippy::print_stdout, reason = "the ports are for the process that started this one")]
pub(crate) async fn serve() -> anyhow::Result<()> {
    let config: Config = service_kit::config::load(DEFAULTS, None)?;
    telemetry::init_logging(&config.log)?;
    telemetry::serve_metrics(&config.metrics, KeyService::METRICS)?;
    let ring = Arc::new(Ring::parse(std::fs::read_to_string(&config.keyring.path)?)?);
    let pool = db::connect(&config.database).await?;
    let mut listeners = Vec::new();
    for _ in 0..3 {
        listeners.push(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?);
    }
    let ports: Vec<_> = listeners.iter().map(|one| one.local_addr().map(|at| at.port())).collect::<Result<_, _>>()?;
    let mut listeners = listeners.into_iter();
    let mut next = || listeners.next().context("three listeners");
    tokio::spawn(Echo::bare().serve(next()?));
    tokio::spawn(Echo::selecting(pool, ring).serve(next()?));
    let shutdown = CancellationToken::new();
    let service = tokio::spawn(key_service::run(config, Deps::system(), next()?, shutdown.clone()));
    println!("{}", ports.iter().map(u16::to_string).collect::<Vec<_>>().join(" "));
    std::io::stdout().flush()?;
    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await??;
    shutdown.cancel();
    service.await?
}

/// A process that serves; killed when dropped.
#[derive(Debug)]
pub(crate) struct Measured {
    child: Child,
    ports: Vec<u16>,
}

impl Measured {
    /// This program again, as [`serve`].
    pub(crate) fn bench(settings: &[(String, String)]) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("--serve")
            .env_clear()
            .envs(settings.iter().cloned())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the process to be measured")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("its output")?).read_line(&mut line)?;
        let ports: Vec<u16> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        anyhow::ensure!(ports.len() == 3, "the process to be measured did not start");
        Ok(Self { child, ports })
    }

    /// The real binary, as it is deployed, on `port`.
    pub(crate) fn binary(settings: &[(String, String)], port: u16) -> anyhow::Result<Self> {
        let child = Command::new(env!("CARGO_BIN_EXE_key-service"))
            .arg("serve")
            .env_clear()
            .envs(settings.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start key-service")?;
        Ok(Self { child, ports: vec![port; 3] })
    }

    pub(crate) fn port(&self, server: Server) -> u16 {
        self.ports[server as usize]
    }

    /// Processor time that the process has used, user and system; to 10 ms.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The name, in parentheses, may hold blanks; user and system time are fields 14 and 15, in hundredths.
        let rest = stat.rsplit(')').next().unwrap_or_default();
        let ticks: u64 =
            rest.split_whitespace().skip(11).take(2).map(str::parse::<u64>).sum::<Result<_, _>>().context("stat")?;
        Ok(Duration::from_millis(ticks * 10))
    }

    /// Memory that the process has resident, bytes.
    pub(crate) fn resident(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? * 1_024)
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        // It is measured no more: its last uses need not be stored.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
