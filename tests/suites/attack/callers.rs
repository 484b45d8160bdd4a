//! Callers that are not who they say, or say who they are not.

use std::time::Duration;

use keysweep_proto::key::v1 as key;
use prost::Message;
use service_kit::testing::certificates::{Authority, Wish};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

use crate::floods::{VERIFY, verify};
use crate::frames::{END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, call, frame, message};
use crate::line::Line;
use crate::messages::{Codes, told};
use crate::site::Site;

const REVEAL: &str = "/keysweep.key.v1.KeyService/RevealKey";
const GENERATE: &str = "/keysweep.key.v1.KeyService/GenerateApiKey";
/// Connections for each certificate.
const EACH: usize = 20;

/// Actors that cannot be read, and actors that the caller may not name.
pub(crate) async fn forged_actors(site: &Site) -> String {
    let reveal = key::RevealKeyRequest { key_id: site.key_id.clone() }.encode_to_vec();
    let reveal = message(reveal.len(), &reveal);
    let long = format!("user/{}", "x".repeat(4_000));
    let malformed: [&[u8]; 7] = [b"root", b"", b"user/", b"user/a b", b"USER/a", b"user/\xff", long.as_bytes()];
    let mut codes = Codes::new();
    let mut count = |code: Code| *codes.entry(format!("{code:?}")).or_default() += 1;
    let ui = Line::open(site.connect_as("ui").await).await;
    for actor in malformed {
        let code = ui.call(REVEAL, &[("x-keysweep-actor", actor)], reveal.clone()).await.expect("an answer");
        assert_eq!(code, Code::InvalidArgument, "{actor:?}");
        count(code);
    }
    let twice: [(&str, &[u8]); 2] = [("x-keysweep-actor", b"user/usr_ada"), ("x-keysweep-actor", b"user/usr_ada")];
    let code = ui.call(REVEAL, &twice, reveal.clone()).await.expect("an answer");
    assert_eq!(code, Code::InvalidArgument, "two actors");
    count(code);
    // No person: a key must not show another, and nobody is nobody.
    for (actor, wanted) in [("api-key/key_1", Code::PermissionDenied), ("service/ui", Code::PermissionDenied)] {
        let code = ui.call(REVEAL, &[("x-keysweep-actor", actor.as_bytes())], reveal.clone()).await.expect("an answer");
        assert_eq!(code, wanted, "{actor}");
        count(code);
    }
    ui.end().await;
    if site.authority.is_some() {
        for (caller, path, actor) in [
            ("operator", REVEAL, "user/usr_ada"),
            ("gateway", REVEAL, "user/usr_ada"),
            ("gateway", VERIFY, "service/operator"),
            ("operator", "/keysweep.key.v1.KeyService/ListAuditEvents", "user/usr_ada"),
            ("location-service", REVEAL, "user/usr_ada"),
            ("notification-service", GENERATE, "user/usr_ada"),
            ("stranger", VERIFY, "user/usr_ada"),
        ] {
            let line = Line::open(site.connect_as(caller).await).await;
            let headers = [("x-keysweep-actor", actor.as_bytes())];
            let code = line.call(path, &headers, message(0, &[])).await.expect("an answer");
            assert_eq!(code, Code::PermissionDenied, "{caller} as {actor} at {path}");
            count(code);
            line.end().await;
        }
    }
    told(&codes)
}

/// Certificates that are not believed, or name nobody.
pub(crate) async fn certificates(site: &Site) -> String {
    let authority = site.authority.as_ref().expect("callers show certificates");
    let another = Authority::new();
    let gateway = Wish::of("spiffe://keysweep/gateway");
    let names =
        |names: &[&str]| Wish { names: names.iter().map(|name| (*name).to_owned()).collect(), ..gateway.clone() };
    let kinds = [
        ("none", None),
        ("of another authority", Some((&another, gateway.clone()))),
        ("expired", Some((authority, Wish { years: (2000, 2010), ..gateway.clone() }))),
        ("of the future", Some((authority, Wish { years: (2190, 2200), ..gateway.clone() }))),
        ("that names nobody", Some((authority, names(&[])))),
        ("with two URIs", Some((authority, names(&["spiffe://keysweep/gateway", "spiffe://keysweep/ui"])))),
        ("with two hosts and no URI", Some((authority, names(&["a.example.com", "b.example.com"])))),
    ];
    let count = kinds.len() * EACH;
    for (place, (what, wish)) in kinds.into_iter().enumerate() {
        let folder = site.folder().join(format!("wrong-{place}"));
        let files = wish.map(|(authority, wish)| authority.issue(&folder, &wish));
        for _ in 0..EACH {
            let mut heard = Vec::new();
            // With TLS 1.3 a client is done before the server has looked at its certificate.
            if let Ok(mut wire) = site.show(files.as_ref()).await {
                let call =
                    [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, END_HEADERS, 1, &call(VERIFY))].concat();
                let asked = frame(0, END_STREAM, 1, &verify(&site.secret));
                // The server may have hung up meanwhile: then nothing is heard.
                let _sent = wire.write_all(&[call, asked].concat()).await;
                let read = tokio::time::timeout(Duration::from_secs(30), wire.read_to_end(&mut heard)).await;
                let _closed = read.expect("the server hangs up");
            }
            assert!(heard.is_empty(), "a certificate {what} was let in");
        }
    }
    format!(
        "{count} connections refused: certificates none, of another authority, expired, of the future, nobody's, of two"
    )
}
