//! Much of what is allowed in small, and frames that are not allowed at all.

use std::time::Duration;

use futures::future::join_all;
use key_service::domain::key::{Owner, Secret};
use keysweep_proto::key::v1 as key;
use prost::Message;
use service_kit::entropy::OsEntropy;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, LAST_REMEMBERED, PADDED, PING, PREFACE, PRIORITY,
    PUSH_PROMISE, REFUSED_STREAM, SETTINGS, WINDOW_UPDATE, call, field, frame, message, remembered, reset,
};
use crate::site::Site;
use crate::wire::{Heard, Raw};

pub(crate) const VERIFY: &str = "/keysweep.key.v1.KeyService/VerifyKey";
/// Connections of an attack that makes do with few.
const FEW: usize = 4;
/// What one writes at once.
const BATCH: usize = 100;
/// A server that takes nothing for so long has stopped reading.
const STUCK: Duration = Duration::from_secs(1);

/// The ids of streams that a client opens.
pub(crate) fn streams(count: usize) -> impl Iterator<Item = u32> + Clone {
    (0..u32::try_from(count).expect("a count")).map(|place| 2 * place + 1)
}

/// The message that asks for a secret.
pub(crate) fn verify(secret: &str) -> Vec<u8> {
    let asked = key::VerifyKeyRequest { secret: secret.to_owned(), ..Default::default() }.encode_to_vec();
    message(asked.len(), &asked)
}

/// Says this for each of so many streams, in batches, on some connections at once.
async fn flood(site: &Site, connections: usize, count: usize, say: impl Fn(u32) -> Vec<u8>) -> Heard {
    let one = async || {
        let mut raw = Raw::open(site).await;
        for batch in streams(count).collect::<Vec<_>>().chunks(BATCH) {
            if !raw.send(&batch.iter().flat_map(|stream| say(*stream)).collect::<Vec<_>>()).await {
                break;
            }
        }
        raw.end().await
    };
    join_all((0..connections).map(|_| one())).await.into_iter().sum()
}

/// Calls that are taken back as soon as they are made (CVE-2023-44487).
pub(crate) async fn rapid_reset(site: &Site) -> String {
    let block = call(VERIFY);
    let say = |stream| [frame(HEADERS, END_HEADERS, stream, &block), reset(stream)].concat();
    flood(site, FEW, 25_000, say).await.to_string()
}

/// The same with calls that the database is asked for.
pub(crate) async fn rapid_reset_of_lookups(site: &Site) -> String {
    let block = call(VERIFY);
    let unknown = || Secret::generate(&Owner { agency_id: "agy_1".to_owned(), location_id: None }, &OsEntropy);
    let say = |stream| {
        let headers = frame(HEADERS, END_HEADERS, stream, &block);
        [headers, frame(DATA, END_STREAM, stream, &verify(unknown().expose())), reset(stream)].concat()
    };
    flood(site, FEW, 5_000, say).await.to_string()
}

/// Calls that the server is made to take back (CVE-2025-8671).
pub(crate) async fn provoked_resets(site: &Site) -> String {
    let block = call(VERIFY);
    let too_much = 0x7fff_ffff_u32.to_be_bytes();
    let say =
        |stream| [frame(HEADERS, END_HEADERS, stream, &block), frame(WINDOW_UPDATE, 0, stream, &too_much)].concat();
    let mut raw = Raw::open(site).await;
    for stream in streams(5_000) {
        if !raw.send(&say(stream)).await {
            break;
        }
    }
    let heard = raw.closed().await;
    // Its last word may be lost where it hangs up on what was not read.
    assert!(heard.settled() < 2_000, "{heard}");
    heard.to_string()
}

/// More calls at once than one connection may have.
pub(crate) async fn streams_beyond_the_limit(site: &Site) -> String {
    let mut raw = Raw::open(site).await;
    let block = call(VERIFY);
    for stream in streams(1_500) {
        raw.send(&frame(HEADERS, END_HEADERS, stream, &block)).await;
    }
    let heard = raw.settled(1_500).await;
    assert!(heard.resets.get(&REFUSED_STREAM).is_some_and(|refused| *refused >= 500), "{heard}");
    raw.end().await;
    heard.to_string()
}

/// Answers that are asked for and never taken: the window stays shut.
pub(crate) async fn answers_not_taken(site: &Site) -> String {
    let no_window = [0, 4, 0, 0, 0, 0];
    let block = call(VERIFY);
    let asked = verify(&site.secret);
    let one = async || {
        let mut raw = Raw::open(site).await;
        raw.send(&frame(SETTINGS, 0, 0, &no_window)).await;
        for stream in streams(1_000) {
            raw.send(&frame(HEADERS, END_HEADERS, stream, &block)).await;
            raw.send(&frame(DATA, END_STREAM, stream, &asked)).await;
        }
        raw
    };
    let held = join_all((0..FEW).map(|_| one())).await;
    // One more call on another connection comes through while they lie there.
    assert!(site.is_serving().await);
    let heard: Heard = join_all(held.into_iter().map(Raw::end)).await.into_iter().sum();
    assert_eq!(heard.answered, 0, "{heard}");
    format!("{} answers were held until the end of their connections", FEW * 1_000)
}

/// Control frames that each want an answer, or do nothing.
pub(crate) async fn control_frames(site: &Site) -> String {
    let mut told = Vec::new();
    for (what, bytes) in [
        ("SETTINGS", frame(SETTINGS, 0, 0, &[])),
        ("PING", frame(PING, 0, 0, &[7; 8])),
        ("PRIORITY", frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])),
        ("WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())),
    ] {
        told.push(format!("{what}: {}", flood(site, FEW, 20_000, |_| bytes.clone()).await));
    }
    told.join("; ")
}

/// DATA without data, which flow control does not count.
pub(crate) async fn empty_data(site: &Site) -> String {
    let mut raw = Raw::open(site).await;
    raw.send(&frame(HEADERS, END_HEADERS, 1, &call(VERIFY))).await;
    let batch = frame(DATA, 0, 1, &[]).repeat(BATCH);
    for _ in 0..500 {
        if !raw.send(&batch).await {
            break;
        }
    }
    raw.end().await.to_string()
}

/// Questions whose answers are never read off the connection.
pub(crate) async fn answers_not_read(site: &Site) -> String {
    let mut wire = site.connect().await;
    let mut opened = PREFACE.to_vec();
    opened.extend(frame(SETTINGS, 0, 0, &[]));
    wire.write_all(&opened).await.expect("it listens");
    let batch = frame(PING, 0, 0, &[7; 8]).repeat(BATCH * 10);
    let mut sent = 0;
    // Far more than the buffers on the way hold.
    while sent < 256 << 20 {
        match timeout(STUCK, wire.write_all(&batch)).await {
            Ok(Ok(())) => sent += batch.len(),
            _ => break,
        }
    }
    assert!(sent < 256 << 20, "the server goes on reading");
    "the server stops reading".to_owned()
}

/// Header lists of more fields, or longer ones, than anybody has; some without an end.
pub(crate) async fn headers(site: &Site) -> String {
    let mut told = Vec::new();
    let fields: Vec<u8> = (0..5_000).flat_map(|n| field(&format!("x-{n}"), "v")).collect();
    let long = field("x-long", &"v".repeat(1 << 20));
    for (what, more) in [("5,000 fields", fields), ("a field of 1 MiB", long)] {
        let block = [call(VERIFY), more].concat();
        let say = |stream| {
            let mut parts = block.chunks(16_000).peekable();
            let mut bytes = frame(HEADERS, 0, stream, parts.next().expect("a block"));
            while let Some(part) = parts.next() {
                bytes.extend(frame(CONTINUATION, if parts.peek().is_none() { END_HEADERS } else { 0 }, stream, part));
            }
            bytes
        };
        told.push(format!("{what}: {}", flood(site, FEW, 20, say).await));
    }
    for (what, part) in [("CONTINUATION without end", field("x-a", "b")), ("empty CONTINUATION", Vec::new())] {
        let mut raw = Raw::open(site).await;
        raw.send(&frame(HEADERS, 0, 1, &call(VERIFY))).await;
        let batch = frame(CONTINUATION, 0, 1, &part).repeat(BATCH);
        let mut batches = 0;
        while batches < 2_000 && raw.send(&batch).await {
            batches += 1;
        }
        let heard = raw.closed().await;
        told.push(format!("{what}: {heard}"));
    }
    told.join("; ")
}

/// A field of 4,000 bytes that is remembered once and named by one byte each, thousands of times (CVE-2016-6581).
pub(crate) async fn compressed_headers(site: &Site) -> String {
    let first = [call(VERIFY), remembered("x-bomb", &"b".repeat(3_900))].concat();
    let bomb = [call(VERIFY), vec![LAST_REMEMBERED; 8_000]].concat();
    let say = |stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, if stream == 1 { &first } else { &bomb });
    flood(site, FEW, 100, say).await.to_string()
}

/// What breaks the rules of HTTP/2, or is none.
pub(crate) async fn malformed(site: &Site) -> String {
    let block = call(VERIFY);
    let begun = frame(HEADERS, END_HEADERS, 1, &block);
    let after = |bytes: Vec<u8>| [begun.clone(), bytes].concat();
    let cases = [
        ("DATA on no stream", frame(DATA, 0, 0, b"x")),
        ("DATA on an idle stream", frame(DATA, 0, 5, b"x")),
        ("HEADERS on a stream of the server", frame(HEADERS, END_HEADERS, 2, &block)),
        ("a stream that comes late", [frame(HEADERS, END_HEADERS, 5, &block), begun.clone()].concat()),
        ("a frame longer than allowed", frame(DATA, 0, 1, &vec![0; 17_000])),
        ("SETTINGS of five bytes", frame(SETTINGS, 0, 0, &[0; 5])),
        ("SETTINGS of a stream", frame(SETTINGS, 0, 1, &[])),
        ("a window of more than 2 GiB", frame(SETTINGS, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff])),
        ("PING of seven bytes", frame(PING, 0, 0, &[0; 7])),
        ("WINDOW_UPDATE by nothing", frame(WINDOW_UPDATE, 0, 0, &[0; 4])),
        ("windows that overflow", frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes()).repeat(2)),
        ("more padding than frame", after(frame(DATA, PADDED, 1, &[200, 1, 2]))),
        ("PUSH_PROMISE by a client", after(frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]))),
        ("CONTINUATION of nothing", frame(CONTINUATION, END_HEADERS, 1, &block)),
        ("a frame amid headers", [frame(HEADERS, 0, 1, &block), frame(PING, 0, 0, &[0; 8])].concat()),
        ("no HPACK", frame(HEADERS, END_HEADERS, 1, &[0xff; 40])),
        ("noise", vec![0xa5; 64]),
    ];
    let count = cases.len();
    let mut told = Heard::default();
    for (what, bytes) in cases {
        let mut raw = Raw::open(site).await;
        raw.send(&bytes).await;
        let heard = raw.closed().await;
        assert_eq!(heard.closed, 1, "{what}: {heard}");
        told = [told, heard].into_iter().sum();
    }
    for bytes in [b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(), vec![22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]] {
        let mut raw = Raw::over(site.connect().await);
        raw.send(&bytes).await;
        told = [told, raw.closed().await].into_iter().sum();
    }
    format!("{count} kinds, HTTP/1.1 and TLS where neither belongs: {told}")
}
