//! The whole service over gRPC, as other processes see it.

use std::sync::Arc;

use key_service::import_csv::{ImportEvent, ImportSummary, import};
use key_service::{Config, run};
use keysweep_proto::key::v1 as proto;
use keysweep_proto::key::v1::key_service_client::KeyServiceClient;
use secrecy::SecretString;
use service_kit::auth::Trust;
use service_kit::both_databases;
use service_kit::client::{ClientConfig, channel};
use service_kit::clock::SystemClock;
use service_kit::testing::{TestDatabase, deps};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Request};
use tonic_types::StatusExt;

use crate::support::ring_text;

struct Running {
    client: KeyServiceClient<Channel>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Running {
    async fn start(db: &TestDatabase, ring: &str, seed: u64) -> Self {
        let mut config = Config::built_in().unwrap();
        config.database = db.config();
        config.keyring.keyring = SecretString::from(ring.to_owned());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(config, deps(Arc::new(SystemClock), seed), listener, stop.clone()));
        let client = ClientConfig { endpoint, connect_timeout_ms: 5_000, request_timeout_ms: 5_000 };
        Self { client: KeyServiceClient::new(channel(&client, &Trust::plaintext()).unwrap()), stop, task }
    }

    async fn stop(self) {
        drop(self.client);
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }

    async fn code(&mut self, secret: &str) -> proto::VerifyCode {
        let request = proto::VerifyKeyRequest { secret: secret.into(), ..Default::default() };
        self.client.verify_key(request).await.unwrap().into_inner().code()
    }
}

fn as_actor<T>(message: T, actor: &'static str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-keysweep-actor", actor.parse().unwrap());
    request
}

fn generation(request_id: &str) -> proto::GenerateApiKeyRequest {
    proto::GenerateApiKeyRequest {
        owner: Some(proto::Owner { account: Some(proto::owner::Account::AgencyId("agy_1".into())) }),
        display_name: "front desk".into(),
        request_id: request_id.into(),
        ..Default::default()
    }
}

fn reason(status: &tonic::Status) -> (Code, String) {
    (status.code(), status.get_error_details().error_info().unwrap().reason.clone())
}

both_databases! {
    async fn a_key_lives_through_its_methods_and_a_restart(db: TestDatabase) {
        let ring = ring_text(7);
        let mut running = Running::start(&db, &ring, 1).await;
        let refused = running.client.generate_api_key(generation("")).await.unwrap_err();
        assert_eq!(reason(&refused), (Code::Unauthenticated, "ACTOR_REQUIRED".into()));
        let refused = running.client.generate_api_key(as_actor(generation(""), "api-key/key_1")).await.unwrap_err();
        assert_eq!(reason(&refused), (Code::PermissionDenied, "ACTOR_NOT_ALLOWED".into()));
        let issued = running.client.generate_api_key(as_actor(generation("r-1"), "user/usr_1")).await.unwrap().into_inner();
        let key_id = issued.api_key.clone().unwrap().key_id;
        assert_eq!(running.code(&issued.secret).await, proto::VerifyCode::Valid);
        running.stop().await;

        let mut running = Running::start(&db, &ring, 2).await;
        assert_eq!(running.code(&issued.secret).await, proto::VerifyCode::Valid);
        let again = running.client.generate_api_key(as_actor(generation("r-1"), "user/usr_1")).await.unwrap().into_inner();
        assert_eq!((again.api_key.unwrap().key_id, again.secret), (key_id.clone(), issued.secret.clone()));
        let get = proto::GetApiKeyRequest { key_id: key_id.clone() };
        let key = running.client.get_api_key(get).await.unwrap().into_inner();
        assert!(key.recoverable && key.last_use_time.is_some() && key.display_prefix.starts_with("ksw_agy_"));
        let list = proto::ListApiKeysRequest { agency_id: "agy_1".into(), ..Default::default() };
        assert_eq!(running.client.list_api_keys(list).await.unwrap().into_inner().api_keys.first(), Some(&key));

        let reveal = proto::RevealKeyRequest { key_id: key_id.clone() };
        let shown = running.client.reveal_key(as_actor(reveal, "user/usr_1")).await.unwrap().into_inner();
        assert_eq!(shown.secret, issued.secret);
        let update = proto::UpdateApiKeyRequest {
            api_key: Some(proto::ApiKey { display_name: "back office".into(), ..key }),
            ..Default::default()
        };
        assert_eq!(running.client.update_api_key(update).await.unwrap().into_inner().display_name, "back office");
        let rotate = proto::RotateApiKeyRequest { key_id: key_id.clone(), ..Default::default() };
        let rotated = running.client.rotate_api_key(as_actor(rotate, "user/usr_1")).await.unwrap().into_inner();
        assert_eq!(running.code(&issued.secret).await, proto::VerifyCode::Revoked);
        assert_eq!(running.code(&rotated.secret).await, proto::VerifyCode::Valid);
        let revoke = proto::RevokeApiKeyRequest { key_id: rotated.api_key.unwrap().key_id, ..Default::default() };
        running.client.revoke_api_key(as_actor(revoke, "user/usr_1")).await.unwrap();
        assert_eq!(running.code(&rotated.secret).await, proto::VerifyCode::Revoked);
        let proof = running.client.verify_audit_chain(proto::VerifyAuditChainRequest {}).await.unwrap().into_inner();
        assert!(proof.intact && proof.checked_count == 5 && proof.head_hash.len() == 32);
        let audit = proto::ListAuditEventsRequest { key_id, ..Default::default() };
        let events = running.client.list_audit_events(audit).await.unwrap().into_inner().audit_events;
        let actions: Vec<_> = events.iter().map(|event| event.action.as_str()).collect();
        assert_eq!(actions, ["key.generated", "key.revealed", "key.updated", "key.rotated"]);
        assert!(events.iter().all(|event| !event.request_id.is_empty()));
        running.stop().await;
    }

    async fn faults_are_told_whole(db: TestDatabase) {
        let mut running = Running::start(&db, &ring_text(7), 1).await;
        let past = Some(prost_types::Timestamp { seconds: 1, nanos: 0 });
        let bad = proto::GenerateApiKeyRequest {
            display_name: "\u{7}".into(), request_id: "a b".into(), expire_time: past, ..Default::default()
        };
        let status = running.client.generate_api_key(as_actor(bad, "user/usr_1")).await.unwrap_err();
        assert_eq!(reason(&status), (Code::InvalidArgument, "INVALID_FIELDS".into()));
        assert_eq!(status.get_error_details().bad_request().unwrap().field_violations.len(), 4);
        let key = proto::ApiKey { expire_time: past, allowed_cidrs: vec!["here".into()], ..Default::default() };
        let bad = proto::UpdateApiKeyRequest { api_key: Some(key), ..Default::default() };
        let status = running.client.update_api_key(as_actor(bad, "user/usr_1")).await.unwrap_err();
        assert_eq!(status.get_error_details().bad_request().unwrap().field_violations.len(), 3);
        let list = proto::ListApiKeysRequest { page_token: "bm9uZQ".into(), ..Default::default() };
        let status = running.client.list_api_keys(list).await.unwrap_err();
        assert_eq!(reason(&status), (Code::InvalidArgument, "PAGE_TOKEN_INVALID".into()));
        let status = running.client.get_api_key(proto::GetApiKeyRequest { key_id: "key_none".into() }).await.unwrap_err();
        assert_eq!(reason(&status), (Code::NotFound, "KEY_NOT_FOUND".into()));
        running.stop().await;
    }

    async fn every_answer_is_told_its_id_but_a_verification_that_had_none(db: TestDatabase) {
        let mut running = Running::start(&db, &ring_text(7), 1).await;
        let id = |metadata: &MetadataMap| metadata.get("x-request-id").map(|id| id.to_str().unwrap().to_owned());
        let verify = |source_ip: &str, id: Option<&'static str>| {
            let mut request = Request::new(proto::VerifyKeyRequest {
                secret: "unknown-secret".into(),
                source_ip: source_ip.into(),
                ..Default::default()
            });
            if let Some(id) = id {
                request.metadata_mut().insert("x-request-id", id.parse().unwrap());
            }
            request
        };
        let answer = running.client.verify_key(verify("", Some("r-1"))).await.unwrap();
        assert_eq!(id(answer.metadata()).as_deref(), Some("r-1"));
        let answer = running.client.verify_key(verify("", None)).await.unwrap();
        assert_eq!(id(answer.metadata()), None);
        let status = running.client.verify_key(verify("nowhere", None)).await.unwrap_err();
        assert_eq!(id(status.metadata()).map(|id| id.len()), Some(32));
        let answer = running.client.list_api_keys(proto::ListApiKeysRequest::default()).await.unwrap();
        assert_eq!(id(answer.metadata()).map(|id| id.len()), Some(32));
        running.stop().await;
    }

    async fn another_key_ring_is_refused_at_start(db: TestDatabase) {
        Running::start(&db, &ring_text(7), 1).await.stop_after_serving().await;
        let other = Running::start(&db, &ring_text(8), 2).await;
        let text = format!("{:#}", other.task.await.unwrap().unwrap_err());
        assert!(text.contains("pepper 1") || text.contains("master 1"), "{text}");
    }

    async fn a_file_is_imported_with_its_bad_lines_told(db: TestDatabase) {
        let mut running = Running::start(&db, &ring_text(7), 1).await;
        let mut file = String::from("external_reference,agency_id,location_id,secret,create_time,last_use_time,scopes\n");
        for number in 0..2_500 {
            let time = if number == 17 { "yesterday" } else { "2024-01-01T00:00:00Z" };
            let agency = if number == 2_000 { "" } else { "agy_1" };
            file.push_str(&format!("ref-{number},{agency},loc_1,sk_live_{number:024},{time},,read write\n"));
        }
        file.push_str("too,short\n");
        let mut refused = Vec::new();
        let observe = |event: ImportEvent<'_>| if let ImportEvent::Refused(one) = event {
            refused.push((one.line, one.field.clone()));
        };
        let summary = import(file.as_bytes(), running.client.clone(), observe).await.unwrap();
        assert_eq!(summary, ImportSummary { imported: 2_498, unchanged: 0, refused: 3 });
        assert_eq!(refused, [(19, "create_time".into()), (2_002, "owner.location.agency_id".into()), (2_502, "row".into())]);
        // The same file as another system writes it.
        let file = file.replace('\n', "\r\n");
        let mut lines = Vec::new();
        let observe = |event: ImportEvent<'_>| if let ImportEvent::Refused(one) = event {
            lines.push(one.line);
        };
        let again = import(file.as_bytes(), running.client.clone(), observe).await.unwrap();
        assert_eq!(lines, [19, 2_002, 2_502]);
        assert_eq!(again, ImportSummary { imported: 0, unchanged: 2_498, refused: 3 });
        assert_eq!(running.code(&format!("sk_live_{:024}", 2_499)).await, proto::VerifyCode::Valid);
        running.stop().await;
    }
}

impl Running {
    /// Stops once the service has answered, and so has passed all its checks.
    async fn stop_after_serving(mut self) {
        assert_eq!(self.code("unknown-secret").await, proto::VerifyCode::NotFound);
        self.stop().await;
    }
}
