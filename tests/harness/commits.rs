//! A proxy before PostgreSQL that sees every commit of a process go by, names it, and kills the process there: before the server
//! hears of the commit, and, another time, before the process hears that it was done.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinHandle;

use crate::chaos::place_of;

/// How often a commit passed and whether the process was killed at it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Point {
    /// Commits that took effect and were heard of.
    pub passed: u64,
    /// Whether the process was killed before the server heard of one.
    pub before: bool,
    /// Whether the process was killed after one, before it heard.
    pub after: bool,
}

#[derive(Debug, Default)]
struct Book {
    /// The process to kill; none: it is dead already, or not to be.
    victim: Option<u32>,
    armed: bool,
    points: BTreeMap<String, Point>,
}

/// A proxy on a port of loopback before a throwaway PostgreSQL; gone when dropped.
#[derive(Debug)]
pub struct CommitProxy {
    address: SocketAddr,
    database: String,
    book: Arc<Mutex<Book>>,
    accepting: JoinHandle<()>,
}

impl CommitProxy {
    /// Listens before the database of this URL, as [`service_kit::testing::TestDatabase`] has it.
    ///
    /// # Panics
    /// When the URL names no database on a Unix socket, or there is no port.
    pub async fn before(url: &str) -> Self {
        let (database, socket) = place_of(url);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let book = Arc::<Mutex<Book>>::default();
        let accepting = tokio::spawn(accept(listener, socket, book.clone()));
        Self { address, database, book, accepting }
    }

    /// The URL of the database behind the proxy.
    pub fn url(&self) -> String {
        format!("postgres://postgres@{}/{}?sslmode=disable", self.address, self.database)
    }

    /// The process that connects from now on.
    pub fn watch(&self, process: u32) {
        self.book().victim = Some(process);
    }

    /// From now on the process is killed once before and once after each commit of a name.
    pub fn arm(&self) {
        self.book().armed = true;
    }

    /// From now on the process is left alone.
    pub fn disarm(&self) {
        self.book().armed = false;
    }

    /// Every commit that was seen while it was armed, named by the statements that wrote in it.
    pub fn points(&self) -> BTreeMap<String, Point> {
        self.book().points.clone()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        lock(&self.book)
    }
}

impl Drop for CommitProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, socket: PathBuf, book: Arc<Mutex<Book>>) {
    while let Ok((client, _)) = listener.accept().await {
        let (socket, book) = (socket.clone(), book.clone());
        tokio::spawn(async move {
            let Ok(server) = UnixStream::connect(socket).await else { return };
            // Whatever ends it, both ends are closed.
            let _: io::Result<()> = Connection { client, server, book, log: Log::default() }.carry().await;
        });
    }
}

/// What happens at a commit.
enum Fate {
    Passes,
    DiesBefore,
    DiesAfter,
}

fn fate(book: &Mutex<Book>, name: &str) -> Fate {
    let mut book = lock(book);
    let lives = book.victim.is_some();
    if !book.armed {
        return Fate::Passes;
    }
    let point = book.points.entry(name.to_owned()).or_default();
    if lives && !point.before {
        point.before = true;
        Fate::DiesBefore
    } else if lives && !point.after {
        point.after = true;
        Fate::DiesAfter
    } else {
        point.passed += 1;
        Fate::Passes
    }
}

fn kill(book: &Mutex<Book>) {
    if let Some(process) = lock(book).victim.take() {
        // Who is dead already need not be killed.
        let _: io::Result<_> = Command::new("kill").args(["-KILL", &process.to_string()]).status();
    }
}

struct Connection {
    client: TcpStream,
    server: UnixStream,
    book: Arc<Mutex<Book>>,
    log: Log,
}

impl Connection {
    async fn carry(mut self) -> io::Result<()> {
        let (mut sent, mut answer) = (Vec::new(), vec![0; 16 * 1_024]);
        let mut started = false;
        loop {
            tokio::select! {
                read = self.client.read_buf(&mut sent) => {
                    if read? == 0 {
                        return Ok(());
                    }
                    while let Some(message) = take_message(&mut sent, started) {
                        let named = if started { self.log.see(&message) } else { None };
                        started = true;
                        if !self.pass_on(&message, named).await? {
                            return Ok(());
                        }
                    }
                }
                read = self.server.read(&mut answer) => {
                    let length = read?;
                    if length == 0 {
                        return Ok(());
                    }
                    self.client.write_all(&answer[..length]).await?;
                }
            }
        }
    }

    /// Hands a message to the server, if the process survives it; `commits`: the name of what it commits.
    async fn pass_on(&mut self, message: &[u8], commits: Option<String>) -> io::Result<bool> {
        match commits.map_or(Fate::Passes, |name| fate(&self.book, &name)) {
            Fate::Passes => {
                self.server.write_all(message).await?;
                Ok(true)
            }
            Fate::DiesBefore => {
                kill(&self.book);
                Ok(false)
            }
            Fate::DiesAfter => {
                self.server.write_all(message).await?;
                self.done().await?;
                kill(&self.book);
                Ok(false)
            }
        }
    }

    /// Waits until the server has done what it was told; nobody else hears of it.
    async fn done(&mut self) -> io::Result<()> {
        let mut answer = Vec::new();
        loop {
            while let Some(message) = take_message(&mut answer, true) {
                if message[0] == b'Z' {
                    return Ok(());
                }
            }
            if self.server.read_buf(&mut answer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// The next whole message of the protocol; the first of a connection has no type.
fn take_message(bytes: &mut Vec<u8>, typed: bool) -> Option<Vec<u8>> {
    let start = usize::from(typed);
    let length = bytes.get(start..start + 4)?;
    let end = start + u32::from_be_bytes(length.try_into().ok()?) as usize;
    if bytes.len() < end {
        return None;
    }
    let rest = bytes.split_off(end);
    Some(std::mem::replace(bytes, rest))
}

/// What a connection has been told.
#[derive(Debug, Default)]
struct Log {
    prepared: HashMap<String, String>,
    bound: String,
    in_transaction: bool,
    written: Vec<String>,
}

impl Log {
    /// Looks at a message; answers the name of what it commits.
    fn see(&mut self, message: &[u8]) -> Option<String> {
        let mut texts = message[5..].split(|byte| *byte == 0).map(|text| String::from_utf8_lossy(text).into_owned());
        let mut next = || texts.next().unwrap_or_default();
        match message[0] {
            b'P' => {
                let (name, sql) = (next(), next());
                self.prepared.insert(name, sql);
            }
            b'B' => {
                let (_portal, name) = (next(), next());
                self.bound = self.prepared.get(&name).cloned().unwrap_or_default();
            }
            b'E' => self.note(&self.bound.clone()),
            b'S' if !self.in_transaction => return self.name(),
            b'Q' => {
                let sql = next();
                match sql.split([' ', ';']).next().unwrap_or_default() {
                    "BEGIN" => self.in_transaction = true,
                    "COMMIT" => {
                        self.in_transaction = false;
                        return self.name();
                    }
                    "ROLLBACK" => {
                        self.in_transaction = false;
                        self.written.clear();
                    }
                    _ => {
                        self.note(&sql);
                        if !self.in_transaction {
                            return self.name();
                        }
                    }
                }
            }
            _ => {}
        }
        None
    }

    /// Keeps what a statement writes.
    fn note(&mut self, sql: &str) {
        let words: Vec<_> = sql.split_whitespace().collect();
        for (place, raw) in words.iter().enumerate() {
            let word = raw.trim_start_matches('(').to_uppercase();
            let next = |ahead: usize| words.get(place + ahead).copied().unwrap_or_default();
            let table = match word.as_str() {
                "INSERT" if next(1).eq_ignore_ascii_case("INTO") => next(2),
                "DELETE" if next(1).eq_ignore_ascii_case("FROM") => next(2),
                "UPDATE" if place == 0 || raw.starts_with('(') || words[place - 1].ends_with(['(', ')']) => next(1),
                _ => continue,
            };
            let table = table.trim_matches(|c: char| !c.is_alphanumeric() && c != '_').to_owned();
            let written = format!("{word} {table}");
            if !table.is_empty() && !self.written.contains(&written) {
                self.written.push(written);
            }
        }
    }

    fn name(&mut self) -> Option<String> {
        let written = std::mem::take(&mut self.written);
        (!written.is_empty()).then(|| written.join(", "))
    }
}
