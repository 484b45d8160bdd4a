//! The real binaries with certificates: a key's way through them, the subscription, an import, and what is refused.

use std::path::Path;

use keysweep::clients::{Clients, made_for};
use keysweep_e2e::account::{create_account, generate, verify};
use keysweep_e2e::process::{Process, free_port, run};
use keysweep_e2e::wait;
use keysweep_proto::key::v1 as key;
use keysweep_proto::notification::v1::GetSubscriptionRequest;
use service_kit::Deps;
use service_kit::auth::{CertificateFiles, Trust};
use service_kit::client::{ClientConfig, channel};
use service_kit::testing::certificates::{Authority, Wish};
use tempfile::TempDir;
use tonic::{Code, Status};
use tonic_types::StatusExt;

const SERVICES: [&str; 3] = ["key-service", "location-service", "notification-service"];

/// Three services on SQLite, each with a certificate of one authority.
struct Installation {
    folder: TempDir,
    authority: Authority,
    ports: [u16; 3],
}

impl Installation {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
            authority: Authority::new(),
            ports: SERVICES.map(|_| free_port()),
        }
    }

    fn endpoint(&self, place: usize) -> String {
        format!("https://localhost:{}", self.ports[place])
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn certificate(&self, name: &str) -> CertificateFiles {
        self.authority.issue(&self.folder.path().join(name), &Wish::of(&format!("spiffe://keysweep/{name}")))
    }

    fn settings(&self, place: usize) -> Vec<(&'static str, String)> {
        let text = |path: &Path| path.display().to_string();
        let files = self.certificate(SERVICES[place]);
        let mut settings = vec![
            ("KEYSWEEP_SERVER__LISTEN", format!("127.0.0.1:{}", self.ports[place])),
            ("KEYSWEEP_AUTH__MODE", "mtls".to_owned()),
            ("KEYSWEEP_AUTH__CERTIFICATE_PATH", text(&files.certificate)),
            ("KEYSWEEP_AUTH__PRIVATE_KEY_PATH", text(&files.private_key)),
            ("KEYSWEEP_AUTH__CA_PATH", text(&files.ca)),
            ("KEYSWEEP_DATABASE__URL", format!("sqlite:{}", self.path(&format!("{}.sqlite", SERVICES[place])))),
            ("KEYSWEEP_METRICS__LISTEN", String::new()),
        ];
        if place > 0 {
            settings.push(("KEYSWEEP_KEY_SERVICE__ENDPOINT", self.endpoint(0)));
        }
        if place > 1 {
            settings.push(("KEYSWEEP_LOCATION_SERVICE__ENDPOINT", self.endpoint(1)));
            settings.push(("KEYSWEEP_MAILDIR__PATH", self.path("mail")));
        }
        settings
    }

    /// Starts a service and waits until its own health check finds it serving.
    async fn start(&self, place: usize) -> Process {
        let (name, settings) = (SERVICES[place], self.settings(place));
        let log = self.folder.path().join(format!("{name}.log"));
        let process = Process::start(name, &["serve"], &settings, &log);
        wait::until("a service to serve", async || {
            run(name, &["healthcheck"], &settings).await.status.success().then_some(())
        })
        .await;
        process
    }

    /// Clients of all three that show a certificate of this name.
    fn clients(&self, name: &str) -> Clients {
        let trust = Trust::of_client(self.certificate(name), &Deps::system().clock).expect("trust");
        let connect = |place: usize| {
            let config =
                ClientConfig { endpoint: self.endpoint(place), connect_timeout_ms: 5_000, request_timeout_ms: 30_000 };
            channel(&config, &trust).expect("an endpoint")
        };
        Clients::over(connect(0), connect(1), connect(2))
    }
}

fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_goes_its_way_between_services_that_know_each_other() {
    let installation = Installation::new();
    let mut running = [installation.start(0).await, installation.start(1).await, installation.start(2).await];
    let [ui, gateway, operator] = ["ui", "gateway", "operator"].map(|name| installation.clients(name));

    let account = create_account(&ui).await;
    let made = generate(&ui, &account, "k1").await.expect("a key");
    let answer = verify(&gateway, &made.secret).await;
    assert!(answer.valid, "{answer:?}");
    let request = key::VerifyKeyRequest { secret: made.secret.clone(), ..Default::default() };
    let refused = ui.keys.clone().verify_key(request).await.expect_err("gateways verify");
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::PermissionDenied, "CALLER_NOT_ALLOWED"));
    let direct = key::GenerateApiKeyRequest::default();
    let refused = ui.keys.clone().generate_api_key(made_for(&account.admin, direct).expect("an actor")).await;
    assert_eq!(reason(&refused.expect_err("location-service generates")), "CALLER_NOT_ALLOWED");
    let key_id = made.api_key.expect("metadata").key_id;
    let reveal = key::RevealKeyRequest { key_id };
    let forged = operator.keys.clone().reveal_key(made_for(&account.admin, reveal.clone()).expect("an actor")).await;
    assert_eq!(reason(&forged.expect_err("an operator sees no secret")), "CALLER_NOT_ALLOWED");
    let revealed = ui.keys.clone().reveal_key(made_for(&account.admin, reveal).expect("an actor")).await;
    assert_eq!(revealed.expect("a logged-in admin sees it").into_inner().secret, made.secret);

    wait::until("the subscription", async || {
        let answer = operator.notifications.clone().get_subscription(GetSubscriptionRequest {}).await;
        answer.expect("a subscription").get_ref().connected.then_some(())
    })
    .await;

    let plaintext = format!("http://127.0.0.1:{}", installation.ports[0]);
    let plaintext = Clients::new(&plaintext, &plaintext, &plaintext).expect("endpoints");
    let unheard = plaintext.keys.clone().verify_key(key::VerifyKeyRequest::default()).await;
    assert!(unheard.is_err(), "{unheard:?}");
    for process in &mut running {
        assert!(process.terminate().await.success(), "{}", process.output());
        assert!(!process.output().contains(&made.secret), "the log holds a secret");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_imports_and_the_ui_does_not() {
    let installation = Installation::new();
    let _key = installation.start(0).await;
    let file = installation.path("keys.csv");
    let digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
    let row = format!("agy_1,,{digest},2023-05-01T10:00:00Z,legacy-17\n");
    std::fs::write(&file, format!("agency_id,location_id,secret_sha256,create_time,external_reference\n{row}"))
        .expect("a file");
    let import = async |name: &str| {
        let files = installation.certificate(name);
        let [certificate, key, ca] =
            [&files.certificate, &files.private_key, &files.ca].map(|path| path.display().to_string());
        let endpoint = installation.endpoint(0);
        let arguments = [
            "import",
            &file,
            "--endpoint",
            &endpoint,
            "--certificate",
            &certificate,
            "--private-key",
            &key,
            "--ca",
            &ca,
        ];
        run("key-service", &arguments, &[]).await
    };
    let refused = import("ui").await;
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && text.contains("spiffe://keysweep/ui may not call"), "{text}");
    let done = import("operator").await;
    let text = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success() && text.contains("1 imported"), "{text}{}", String::from_utf8_lossy(&done.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_safe_is_refused_or_said_aloud() {
    let installation = Installation::new();
    for (place, name) in SERVICES.iter().enumerate() {
        let open = [("KEYSWEEP_SERVER__LISTEN", "0.0.0.0:0".to_owned())];
        let refused = run(name, &["serve"], &open).await;
        let text = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && text.contains("server.listen"), "{name}: {text}");

        let policy = installation.path("policy.toml");
        std::fs::write(&policy, "everybody = [\"grpc.health.v1.Health/*\", \"keysweep.key.v1.KeyService/Invent\"]")
            .expect("a file");
        let mut settings = installation.settings(place);
        settings.push(("KEYSWEEP_AUTH__POLICY_PATH", policy));
        let refused = run(name, &["check-config"], &settings).await;
        let text = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && text.contains("keysweep.key.v1.KeyService/Invent"), "{name}: {text}");
    }
    let port = free_port();
    let settings = [
        ("KEYSWEEP_SERVER__LISTEN", format!("0.0.0.0:{port}")),
        ("KEYSWEEP_AUTH__MODE", "insecure".to_owned()),
        ("KEYSWEEP_DATABASE__URL", format!("sqlite:{}", installation.path("insecure.sqlite"))),
        ("KEYSWEEP_METRICS__LISTEN", String::new()),
    ];
    let mut process =
        Process::start("key-service", &["serve"], &settings, &installation.folder.path().join("insecure.log"));
    process.serves(port).await;
    assert!(process.output().contains("auth.mode is insecure"), "{}", process.output());
}
