//! One of several key-service processes on one database.

use std::path::{Path, PathBuf};

use keysweep::clients::{Clients, made_for};
use keysweep_proto::key::v1 as key;
use service_kit::entropy::OsEntropy;
use service_kit::keyring::KeyRing;
use tempfile::TempDir;
use tonic::{Code, Status};

use crate::process::{Process, free_port};

/// Who asks for keys and ends them.
pub const ADMIN: &str = "user/usr_ada";

/// What all replicas share besides the database: a key ring, and a folder for their logs.
#[derive(Debug)]
pub struct KeyFleet {
    folder: TempDir,
}

impl KeyFleet {
    /// A new key ring.
    ///
    /// # Panics
    /// When it cannot be written.
    #[expect(clippy::new_without_default, reason = "it makes a folder")]
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("keyring"), KeyRing::generate(&OsEntropy).as_str()).expect("a keyring");
        Self { folder }
    }

    /// The key ring's file.
    pub fn keyring(&self) -> PathBuf {
        self.folder.path().join("keyring")
    }

    /// The environment of a command on the database of this URL.
    pub fn settings(&self, database: &str) -> Vec<(&'static str, String)> {
        vec![
            ("KEYSWEEP_DATABASE__URL", database.to_owned()),
            ("KEYSWEEP_KEYRING__PATH", self.keyring().display().to_string()),
            ("KEYSWEEP_METRICS__LISTEN", String::new()),
        ]
    }

    /// Starts a replica on the database of this URL and waits until it serves.
    pub async fn start(&self, name: &str, database: &str, settings: &[(&str, &str)]) -> KeyReplica {
        let port = free_port();
        let log = self.folder.path().join(format!("{name}.log"));
        let mut all = self.settings(database);
        all.push(("KEYSWEEP_SERVER__LISTEN", format!("127.0.0.1:{port}")));
        all.extend(settings.iter().map(|(name, value)| (*name, (*value).to_owned())));
        KeyReplica::start(port, &all, &log).await
    }
}

/// A running key-service.
#[derive(Debug)]
pub struct KeyReplica {
    /// The process.
    pub process: Process,
    /// Clients of it; those of the other services lead nowhere.
    pub clients: Clients,
    /// Where it listens.
    pub endpoint: String,
}

impl KeyReplica {
    async fn start(port: u16, settings: &[(&str, String)], log: &Path) -> Self {
        let mut process = Process::start("key-service", &["serve"], settings, log);
        process.serves(port).await;
        let endpoint = format!("http://127.0.0.1:{port}");
        let clients = Clients::new(&endpoint, &endpoint, &endpoint).expect("an endpoint");
        Self { process, clients, endpoint }
    }

    /// A new key of an agency, with the scope `read`: its id and its secret.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn generate(&self, agency_id: &str) -> (String, String) {
        let account = key::owner::Account::AgencyId(agency_id.to_owned());
        let request = key::GenerateApiKeyRequest {
            owner: Some(key::Owner { account: Some(account) }),
            scopes: vec!["read".to_owned()],
            ..Default::default()
        };
        let made = self.clients.keys.clone().generate_api_key(made_for(ADMIN, request).expect("an actor")).await;
        let made = made.expect("a key").into_inner();
        (made.api_key.expect("metadata").key_id, made.secret)
    }

    /// Ends a key.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn revoke(&self, key_id: &str) {
        let request = key::RevokeApiKeyRequest { key_id: key_id.to_owned(), ..Default::default() };
        let revoked = self.clients.keys.clone().revoke_api_key(made_for(ADMIN, request).expect("an actor")).await;
        revoked.expect("it is revoked");
    }

    /// What it says of a secret.
    ///
    /// # Errors
    /// The status of a call that was not answered.
    pub async fn verify(&self, secret: &str, required_scopes: &[&str]) -> Result<key::VerifyKeyResponse, Status> {
        let request = key::VerifyKeyRequest {
            secret: secret.to_owned(),
            required_scopes: required_scopes.iter().map(|scope| (*scope).to_owned()).collect(),
            ..Default::default()
        };
        Ok(self.clients.keys.clone().verify_key(request).await?.into_inner())
    }

    /// The code of its answer, or of its error.
    ///
    /// # Errors
    /// The code of a call that was not answered.
    pub async fn code(&self, secret: &str) -> Result<key::VerifyCode, Code> {
        self.verify(secret, &[]).await.map(|answer| answer.code()).map_err(|status| status.code())
    }
}
