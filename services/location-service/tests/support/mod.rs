//! The service in this process, on a test's database and clock, beside a key-service that records what it is asked.

// Each test binary uses a part of it.
#![allow(dead_code, unreachable_pub)]

pub mod recorder;

use std::sync::{Arc, Mutex};

use keysweep_proto::location::v1::user_service_client::UserServiceClient as LegacyUserClient;
use keysweep_proto::location::v2;
use keysweep_proto::location::v2::agency_service_client::AgencyServiceClient;
use keysweep_proto::location::v2::location_service_client::LocationServiceClient;
use keysweep_proto::location::v2::user_service_client::UserServiceClient;
use location_service::app::App;
use location_service::clients::KeyServiceClient;
use location_service::storage::DatabaseStore;
use location_service::{Config, Migrator, grpc};
use recorder::Recorder;
use secrecy::SecretString;
use service_kit::auth::Trust;
use service_kit::clock::SimulatedClock;
use service_kit::entropy::SeededEntropy;
use service_kit::keyring::KeyRing;
use service_kit::server::GrpcServer;
use service_kit::testing::TestDatabase;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

pub struct World {
    pub db: TestDatabase,
    pub clock: Arc<SimulatedClock>,
    pub keys: Recorder,
    pub channel: Channel,
    pub shutdown: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
    seed: u64,
}

impl World {
    /// The service on an empty database, at noon of 2026-01-10.
    pub async fn start(db: TestDatabase) -> Self {
        Self::start_at(db, "2026-01-10T12:00:00Z").await
    }

    pub async fn start_at(db: TestDatabase, now: &str) -> Self {
        let clock = Arc::new(SimulatedClock::new(now.parse().expect("an instant")));
        let keys = Recorder::start().await;
        let (channel, shutdown, task) = serve(&db, &clock, keys.port(), 1).await;
        Self { db, clock, keys, channel, shutdown, task, seed: 1 }
    }

    /// The service with a record of every statement that it sends to its database.
    pub async fn start_watched(db: TestDatabase) -> (Self, Arc<Mutex<Vec<String>>>) {
        let clock = Arc::new(SimulatedClock::new("2026-01-10T12:00:00Z".parse().expect("an instant")));
        let keys = Recorder::start().await;
        let config = config(&db, keys.port());
        let (statements, deps) = (Arc::<Mutex<Vec<String>>>::default(), service_kit::testing::deps(clock.clone(), 1));
        let mut connection = service_kit::db::connect(&config.database).await.expect("connects");
        service_kit::db::migrate::<Migrator>(&connection).await.expect("migrates");
        let record = statements.clone();
        connection.set_metric_callback(move |info| record.lock().expect("lock").push(info.statement.sql.clone()));
        let ring = KeyRing::load(&config.keyring, None, false, &*deps.entropy).expect("a ring");
        let client = KeyServiceClient::new(&config.key_service, &Trust::plaintext()).expect("a client");
        let store = Arc::new(DatabaseStore::new(connection));
        let app = App::new(store, Arc::new(client), ring, deps.clock, deps.entropy);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shutdown = CancellationToken::new();
        let server = GrpcServer::new(&config.server, &grpc::SURFACE, &Trust::plaintext(), shutdown.clone());
        let task = tokio::spawn(grpc::register(server, app).serve(listener));
        let channel = Endpoint::from_shared(format!("http://{address}")).expect("an endpoint").connect_lazy();
        (Self { db, clock, keys, channel, shutdown, task, seed: 1 }, statements)
    }

    /// Ends the service as a crash would, and starts it anew on the same database.
    pub async fn crash_and_restart(&mut self) {
        self.task.abort();
        self.seed += 1;
        let (channel, shutdown, task) = serve(&self.db, &self.clock, self.keys.port(), self.seed).await;
        (self.channel, self.shutdown, self.task) = (channel, shutdown, task);
    }

    /// Stops the service; it must end without a fault.
    pub async fn stop(self) -> TestDatabase {
        self.shutdown.cancel();
        drop(self.channel);
        self.task.await.expect("no panic").expect("a clean end");
        self.db
    }

    pub fn agencies(&self) -> AgencyServiceClient<Channel> {
        AgencyServiceClient::new(self.channel.clone())
    }

    pub fn locations(&self) -> LocationServiceClient<Channel> {
        LocationServiceClient::new(self.channel.clone())
    }

    pub fn users(&self) -> UserServiceClient<Channel> {
        UserServiceClient::new(self.channel.clone())
    }

    pub fn legacy_users(&self) -> LegacyUserClient<Channel> {
        LegacyUserClient::new(self.channel.clone())
    }

    pub async fn agency(&self, name: &str) -> v2::Agency {
        let agency = v2::Agency { name: name.to_owned(), ..v2::Agency::default() };
        let request = v2::CreateAgencyRequest { agency: Some(agency), request_id: String::new() };
        self.agencies().create_agency(request).await.expect("an agency").into_inner()
    }

    pub async fn location(&self, agency_id: &str, name: &str) -> v2::Location {
        // Ids sort by the millisecond of their making.
        self.clock.advance(chrono::TimeDelta::milliseconds(1));
        self.locations().create_location(new_location(agency_id, name, "")).await.expect("a location").into_inner()
    }

    pub async fn agency_admin(&self, agency_id: &str, email: &str) -> v2::User {
        self.user(agency_id, email, role(v2::RoleType::Agency, v2::RoleLevel::Admin), &[]).await
    }

    pub async fn location_admin(&self, agency_id: &str, email: &str, locations: &[&str]) -> v2::User {
        self.user(agency_id, email, role(v2::RoleType::Location, v2::RoleLevel::Admin), locations).await
    }

    pub async fn user(&self, agency_id: &str, email: &str, role: v2::Role, locations: &[&str]) -> v2::User {
        self.clock.advance(chrono::TimeDelta::milliseconds(1));
        let request = new_user(agency_id, email, role, locations, "");
        self.users().create_user(request).await.expect("a user").into_inner()
    }

    /// Makes the admin's choice about the agency's security.
    pub async fn choose(&self, admin: &v2::User, enabled: bool) -> v2::SecuritySettings {
        let request = v2::UpdateSecuritySettingsRequest {
            agency_id: admin.agency_id.clone(),
            enhanced_account_security: enabled,
            acknowledge_risk: !enabled,
            request_id: String::new(),
        };
        self.agencies().update_security_settings(by(admin, request)).await.expect("a choice").into_inner()
    }
}

fn config(db: &TestDatabase, key_service_port: u16) -> Config {
    let mut config: Config =
        service_kit::config::load_from(location_service::config::DEFAULTS, None, std::iter::empty())
            .expect("valid defaults");
    config.database = db.config();
    config.keyring.keyring = SecretString::from(KeyRing::generate(&SeededEntropy::new(42)).to_string());
    config.key_service.endpoint = format!("http://127.0.0.1:{key_service_port}");
    config.key_service.request_timeout_ms = 1_500;
    config.server.drain_notice_ms = 0;
    config
}

async fn serve(
    db: &TestDatabase,
    clock: &Arc<SimulatedClock>,
    key_service_port: u16,
    seed: u64,
) -> (Channel, CancellationToken, JoinHandle<anyhow::Result<()>>) {
    let config = config(db, key_service_port);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let shutdown = CancellationToken::new();
    let deps = service_kit::testing::deps(clock.clone(), seed);
    let task = tokio::spawn(location_service::run(config, deps, listener, shutdown.clone()));
    let channel = Endpoint::from_shared(format!("http://{address}")).expect("an endpoint").connect_lazy();
    (channel, shutdown, task)
}

/// The request, made for a user.
pub fn by<T>(user: &v2::User, message: T) -> Request<T> {
    act(&format!("user/{}", user.user_id), message)
}

/// The request, made for an actor.
pub fn act<T>(actor: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-keysweep-actor", actor.parse().expect("metadata"));
    request
}

pub fn role(kind: v2::RoleType, level: v2::RoleLevel) -> v2::Role {
    v2::Role { r#type: kind.into(), level: level.into() }
}

pub fn new_location(agency_id: &str, name: &str, request_id: &str) -> v2::CreateLocationRequest {
    v2::CreateLocationRequest {
        agency_id: agency_id.to_owned(),
        location: Some(v2::Location { name: name.to_owned(), ..v2::Location::default() }),
        request_id: request_id.to_owned(),
    }
}

pub fn new_user(
    agency_id: &str,
    email: &str,
    role: v2::Role,
    locations: &[&str],
    request_id: &str,
) -> v2::CreateUserRequest {
    let user = v2::User {
        first_name: "Ada".into(),
        last_name: "Lovelace".into(),
        email: email.to_owned(),
        role: Some(role),
        location_ids: locations.iter().map(|id| (*id).to_owned()).collect(),
        ..v2::User::default()
    };
    v2::CreateUserRequest { agency_id: agency_id.to_owned(), user: Some(user), request_id: request_id.to_owned() }
}

pub fn mask(paths: &[&str]) -> Option<prost_types::FieldMask> {
    Some(prost_types::FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() })
}

pub fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

/// The fields at fault, in order.
pub fn fields(status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    details.bad_request().into_iter().flat_map(|bad| bad.field_violations.iter().map(|one| one.field.clone())).collect()
}

/// Asserts a refusal's code and reason.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, expected: &str) -> Status {
    let status = result.expect_err("must be refused");
    assert_eq!((status.code(), reason(&status).as_str()), (code, expected), "{status:?}");
    status
}
