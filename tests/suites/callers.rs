//! Every method of every service for every caller, over the wire with certificates; `docs/callers.md` shows the same tables.

use std::path::Path;
use std::time::Duration;

use http::uri::PathAndQuery;
use key_service::KeyService;
use location_service::LocationService;
use notification_service::NotificationService;
use service_kit::Deps;
use service_kit::actor::METADATA_KEY;
use service_kit::auth::{RELOAD_JOB, Trust};
use service_kit::cli::Service;
use service_kit::client::{ClientConfig, channel};
use service_kit::config::load_from;
use service_kit::testing::certificates::{Authority, Wish};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

/// Who calls, in the order of the tables' columns.
const CALLERS: [&str; 6] = ["location-service", "notification-service", "gateway", "ui", "operator", "stranger"];
/// Kinds of actors that a caller may name.
const KINDS: [&str; 3] = ["user", "api-key", "service"];
/// Open to everybody, so that only the actor decides.
const HEALTH: &str = "grpc.health.v1.Health/Check";

/// A service with the built-in policy, and a channel of each caller to it.
struct Site {
    channels: [Channel; CALLERS.len()],
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
    _folder: TempDir,
}

impl Site {
    async fn start<S: Service + 'static>(own: &[(&str, &str)]) -> Self {
        let (folder, authority) = (tempfile::tempdir().expect("a folder"), Authority::new());
        let at = |name: &str| folder.path().join(name);
        let files = authority.issue(&at("server"), &Wish::of("spiffe://keysweep/key-service"));
        let text = |path: &Path| path.display().to_string();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut settings = vec![
            ("SERVER__LISTEN".to_owned(), address.to_string()),
            ("DATABASE__URL".to_owned(), format!("sqlite:{}", at("data.sqlite").display())),
            ("AUTH__MODE".to_owned(), "mtls".to_owned()),
            ("AUTH__CERTIFICATE_PATH".to_owned(), text(&files.certificate)),
            ("AUTH__PRIVATE_KEY_PATH".to_owned(), text(&files.private_key)),
            ("AUTH__CA_PATH".to_owned(), text(&files.ca)),
        ];
        settings.extend(own.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let settings = settings.into_iter().map(|(name, value)| (format!("KEYSWEEP_{name}"), value));
        let config = load_from::<S::Config>(S::DEFAULTS, None, settings).expect("a configuration");
        let (deps, shutdown) = (Deps::system(), CancellationToken::new());
        let jobs = deps.jobs.clone();
        let task = tokio::spawn(S::run(config, deps, listener, shutdown.clone()));
        let channels = CALLERS.map(|name| {
            let wish = Wish::of(&format!("spiffe://keysweep/{name}"));
            let trust = Trust::of_client(authority.issue(&at(name), &wish), &Deps::system().clock).expect("trust");
            let endpoint = format!("https://localhost:{}", address.port());
            let config = ClientConfig { endpoint, connect_timeout_ms: 5_000, request_timeout_ms: 30_000 };
            channel(&config, &trust).expect("an endpoint")
        });
        let site = Self { channels, shutdown, task, _folder: folder };
        service_kit::testing::wait::until("the service to serve", async || {
            site.call(0, HEALTH, None).await.is_ok().then_some(())
        })
        .await;
        assert!(jobs.names().contains(&RELOAD_JOB), "renewed certificates are not taken over");
        site
    }

    /// What the method answers the caller to an empty message.
    async fn call(&self, caller: usize, method: &str, actor: Option<&str>) -> Result<(), Status> {
        let mut client = tonic::client::Grpc::new(self.channels[caller].clone());
        client.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
        let mut request = Request::new(());
        request.set_timeout(Duration::from_secs(20));
        if let Some(actor) = actor {
            request.metadata_mut().insert(METADATA_KEY, actor.parse().expect("ASCII"));
        }
        let path = PathAndQuery::try_from(format!("/{method}")).expect("a path");
        // The headers of an answer tell enough, also of one that streams.
        client.server_streaming::<(), (), _>(request, path, tonic_prost::ProstCodec::default()).await.map(drop)
    }

    async fn stop(self) {
        self.shutdown.cancel();
        drop(self.channels);
        self.task.await.expect("no panic").expect("a clean end");
    }
}

/// Whether a call was refused for this reason. Every other answer, be it an error, is the method's own.
fn refused(answer: Result<(), Status>, wanted: &str) -> bool {
    let Err(status) = answer else { return false };
    let reason = status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default();
    let unreached = [Code::Unavailable, Code::Unknown, Code::Cancelled, Code::DeadlineExceeded, Code::Unimplemented];
    assert!(!unreached.contains(&status.code()), "{status:?}");
    assert_eq!(reason == wanted, reason.starts_with("CALLER_"), "{status:?}");
    reason == wanted && status.code() == Code::PermissionDenied
}

/// The table of methods, as the documentation has it.
async fn methods_table(site: &Site, methods: &[String]) -> String {
    let mut table = format!("| method | {} |\n|{}\n", CALLERS.join(" | "), " --- |".repeat(CALLERS.len() + 1));
    for method in methods {
        let mut row = format!("| `{method}` |");
        for caller in 0..CALLERS.len() {
            let open = !refused(site.call(caller, method, None).await, "CALLER_NOT_ALLOWED");
            row.push_str(if open { " yes |" } else { " |" });
        }
        table.push_str(&row);
        table.push('\n');
    }
    table
}

/// Which kinds of actors each caller may name.
async fn actors_of(site: &Site) -> [String; CALLERS.len()] {
    let mut all = [const { String::new() }; CALLERS.len()];
    for (caller, named) in all.iter_mut().enumerate() {
        let mut kinds = Vec::new();
        for kind in KINDS {
            let answer = site.call(caller, HEALTH, Some(&format!("{kind}/somebody"))).await;
            if !refused(answer, "CALLER_MAY_NOT_NAME_ACTOR") {
                kinds.push(format!("`{kind}/…`"));
            }
        }
        *named = kinds.join(", ");
        let itself = format!("service/{}", CALLERS[caller]);
        assert!(site.call(caller, HEALTH, Some(&itself)).await.is_ok(), "{itself} may name itself");
    }
    all
}

async fn tables<S: Service + 'static>(own: &[(&str, &str)]) -> (String, [String; CALLERS.len()]) {
    let site = Site::start::<S>(own).await;
    let methods = S::SURFACE.methods().expect("the descriptors");
    let tables = (methods_table(&site, &methods).await, actors_of(&site).await);
    site.stop().await;
    tables
}

/// The callers that a table lets call the method.
fn open_to<'a>(table: &'a str, method: &str) -> Vec<&'a str> {
    let row = table.lines().find(|row| row.contains(&format!("{method}`"))).expect("the method has a row");
    let cells: Vec<_> = row.split('|').map(str::trim).skip(2).collect();
    CALLERS.iter().zip(cells).filter(|(_, cell)| *cell == "yes").map(|(caller, _)| *caller).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_caller_reaches_what_the_documentation_says() {
    let mail = tempfile::tempdir().expect("a folder");
    let mail = mail.path().join("mail").display().to_string();
    let nowhere = "https://localhost:1";
    let (key, key_actors) = tables::<KeyService>(&[]).await;
    let (location, location_actors) = tables::<LocationService>(&[("KEY_SERVICE__ENDPOINT", nowhere)]).await;
    let (notification, notification_actors) = tables::<NotificationService>(&[
        ("KEY_SERVICE__ENDPOINT", nowhere),
        ("LOCATION_SERVICE__ENDPOINT", nowhere),
        ("MAILDIR__PATH", &mail),
    ])
    .await;

    for (table, method, callers) in [
        (&key, "GenerateApiKey", &["location-service"][..]),
        (&key, "VerifyKey", &["gateway"]),
        (&key, "envoy.service.auth.v3.Authorization/Check", &["gateway"]),
        (&key, "SubscribeSweepPlans", &["notification-service"]),
        (&key, "AcknowledgeNotices", &["notification-service"]),
        (&key, "ImportApiKeys", &["operator"]),
        (&key, "RevealKey", &["ui"]),
        (&location, "ListNoticeRecipients", &["notification-service"]),
        (&notification, "RetryDelivery", &["operator"]),
    ] {
        assert_eq!(open_to(table, method), callers, "{method}");
    }

    let mut actors =
        "| caller | at key-service | at location-service | at notification-service |\n| --- | --- | --- | --- |\n"
            .to_owned();
    for (place, caller) in CALLERS.iter().enumerate() {
        let cell = |all: &[String; CALLERS.len()]| {
            if all[place].is_empty() { "itself".to_owned() } else { all[place].clone() }
        };
        let cells = [cell(&key_actors), cell(&location_actors), cell(&notification_actors)];
        actors.push_str(&format!("| {caller} | {} |\n", cells.join(" | ")));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/callers.md");
    let documented = std::fs::read_to_string(path).expect("docs/callers.md");
    for (what, table) in [
        ("key-service", key),
        ("location-service", location),
        ("notification-service", notification),
        ("actors", actors),
    ] {
        let missing: Vec<_> = table.lines().filter(|row| !documented.lines().any(|line| line == *row)).collect();
        assert!(missing.is_empty(), "{what}: docs/callers.md lacks\n{}", missing.join("\n"));
        assert!(documented.contains(&table), "{what}: docs/callers.md has another table than\n{table}");
    }
}
