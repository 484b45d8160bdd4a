//! A mail server in a process of its own: it takes everything and notes each Message-ID.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const ASKED: &str = "KEYSWEEP_BENCH_SINK";

/// Whether this process is to be the mail server.
pub(crate) fn is_asked_for() -> bool {
    std::env::var_os(ASKED).is_some()
}

/// The mail server, as seen from the benchmark: it answers lines by lines.
pub(crate) struct Sink {
    pub(crate) port: u16,
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Sink {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .env(ASKED, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("the mail server starts")?;
        let questions = child.stdin.take().context("its input")?;
        let answers = BufReader::new(child.stdout.take().context("its output")?);
        let mut sink = Self { port: 0, child, questions, answers };
        sink.port = sink.line()?.parse()?;
        Ok(sink)
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    /// How many messages it has taken.
    pub(crate) fn taken(&mut self) -> anyhow::Result<usize> {
        self.questions.write_all(b"taken\n")?;
        Ok(self.line()?.parse()?)
    }

    /// How often it has taken each Message-ID.
    pub(crate) fn book(&mut self) -> anyhow::Result<HashMap<String, usize>> {
        self.questions.write_all(b"book\n")?;
        let mut book = HashMap::new();
        loop {
            let line = self.line()?;
            let Some((id, count)) = line.split_once(' ') else { return Ok(book) };
            book.insert(id.to_owned(), count.parse()?);
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Default)]
struct Book {
    taken: usize,
    ids: HashMap<String, usize>,
}

type SharedBook = Arc<Mutex<Book>>;

/// Is the mail server, until the benchmark ends.
pub(crate) fn serve() -> ExitCode {
    service_kit::cli::exit_code(try_serve())
}

fn try_serve() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let book = SharedBook::default();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
    println!("{}", listener.local_addr()?.port());
    let shared = book.clone();
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(talk(stream, shared.clone()));
        }
    });
    for question in std::io::stdin().lines() {
        let book = book.lock().map_err(|_| anyhow::anyhow!("the book is torn"))?;
        if question? == "taken" {
            println!("{}", book.taken);
        } else {
            let mut out = std::io::stdout().lock();
            book.ids.iter().try_for_each(|(id, count)| writeln!(out, "{id} {count}"))?;
            writeln!(out)?;
        }
    }
    Ok(())
}

/// A connection's bytes, taken off line by line or message by message.
struct Incoming {
    stream: TcpStream,
    bytes: Vec<u8>,
    done: usize,
}

impl Incoming {
    /// What comes before `end`, without it. `None` where the connection ends.
    async fn until(&mut self, end: &[u8]) -> Option<String> {
        let mut looked = self.done;
        loop {
            if let Some(at) = self.bytes[looked..].windows(end.len()).position(|some| some == end) {
                let text = String::from_utf8_lossy(&self.bytes[self.done..looked + at]).into_owned();
                self.done = looked + at + end.len();
                if self.done == self.bytes.len() {
                    self.bytes.clear();
                    self.done = 0;
                }
                return Some(text);
            }
            looked = self.bytes.len().saturating_sub(end.len() - 1).max(self.done);
            if self.stream.read_buf(&mut self.bytes).await.ok()? == 0 {
                return None;
            }
        }
    }
}

async fn talk(stream: TcpStream, book: SharedBook) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut incoming = Incoming { stream, bytes: Vec::with_capacity(64 * 1024), done: 0 };
    incoming.stream.write_all(b"220 sink ESMTP\r\n").await.ok()?;
    loop {
        let line = incoming.until(b"\r\n").await?;
        let answer: &[u8] = match line.split([' ', ':']).next().unwrap_or("") {
            "EHLO" => b"250-sink\r\n250-PIPELINING\r\n250 8BITMIME\r\n",
            "DATA" => {
                incoming.stream.write_all(b"354 go on\r\n").await.ok()?;
                let message = incoming.until(b"\r\n.\r\n").await?;
                let id = message.lines().find_map(|line| line.strip_prefix("Message-ID: <")?.strip_suffix('>'));
                if let Ok(mut book) = book.lock() {
                    book.taken += 1;
                    *book.ids.entry(id.unwrap_or("none").to_owned()).or_default() += 1;
                }
                b"250 2.0.0 taken\r\n"
            }
            "QUIT" => b"221 bye\r\n",
            _ => b"250 ok\r\n",
        };
        incoming.stream.write_all(answer).await.ok()?;
        if answer.starts_with(b"221") {
            return None;
        }
    }
}
