//! One installation of the three services: real binaries on real databases.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use keysweep::clients::{Clients, made_for};
use keysweep_proto::key::v1 as key;
use keysweep_proto::location::v2 as location;
use service_kit::entropy::OsEntropy;
use service_kit::keyring::KeyRing;
use service_kit::testing::{Kind, TestDatabase};
use tempfile::TempDir;

use crate::process::{Process, free_port, serving};

/// The binaries, in the order of their places.
pub const SERVICES: [&str; 3] = ["key-service", "location-service", "notification-service"];

/// Three databases, three ports, a folder for logs, keyrings and emails.
#[derive(Debug)]
pub struct Installation {
    folder: TempDir,
    /// The database of each service.
    pub databases: [TestDatabase; 3],
    /// The port of each service.
    pub ports: [u16; 3],
    metrics_ports: Option<[u16; 3]>,
    own: [Vec<(&'static str, String)>; 3],
}

impl Installation {
    /// With empty databases and new key rings.
    ///
    /// # Panics
    /// When a key ring cannot be written.
    pub fn new(kind: Kind) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for name in SERVICES {
            std::fs::write(folder.path().join(format!("{name}.keyring")), KeyRing::generate(&OsEntropy).as_str())
                .expect("a keyring");
        }
        Self {
            folder,
            databases: [0; 3].map(|_| TestDatabase::new(kind)),
            ports: [0; 3].map(|_| free_port()),
            metrics_ports: None,
            own: [const { Vec::new() }; 3],
        }
    }

    /// The same, with an endpoint for metrics at each service.
    #[must_use]
    pub fn with_metrics(self) -> Self {
        Self { metrics_ports: Some([0; 3].map(|_| free_port())), ..self }
    }

    /// A setting of one service, over what it has.
    pub fn set(&mut self, place: usize, name: &'static str, value: impl Into<String>) {
        self.own[place].push((name, value.into()));
    }

    /// Where everything lies that is no database.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The key ring of a service.
    pub fn keyring(&self, place: usize) -> PathBuf {
        self.folder.path().join(format!("{}.keyring", SERVICES[place]))
    }

    /// Where a service shows its metrics.
    ///
    /// # Panics
    /// When it shows none.
    pub fn metrics_address(&self, place: usize) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.metrics_ports.expect("it shows metrics")[place]))
    }

    /// The environment of a service.
    pub fn settings(&self, place: usize) -> Vec<(&'static str, String)> {
        let endpoint = |place: usize| format!("http://127.0.0.1:{}", self.ports[place]);
        let metrics = self.metrics_ports.map(|_| self.metrics_address(place).to_string());
        let mut settings = vec![
            ("KEYSWEEP_SERVER__LISTEN", format!("127.0.0.1:{}", self.ports[place])),
            ("KEYSWEEP_DATABASE__URL", self.databases[place].url.clone()),
            ("KEYSWEEP_METRICS__LISTEN", metrics.unwrap_or_default()),
        ];
        let keyring = self.keyring(place).display().to_string();
        match place {
            0 => settings.push(("KEYSWEEP_KEYRING__PATH", keyring)),
            1 => {
                settings.extend([("KEYSWEEP_KEYRING__PATH", keyring), ("KEYSWEEP_KEY_SERVICE__ENDPOINT", endpoint(0))])
            }
            _ => settings.extend([
                ("KEYSWEEP_KEY_SERVICE__ENDPOINT", endpoint(0)),
                ("KEYSWEEP_LOCATION_SERVICE__ENDPOINT", endpoint(1)),
                ("KEYSWEEP_MAILDIR__PATH", self.folder.path().join("mail").display().to_string()),
            ]),
        }
        settings.extend(self.own[place].iter().cloned());
        settings
    }

    /// Starts a service and waits until it serves.
    pub async fn start(&self, place: usize) -> Process {
        let name = SERVICES[place];
        let log = self.folder.path().join(format!("{name}.log"));
        let process = Process::start(name, &["serve"], &self.settings(place), &log);
        serving(self.ports[place]).await;
        process
    }

    /// Clients of all three.
    ///
    /// # Panics
    /// Never: the endpoints are our own.
    pub fn clients(&self) -> Clients {
        let [key, location, notification] = self.ports.map(|port| format!("http://127.0.0.1:{port}"));
        Clients::new(&key, &location, &notification).expect("endpoints")
    }
}

/// An agency with one admin and one location.
#[derive(Debug)]
pub struct Account {
    /// The agency.
    pub agency_id: String,
    /// Its location.
    pub location_id: String,
    /// Its admin, as an actor.
    pub admin: String,
}

/// Makes one.
///
/// # Panics
/// When it is refused.
pub async fn create_account(clients: &Clients) -> Account {
    let agency = location::Agency {
        name: "Acme".into(),
        email: "office@acme.example".into(),
        country: "US".into(),
        time_zone: "America/New_York".into(),
        ..Default::default()
    };
    let request = location::CreateAgencyRequest { agency: Some(agency), request_id: "a1".into() };
    let agency_id = clients.agencies.clone().create_agency(request).await.expect("an agency").into_inner().agency_id;
    let request = location::CreateLocationRequest {
        agency_id: agency_id.clone(),
        location: Some(uptown()),
        request_id: "l1".into(),
    };
    let location_id =
        clients.locations.clone().create_location(request).await.expect("a location").into_inner().location_id;
    let role = location::Role { r#type: location::RoleType::Agency.into(), level: location::RoleLevel::Admin.into() };
    let user = location::User {
        first_name: "Ada".into(),
        last_name: "Byron".into(),
        email: "ada@acme.example".into(),
        role: Some(role),
        ..Default::default()
    };
    let request =
        location::CreateUserRequest { agency_id: agency_id.clone(), user: Some(user), request_id: "u1".into() };
    let user_id = clients.users.clone().create_user(request).await.expect("a user").into_inner().user_id;
    Account { agency_id, location_id, admin: format!("user/{user_id}") }
}

/// Its location.
fn uptown() -> location::Location {
    location::Location {
        name: "Acme Uptown".into(),
        country: "US".into(),
        time_zone: "America/New_York".into(),
        ..Default::default()
    }
}

/// Generates a key of the location.
///
/// # Errors
/// As location-service answers.
///
/// # Panics
/// When the account names no actor.
pub async fn generate(
    clients: &Clients,
    account: &Account,
    request_id: &str,
) -> Result<location::GenerateLocationApiKeyResponse, tonic::Status> {
    let request = location::GenerateLocationApiKeyRequest {
        location_id: account.location_id.clone(),
        display_name: "till".into(),
        request_id: request_id.into(),
        ..Default::default()
    };
    let request = made_for(&account.admin, request).expect("an actor");
    clients.locations.clone().generate_location_api_key(request).await.map(tonic::Response::into_inner)
}

/// Verifies a secret.
///
/// # Panics
/// When it is not answered.
pub async fn verify(clients: &Clients, secret: &str) -> key::VerifyKeyResponse {
    let request = key::VerifyKeyRequest { secret: secret.into(), ..Default::default() };
    clients.keys.clone().verify_key(request).await.expect("an answer").into_inner()
}
