//! The real binaries: wiring, health, reflection, signals, and what survives a kill.

use keysweep::clients::{Clients, made_for};
use keysweep_e2e::account::{create_account, generate, verify};
use keysweep_e2e::installation::Installation;
use keysweep_e2e::process::{Process, free_port, run};
use keysweep_proto::key::v1 as key;
use keysweep_proto::location::v2 as location;
use keysweep_proto::notification::v1::GetSubscriptionRequest;
use service_kit::both_databases;
use service_kit::clock::{Clock, SystemClock};
use service_kit::testing::Kind;
use service_kit::time::to_proto;
use tokio_stream::StreamExt;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1alpha::server_reflection_client::ServerReflectionClient as AlphaClient;
use tonic_types::StatusExt;

const BINARIES: [(&str, &[&str]); 3] = [
    (
        "key-service",
        &["envoy.service.auth.v3.Authorization", "keysweep.key.v1.KeyService", "keysweep.key.v1.SweepService"],
    ),
    (
        "location-service",
        &[
            "keysweep.location.v1.UserService",
            "keysweep.location.v2.AgencyService",
            "keysweep.location.v2.LocationService",
            "keysweep.location.v2.UserService",
        ],
    ),
    ("notification-service", &["keysweep.notification.v1.NotificationService"]),
];

fn reason(status: &tonic::Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

#[tokio::test]
async fn a_wrong_configuration_is_refused_with_every_fault() {
    for (name, _) in BINARIES {
        for command in ["check-config", "serve"] {
            let settings = [
                ("KEYSWEEP_SERVER__LISTEN", "nowhere".to_owned()),
                ("KEYSWEEP_SERVER__COLOUR", "red".to_owned()),
                ("KEYSWEEP_LOG__FORMAT", "xml".to_owned()),
                ("KEYSWEEP_DATABASE__URL", "mysql://root:hunter2@db/keys".to_owned()),
            ];
            let output = run(name, &[command], &settings).await;
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success(), "{name} {command}");
            for fault in ["server.listen", "server.colour", "log.format", "database.url"] {
                assert!(text.contains(fault), "{name} {command} does not name {fault}: {text}");
            }
            assert!(!text.contains("hunter2"), "{text}");
        }
        let right = run(name, &["check-config"], &[]).await;
        assert!(right.status.success(), "{name}: {}", String::from_utf8_lossy(&right.stderr));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_binary_serves_health_and_reflection_and_stops_when_asked() {
    let installation = Installation::new(Kind::Sqlite);
    for (place, (name, services)) in BINARIES.into_iter().enumerate() {
        let mut process = installation.start(place).await;
        let endpoint = format!("http://127.0.0.1:{}", installation.ports[place]);
        let listed = reflected_services(&endpoint).await;
        for service in services {
            assert!(listed.contains(&(*service).to_owned()), "{name} does not reflect {service}: {listed:?}");
            assert_eq!(health(&endpoint, service).await, ServingStatus::Serving, "{name}: {service}");
        }
        for foreign in BINARIES.into_iter().filter(|(other, _)| *other != name).flat_map(|(_, services)| services) {
            assert!(!listed.contains(&(*foreign).to_owned()), "{name} reflects {foreign}");
        }
        let healthy = run(name, &["healthcheck"], &installation.settings(place)).await;
        assert!(healthy.status.success(), "{name}: {}", String::from_utf8_lossy(&healthy.stderr));
        let ended = process.terminate().await;
        assert!(ended.success(), "{name} ended with {ended}: {}", process.output());
        assert!(
            !run(name, &["healthcheck"], &installation.settings(place)).await.status.success(),
            "{name} is still healthy"
        );
    }
}

async fn health(endpoint: &str, service: &str) -> ServingStatus {
    let endpoint = tonic::transport::Endpoint::from_shared(endpoint.to_owned()).expect("an endpoint");
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(endpoint.connect().await.expect("a connection")).check(request).await;
    answer.expect("health knows the service").get_ref().status()
}

async fn reflected_services(endpoint: &str) -> Vec<String> {
    let channel = tonic::transport::Endpoint::from_shared(endpoint.to_owned())
        .expect("an endpoint")
        .connect()
        .await
        .expect("a connection");
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(channel.clone())
        .server_reflection_info(tokio_stream::once(ask))
        .await
        .expect("reflection v1")
        .into_inner();
    let answer = answers.next().await.expect("an answer").expect("an answer").message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
    let mut alpha = AlphaClient::new(channel);
    let ask = tonic_reflection::pb::v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(tonic_reflection::pb::v1alpha::server_reflection_request::MessageRequest::ListServices(
            String::new(),
        )),
    };
    let mut answers =
        alpha.server_reflection_info(tokio_stream::once(ask)).await.expect("reflection v1alpha").into_inner();
    answers.next().await.expect("an answer").expect("an answer");
    list.service.into_iter().map(|service| service.name).collect()
}

both_databases! {
    async fn keys_are_generated_verified_revealed_and_listed_and_survive_a_kill(database: TestDatabase) {
        let installation = Installation::new(database.kind);
        let mut processes = vec![installation.start(0).await, installation.start(1).await, installation.start(2).await];
        let clients = installation.clients();
        let account = create_account(&clients).await;

        let made = generate(&clients, &account, "k1").await.expect("a key");
        let key_id = made.api_key.expect("metadata").key_id;
        let answer = verify(&clients, &made.secret).await;
        assert!(answer.valid, "{answer:?}");

        let reveal = |actor: &str| made_for(actor, key::RevealKeyRequest { key_id: key_id.clone() }).expect("an actor");
        let revealed = clients.keys.clone().reveal_key(reveal(&account.admin)).await.expect("a logged-in admin sees it").into_inner();
        assert_eq!(revealed.secret, made.secret);
        let refused = clients.keys.clone().reveal_key(reveal("api-key/key_1")).await.expect_err("an API client does not");
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::PermissionDenied, "ACTOR_NOT_ALLOWED"));

        let list = key::ListApiKeysRequest { agency_id: account.agency_id.clone(), ..Default::default() };
        let listed = clients.keys.clone().list_api_keys(list.clone()).await.expect("a list").into_inner();
        assert_eq!(listed.api_keys.len(), 1);
        assert!(!format!("{listed:?}").contains(&made.secret));

        let as_of_time = Some(to_proto(SystemClock.now() + chrono::TimeDelta::days(100)));
        let preview = key::PreviewSweepRequest { as_of_time, ..Default::default() };
        let preview = clients.sweeps.clone().preview_sweep(preview).await.expect("a preview").into_inner();
        assert_eq!(preview.entries.iter().map(|entry| entry.key_id.as_str()).collect::<Vec<_>>(), [key_id.as_str()]);

        for process in &mut processes {
            process.kill().await;
        }
        let _again = [installation.start(0).await, installation.start(1).await, installation.start(2).await];
        let clients = installation.clients();
        assert!(verify(&clients, &made.secret).await.valid);
        let repeated = generate(&clients, &account, "k1").await.expect("the same key");
        assert_eq!((repeated.secret, repeated.api_key.expect("metadata").key_id), (made.secret, key_id));
        assert_eq!(clients.keys.clone().list_api_keys(list).await.expect("a list").into_inner().api_keys.len(), 1);
        let request = location::GetLocationRequest { location_id: account.location_id.clone() };
        let there = clients.locations.clone().get_location(request).await.expect("the location").into_inner();
        assert_eq!((there.name.as_str(), there.api_key.as_str()), ("Acme Uptown", ""));
        clients.notifications.clone().get_subscription(GetSubscriptionRequest {}).await.expect("a subscription");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn locations_do_without_key_service_and_a_generation_can_be_repeated() {
    let installation = Installation::new(Kind::Sqlite);
    let _location = installation.start(1).await;
    let clients = installation.clients();
    let account = create_account(&clients).await;
    let mut locations = clients.locations.clone();
    let location_id = account.location_id.clone();

    let read = locations
        .get_location(location::GetLocationRequest { location_id: location_id.clone() })
        .await
        .expect("it reads")
        .into_inner();
    let changed = location::Location { name: "Acme Downtown".into(), ..read };
    let update =
        location::UpdateLocationRequest { location: Some(changed), update_mask: None, request_id: "l2".into() };
    assert_eq!(locations.update_location(update).await.expect("it updates").into_inner().name, "Acme Downtown");
    let list = location::ListLocationsRequest { agency_id: account.agency_id.clone(), ..Default::default() };
    assert_eq!(locations.list_locations(list).await.expect("it lists").into_inner().locations.len(), 1);

    let refused = generate(&clients, &account, "k1").await.expect_err("key-service is down");
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "KEY_SERVICE_UNAVAILABLE"));
    assert!(refused.get_error_details().retry_info().is_some(), "{refused:?}");

    let _key = installation.start(0).await;
    let first = generate(&clients, &account, "k1").await.expect("a key");
    let second = generate(&clients, &account, "k1").await.expect("the same key");
    assert_eq!(first.secret, second.secret);
    let all =
        clients.keys.clone().list_api_keys(key::ListApiKeysRequest::default()).await.expect("a list").into_inner();
    assert_eq!(all.api_keys.len(), 1);

    let delete = location::DeleteLocationRequest { location_id, ..Default::default() };
    locations.delete_location(delete).await.expect("it deletes");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_launcher_keeps_its_data_and_stops_on_ctrl_c() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = folder.path().join("data").display().to_string();
    let log = folder.path().join("up.log");
    let ports = [0; 3].map(|_| free_port());
    let texts = ports.map(|port| port.to_string());
    let arguments = [
        "up",
        "--data",
        &data,
        "--metrics",
        "",
        "--key-port",
        &texts[0],
        "--location-port",
        &texts[1],
        "--notification-port",
        &texts[2],
    ];
    let [key, location, notification] = ports.map(|port| format!("http://127.0.0.1:{port}"));

    let mut first = Process::start("keysweep", &arguments, &[], &log);
    for port in ports {
        first.serves(port).await;
    }
    let clients = Clients::new(&key, &location, &notification).expect("endpoints");
    let account = create_account(&clients).await;
    let made = generate(&clients, &account, "k1").await.expect("a key");
    let ended = first.interrupt().await;
    let output = first.output();
    assert!(ended.success(), "{ended}: {output}");
    assert!(output.contains("grpcurl -plaintext"), "{output}");
    assert!(!output.contains(&made.secret), "the log holds a secret");

    let mut second = Process::start("keysweep", &arguments, &[], &log);
    for port in ports {
        second.serves(port).await;
    }
    let clients = Clients::new(&key, &location, &notification).expect("endpoints");
    assert!(verify(&clients, &made.secret).await.valid);
    assert!(second.interrupt().await.success());
}
