//! One installation of the three services: real binaries on real databases.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use keysweep::clients::Clients;
use service_kit::entropy::OsEntropy;
use service_kit::keyring::KeyRing;
use service_kit::testing::{Kind, TestDatabase};
use tempfile::TempDir;

use crate::process::{Process, free_port};

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
        let mut process = Process::start(name, &["serve"], &self.settings(place), &log);
        process.serves(self.ports[place]).await;
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
