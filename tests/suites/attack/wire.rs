//! Connections of an attacker, and what it hears on them.

use std::collections::BTreeMap;
use std::fmt;
use std::iter::Sum;
use std::sync::{Arc, Mutex};

use keysweep_e2e::wait;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::task::JoinHandle;

use crate::frames::{DATA, END_STREAM, ERRORS, GOAWAY, HEADERS, NO_ERROR, PREFACE, RST_STREAM, SETTINGS, frame};
use crate::site::Site;

/// Either kind of connection.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A connection, encrypted or not.
pub(crate) type Wire = Box<dyn Stream>;

/// What a server said on some connections.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heard {
    /// Streams that it ended in order.
    pub(crate) answered: usize,
    /// Streams that it reset, by error code.
    pub(crate) resets: BTreeMap<u32, usize>,
    /// Connections that it ended with a word, by error code.
    pub(crate) goaways: BTreeMap<u32, usize>,
    /// Connections that it closed.
    pub(crate) closed: usize,
}

impl Heard {
    fn take(&mut self, kind: u8, flags: u8, payload: &[u8]) {
        let code = |from: usize| {
            payload.get(from..from + 4).and_then(|four| four.try_into().ok()).map_or(u32::MAX, u32::from_be_bytes)
        };
        match kind {
            HEADERS | DATA if flags & END_STREAM != 0 => self.answered += 1,
            // Follows an answer to a call that was not finished.
            RST_STREAM if code(0) == NO_ERROR => {}
            RST_STREAM => *self.resets.entry(code(0)).or_default() += 1,
            GOAWAY => *self.goaways.entry(code(4)).or_default() += 1,
            _ => {}
        }
    }

    /// Streams that the server is done with.
    pub(crate) fn settled(&self) -> usize {
        self.answered + self.resets.values().sum::<usize>()
    }
}

impl Sum for Heard {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |mut sum, one| {
            sum.answered += one.answered;
            sum.closed += one.closed;
            one.resets.into_iter().for_each(|(code, count)| *sum.resets.entry(code).or_default() += count);
            one.goaways.into_iter().for_each(|(code, count)| *sum.goaways.entry(code).or_default() += count);
            sum
        })
    }
}

impl fmt::Display for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |code: u32| ERRORS.get(code as usize).copied().unwrap_or("an unknown code");
        let mut parts = Vec::new();
        if self.answered > 0 {
            parts.push(format!("{} calls answered", self.answered));
        }
        parts.extend(self.resets.iter().map(|(code, count)| format!("{count} streams reset ({})", name(*code))));
        parts.extend(self.goaways.iter().map(|(code, count)| format!("{count} connections ended ({})", name(*code))));
        if self.closed > 0 {
            parts.push(format!("{} connections closed", self.closed));
        }
        if parts.is_empty() { f.write_str("borne") } else { f.write_str(&parts.join(", ")) }
    }
}

/// A connection on which anything may be said, and everything that is said back is read.
pub(crate) struct Raw {
    out: WriteHalf<Wire>,
    heard: Arc<Mutex<Heard>>,
    reader: JoinHandle<()>,
}

impl Raw {
    /// Over a connection on which nothing was said yet.
    pub(crate) fn over(wire: Wire) -> Self {
        let (input, out) = split(wire);
        let heard = Arc::<Mutex<Heard>>::default();
        Self { out, reader: tokio::spawn(read(input, heard.clone())), heard }
    }

    /// A connection that has begun as it should.
    pub(crate) async fn open(site: &Site) -> Self {
        let mut raw = Self::over(site.connect().await);
        raw.send(PREFACE).await;
        raw.send(&frame(SETTINGS, 0, 0, &[])).await;
        raw
    }

    /// Says something; whether the server still listened.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> bool {
        self.out.write_all(bytes).await.is_ok() && self.out.flush().await.is_ok()
    }

    /// What was heard so far.
    pub(crate) fn heard(&self) -> Heard {
        self.heard.lock().expect("lock").clone()
    }

    /// Waits until so many streams are settled, or the server has closed the connection.
    pub(crate) async fn settled(&self, streams: usize) -> Heard {
        wait::until("an answer to each stream", async || {
            let heard = self.heard();
            (heard.settled() >= streams || self.reader.is_finished()).then_some(heard)
        })
        .await
    }

    /// Waits until the server closes the connection.
    pub(crate) async fn closed(&mut self) -> Heard {
        tokio::time::timeout(wait::PATIENCE, &mut self.reader).await.expect("the server closes it").expect("no panic");
        self.heard()
    }

    /// Hangs up, and waits until the server has done so too.
    pub(crate) async fn end(mut self) -> Heard {
        let before = self.heard();
        // It may have hung up first.
        let _gone = self.out.shutdown().await;
        Heard { closed: before.closed, ..self.closed().await }
    }
}

async fn read(mut input: ReadHalf<Wire>, heard: Arc<Mutex<Heard>>) {
    let mut head = [0; 9];
    let mut payload = Vec::new();
    while input.read_exact(&mut head).await.is_ok() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        payload.resize(length as usize, 0);
        if input.read_exact(&mut payload).await.is_err() {
            break;
        }
        heard.lock().expect("lock").take(head[3], head[4], &payload);
    }
    heard.lock().expect("lock").closed = 1;
}
