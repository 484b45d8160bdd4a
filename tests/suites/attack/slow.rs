//! Connections and calls that begin, and do not go on.

use std::time::Duration;

use futures::future::join_all;
use keysweep_e2e::wait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, interval};
use tonic::Code;

use crate::floods::{VERIFY, streams};
use crate::frames::{DATA, END_HEADERS, HEADERS, PREFACE, SETTINGS, call, frame, message};
use crate::line::Line;
use crate::site::{CONNECTIONS, Site};
use crate::wire::{Heard, Raw, Wire};

/// Connections of each kind.
const EACH: usize = 80;
/// The first bytes of a TLS handshake.
const CLIENT_HELLO: &[u8] = &[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
/// Calls that one connection may have.
const A_CONNECTION: usize = 1_000;
/// Calls that may be in progress.
const CALLS: usize = 4_000;

/// A connection on which this is said, and no more: how long the server bears it.
async fn borne(mut wire: Wire, said: &[u8]) -> Duration {
    let begun = Instant::now();
    wire.write_all(said).await.expect("it listens");
    let mut heard = Vec::new();
    let closed = tokio::time::timeout(wait::PATIENCE, wire.read_to_end(&mut heard)).await;
    // However it closes it.
    let _how = closed.expect("the server closes it");
    begun.elapsed()
}

/// Connections that fall silent, each kind at another point.
pub(crate) async fn silent_connections(site: &Site) -> String {
    let begun = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    let headless = [begun.clone(), frame(HEADERS, 0, 1, &call(VERIFY))].concat();
    let kinds: [(&str, bool, &[u8]); 5] = [
        ("saying nothing", false, b""),
        ("within the TLS handshake", false, CLIENT_HELLO),
        ("within the preface", true, &PREFACE[..20]),
        ("not answering pings", true, &begun),
        ("within headers", true, &headless),
    ];
    let of_kind = async |(what, ready, said): (&'static str, bool, &[u8])| {
        let one = async || {
            let wire: Wire = if ready { site.connect().await } else { Box::new(site.tcp().await) };
            borne(wire, said).await
        };
        let borne = join_all((0..EACH).map(|_| one())).await.into_iter().max().unwrap_or_default();
        format!("{what} {:.0} s", borne.as_secs_f32())
    };
    let told = join_all(kinds.map(of_kind)).await;
    format!("{} connections closed after: {}", EACH * kinds.len(), told.join(", "))
}

/// Calls whose message never comes.
async fn unfinished(site: &Site, connections: usize, said: impl Fn(u32) -> Vec<u8>) -> Heard {
    let one = async || {
        let mut raw = Raw::open(site).await;
        for stream in streams(A_CONNECTION) {
            raw.send(&said(stream)).await;
        }
        let heard = raw.settled(A_CONNECTION).await;
        raw.end().await;
        heard
    };
    join_all((0..connections).map(|_| one())).await.into_iter().sum()
}

/// Three connections full of calls that are never finished.
pub(crate) async fn half_open_calls(site: &Site) -> String {
    let block = call(VERIFY);
    let heard = unfinished(site, 3, |stream| frame(HEADERS, END_HEADERS, stream, &block)).await;
    assert_eq!(heard.answered, 3 * A_CONNECTION, "{heard}");
    format!("{heard}, at the end of their time")
}

/// More such calls than may be in progress.
pub(crate) async fn half_open_calls_beyond_the_limit(site: &Site) -> String {
    let block = call(VERIFY);
    let connections = CALLS / A_CONNECTION + 2;
    let heard = unfinished(site, connections, |stream| frame(HEADERS, END_HEADERS, stream, &block)).await;
    assert_eq!(heard.answered, connections * A_CONNECTION, "{heard}");
    format!("{heard}, those beyond {CALLS} at once")
}

/// Calls whose messages are as large as they may be, but for the end.
pub(crate) async fn unfinished_messages(site: &Site) -> String {
    let part = message(32_000, &[b'x'; 31_000]);
    let one = async || {
        let line = Line::open(site.connect().await).await;
        let calls = (0..A_CONNECTION).map(|_| line.leave_unfinished(VERIFY, part.clone()));
        let answers = join_all(calls).await;
        line.end().await;
        answers
    };
    let answers: Vec<_> = join_all((0..3).map(|_| one())).await.into_iter().flatten().collect();
    assert!(answers.iter().all(|answer| matches!(answer, Ok(Code::DeadlineExceeded))), "{:?}", answers[0]);
    format!("{} calls of 31 kB answered at the end of their time", answers.len())
}

/// Messages that come byte by byte.
pub(crate) async fn trickled_messages(site: &Site) -> String {
    let mut raw = Raw::open(site).await;
    let block = call(VERIFY);
    let open: Vec<_> = streams(200).collect();
    for stream in &open {
        raw.send(&frame(HEADERS, END_HEADERS, *stream, &block)).await;
        raw.send(&frame(DATA, 0, *stream, &message(1_000, b""))).await;
    }
    let mut pace = interval(Duration::from_millis(100));
    while raw.heard().settled() < open.len() {
        pace.tick().await;
        let drops = open.iter().flat_map(|stream| frame(DATA, 0, *stream, b"x"));
        if !raw.send(&drops.collect::<Vec<_>>()).await {
            break;
        }
    }
    let heard = raw.heard();
    raw.end().await;
    format!("{heard}, at the end of their time")
}

/// More connections than there may be. Health is answered all the same, as long as few ask.
pub(crate) async fn many_connections(site: &Site) -> String {
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS + 200 {
        held.push(Raw::over(site.connect().await));
        let raw = held.last_mut().expect("one");
        raw.send(PREFACE).await;
        raw.send(&frame(SETTINGS, 0, 0, &[])).await;
    }
    wait::until("those that are too many to be closed", async || {
        let closed = held.iter().filter(|raw| raw.heard().closed > 0).count();
        (closed >= 200).then_some(())
    })
    .await;
    // Once those for health are free of the attack again, it is answered on them.
    wait::until("health to be answered", async || site.is_serving().await.then_some(())).await;
    let closed = held.iter().filter(|raw| raw.heard().closed > 0).count();
    let mut late = site.clients("gateway").keys;
    let request = keysweep_proto::key::v1::VerifyKeyRequest { secret: site.secret.clone(), ..Default::default() };
    let told = late.verify_key(request).await.map(|_| "answered").unwrap_or_else(|status| {
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        "told OVERLOADED"
    });
    join_all(held.into_iter().map(Raw::end)).await;
    format!(
        "{closed} of {} closed; then health is answered on a new one, and another call there {told}",
        CONNECTIONS + 200
    )
}
