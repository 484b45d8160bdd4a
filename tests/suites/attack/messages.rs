//! Messages that are too large, compressed, or none of their type.

use std::collections::BTreeMap;

use futures::future::join_all;
use key_service::grpc::SURFACE;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tonic::Code;

use crate::floods::{VERIFY, verify};
use crate::frames::message;
use crate::line::Line;
use crate::site::Site;

/// Callers of the policy, and one whom it does not name.
const CALLERS: [&str; 6] = ["location-service", "notification-service", "gateway", "ui", "operator", "stranger"];
/// Random bodies for each method and caller.
const BODIES: usize = 10;
/// Plays the random bodies again.
const SEED: u64 = 20_260_101;

/// Counts of codes, as they are told.
pub(crate) type Codes = BTreeMap<String, usize>;

/// Codes in words.
pub(crate) fn told(codes: &Codes) -> String {
    codes.iter().map(|(code, count)| format!("{count} {code}")).collect::<Vec<_>>().join(", ")
}

fn name(answer: &Result<Code, h2::Error>) -> String {
    match answer {
        Ok(code) => format!("{code:?}"),
        Err(error) => error.to_string(),
    }
}

/// Messages that are larger than a request may be, or say so.
pub(crate) async fn oversize(site: &Site) -> String {
    let huge = vec![b'x'; 32 << 20];
    let mut codes = Codes::new();
    let sent = [
        message(u32::MAX as usize, b"x"),
        message(33_000, &[b'x'; 33_000]),
        message(huge.len(), &huge),
        verify(&"x".repeat(2 << 20)),
    ];
    for body in sent {
        let one = async || {
            let line = Line::open(site.connect().await).await;
            let answer = line.call(VERIFY, &[], body.clone()).await;
            line.end().await;
            answer
        };
        for answer in join_all((0..4).map(|_| one())).await {
            assert!(matches!(&answer, Ok(Code::InvalidArgument) | Err(_)), "{answer:?}");
            *codes.entry(name(&answer)).or_default() += 1;
        }
    }
    told(&codes)
}

/// A message of 64 MiB in 64 KiB.
pub(crate) async fn compressed(site: &Site) -> String {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut encoder, &vec![0; 64 << 20]).expect("it is compressed");
    let bomb = encoder.finish().expect("it is compressed");
    let mut body = message(bomb.len(), &bomb);
    body[0] = 1;
    let mut codes = Codes::new();
    for encoding in ["gzip", "identity", "zstd"] {
        let line = Line::open(site.connect().await).await;
        let answer = line.call(VERIFY, &[("grpc-encoding", encoding.as_bytes())], body.clone()).await;
        assert!(matches!(answer, Ok(Code::Unimplemented | Code::InvalidArgument)), "{encoding}: {answer:?}");
        *codes.entry(name(&answer)).or_default() += 1;
        line.end().await;
    }
    told(&codes)
}

/// Bytes that are no message of their method, at every method and by every caller.
pub(crate) async fn no_protobuf(site: &Site) -> String {
    let methods = SURFACE.methods().expect("the descriptors");
    let mut random = StdRng::seed_from_u64(SEED);
    let mut codes = Codes::new();
    let callers = if site.authority.is_some() { &CALLERS[..] } else { &CALLERS[..1] };
    for caller in callers {
        let line = Line::open(site.connect_as(caller).await).await;
        // Reflection answers nothing until it has heard more.
        for method in methods.iter().filter(|method| !method.contains("Reflection")) {
            for _ in 0..BODIES {
                let mut body = vec![0; random.random_range(1..200)];
                random.fill(&mut body[..]);
                // Field 1, of a kind that there is not: whatever follows is no message.
                body[0] = 0x0f;
                let answer = line.call(&format!("/{method}"), &[], message(body.len(), &body)).await;
                let known = [Code::InvalidArgument, Code::PermissionDenied, Code::Unauthenticated];
                assert!(answer.as_ref().is_ok_and(|code| known.contains(code)), "{method} by {caller}: {answer:?}");
                *codes.entry(name(&answer)).or_default() += 1;
            }
        }
        line.end().await;
    }
    told(&codes)
}
