//! A mail server that speaks SMTP over TCP and answers as it is told.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// What the server does with the next message to somebody.
#[derive(Clone, Copy, Debug)]
pub enum Act {
    /// Answers MAIL so; scripted for the empty recipient.
    From(&'static str),
    /// Answers RCPT so.
    Rcpt(&'static str),
    /// Answers the message so.
    Data(&'static str),
    /// Takes the message and hangs up.
    Vanish,
    /// Hangs up as soon as the message begins.
    Cut,
}

#[derive(Default)]
struct Book {
    acts: BTreeMap<String, VecDeque<Act>>,
    /// (recipient, message) as taken, also where the sender was not told.
    taken: Vec<(String, String)>,
    connections: usize,
}

/// The server.
#[derive(Clone)]
pub struct Smtp {
    book: Arc<Mutex<Book>>,
    pub address: SocketAddr,
}

impl Smtp {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let smtp = Self { book: Arc::default(), address: listener.local_addr().expect("an address") };
        let server = smtp.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = server.clone();
                tokio::spawn(async move { server.talk(stream).await });
            }
        });
        smtp
    }

    /// The next messages to `recipient` are treated so; those after them are taken.
    pub fn script(&self, recipient: &str, acts: &[Act]) {
        self.book.lock().expect("book").acts.insert(recipient.to_owned(), acts.iter().copied().collect());
    }

    /// Messages taken for `recipient`.
    pub fn taken(&self, recipient: &str) -> Vec<String> {
        let book = self.book.lock().expect("book");
        book.taken.iter().filter(|(to, _)| to == recipient).map(|(_, mail)| mail.clone()).collect()
    }

    pub fn connections(&self) -> usize {
        self.book.lock().expect("book").connections
    }

    fn next_act(&self, recipient: &str, at_rcpt: bool) -> Option<Act> {
        let mut book = self.book.lock().expect("book");
        let acts = book.acts.get_mut(recipient)?;
        let due = matches!(
            (acts.front()?, at_rcpt),
            (Act::Rcpt(_) | Act::From(_), true) | (Act::Data(_) | Act::Vanish | Act::Cut, false)
        );
        due.then(|| acts.pop_front()).flatten()
    }

    async fn talk(&self, stream: TcpStream) -> Option<()> {
        self.book.lock().expect("book").connections += 1;
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read).lines();
        let mut recipient = String::new();
        write.write_all(b"220 sink ESMTP\r\n").await.ok()?;
        while let Some(line) = lines.next_line().await.ok()? {
            let answer = match line.split([' ', ':']).next().unwrap_or("").to_uppercase().as_str() {
                "EHLO" | "HELO" => "250-sink\r\n250 8BITMIME".to_owned(),
                "MAIL" => match self.next_act("", true) {
                    Some(Act::From(answer)) => answer.to_owned(),
                    _ => "250 ok".to_owned(),
                },
                "RCPT" => {
                    recipient = line.split(['<', '>']).nth(1).unwrap_or("").to_owned();
                    match self.next_act(&recipient, true) {
                        Some(Act::Rcpt(answer)) => answer.to_owned(),
                        _ => "250 ok".to_owned(),
                    }
                }
                "DATA" => {
                    write.write_all(b"354 go on\r\n").await.ok()?;
                    let act = self.next_act(&recipient, false);
                    if matches!(act, Some(Act::Cut)) {
                        lines.next_line().await.ok()?;
                        return None;
                    }
                    let mut message = String::new();
                    while let Some(line) = lines.next_line().await.ok()? {
                        if line == "." {
                            break;
                        }
                        message.push_str(line.strip_prefix('.').unwrap_or(&line));
                        message.push_str("\r\n");
                    }
                    if !matches!(act, Some(Act::Data(_))) {
                        self.book.lock().expect("book").taken.push((recipient.clone(), message));
                    }
                    match act {
                        Some(Act::Vanish) => return None,
                        Some(Act::Data(answer)) => answer.to_owned(),
                        _ => "250 2.0.0 queued as 1".to_owned(),
                    }
                }
                "QUIT" => {
                    write.write_all(b"221 bye\r\n").await.ok()?;
                    return None;
                }
                _ => "250 ok".to_owned(),
            };
            write.write_all(format!("{answer}\r\n").as_bytes()).await.ok()?;
        }
        None
    }
}
