//! Mail over SMTP. The dialogue is led step by step, since the same 5xx means one thing after RCPT, where it is about the
//! recipient, and another before, where it is about us.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use async_trait::async_trait;
use lettre::Address;
use lettre::transport::smtp::authentication::{Credentials, DEFAULT_MECHANISMS};
use lettre::transport::smtp::client::{AsyncSmtpConnection, TlsParameters};
use lettre::transport::smtp::commands::{Data, Mail as MailFrom, Rcpt, Rset};
use lettre::transport::smtp::extension::{ClientId, Extension, MailParameter};
use lettre::transport::smtp::{Error, response::Response};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::app::ports::{Mail, MailTransport};
use crate::domain::delivery::Outcome;

/// How the connection is kept secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// It is not: for a server on this machine or network.
    None,
    /// By STARTTLS, required.
    StartTls,
    /// From the first byte.
    Implicit,
}

/// Where and as whom to send.
#[derive(Clone)]
pub struct SmtpOptions {
    /// The server's name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How the connection is kept secret.
    pub tls: Tls,
    /// User name and password; `None` to send without.
    pub credentials: Option<(String, String)>,
    /// The envelope's sender.
    pub from: Address,
    /// The longest that one attempt may take.
    pub timeout: Duration,
}

impl std::fmt::Debug for SmtpOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SmtpOptions")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

/// Servers close idle connections after minutes; one that rested longer than this is not used again.
const REST: Duration = Duration::from_secs(20);
/// Connections kept for the next message.
const KEPT: usize = 64;
/// A message is handed over in pieces of this size, so that it need not be copied whole.
const PIECE: usize = 64 * 1024;

/// Sends over SMTP, keeping connections for the next message.
pub struct SmtpTransport {
    options: SmtpOptions,
    tls: Option<TlsParameters>,
    credentials: Option<Credentials>,
    hello: ClientId,
    resting: Mutex<Vec<(Instant, AsyncSmtpConnection)>>,
}

impl std::fmt::Debug for SmtpTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SmtpTransport").field("options", &self.options).finish_non_exhaustive()
    }
}

/// Why an attempt ended early.
enum Stop {
    /// The server cannot be reached.
    Network(std::io::Error),
    /// About us or the server.
    Server(Error),
    /// About the recipient or the message.
    Message(Error),
    /// The recipient cannot be written to by this server.
    Recipient(String),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Server(error)
    }
}

impl SmtpTransport {
    /// A transport that connects when the first message comes.
    ///
    /// # Errors
    /// When the host is no name that a certificate could be for.
    pub fn new(options: SmtpOptions) -> Result<Self, Error> {
        let tls = match options.tls {
            Tls::None => None,
            Tls::StartTls | Tls::Implicit => Some(TlsParameters::new(options.host.clone())?),
        };
        let credentials = options.credentials.clone().map(|(user, password)| Credentials::new(user, password));
        Ok(Self { options, tls, credentials, hello: ClientId::default(), resting: Mutex::new(Vec::new()) })
    }

    async fn connect(&self) -> Result<AsyncSmtpConnection, Stop> {
        let at = (self.options.host.as_str(), self.options.port);
        let mut connection = match self.tls.clone().filter(|_| self.options.tls == Tls::Implicit) {
            Some(tls) => {
                let timeout = Some(self.options.timeout);
                AsyncSmtpConnection::connect_tokio1(at, timeout, &self.hello, Some(tls), None).await?
            }
            None => {
                let stream = TcpStream::connect(at).await.map_err(Stop::Network)?;
                // The end of a message is a packet of its own, which must not wait for the one before to be confirmed.
                stream.set_nodelay(true).map_err(Stop::Network)?;
                AsyncSmtpConnection::connect_with_transport(Box::new(stream), &self.hello).await?
            }
        };
        if let Some(tls) = self.tls.clone().filter(|_| self.options.tls == Tls::StartTls) {
            connection.starttls(tls, &self.hello).await?;
        }
        if let Some(credentials) = &self.credentials {
            connection.auth(DEFAULT_MECHANISMS, credentials).await?;
        }
        Ok(connection)
    }

    fn rested(&self) -> Option<AsyncSmtpConnection> {
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        resting.retain(|(since, connection)| since.elapsed() < REST && !connection.has_broken());
        resting.pop().map(|(_, connection)| connection)
    }

    fn rest(&self, connection: AsyncSmtpConnection) {
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        if resting.len() < KEPT {
            resting.push((Instant::now(), connection));
        }
    }

    /// A connection on which MAIL was answered well: a rested one if it still lives, else a new one.
    async fn open(&self, parameters: Vec<MailParameter>) -> Result<AsyncSmtpConnection, Stop> {
        let from = || MailFrom::new(Some(self.options.from.clone()), parameters.clone());
        if let Some(mut rested) = self.rested()
            && rested.command(from()).await.is_ok()
        {
            return Ok(rested);
        }
        let mut connection = self.connect().await?;
        connection.command(from()).await?;
        Ok(connection)
    }

    /// One dialogue. `handed_over` tells, whenever it breaks off, whether the server may have the message.
    async fn attempt(&self, to: Address, content: &[u8], handed_over: &mut bool) -> Result<Response, Stop> {
        let international = !AsRef::<str>::as_ref(&to).is_ascii();
        let parameters = if international { vec![MailParameter::SmtpUtfEight] } else { Vec::new() };
        let mut connection = self.open(parameters).await?;
        if international && !connection.server_info().supports_feature(Extension::SmtpUtfEight) {
            return Err(Stop::Recipient(
                "the mail server cannot write to an address outside of ASCII (no SMTPUTF8)".to_owned(),
            ));
        }
        let step = async {
            connection.command(Rcpt::new(to, Vec::new())).await?;
            connection.command(Data).await
        };
        if let Err(error) = step.await {
            // The connection is good for others, if the server takes the reset.
            if error.status().is_some() && connection.command(Rset).await.is_ok() {
                self.rest(connection);
            }
            return Err(Stop::Message(error));
        }
        // Without its end a message counts for nothing; from there on the server may take it.
        let end = std::iter::from_fn(|| {
            *handed_over = true;
            None
        });
        match connection.message_iter(content.chunks(PIECE).chain(end)).await {
            Ok(response) => {
                self.rest(connection);
                Ok(response)
            }
            Err(error) => {
                // An answer ends the transaction: the connection is good for others.
                if error.status().is_some() && !is_closing(&error) {
                    self.rest(connection);
                }
                Err(Stop::Message(error))
            }
        }
    }
}

/// The server says that it closes the connection.
fn is_closing(error: &Error) -> bool {
    error.status().is_some_and(|code| code.to_string() == "421")
}

#[async_trait]
impl MailTransport for SmtpTransport {
    async fn send(&self, mail: Mail) -> Outcome {
        let to: Address = match mail.recipient.parse() {
            Ok(to) => to,
            Err(error) => return Outcome::Refused(format!("not an address: {error}")),
        };
        let mut handed_over = false;
        let ended = tokio::time::timeout(self.options.timeout, self.attempt(to, &mail.content, &mut handed_over)).await;
        match ended {
            Ok(Ok(response)) => Outcome::Accepted(reply(&response)),
            Ok(Err(Stop::Network(error))) => Outcome::Unavailable(format!("cannot connect: {error}")),
            Ok(Err(Stop::Server(error))) => Outcome::Unavailable(error.to_string()),
            Ok(Err(Stop::Recipient(text))) => Outcome::Refused(text),
            Ok(Err(Stop::Message(error))) => judge(&error, handed_over),
            Err(_) if handed_over => {
                Outcome::InDoubt(format!("no answer to the message within {} s", self.options.timeout.as_secs()))
            }
            Err(_) => Outcome::Unavailable(format!("no answer within {} s", self.options.timeout.as_secs())),
        }
    }

    fn longest(&self) -> Duration {
        self.options.timeout
    }
}

fn reply(response: &Response) -> String {
    let lines: Vec<&str> = response.message().collect();
    format!("{} {}", response.code(), lines.join(" ")).trim_end().to_owned()
}

/// What an error after MAIL means.
fn judge(error: &Error, handed_over: bool) -> Outcome {
    let text = error.to_string();
    match error.status().map(|code| code.to_string()).as_deref() {
        // The server closes, or lost the thread of the dialogue: neither is about this recipient.
        Some("421" | "503") => Outcome::Unavailable(text),
        Some(code) if code.starts_with('5') => Outcome::Refused(text),
        Some(_) => Outcome::Deferred(text),
        None if handed_over => Outcome::InDoubt(text),
        None => Outcome::Unavailable(text),
    }
}
