//! Certificates over loopback: who is let in and as whom, who is not, and what happens when files change.

mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, LazyLock};

use service_kit::actor::METADATA_KEY;
use service_kit::auth::{AuthConfig, AuthMode, CertificateFiles, RELOAD_JOB, Surface, Trust};
use service_kit::client::{ClientConfig, channel};
use service_kit::clock::SimulatedClock;
use service_kit::config::Faults;
use service_kit::server::{GrpcServer, ServerConfig};
use service_kit::testing::certificates::{Authority, Wish};
use service_kit::{Deps, testing};
use support::Mirror;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

const POLICY: &str = r#"
everybody = ["grpc.health.v1.Health/*"]

[[callers]]
identity = "spiffe://keysweep/ui"
methods = ["test.Mirror/WhoAmI"]
actors = ["user"]

[[callers]]
identity = "batch.example.com"
methods = ["test.Mirror/*"]
"#;

static SURFACE: LazyLock<Surface> = LazyLock::new(|| support::surface(POLICY));

/// A server with a certificate, its authority, and a folder for what others show.
struct Site {
    folder: TempDir,
    authority: Authority,
    clock: Arc<SimulatedClock>,
    deps: Deps,
    address: SocketAddr,
    shutdown: CancellationToken,
}

const SERVER: &str = "spiffe://keysweep/key-service";

impl Site {
    async fn start() -> Self {
        Self::start_with(0).await
    }

    async fn start_with(max_connection_age_ms: u64) -> Self {
        let (folder, authority) = (tempfile::tempdir().expect("a folder"), Authority::new());
        let files = authority.issue(&folder.path().join("server"), &Wish::of(SERVER));
        let clock = Arc::new(SimulatedClock::new("2026-01-10T12:00:00Z".parse().expect("an instant")));
        let deps = testing::deps(clock.clone(), 1);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let trust = Trust::open(&auth(&files), &SURFACE, &deps.clock).expect("trust");
        let (config, shutdown) =
            (ServerConfig { max_connection_age_ms, ..server_config(address) }, CancellationToken::new());
        trust.keep_current(&deps, shutdown.clone());
        let server = GrpcServer::new(&config, &SURFACE, &trust, shutdown.clone()).add_service(Mirror::of_actors());
        tokio::spawn(server.serve(listener));
        Self { folder, authority, clock, deps, address, shutdown }
    }

    fn files(&self, name: &str, authority: &Authority, wish: &Wish) -> CertificateFiles {
        authority.issue(&self.folder.path().join(name), wish)
    }

    /// A client of this identity, as a service connects.
    fn client(&self, uri: &str) -> Channel {
        let files = self.files("client", &self.authority, &Wish::of(uri));
        let trust = Trust::of_client(files, &self.deps.clock).expect("trust");
        self.channel(&trust)
    }

    fn channel(&self, trust: &Trust) -> Channel {
        let endpoint = format!("https://localhost:{}", self.address.port());
        channel(&ClientConfig { endpoint, connect_timeout_ms: 5_000, request_timeout_ms: 5_000 }, trust)
            .expect("an endpoint")
    }

    /// A client that shows whatever it is given, as a stranger's would.
    async fn stranger(&self, shown: Option<&CertificateFiles>) -> Result<ServingStatus, String> {
        let ca = Certificate::from_pem(read(&self.folder.path().join("server/ca.crt")));
        let mut tls = ClientTlsConfig::new().ca_certificate(ca).domain_name("localhost");
        if let Some(files) = shown {
            tls = tls.identity(Identity::from_pem(read(&files.certificate), read(&files.private_key)));
        }
        let endpoint =
            Endpoint::from_shared(format!("https://localhost:{}", self.address.port())).expect("an endpoint");
        health(endpoint.tls_config(tls).expect("TLS").connect_lazy()).await.map_err(|status| format!("{status:?}"))
    }

    /// Lets the server read its files again.
    async fn reload(&self) -> anyhow::Result<u64> {
        self.deps.jobs.activate(RELOAD_JOB).await.map(|report| report.work)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).expect("a file")
}

fn auth(files: &CertificateFiles) -> AuthConfig {
    AuthConfig {
        mode: AuthMode::Mtls,
        certificate_path: files.certificate.clone(),
        private_key_path: files.private_key.clone(),
        ca_path: files.ca.clone(),
        policy_path: "".into(),
    }
}

fn server_config(listen: SocketAddr) -> ServerConfig {
    ServerConfig {
        listen,
        request_timeout_ms: 5_000,
        drain_timeout_ms: 1_000,
        drain_notice_ms: 0,
        max_connections: 100,
        max_concurrent_streams: 100,
        max_calls: 100,
        max_connection_age_ms: 0,
    }
}

async fn health(channel: Channel) -> Result<ServingStatus, Status> {
    let answer = HealthClient::new(channel).check(HealthCheckRequest { service: String::new() }).await?;
    Ok(answer.get_ref().status())
}

/// What a method answers to an empty message with these actors in its metadata.
async fn call(channel: &Channel, path: &'static str, actors: &[&str]) -> Status {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.expect("a connection");
    let mut request = Request::new(HealthCheckRequest::default());
    for actor in actors {
        request.metadata_mut().append(METADATA_KEY, actor.parse().expect("ASCII"));
    }
    let (path, codec) = (http::uri::PathAndQuery::from_static(path), tonic_prost::ProstCodec::default());
    client.unary::<_, HealthCheckRequest, _>(request, path, codec).await.expect_err("it answers by an error")
}

fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

const WHO_AM_I: &str = "/test.Mirror/WhoAmI";

#[tokio::test]
async fn a_caller_reaches_what_is_listed_as_who_it_may_be() {
    let site = Site::start().await;
    let ui = site.client("spiffe://keysweep/ui");
    assert_eq!(call(&ui, WHO_AM_I, &[]).await.message(), "service/ui");
    assert_eq!(call(&ui, WHO_AM_I, &["user/usr_1"]).await.message(), "user/usr_1");
    for forged in ["api-key/key_1", "service/location-service"] {
        let status = call(&ui, WHO_AM_I, &[forged]).await;
        assert_eq!((status.code(), reason(&status).as_str()), (Code::PermissionDenied, "CALLER_MAY_NOT_NAME_ACTOR"));
        assert!(status.message().contains(forged), "{status:?}");
    }
    for malformed in [&["root"][..], &["user/usr_1", "user/usr_1"], &["user/usr_1", "service/ui"]] {
        let status = call(&ui, WHO_AM_I, malformed).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{malformed:?}");
    }
    for path in ["/test.Mirror/WhoAreYou", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/", "/a/b"] {
        let status = call(&ui, path, &["root"]).await;
        assert_eq!((status.code(), reason(&status).as_str()), (Code::PermissionDenied, "CALLER_NOT_ALLOWED"), "{path}");
    }

    let batch = site.files("batch", &site.authority, &Wish { names: vec!["Batch.example.com".into()], ..Wish::of("") });
    let batch = site.channel(&Trust::of_client(batch, &site.deps.clock).expect("trust"));
    assert_eq!(call(&batch, WHO_AM_I, &[]).await.message(), "service/batch.example.com");
    assert_eq!(reason(&call(&batch, WHO_AM_I, &["user/usr_1"]).await), "CALLER_MAY_NOT_NAME_ACTOR");

    let other = site.client("spiffe://keysweep/gateway");
    assert_eq!(health(other.clone()).await.expect("open to everybody"), ServingStatus::Serving);
    assert_eq!(reason(&call(&other, WHO_AM_I, &[]).await), "CALLER_NOT_ALLOWED");
}

#[tokio::test]
async fn who_cannot_be_known_gets_no_answer() {
    let site = Site::start().await;
    let (other, uri) = (Authority::new(), "spiffe://keysweep/ui");
    let names = |names: &[&str]| Wish { names: names.iter().map(|name| (*name).to_owned()).collect(), ..Wish::of("") };
    let unknown = [
        ("another authority", site.files("other", &other, &Wish::of(uri))),
        ("expired", site.files("old", &site.authority, &Wish { years: (2010, 2025), ..Wish::of(uri) })),
        ("not yet valid", site.files("new", &site.authority, &Wish { years: (2027, 2100), ..Wish::of(uri) })),
        ("two URIs", site.files("two", &site.authority, &names(&[uri, "spiffe://keysweep/operator"]))),
        ("two hosts", site.files("hosts", &site.authority, &names(&["a.example.com", "b.example.com"]))),
        ("a wildcard", site.files("wild", &site.authority, &names(&["*.example.com"]))),
        ("no path", site.files("root", &site.authority, &names(&["spiffe://keysweep/"]))),
        ("no name", site.files("none", &site.authority, &names(&[]))),
    ];
    for (what, files) in &unknown {
        let answer = site.stranger(Some(files)).await;
        assert!(answer.is_err(), "{what}: {answer:?}");
    }
    assert!(site.stranger(None).await.is_err(), "no certificate");
    let plaintext = Endpoint::from_shared(format!("http://{}", site.address)).expect("an endpoint").connect_lazy();
    assert!(health(plaintext).await.is_err(), "plaintext");

    let good = site.files("good", &site.authority, &Wish::of(uri));
    assert_eq!(site.stranger(Some(&good)).await, Ok(ServingStatus::Serving));
}

#[tokio::test]
async fn a_client_believes_the_named_host_of_its_authority_alone() {
    let site = Site::start().await;
    let other = Authority::new();
    let files = site.files("client", &other, &Wish::of("spiffe://keysweep/ui"));
    let status =
        health(site.channel(&Trust::of_client(files, &site.deps.clock).expect("trust"))).await.expect_err("a stranger");
    assert_eq!(status.code(), Code::Unavailable);

    let files = site.files("client", &site.authority, &Wish::of("spiffe://keysweep/ui"));
    let trust = Trust::of_client(files, &site.deps.clock).expect("trust");
    let endpoint = format!("https://{}", site.address);
    let by_address = ClientConfig { endpoint, connect_timeout_ms: 5_000, request_timeout_ms: 5_000 };
    let status = health(channel(&by_address, &trust).expect("an endpoint")).await.expect_err("another name");
    assert_eq!(status.code(), Code::Unavailable);
}

#[tokio::test]
async fn a_certificate_ends_with_its_last_second() {
    let site = Site::start().await;
    let files =
        site.files("client", &site.authority, &Wish { years: (2000, 2026), ..Wish::of("spiffe://keysweep/ui") });
    site.clock.advance_to("2026-12-31T00:00:00Z".parse().expect("an instant"));
    assert_eq!(site.stranger(Some(&files)).await, Ok(ServingStatus::Serving));
    site.clock.advance_to("2026-12-31T00:00:01Z".parse().expect("an instant"));
    assert!(site.stranger(Some(&files)).await.is_err());
}

#[tokio::test]
async fn an_old_connection_shows_its_certificate_again() {
    let site = Site::start_with(100).await;
    let files =
        site.files("client", &site.authority, &Wish { years: (2000, 2026), ..Wish::of("spiffe://keysweep/ui") });
    let channel = site.channel(&Trust::of_client(files, &site.deps.clock).expect("trust"));
    assert_eq!(health(channel.clone()).await.expect("an answer"), ServingStatus::Serving);
    site.clock.advance_to("2027-01-01T00:00:00Z".parse().expect("an instant"));
    testing::wait::until("the connection to be over", async || health(channel.clone()).await.is_err().then_some(()))
        .await;
}

#[tokio::test]
async fn renewed_files_are_taken_over_while_connections_live() {
    let site = Site::start().await;
    let ui = site.client("spiffe://keysweep/ui");
    let mut changes =
        HealthClient::new(ui.clone()).watch(HealthCheckRequest::default()).await.expect("a watch").into_inner();
    assert_eq!(changes.message().await.expect("first").expect("first").status(), ServingStatus::Serving);
    assert_eq!(site.reload().await.expect("nothing new"), 0);

    // Half of a new pair is none.
    let (server, next) = (site.folder.path().join("server"), Authority::new());
    let new = site.files("next", &next, &Wish::of(SERVER));
    std::fs::copy(&new.certificate, server.join("tls.crt")).expect("a copy");
    let error = site.reload().await.expect_err("the key is another's").to_string();
    assert!(error.contains("auth.certificate_path"), "{error}");
    std::fs::write(server.join("tls.key"), "nonsense").expect("a file");
    assert!(site.reload().await.is_err());
    assert_eq!(health(site.client("spiffe://keysweep/ui")).await.expect("the old pair serves"), ServingStatus::Serving);

    std::fs::copy(&new.private_key, server.join("tls.key")).expect("a copy");
    let old = site.files("old", &site.authority, &Wish::of("spiffe://keysweep/ui"));
    std::fs::copy(&new.ca, server.join("ca.crt")).expect("a copy");
    assert_eq!(site.reload().await.expect("a new pair"), 1);
    let renewed = site.files("renewed", &next, &Wish::of("spiffe://keysweep/ui"));
    assert_eq!(site.stranger(Some(&renewed)).await, Ok(ServingStatus::Serving));
    assert!(site.stranger(Some(&old)).await.is_err(), "its authority is believed no more");
    assert_eq!(call(&ui, WHO_AM_I, &[]).await.message(), "service/ui", "a connection outlives its certificate");
    site.shutdown.cancel();
    assert_eq!(changes.message().await.expect("second").expect("second").status(), ServingStatus::NotServing);
}

#[tokio::test]
async fn a_client_shows_its_renewed_certificate_when_it_connects_again() {
    let site = Site::start().await;
    let folder = site.folder.path().join("client");
    let expiring = Wish { years: (2000, 2026), ..Wish::of("spiffe://keysweep/ui") };
    let trust = Trust::of_client(site.authority.issue(&folder, &expiring), &site.deps.clock).expect("trust");
    let deps = testing::deps(site.clock.clone(), 2);
    trust.keep_current(&deps, site.shutdown.clone());
    site.clock.advance_to("2027-01-01T00:00:00Z".parse().expect("an instant"));
    let ui = site.channel(&trust);
    assert!(health(ui.clone()).await.is_err(), "its certificate has ended");
    site.authority.issue(&folder, &Wish::of("spiffe://keysweep/ui"));
    deps.jobs.activate(RELOAD_JOB).await.expect("a new pair");
    assert_eq!(call(&ui, WHO_AM_I, &[]).await.message(), "service/ui");
}

fn faults(auth: &AuthConfig, listen: &str, endpoint: &str) -> String {
    let peer = ClientConfig { endpoint: endpoint.to_owned(), connect_timeout_ms: 1, request_timeout_ms: 1 };
    let mut faults = Faults::default();
    auth.validate(&server_config(listen.parse().expect("an address")), &SURFACE, &[("peer", &peer)], &mut faults);
    if faults.is_empty() { String::new() } else { faults.to_string() }
}

#[test]
fn plaintext_stays_on_loopback_unless_somebody_says_insecure() {
    let of = |mode| AuthConfig {
        mode,
        certificate_path: "".into(),
        private_key_path: "".into(),
        ca_path: "".into(),
        policy_path: "".into(),
    };
    let (plaintext, insecure) = (of(AuthMode::Plaintext), of(AuthMode::Insecure));
    for (listen, endpoint) in
        [("127.0.0.1:1", "http://127.0.0.1:1"), ("[::1]:1", "http://[::1]:1"), ("127.8.8.8:1", "http://localhost:1")]
    {
        assert_eq!(faults(&plaintext, listen, endpoint), "", "{listen} {endpoint}");
    }
    for listen in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[2001:db8::1]:1"] {
        assert!(faults(&plaintext, listen, "http://127.0.0.1:1").contains("server.listen"), "{listen}");
        assert_eq!(faults(&insecure, listen, "http://key-service:1"), "", "{listen}");
    }
    for endpoint in
        ["http://key-service:1", "http://10.0.0.1:1", "http://localhost.example.com:1", "https://127.0.0.1:1"]
    {
        assert!(faults(&plaintext, "127.0.0.1:1", endpoint).contains("peer.endpoint"), "{endpoint}");
    }
    assert!(faults(&insecure, "0.0.0.0:1", "https://key-service:1").contains("peer.endpoint"));
    for auth in [plaintext, insecure] {
        let auth = AuthConfig { policy_path: "policy.toml".into(), ..auth };
        assert!(faults(&auth, "127.0.0.1:1", "http://127.0.0.1:1").contains("auth.policy_path"));
    }
}

#[test]
fn every_fault_of_certificates_and_policy_is_listed() {
    let (folder, authority) = (tempfile::tempdir().expect("a folder"), Authority::new());
    let files = authority.issue(folder.path(), &Wish::of(SERVER));
    let good = auth(&files);
    assert_eq!(faults(&good, "0.0.0.0:1", "https://key-service:1"), "");
    assert!(faults(&good, "0.0.0.0:1", "http://key-service:1").contains("peer.endpoint"));

    let none = AuthConfig {
        certificate_path: "".into(),
        private_key_path: "".into(),
        ca_path: "/nowhere".into(),
        policy_path: "/nowhere".into(),
        ..good.clone()
    };
    let text = faults(&none, "0.0.0.0:1", "https://key-service:1");
    for setting in [
        "auth.certificate_path: must be set",
        "auth.private_key_path: must be set",
        "auth.ca_path: /nowhere cannot be read",
        "auth.policy_path: /nowhere cannot be read",
    ] {
        assert!(text.contains(setting), "{setting} is not in: {text}");
    }
    let empty = folder.path().join("empty");
    std::fs::write(&empty, "no PEM\n").expect("a file");
    let empty =
        AuthConfig { certificate_path: empty.clone(), private_key_path: empty.clone(), ca_path: empty, ..good.clone() };
    let text = faults(&empty, "0.0.0.0:1", "https://key-service:1");
    for setting in ["auth.certificate_path", "auth.private_key_path", "auth.ca_path"] {
        assert!(text.contains(setting), "{setting} is not in: {text}");
    }
    let unnamed = authority.issue(&folder.path().join("unnamed"), &Wish { names: vec![], ..Wish::of("") });
    assert!(faults(&auth(&unnamed), "0.0.0.0:1", "https://key-service:1").contains("auth.certificate_path"));
    let policy = folder.path().join("policy.toml");
    std::fs::write(&policy, "everybody = [\"test.Mirror/Who\", \"test.Window/*\"]").expect("a file");
    let text = faults(&AuthConfig { policy_path: policy, ..good }, "0.0.0.0:1", "https://key-service:1");
    for method in ["test.Mirror/Who", "test.Window/*"] {
        assert!(text.contains(&format!("auth.policy_path: everybody: this service has no method {method}")), "{text}");
    }
}
