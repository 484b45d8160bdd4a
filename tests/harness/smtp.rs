//! A real SMTP server, written by others: aiosmtpd, which keeps what it accepts in a maildir.

use std::path::PathBuf;
use std::process::Stdio;

use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::process::free_port;
use crate::wait;

/// aiosmtpd on a port of loopback; stopped when dropped.
#[derive(Debug)]
pub struct Aiosmtpd {
    /// Its port.
    pub port: u16,
    folder: TempDir,
    _child: Child,
}

impl Aiosmtpd {
    /// Starts it and waits until it listens.
    ///
    /// # Panics
    /// When it cannot be started.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (port, maildir) = (free_port(), folder.path().join("mail"));
        let child = Command::new("python3")
            .args(["-m", "aiosmtpd", "-n", "-l", &format!("127.0.0.1:{port}"), "-c", "aiosmtpd.handlers.Mailbox"])
            .arg(&maildir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("python3 runs");
        wait::until("aiosmtpd to listen", async || TcpStream::connect(("127.0.0.1", port)).await.ok()).await;
        Self { port, folder, _child: child }
    }

    /// The messages that it has accepted, as they arrived.
    ///
    /// # Panics
    /// When its maildir cannot be read.
    pub fn messages(&self) -> Vec<String> {
        let new: PathBuf = self.folder.path().join("mail/new");
        let entries = std::fs::read_dir(new).expect("a maildir");
        entries
            .map(|entry| {
                String::from_utf8_lossy(&std::fs::read(entry.expect("an entry").path()).expect("a message"))
                    .into_owned()
            })
            .collect()
    }
}
