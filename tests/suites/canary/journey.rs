//! Every path that a secret can take through the services.

use std::path::{Path, PathBuf};

use keysweep::clients::{Clients, made_for};
use keysweep_e2e::account::{Account, create_account};
use keysweep_e2e::process::run;
use keysweep_proto::envoy::service::auth::v3::attribute_context::{HttpRequest, Request as HttpPart};
use keysweep_proto::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use keysweep_proto::envoy::service::auth::v3::{AttributeContext, CheckRequest};
use keysweep_proto::key::v1 as key;
use keysweep_proto::location::v2 as location;
use service_kit::clock::{Clock, SystemClock};
use service_kit::time::to_proto;
use tonic::{Request, Response, Status};

/// The secret of a key that is imported, and not ended.
const IMPORTED: &str = "canary-imported-Xc8vB6nM4q";

/// One journey, the secrets that were seen on it, and what was refused.
pub(crate) struct Journey {
    clients: Clients,
    folder: PathBuf,
    pub(crate) secrets: Vec<String>,
    /// What was tried, and all that the answer said.
    pub(crate) refusals: Vec<(String, String)>,
    pub(crate) import_output: Vec<u8>,
}

fn refused<T: std::fmt::Debug>(answer: Result<Response<T>, Status>) -> String {
    let status = answer.expect_err("it is refused");
    format!("{status:?} {:?} {}", status.metadata(), String::from_utf8_lossy(status.details()))
}

impl Journey {
    pub(crate) fn new(clients: Clients, folder: &Path) -> Self {
        Self {
            clients,
            folder: folder.to_path_buf(),
            secrets: Vec::new(),
            refusals: Vec::new(),
            import_output: Vec::new(),
        }
    }

    fn note<T: std::fmt::Debug>(&mut self, what: &str, answer: Result<Response<T>, Status>) {
        self.refusals.push((what.to_owned(), refused(answer)));
    }

    /// Goes all the way. `key_service` is where that is.
    pub(crate) async fn go(&mut self, key_service: &str) {
        let account = create_account(&self.clients).await;
        let (key_id, secret) = self.generate(&account).await;
        self.present(&secret, key_service).await;
        self.reveal_and_rotate(&account, &key_id).await;
        self.import(&account, key_service).await;
        self.opt_out(&account).await;
        self.end(&account, &key_id).await;
    }

    async fn generate(&mut self, account: &Account) -> (String, String) {
        let generate = |display_name: &str| {
            let request = location::GenerateLocationApiKeyRequest {
                location_id: account.location_id.clone(),
                display_name: display_name.to_owned(),
                request_id: "canary".to_owned(),
                ..Default::default()
            };
            let mut locations = self.clients.locations.clone();
            let request = made_for(&account.admin, request).expect("an actor");
            async move { locations.generate_location_api_key(request).await }
        };
        let made = generate("till").await.expect("a key").into_inner();
        assert_eq!(generate("till").await.expect("the same").into_inner().secret, made.secret);
        let other = generate("another").await;
        self.note("a repeated generation with other contents", other);
        let request =
            location::GenerateAgencyApiKeyRequest { agency_id: account.agency_id.clone(), ..Default::default() };
        let request = made_for(&account.admin, request).expect("an actor");
        let of_agency = self.clients.agencies.clone().generate_agency_api_key(request).await.expect("a key");
        self.secrets.extend([made.secret.clone(), of_agency.into_inner().secret]);
        (made.api_key.expect("metadata").key_id, made.secret)
    }

    /// Good, wrong and malformed secrets, by both doors.
    async fn present(&mut self, good: &str, key_service: &str) {
        let mut wrong = good.to_owned();
        let last = wrong.pop().expect("a character");
        wrong.push(if last == '0' { '1' } else { '0' });
        let foreign = "canary-foreign-Pq5sT7uV9wXy";
        let presented = [
            good.to_owned(),
            good.to_owned(),
            wrong,
            foreign.to_owned(),
            foreign.to_owned(),
            format!("canary blank {good}"),
            format!("canary-oversize-{}", "Zk4".repeat(400)),
            "canary-\u{fc}nicode-Hn3bV5cX7z".to_owned(),
        ];
        let endpoint = tonic::transport::Endpoint::from_shared(key_service.to_owned()).expect("an endpoint");
        let mut gateway = AuthorizationClient::new(endpoint.connect().await.expect("a connection"));
        for secret in presented {
            let request = key::VerifyKeyRequest { secret: secret.clone(), ..Default::default() };
            let answer = self.clients.keys.clone().verify_key(request).await.expect("an answer").into_inner();
            assert_eq!(answer.valid, secret == good, "{answer:?}");
            let headers = [("authorization", format!("Bearer {secret}")), ("x-api-key", secret.clone())];
            for (name, value) in headers {
                let http = HttpRequest { headers: [(name.to_owned(), value)].into(), ..Default::default() };
                let request = Some(HttpPart { time: None, http: Some(http) });
                let attributes = Some(AttributeContext { request, ..Default::default() });
                let answer = gateway.check(CheckRequest { attributes }).await.expect("an answer").into_inner();
                // What was presented is taken out of the request, not repeated.
                assert!(!format!("{answer:?}").contains(&secret), "{answer:?}");
            }
            self.secrets.push(secret);
        }
        let too_much = key::VerifyKeyRequest { secret: "canary-flood-Lm6n".repeat(400_000), ..Default::default() };
        let answer = self.clients.keys.clone().verify_key(too_much).await;
        self.note("a message that is too large", answer);
        self.secrets.push("canary-flood-Lm6n".repeat(2));
    }

    async fn reveal_and_rotate(&mut self, account: &Account, key_id: &str) {
        let reveal = |actor: &str, key_id: &str| {
            let request = made_for(actor, key::RevealKeyRequest { key_id: key_id.to_owned() }).expect("an actor");
            let mut keys = self.clients.keys.clone();
            async move { keys.reveal_key(request).await }
        };
        assert_eq!(reveal(&account.admin, key_id).await.expect("it is shown").into_inner().secret, self.secrets[0]);
        let (by_key, unknown) = (reveal("api-key/key_1", key_id).await, reveal(&account.admin, "key_none").await);
        self.note("a reveal for an API client", by_key);
        self.note("a reveal of a key that is not there", unknown);
        let rotate = |overlap_s: i64| {
            let overlap = Some(prost_types::Duration { seconds: overlap_s, nanos: 0 });
            let request = key::RotateApiKeyRequest { key_id: key_id.to_owned(), overlap, request_id: "once".into() };
            let mut keys = self.clients.keys.clone();
            let request = made_for(&account.admin, request).expect("an actor");
            async move { keys.rotate_api_key(request).await }
        };
        let rotated = rotate(3_600).await.expect("a successor").into_inner();
        assert_eq!(rotate(3_600).await.expect("the same").into_inner().secret, rotated.secret);
        let other = rotate(0).await;
        self.note("a repeated rotation with another overlap", other);
        self.secrets.push(rotated.secret);
    }

    async fn import(&mut self, account: &Account, key_service: &str) {
        let (good, short) = (IMPORTED, "canary-short");
        let file = self.folder.join("keys.csv");
        let agency = &account.agency_id;
        let lines = [
            "agency_id,location_id,secret,secret_sha256,create_time,last_use_time,external_reference,display_name,scopes",
            &format!("{agency},,{good},,2023-05-01T10:00:00Z,,legacy-1,till,read"),
            &format!("{agency},,{short},,2023-05-01T10:00:00Z,,legacy-2,till,read"),
            &format!("{agency},,{good},,2023-05-01T10:00:00Z,,legacy-3,till,read"),
            &format!("{agency},,canary-undated-Gf2hJ4kL6p,,yesterday,,legacy-4,till,read"),
        ];
        std::fs::write(&file, lines.join("\n")).expect("a file");
        let path = file.display().to_string();
        let output = run("key-service", &["import", &path, "--endpoint", key_service], &[]).await;
        self.import_output = [output.stdout, output.stderr].concat();
        assert!(String::from_utf8_lossy(&self.import_output).contains("1 imported"), "the good one is taken");
        let row = key::ImportRow {
            owner: Some(key::Owner { account: Some(key::owner::Account::AgencyId(agency.clone())) }),
            credential: Some(key::import_row::Credential::Secret("canary-future-Wd5eR7tY9u".to_owned())),
            create_time: Some(to_proto(SystemClock.now() + chrono::TimeDelta::days(9))),
            external_reference: "legacy-5".to_owned(),
            ..Default::default()
        };
        let chunk = key::ImportApiKeysRequest { rows: vec![row] };
        let request = made_for("service/importer", tokio_stream::iter([chunk])).expect("an actor");
        let told = self.clients.keys.clone().import_api_keys(request).await.expect("an answer").into_inner();
        self.refusals.push(("an imported row".to_owned(), format!("{told:?}")));
        self.secrets.extend([good, "canary-undated-Gf2hJ4kL6p", "canary-future-Wd5eR7tY9u"].map(str::to_owned));
    }

    /// Uses a key that lives on.
    pub(crate) async fn use_imported(&self) {
        let request = key::VerifyKeyRequest { secret: IMPORTED.to_owned(), ..Default::default() };
        let answer = self.clients.keys.clone().verify_key(request).await.expect("an answer").into_inner();
        assert!(answer.valid, "{answer:?}");
    }

    /// The legacy behaviour: a location carries its key, kept sealed.
    async fn opt_out(&mut self, account: &Account) {
        let choose = |enhanced_account_security: bool| {
            let request = location::UpdateSecuritySettingsRequest {
                agency_id: account.agency_id.clone(),
                enhanced_account_security,
                acknowledge_risk: true,
                ..Default::default()
            };
            let mut agencies = self.clients.agencies.clone();
            let request = made_for(&account.admin, request).expect("an actor");
            async move { agencies.update_security_settings(request).await }
        };
        choose(false).await.expect("it opts out");
        let create = location::CreateLocationRequest {
            agency_id: account.agency_id.clone(),
            location: Some(location::Location { name: "Kiosk".into(), country: "US".into(), ..Default::default() }),
            ..Default::default()
        };
        let create = made_for(&account.admin, create).expect("an actor");
        let made = self.clients.locations.clone().create_location(create).await.expect("a location").into_inner();
        let get = location::GetLocationRequest { location_id: made.location_id.clone() };
        let get: Request<_> = made_for(&account.admin, get).expect("an actor");
        let there = self.clients.locations.clone().get_location(get).await.expect("it is there").into_inner();
        assert_eq!(there.api_key, made.api_key);
        self.secrets.push(made.api_key);
        choose(true).await.expect("it opts in");
    }

    async fn end(&mut self, account: &Account, key_id: &str) {
        let revoke =
            key::RevokeApiKeyRequest { key_id: key_id.to_owned(), reason: "lost".into(), ..Default::default() };
        let revoke = made_for(&account.admin, revoke).expect("an actor");
        self.clients.keys.clone().revoke_api_key(revoke).await.expect("it is revoked");
        let reveal = key::RevealKeyRequest { key_id: key_id.to_owned() };
        let answer = self.clients.keys.clone().reveal_key(made_for(&account.admin, reveal).expect("an actor")).await;
        self.note("a reveal of an ended key", answer);
        let request = key::VerifyKeyRequest { secret: self.secrets[0].clone(), ..Default::default() };
        let answer = self.clients.keys.clone().verify_key(request).await.expect("an answer").into_inner();
        assert_eq!(answer.code(), key::VerifyCode::Revoked);
        let events = self.clients.keys.clone().list_audit_events(key::ListAuditEventsRequest::default()).await;
        self.refusals.push(("the audit".to_owned(), format!("{:?}", events.expect("events").into_inner())));
    }
}
