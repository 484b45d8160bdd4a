//! A ring of versioned secrets that live outside the database: peppers for keyed hashes, master keys for sealing.
//!
//! Its text is TOML, one table a secret; the highest version of each kind that is not on standby is the current one, all others
//! still read:
//!
//! ```toml
//! [[pepper]]
//! version = 1
//! key = "<32 bytes in base64>"
//!
//! [[master]]
//! version = 1
//! key = "<32 bytes in base64>"
//!
//! [[master]]
//! version = 2
//! key = "<32 bytes in base64>"
//! standby = true
//! ```

mod recognise;
mod rotation;
mod sealed;

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use hmac::{Hmac, Mac};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::entropy::Entropy;

pub use recognise::{KeyRingFault, Recognised, parse_name};
pub use rotation::{needs_master, rotate_master_key};
pub use sealed::{Resealed, SealedColumn, VersionIn};

/// Where the ring comes from.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRingConfig {
    /// The ring's text itself, for installations that pass secrets in the environment. Empty: `path` is read.
    pub keyring: SecretString,
    /// The ring's file. Empty: beside the SQLite file, with `.keyring` appended.
    pub path: String,
    /// Whether a missing file is made anew, for a SQLite database without data.
    pub create_if_missing: bool,
}

impl KeyRingConfig {
    /// The ring's file, given that of the SQLite database if there is one. `None`: none is configured.
    pub fn file(&self, sqlite: Option<&Path>) -> Option<PathBuf> {
        if !self.path.is_empty() {
            return Some(PathBuf::from(&self.path));
        }
        sqlite.map(|db| {
            let mut name = db.as_os_str().to_owned();
            name.push(".keyring");
            PathBuf::from(name)
        })
    }
}

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
pub enum KeyRingError {
    /// Neither text nor file is configured.
    #[error(
        "keyring.keyring or keyring.path must be set, since the database is not a SQLite file beside which a ring could lie"
    )]
    NotConfigured,
    /// The file cannot be read or written.
    #[error("cannot use the keyring {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is missing and must not be made anew.
    #[error("the keyring {0} is missing; put it back from its backup: without it the stored keys are worthless")]
    Missing(PathBuf),
    /// The text is not a ring.
    #[error("the keyring is malformed: {0}")]
    Malformed(String),
    /// A sealed secret cannot be opened.
    #[error("a sealed secret cannot be opened: {0}")]
    Sealed(&'static str),
}

/// A secret under a master key.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed {
    /// The master key's version.
    pub master_version: u32,
    /// 24 bytes of nonce, then the ciphertext with its tag (XChaCha20-Poly1305).
    pub bytes: Vec<u8>,
}

impl Sealed {
    /// The bytes that the version takes in [`Sealed::to_bytes`].
    pub const VERSION_BYTES: usize = 4;

    /// Version and bytes in one.
    pub fn to_bytes(&self) -> Vec<u8> {
        [self.master_version.to_be_bytes().as_slice(), &self.bytes].concat()
    }

    /// What [`Sealed::to_bytes`] wrote; `None`: it is too short.
    pub fn from_bytes(stored: &[u8]) -> Option<Self> {
        let (version, bytes) = stored.split_first_chunk::<{ Self::VERSION_BYTES }>()?;
        Some(Self { master_version: u32::from_be_bytes(*version), bytes: bytes.to_vec() })
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed(v{}, {} bytes)", self.master_version, self.bytes.len())
    }
}

const NONCE_BYTES: usize = 24;

/// The ring itself. It cannot be printed, and its memory is wiped when it goes.
pub struct KeyRing {
    peppers: Keys,
    masters: Keys,
}

/// The secrets of one kind.
struct Keys {
    all: BTreeMap<u32, Zeroizing<[u8; 32]>>,
    /// The version that new things are made with.
    current: u32,
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let versions = |keys: &Keys| keys.all.keys().copied().collect::<Vec<_>>();
        write!(f, "KeyRing(peppers {:?}, masters {:?})", versions(&self.peppers), versions(&self.masters))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RingText {
    #[serde(default)]
    pepper: Vec<KeyText>,
    #[serde(default)]
    master: Vec<KeyText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyText {
    version: u32,
    key: SecretString,
    /// Known, and not yet used for anything new.
    #[serde(default)]
    standby: bool,
}

impl KeyRing {
    /// Loads the ring. A missing file is made anew with mode 0600 only if `may_create`: the database then holds nothing that
    /// an older ring would be needed for.
    ///
    /// # Errors
    /// See [`KeyRingError`].
    pub fn load(
        config: &KeyRingConfig,
        sqlite: Option<&Path>,
        may_create: bool,
        entropy: &dyn Entropy,
    ) -> Result<Self, KeyRingError> {
        if !config.keyring.expose_secret().is_empty() {
            return Self::parse(config.keyring.expose_secret());
        }
        let path = config.file(sqlite).ok_or(KeyRingError::NotConfigured)?;
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(&Zeroizing::new(text)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                if !(config.create_if_missing && may_create && sqlite.is_some()) {
                    return Err(KeyRingError::Missing(path));
                }
                let text = Self::generate(entropy);
                write_private(&path, &text).map_err(|source| KeyRingError::File { path: path.clone(), source })?;
                tracing::info!(path = %path.display(), "made a new keyring: back it up apart from the database");
                Self::parse(&text)
            }
            Err(source) => Err(KeyRingError::File { path, source }),
        }
    }

    /// The text of a fresh ring: one pepper and one master key, both of version 1.
    pub fn generate(entropy: &dyn Entropy) -> Zeroizing<String> {
        let key = || {
            let mut bytes = Zeroizing::new([0; 32]);
            entropy.fill(&mut *bytes);
            Zeroizing::new(BASE64_STANDARD.encode(bytes.as_slice()))
        };
        let (pepper, master) = (key(), key());
        Zeroizing::new(format!(
            "# Secrets of one keysweep service. Back this file up apart from the database; whoever has both has the keys.\n\
             [[pepper]]\nversion = 1\nkey = \"{}\"\n\n[[master]]\nversion = 1\nkey = \"{}\"\n",
            *pepper, *master
        ))
    }

    /// Reads a ring's text.
    ///
    /// # Errors
    /// [`KeyRingError::Malformed`], which never repeats a secret.
    pub fn parse(text: &str) -> Result<Self, KeyRingError> {
        // The parser's own message quotes the line at fault, which may hold a secret.
        let ring: RingText = toml::from_str(text).map_err(|e| {
            let line = e.span().map_or(0, |span| text[..span.start.min(text.len())].lines().count().max(1));
            KeyRingError::Malformed(format!("line {line} is not of the form that the documentation shows"))
        })?;
        let (peppers, masters) = (read_keys("pepper", ring.pepper)?, read_keys("master", ring.master)?);
        Ok(Self { peppers, masters })
    }

    /// The version that new hashes are made with.
    pub fn current_pepper(&self) -> u32 {
        self.peppers.current
    }

    /// The version that new secrets are sealed with.
    pub fn current_master(&self) -> u32 {
        self.masters.current
    }

    /// All pepper versions: the current one first, since nearly every hash is under it, then the others from the newest on.
    pub fn peppers(&self) -> impl Iterator<Item = u32> + '_ {
        let current = self.peppers.current;
        std::iter::once(current)
            .chain(self.peppers.all.keys().rev().copied().filter(move |version| *version != current))
    }

    /// All versions of master keys, the oldest first.
    pub fn masters(&self) -> impl Iterator<Item = u32> + '_ {
        self.masters.all.keys().copied()
    }

    /// HMAC-SHA-256 of `data` under a pepper. `None`: the ring has no such version.
    pub fn hmac(&self, version: u32, data: &[u8]) -> Option<[u8; 32]> {
        self.peppers.all.get(&version).map(|key| keyed_hash(key, data))
    }

    /// Seals `plaintext` under the current master key, bound to `associated`.
    ///
    /// # Errors
    /// [`KeyRingError::Sealed`] when the plaintext is too long for the cipher.
    pub fn seal(&self, plaintext: &[u8], associated: &[u8], entropy: &dyn Entropy) -> Result<Sealed, KeyRingError> {
        let version = self.masters.current;
        let key = self.masters.all.get(&version).ok_or(KeyRingError::Sealed("the ring has no master key"))?;
        let mut nonce = [0; NONCE_BYTES];
        entropy.fill(&mut nonce);
        let ciphertext = XChaCha20Poly1305::new((&**key).into())
            .encrypt(XNonce::from_slice(&nonce), Payload { msg: plaintext, aad: associated })
            .map_err(|_| KeyRingError::Sealed("the cipher refused it"))?;
        let mut bytes = nonce.to_vec();
        bytes.extend_from_slice(&ciphertext);
        Ok(Sealed { master_version: version, bytes })
    }

    /// Opens what [`KeyRing::seal`] sealed with the same `associated`.
    ///
    /// # Errors
    /// [`KeyRingError::Sealed`] when the version is unknown, or anything was changed.
    pub fn open(&self, sealed: &Sealed, associated: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyRingError> {
        let key = self
            .masters
            .all
            .get(&sealed.master_version)
            .ok_or(KeyRingError::Sealed("the ring lacks its master key's version"))?;
        let (nonce, ciphertext) =
            sealed.bytes.split_at_checked(NONCE_BYTES).ok_or(KeyRingError::Sealed("it is too short"))?;
        XChaCha20Poly1305::new((&**key).into())
            .decrypt(XNonce::from_slice(nonce), Payload { msg: ciphertext, aad: associated })
            .map(Zeroizing::new)
            .map_err(|_| KeyRingError::Sealed("it does not belong here, or was changed"))
    }

    /// A name and a one-way digest of each secret, by which a database recognises the ring it was filled with.
    pub fn fingerprints(&self) -> Vec<(String, [u8; 32])> {
        let digest = |kind: &str, keys: &Keys| {
            keys.all
                .iter()
                .map(|(version, key)| (format!("{kind} {version}"), keyed_hash(key, b"keysweep/fingerprint/v1")))
                .collect::<Vec<_>>()
        };
        let mut all = digest("pepper", &self.peppers);
        all.extend(digest("master", &self.masters));
        all
    }
}

fn keyed_hash(key: &[u8; 32], data: &[u8]) -> [u8; 32] {
    // A key of 32 bytes always fits; the empty hash below is never reached.
    <Hmac<Sha256> as hmac::KeyInit>::new_from_slice(key)
        .map_or_else(|_| Sha256::digest(b"").into(), |mac| mac.chain_update(data).finalize().into_bytes().into())
}

fn read_keys(kind: &str, texts: Vec<KeyText>) -> Result<Keys, KeyRingError> {
    let (mut keys, mut current) = (BTreeMap::new(), 0);
    for text in texts {
        let version = text.version;
        let bytes = Zeroizing::new(
            BASE64_STANDARD
                .decode(text.key.expose_secret())
                .map_err(|_| KeyRingError::Malformed(format!("{kind} {version} is not base64")))?,
        );
        let key: [u8; 32] = bytes
            .as_slice()
            .try_into()
            .map_err(|_| KeyRingError::Malformed(format!("{kind} {version} has {} bytes, not 32", bytes.len())))?;
        if version == 0 || keys.insert(version, Zeroizing::new(key)).is_some() {
            return Err(KeyRingError::Malformed(format!(
                "{kind} {version}: versions count from 1 and stand once each"
            )));
        }
        if !text.standby {
            current = current.max(version);
        }
    }
    if current == 0 {
        return Err(KeyRingError::Malformed(format!("there is no [[{kind}]] that is not on standby")));
    }
    Ok(Keys { all: keys, current })
}

fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)?;
    }
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::SeededEntropy;

    fn ring() -> KeyRing {
        KeyRing::parse(&KeyRing::generate(&SeededEntropy::new(1))).expect("a generated ring parses")
    }

    #[test]
    fn what_is_sealed_opens_only_where_it_belongs() {
        let (ring, entropy) = (ring(), SeededEntropy::new(2));
        let sealed = ring.seal(b"secret", b"key_1", &entropy).expect("seals");
        assert_eq!(&*ring.open(&sealed, b"key_1").expect("opens"), b"secret");
        assert!(ring.open(&sealed, b"key_2").is_err());
        let mut changed = sealed.clone();
        *changed.bytes.last_mut().expect("bytes") ^= 1;
        assert!(ring.open(&changed, b"key_1").is_err());
        assert!(ring.open(&Sealed { master_version: 2, ..sealed }, b"key_1").is_err());
    }

    #[test]
    fn a_secret_on_standby_opens_and_seals_nothing_new() {
        let one = KeyRing::generate(&SeededEntropy::new(1)).to_string();
        let more = KeyRing::generate(&SeededEntropy::new(3)).replace("version = 1", "version = 2\nstandby = true");
        let (old, both) = (ring(), KeyRing::parse(&format!("{one}\n{more}")).expect("a ring"));
        assert_eq!((both.current_pepper(), both.current_master()), (1, 1));
        assert_eq!(both.peppers().collect::<Vec<_>>(), [1, 2]);
        let newest = KeyRing::parse(&format!("{one}\n{more}").replace("standby = true", "")).expect("a ring");
        assert_eq!((newest.current_master(), newest.peppers().collect::<Vec<_>>()), (2, vec![2, 1]));
        let entropy = SeededEntropy::new(2);
        for (by, opens) in [(&old, [true, true, true]), (&both, [true, true, true]), (&newest, [false, true, true])] {
            let sealed = by.seal(b"secret", b"key_1", &entropy).expect("seals");
            assert_eq!([&old, &both, &newest].map(|ring| ring.open(&sealed, b"key_1").is_ok()), opens);
            assert_eq!(Sealed::from_bytes(&sealed.to_bytes()), Some(sealed));
        }
        assert!(KeyRing::parse(&more).is_err(), "nothing new could be made");
    }

    #[test]
    fn a_malformed_ring_is_refused_without_its_secrets() {
        for text in
            ["", "nonsense", "[[pepper]]\nversion = 1\nkey = \"hunter2\"", "[[pepper]]\nversion = 1\nkey = hunter2"]
        {
            let error = KeyRing::parse(text).expect_err("refused").to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn nothing_of_a_ring_can_be_printed() {
        assert_eq!(format!("{:?}", ring()), "KeyRing(peppers [1], masters [1])");
    }

    #[test]
    fn a_missing_ring_is_made_only_where_it_may() {
        let folder = tempfile::tempdir().expect("folder");
        let db = folder.path().join("a.sqlite");
        let config = KeyRingConfig { keyring: String::new().into(), path: String::new(), create_if_missing: true };
        let load = |may| KeyRing::load(&config, Some(&db), may, &SeededEntropy::new(3));
        assert!(matches!(load(false), Err(KeyRingError::Missing(_))));
        let made = load(true).expect("made").fingerprints();
        assert_eq!(load(false).expect("read back").fingerprints(), made);
    }
}
