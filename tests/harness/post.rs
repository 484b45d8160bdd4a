//! A mail server in many moods, which notes what it took, when, and whether it said so.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use service_kit::clock::{Clock, SimulatedClock};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// How the server treats about every second message; the others it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// It takes all.
    Good,
    /// 451: later.
    Deferring,
    /// It closes the door before it says a word.
    Closed,
    /// 421 in the middle.
    Leaving,
    /// Takes the message and hangs up without an answer.
    Vanishing,
    /// Hangs up while the message is sent.
    Cutting,
    /// Takes the message and never answers.
    Silent,
}

/// A message that the server took.
#[derive(Clone, Debug)]
pub struct Taken {
    /// The address.
    pub recipient: String,
    /// Its `Message-ID` without the angle brackets.
    pub message_id: String,
    /// When, by the server's clock.
    pub at: DateTime<Utc>,
    /// Whether the sender was told.
    pub told: bool,
    /// How many disturbances there had been by then.
    pub disturbances: u64,
}

#[derive(Debug)]
struct Book {
    mood: Mood,
    seed: u64,
    messages: u64,
    disturbances: u64,
    taken: Vec<Taken>,
}

/// Addresses with this in them are refused for good.
pub const NOBODY: &str = "nobody.";

/// The server.
#[derive(Clone, Debug)]
pub struct Post {
    /// Where it listens.
    pub address: SocketAddr,
    truth: Arc<SimulatedClock>,
    book: Arc<Mutex<Book>>,
}

impl Post {
    /// Listens on a port of loopback for as long as the runtime lives; `seed` determines which messages a mood strikes.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn open(truth: Arc<SimulatedClock>, seed: u64) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let book = Book { mood: Mood::Good, seed, messages: 0, disturbances: 0, taken: Vec::new() };
        let post = Self { address: listener.local_addr()?, truth, book: Arc::new(Mutex::new(book)) };
        let server = post.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = server.clone();
                tokio::spawn(async move { server.talk(stream).await });
            }
        });
        Ok(post)
    }

    /// Its mood from now on.
    pub fn set(&self, mood: Mood) {
        self.book().mood = mood;
    }

    /// Something happened after which a message may come twice.
    pub fn note_disturbance(&self) {
        self.book().disturbances += 1;
    }

    /// The messages taken after the first `known`, and how many disturbances there have been.
    pub fn taken_after(&self, known: usize) -> (Vec<Taken>, u64) {
        let book = self.book();
        (book.taken[known..].to_vec(), book.disturbances)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The mood for the next message to somebody: half of them are taken whatever the mood.
    fn mood_for(&self, recipient: &str) -> Mood {
        let mut book = self.book();
        book.messages += 1;
        let mut hasher = DefaultHasher::new();
        (book.seed, book.messages, recipient).hash(&mut hasher);
        if hasher.finish().is_multiple_of(2) { Mood::Good } else { book.mood }
    }

    fn take(&self, recipient: &str, message: &str, told: bool) {
        let id = message.lines().find_map(|line| line.strip_prefix("Message-ID: <")?.strip_suffix('>'));
        let mut book = self.book();
        let taken = Taken {
            recipient: recipient.to_owned(),
            message_id: id.unwrap_or_default().to_owned(),
            at: self.truth.now(),
            told,
            disturbances: book.disturbances,
        };
        book.taken.push(taken);
    }

    async fn talk(&self, stream: TcpStream) -> Option<()> {
        if self.book().mood == Mood::Closed {
            return None;
        }
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read).lines();
        let mut recipient = String::new();
        write.write_all(b"220 post ESMTP\r\n").await.ok()?;
        while let Some(line) = lines.next_line().await.ok()? {
            let answer = match line.split([' ', ':']).next().unwrap_or("").to_uppercase().as_str() {
                "EHLO" | "HELO" => "250-post\r\n250 8BITMIME",
                "RCPT" => {
                    recipient = line.split(['<', '>']).nth(1).unwrap_or("").to_owned();
                    if recipient.contains(NOBODY) { "550 5.1.1 no such user" } else { "250 ok" }
                }
                "DATA" => {
                    let mood = self.mood_for(&recipient);
                    write.write_all(b"354 go on\r\n").await.ok()?;
                    let mut message = String::new();
                    while let Some(line) = lines.next_line().await.ok()? {
                        if line == "." {
                            break;
                        }
                        message.push_str(line.strip_prefix('.').unwrap_or(&line));
                        message.push('\n');
                        if mood == Mood::Cutting {
                            return None;
                        }
                    }
                    match mood {
                        Mood::Good | Mood::Closed | Mood::Cutting => {
                            self.take(&recipient, &message, true);
                            "250 2.0.0 queued"
                        }
                        Mood::Deferring => "451 4.7.1 later",
                        Mood::Leaving => {
                            write.write_all(b"421 4.3.2 going\r\n").await.ok()?;
                            return None;
                        }
                        Mood::Vanishing => {
                            self.take(&recipient, &message, false);
                            return None;
                        }
                        Mood::Silent => {
                            self.take(&recipient, &message, false);
                            // Until the sender gives up.
                            while lines.next_line().await.ok()?.is_some() {}
                            return None;
                        }
                    }
                }
                "QUIT" => {
                    write.write_all(b"221 bye\r\n").await.ok()?;
                    return None;
                }
                _ => "250 ok",
            };
            write.write_all(format!("{answer}\r\n").as_bytes()).await.ok()?;
        }
        None
    }
}
