//! The commands that every service binary has.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use sea_orm_migration::MigratorTrait;
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::Deps;
use crate::auth::{AuthConfig, AuthMode, Surface, Trust};
use crate::client::ClientConfig;
use crate::config::Validate;
use crate::db::DatabaseConfig;
use crate::server::ServerConfig;
use crate::telemetry::{self, LogConfig, Metric, MetricsConfig, TracesConfig};

/// The sections that every service's configuration has.
pub trait CommonConfig {
    /// Where it listens.
    fn server(&self) -> &ServerConfig;
    /// Whom it trusts.
    fn auth(&self) -> &AuthConfig;
    /// Where its data is.
    fn database(&self) -> &DatabaseConfig;
    /// How it logs.
    fn log(&self) -> &LogConfig;
    /// Where it shows metrics.
    fn metrics(&self) -> &MetricsConfig;
    /// Where its traces go.
    fn traces(&self) -> &TracesConfig;
}

/// A service that the commands can run.
pub trait Service {
    /// Its name, as in traces.
    const NAME: &'static str;
    /// The built-in configuration, naming every setting.
    const DEFAULTS: &'static str;
    /// Its configuration.
    type Config: DeserializeOwned + Validate + CommonConfig + Send;
    /// Its migrations.
    type Migrator: MigratorTrait;
    /// What it shows besides what all services do.
    const METRICS: &'static [Metric];
    /// What it serves, and to whom.
    const SURFACE: &'static Surface;

    /// Runs until `shutdown`, then drains.
    fn run(
        config: Self::Config,
        deps: Deps,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// The options that every command takes.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// TOML file with settings; the environment's `KEYSWEEP_<SECTION>__<SETTING>` goes over it
    #[arg(long, global = true, env = crate::config::CONFIG_FILE_VARIABLE, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// The commands that every service has.
#[derive(Subcommand, Clone, Copy, Debug)]
pub enum Command {
    /// Serve until SIGTERM or Ctrl-C, then drain and stop
    Serve,
    /// Apply the pending database migrations and stop
    Migrate,
    /// Say whether the configuration is right, with every fault, and stop
    CheckConfig,
    /// Ask the running service for its health and stop: exit code 0 means SERVING
    Healthcheck,
}

/// Runs a command in a process whose memory nobody else reads.
pub fn private(command: impl FnOnce() -> ExitCode) -> ExitCode {
    match crate::memory::keep_private() {
        Ok(()) => command(),
        refused => exit_code(refused),
    }
}

/// Runs a command; faults go to standard error.
pub fn execute<S: Service>(command: Command, options: &Options) -> ExitCode {
    exit_code(try_execute::<S>(command, options.config.as_deref()))
}

/// Runs a command that one service alone has, with its configuration, its log and a runtime; faults go to standard error.
pub fn execute_own<S: Service, F>(options: &Options, command: impl FnOnce(S::Config) -> F) -> ExitCode
where
    F: Future<Output = anyhow::Result<()>>,
{
    let run = || {
        let config: S::Config = crate::config::load(S::DEFAULTS, options.config.as_deref())?;
        runtime()?.block_on(async {
            telemetry::init_logging(config.log())?;
            command(config).await
        })
    };
    exit_code(run())
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")
}

/// The exit code of a command, its error on standard error.
#[expect(clippy::print_stderr, reason = "there may be no log yet, and a person is waiting")]
pub fn exit_code(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", format!("{error:#}").trim_end());
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "the answer of check-config is for a person")]
fn try_execute<S: Service>(command: Command, file: Option<&Path>) -> anyhow::Result<()> {
    let config: S::Config = crate::config::load(S::DEFAULTS, file)?;
    let runtime = runtime()?;
    match command {
        Command::Serve => runtime.block_on(serve::<S>(config)),
        Command::Migrate => runtime.block_on(async {
            telemetry::init_logging(config.log())?;
            let db = crate::db::connect(config.database()).await?;
            crate::db::migrate::<S::Migrator>(&db).await
        }),
        Command::CheckConfig => {
            println!("the configuration is valid");
            Ok(())
        }
        Command::Healthcheck => runtime.block_on(healthcheck(&config, S::SURFACE)),
    }
}

async fn serve<S: Service>(config: S::Config) -> anyhow::Result<()> {
    telemetry::init(config.log(), config.traces(), S::NAME)?;
    telemetry::serve_metrics(config.metrics(), S::METRICS)?;
    let listen = config.server().listen;
    let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    let shutdown = CancellationToken::new();
    stop_on_signals(shutdown.clone())?;
    let served = S::run(config, Deps::system(), listener, shutdown).await;
    telemetry::flush().await;
    served
}

/// Cancels `shutdown` at the first SIGTERM or Ctrl-C.
///
/// # Errors
/// When the signals cannot be listened for.
pub fn stop_on_signals(shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        shutdown.cancel();
    });
    Ok(())
}

const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(3);

async fn healthcheck(config: &impl CommonConfig, surface: &Surface) -> anyhow::Result<()> {
    let mut listen = config.server().listen;
    if listen.ip().is_unspecified() {
        let loopback: std::net::IpAddr =
            if listen.is_ipv4() { std::net::Ipv4Addr::LOCALHOST.into() } else { std::net::Ipv6Addr::LOCALHOST.into() };
        listen.set_ip(loopback);
    }
    let trust = Trust::open(config.auth(), surface, &Deps::system().clock)?;
    let scheme = if config.auth().mode == AuthMode::Mtls { "https" } else { "http" };
    let timeout_ms = HEALTHCHECK_TIMEOUT.as_secs() * 1_000;
    let config = ClientConfig {
        endpoint: format!("{scheme}://{listen}"),
        connect_timeout_ms: timeout_ms,
        request_timeout_ms: timeout_ms,
    };
    let mut client = HealthClient::new(crate::client::channel_to_self(&config, &trust)?);
    let check = client.check(HealthCheckRequest { service: String::new() });
    let answer = tokio::time::timeout(HEALTHCHECK_TIMEOUT, check)
        .await
        .with_context(|| format!("{listen} does not answer"))?
        .with_context(|| format!("{listen} cannot be asked"))?;
    anyhow::ensure!(answer.get_ref().status() == ServingStatus::Serving, "{listen} is {:?}", answer.get_ref().status());
    Ok(())
}
