//! `keysweep up`: the three services on their default ports, for trying keysweep out.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use key_service::KeyService;
use location_service::LocationService;
use notification_service::NotificationService;
use service_kit::cli::{Service, stop_on_signals};
use service_kit::clock::SystemClock;
use service_kit::telemetry::{LogConfig, MetricsConfig, init_logging, serve_metrics};
use tokio_util::sync::CancellationToken;

use crate::suite::{Mail, Plan, Suite, Which};

/// What `keysweep up` can be told
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Folder for the databases, their keyrings and the emails; made if missing
    #[arg(long, default_value = "./keysweep-data", value_name = "FOLDER")]
    pub data: PathBuf,
    /// SMTP server for the emails, such as 127.0.0.1:1025; without it they become files in the data folder
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_smtp)]
    pub smtp: Option<(String, u16)>,
    /// What to log: error, warn, info, debug, or a filter
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    pub log: String,
    /// Port of key-service
    #[arg(long, default_value_t = 50_051, value_name = "PORT")]
    pub key_port: u16,
    /// Port of location-service
    #[arg(long, default_value_t = 50_052, value_name = "PORT")]
    pub location_port: u16,
    /// Port of notification-service
    #[arg(long, default_value_t = 50_053, value_name = "PORT")]
    pub notification_port: u16,
    /// Address and port for Prometheus metrics of all three; empty for none
    #[arg(long, default_value = "127.0.0.1:9091", value_name = "HOST:PORT")]
    pub metrics: String,
}

/// Reads `host:port`.
///
/// # Errors
/// When it is of another form.
pub fn parse_smtp(text: &str) -> Result<(String, u16), String> {
    let (host, port) = text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).ok_or("must be HOST:PORT")?;
    let port = port.parse().map_err(|_| format!("{port} is no port"))?;
    Ok((host.trim_matches(['[', ']']).to_owned(), port))
}

/// Runs until Ctrl-C or SIGTERM.
///
/// # Errors
/// When a service cannot start, or ends by itself.
pub async fn run(options: Options) -> anyhow::Result<()> {
    init_logging(&LogConfig { level: options.log, format: "text".to_owned() })?;
    let shown = [KeyService::METRICS, LocationService::METRICS, NotificationService::METRICS].concat();
    serve_metrics(&MetricsConfig { listen: options.metrics }, &shown)?;
    tokio::fs::create_dir_all(&options.data)
        .await
        .with_context(|| format!("cannot make the folder {}", options.data.display()))?;
    let database = |which: Which| format!("sqlite:{}", options.data.join(format!("{}.sqlite", which.name())).display());
    let mail = match options.smtp {
        Some((host, port)) => Mail::Smtp { host, port },
        None => Mail::Maildir(options.data.join("mail")),
    };
    let shutdown = CancellationToken::new();
    stop_on_signals(shutdown.clone())?;
    let mut suite = Suite::start(Plan {
        databases: Which::ALL.map(database),
        keyrings: None,
        ports: [options.key_port, options.location_port, options.notification_port],
        mail: mail.clone(),
        mails_per_second: None,
        clock: Arc::new(SystemClock),
        seed: None,
    })
    .await?;
    greet(&suite, &options.data, &mail);
    tokio::select! {
        () = shutdown.cancelled() => suite.stop().await,
        error = suite.ended_early() => Err(error),
    }
}

#[expect(clippy::print_stdout, reason = "this is what a person who typed the command came for")]
fn greet(suite: &Suite, data: &std::path::Path, mail: &Mail) {
    let at = |which: Which| suite.endpoint(which).trim_start_matches("http://").to_owned();
    let (key, location, notification) = (at(Which::Key), at(Which::Location), at(Which::Notification));
    let mail = match mail {
        Mail::Maildir(folder) => format!("files in {}", folder.join("new").display()),
        Mail::Smtp { host, port } => format!("SMTP server {host}:{port}"),
    };
    println!(
        r#"
keysweep is up. Ctrl-C stops it; its data stays in {data}.

  key-service           {key}
  location-service      {location}
  notification-service  {notification}
  emails                {mail}

Paste these one after the other into another terminal (buf curl works as well, see docs/grpcurl.md):

  grpcurl -plaintext {key} list
  AGENCY=$(grpcurl -plaintext -d '{{"agency":{{"name":"Acme","email":"office@acme.example","country":"US","time_zone":"America/New_York"}}}}' {location} keysweep.location.v2.AgencyService/CreateAgency | jq -r .agencyId)
  LOCATION=$(grpcurl -plaintext -d "{{\"agency_id\":\"$AGENCY\",\"location\":{{\"name\":\"Acme Uptown\",\"country\":\"US\",\"time_zone\":\"America/New_York\"}}}}" {location} keysweep.location.v2.LocationService/CreateLocation | jq -r .locationId)
  ADMIN=$(grpcurl -plaintext -d "{{\"agency_id\":\"$AGENCY\",\"user\":{{\"first_name\":\"Ada\",\"last_name\":\"Byron\",\"email\":\"ada@acme.example\",\"role\":{{\"type\":\"ROLE_TYPE_AGENCY\",\"level\":\"ROLE_LEVEL_ADMIN\"}}}}}}" {location} keysweep.location.v2.UserService/CreateUser | jq -r .userId)
  SECRET=$(grpcurl -plaintext -H "x-keysweep-actor: user/$ADMIN" -d "{{\"location_id\":\"$LOCATION\",\"display_name\":\"till\",\"request_id\":\"first-key\"}}" {location} keysweep.location.v2.LocationService/GenerateLocationApiKey | jq -r .secret)
  grpcurl -plaintext -d "{{\"secret\":\"$SECRET\"}}" {key} keysweep.key.v1.KeyService/VerifyKey
  grpcurl -plaintext -d "{{\"agency_id\":\"$AGENCY\"}}" {key} keysweep.key.v1.KeyService/ListApiKeys
  grpcurl -plaintext -d "{{\"as_of_time\":\"$(date -u -d '+100 days' +%FT%TZ)\"}}" {key} keysweep.key.v1.SweepService/PreviewSweep
  grpcurl -plaintext {notification} keysweep.notification.v1.NotificationService/GetSubscription
"#,
        data = data.display(),
    );
}
