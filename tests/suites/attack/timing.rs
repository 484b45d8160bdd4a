//! How long refusals take, by their reasons: a table to look at. That they take the same statements is a test of key-service.

use std::time::Duration;

use key_service::domain::key::{Owner, Secret};
use keysweep::clients::{Clients, made_for};
use keysweep_e2e::replica::ADMIN;
use keysweep_proto::key::v1 as key;
use service_kit::entropy::OsEntropy;
use tokio::time::Instant;
use tonic::Code;

use crate::site::{Site, agency};

/// Calls of each kind, in turns with those of the other kinds.
const ROUNDS: usize = 300;

/// A new key: its id and its secret.
async fn generate(clients: &Clients) -> (String, String) {
    let request = key::GenerateApiKeyRequest { owner: Some(agency()), ..Default::default() };
    let made = clients.keys.clone().generate_api_key(made_for(ADMIN, request).expect("an actor")).await;
    let made = made.expect("a key").into_inner();
    (made.api_key.expect("metadata").key_id, made.secret)
}

/// A key that was revoked.
async fn revoked(clients: &Clients) -> (String, String) {
    let (key_id, secret) = generate(clients).await;
    let request = key::RevokeApiKeyRequest { key_id: key_id.clone(), ..Default::default() };
    clients.keys.clone().revoke_api_key(made_for(ADMIN, request).expect("an actor")).await.expect("it is revoked");
    (key_id, secret)
}

async fn verify(clients: &Clients, secret: String, wanted: key::VerifyCode) -> Duration {
    let request = key::VerifyKeyRequest { secret, ..Default::default() };
    let begun = Instant::now();
    let answer = clients.keys.clone().verify_key(request).await.expect("an answer");
    let took = begun.elapsed();
    assert_eq!(answer.get_ref().code(), wanted);
    took
}

async fn reveal(clients: &Clients, key_id: String, wanted: Code) -> Duration {
    let request = made_for(ADMIN, key::RevealKeyRequest { key_id }).expect("an actor");
    let begun = Instant::now();
    let answer = clients.keys.clone().reveal_key(request).await;
    let took = begun.elapsed();
    assert_eq!(answer.expect_err("it is not shown").code(), wanted);
    took
}

/// The table.
pub(crate) async fn table(site: &Site) -> String {
    let clients = site.clients("gateway");
    let kinds = [
        "`VerifyKey` of a secret that no key has",
        "`VerifyKey` of a revoked key's secret",
        "`RevealKey` of no key",
        "`RevealKey` of a revoked key",
    ];
    let mut took = [const { Vec::new() }; 4];
    for round in 0..ROUNDS {
        let unknown = Secret::generate(&Owner { agency_id: "agy_1".to_owned(), location_id: None }, &OsEntropy);
        let (key_id, secret) = revoked(&clients).await;
        took[0].push(verify(&clients, unknown.expose().to_owned(), key::VerifyCode::NotFound).await);
        took[1].push(verify(&clients, secret, key::VerifyCode::Revoked).await);
        took[2].push(reveal(&clients, format!("key_{round:032x}"), Code::NotFound).await);
        took[3].push(reveal(&clients, key_id, Code::FailedPrecondition).await);
    }
    let mut table = "| call | median | nine of ten within |\n| --- | --- | --- |\n".to_owned();
    for (kind, mut took) in kinds.into_iter().zip(took) {
        took.sort();
        let [median, most] = [took.len() / 2, took.len() * 9 / 10].map(|place| took[place].as_micros());
        table.push_str(&format!("| {kind} | {median} µs | {most} µs |\n"));
    }
    table
}
