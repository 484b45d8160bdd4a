//! Mail into a folder, where no mail server is configured: one `.eml` file a message, in the manner of a maildir.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use tokio::fs;
use tokio::io::AsyncWriteExt;

use crate::app::ports::{Mail, MailTransport};
use crate::domain::delivery::Outcome;

/// A disk that takes longer for one file is broken; the file may then be written twice, under the same name.
const LONGEST: Duration = Duration::from_secs(60);

/// A maildir: messages are written in `tmp` and appear whole in `new`.
#[derive(Debug)]
pub struct Maildir {
    path: PathBuf,
}

impl Maildir {
    /// The maildir in this folder, which is made when the first message comes.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    async fn store(&self, mail: &Mail) -> io::Result<PathBuf> {
        for folder in ["tmp", "new", "cur"] {
            fs::create_dir_all(self.path.join(folder)).await?;
        }
        // Message-IDs are ours, and yet no file name may ever lead out of the folder.
        let safe = |c: char| if c.is_ascii_alphanumeric() || "@._-".contains(c) { c } else { '_' };
        let name: String = mail.message_id.chars().map(safe).chain(".eml".chars()).collect();
        let (draft, path) = (self.path.join("tmp").join(&name), self.path.join("new").join(&name));
        let mut file = fs::File::create(&draft).await?;
        file.write_all(&mail.content).await?;
        file.sync_all().await?;
        fs::rename(&draft, &path).await?;
        fs::File::open(self.path.join("new")).await?.sync_all().await?;
        Ok(path)
    }
}

#[async_trait]
impl MailTransport for Maildir {
    async fn send(&self, mail: Mail) -> Outcome {
        match self.store(&mail).await {
            Ok(path) => Outcome::Accepted(format!("stored as {}", path.display())),
            Err(error) => Outcome::Unavailable(format!("cannot store mail in {}: {error}", self.path.display())),
        }
    }

    fn longest(&self) -> Duration {
        LONGEST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mail(content: &[u8]) -> Mail {
        Mail { message_id: "dlv_1/../x@host".into(), recipient: "a@b.c".into(), content: content.to_vec() }
    }

    #[tokio::test]
    async fn a_message_sent_twice_is_one_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let maildir = Maildir::new(folder.path().join("mail"));
        for _ in 0..2 {
            assert!(matches!(maildir.send(mail(b"hello")).await, Outcome::Accepted(_)));
        }
        let count = |name: &str| std::fs::read_dir(folder.path().join("mail").join(name)).expect("listed").count();
        assert_eq!((count("new"), count("tmp")), (1, 0));
        let stored = std::fs::read(folder.path().join("mail/new/dlv_1_.._x@host.eml")).expect("read");
        assert_eq!(stored, b"hello");
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_written_says_nothing_of_the_recipient() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        std::fs::write(&file, "").expect("written");
        assert!(matches!(Maildir::new(file).send(mail(b"x")).await, Outcome::Unavailable(_)));
    }
}
