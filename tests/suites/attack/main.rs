//! What an attacker can send, against a real key-service: it stays up, its memory stays bounded, and whoever calls it
//! meanwhile is answered. `docs/hardening.md` has the tables as they were measured.
//!
//! `cargo test -p keysweep-e2e --test attack -- --nocapture` prints them. The attacker is on loopback where connections are plaintext,
//! and else shows the certificate of a gateway.

#![allow(clippy::print_stdout, reason = "a test says what it has seen")]

mod callers;
mod floods;
mod frames;
mod line;
mod messages;
mod site;
mod slow;
mod timing;
mod wire;
mod witness;

use site::Site;
use witness::Promise::{All, Verifications};
use witness::{Row, endure};

/// The rows of an attack for each of these names.
macro_rules! attacks {
    ($site:ident: $($name:literal, $promise:ident, $attack:path;)+) => {
        vec![$(endure(&$site, $name, $promise, || $attack(&$site)).await),+]
    };
}

fn print(title: &str, rows: &[Row]) {
    println!("{title}\n\n{}{}", Row::HEAD, rows.iter().map(Row::line).collect::<String>());
}

/// Attacks that are over soon.
async fn swift(site: &Site) -> Vec<Row> {
    attacks! { site:
        "rapid reset", All, floods::rapid_reset;
        "rapid reset of look-ups", All, floods::rapid_reset_of_lookups;
        "provoked resets", All, floods::provoked_resets;
        "streams beyond the limit of a connection", All, floods::streams_beyond_the_limit;
        "floods of control frames", All, floods::control_frames;
        "a flood of empty DATA", All, floods::empty_data;
        "header floods", All, floods::headers;
        "compressed headers", All, floods::compressed_headers;
        "malformed frames", All, floods::malformed;
        "answers not taken", All, floods::answers_not_taken;
        "answers not read", All, floods::answers_not_read;
        "oversize messages", All, messages::oversize;
        "compressed messages", All, messages::compressed;
        "malformed protobufs", All, messages::no_protobuf;
        "forged actors", All, callers::forged_actors;
    }
}

/// Attacks that take their time.
async fn slow(site: &Site) -> Vec<Row> {
    attacks! { site:
        "silent connections", All, slow::silent_connections;
        "more connections than there may be", All, slow::many_connections;
        "half-open calls", All, slow::half_open_calls;
        "more half-open calls than there may be", Verifications, slow::half_open_calls_beyond_the_limit;
        "unfinished messages", All, slow::unfinished_messages;
        "trickled messages", All, slow::trickled_messages;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_on_loopback_stands_floods() {
    let site = Site::start(false).await;
    print("Plaintext, floods", &swift(&site).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_on_loopback_stands_slowness() {
    let site = Site::start(false).await;
    print("Plaintext, slowness", &slow(&site).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_with_certificates_stands_floods() {
    let site = Site::start(true).await;
    let mut rows = swift(&site).await;
    rows.extend(attacks! { site: "wrong certificates", All, callers::certificates; });
    print("Certificates, floods", &rows);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_with_certificates_stands_slowness() {
    let site = Site::start(true).await;
    print("Certificates, slowness", &slow(&site).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_with_few_files_keeps_enough_for_itself() {
    let site = Site::start_with_files(400).await;
    let log = site.process.output();
    assert!(log.contains("server.max_connections is more than the limit of open files has room for"), "{log}");
    let rows = attacks! { site: "more connections than there are files", All, slow::many_connections; };
    print("Plaintext, 400 files", &rows);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_told_apart_by_their_answers() {
    let site = Site::start(false).await;
    println!("Refusals\n\n{}", timing::table(&site).await);
}
