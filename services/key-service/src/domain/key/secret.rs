//! Secrets: their format, their digests and what of them may be shown.
//!
//! A generated secret is `ksw_agy_` or `ksw_loc_`, 40 base62 characters from the CSPRNG (238 bits) and 6 base62
//! characters of CRC-32 over all before. The prefix lets secret scanners match it; the checksum lets a typo be refused
//! without a database read.

use std::fmt;

use service_kit::entropy::Entropy;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::Owner;

const AGENCY_PREFIX: &str = "ksw_agy_";
const LOCATION_PREFIX: &str = "ksw_loc_";
/// 40 × log2(62) = 238 bits.
const RANDOM_CHARS: usize = 40;
/// 62^6 > 2^32: enough for a CRC-32.
const CHECKSUM_CHARS: usize = 6;
const SECRET_CHARS: usize = AGENCY_PREFIX.len() + RANDOM_CHARS + CHECKSUM_CHARS;
/// The prefix and four random characters: enough to recognise, 24 of 238 bits.
const DISPLAY_CHARS: usize = 12;
/// Longer than any API key in use; bounds the work that a stranger can cause.
const MAX_PRESENTED_BYTES: usize = 512;
/// A shorter imported secret shows nothing: four characters would be too much of it.
const IMPORTED_DISPLAY_MIN_CHARS: usize = 20;
const IMPORTED_DISPLAY_CHARS: usize = 4;
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const SELECTOR_DOMAIN: &[u8] = b"keysweep/selector/v1";

/// The keyed hash of a secret under one pepper.
pub type Hash = [u8; 32];

/// Finds a key's row: one-way from the hash, so that it may outlive the hash in a tombstone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Selector([u8; 16]);

impl Selector {
    /// The selector of a keyed hash.
    pub fn of(hash: &Hash) -> Self {
        let mut digest = Sha256::new();
        digest.update(SELECTOR_DOMAIN);
        digest.update(hash);
        let full: [u8; 32] = digest.finalize().into();
        let mut selector = [0; 16];
        selector.copy_from_slice(&full[..16]);
        Self(selector)
    }

    /// The selector's bytes, as stored.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// A stored selector; `None`: not 16 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

/// SHA-256 of a secret: what the keyed hashes are made of. Not printable, for weak imported secrets could be guessed
/// from it.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretDigest(Zeroizing<[u8; 32]>);

impl SecretDigest {
    /// The digest of a secret's bytes.
    pub fn of(secret: &str) -> Self {
        Self(Zeroizing::new(Sha256::digest(secret.as_bytes()).into()))
    }

    /// A digest that somebody else has made; `None`: not 32 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(|bytes| Self(Zeroizing::new(bytes)))
    }

    /// The digest's bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for SecretDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretDigest(..)")
    }
}

/// A secret in memory: wiped when dropped, never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

/// What a presented secret can be, by its looks alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretShape {
    /// One that keysweep generated.
    Own,
    /// One that may have been imported.
    Foreign,
    /// No key can have it.
    Malformed,
}

impl Secret {
    /// A secret as received or unsealed.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(Zeroizing::new(secret.into()))
    }

    /// A new secret for a key of `owner`.
    pub fn generate(owner: &Owner, entropy: &dyn Entropy) -> Self {
        let prefix = if owner.location_id.is_some() { LOCATION_PREFIX } else { AGENCY_PREFIX };
        // The exact size from the start: growing would leave a copy behind in freed memory.
        let mut secret = Zeroizing::new(String::with_capacity(SECRET_CHARS));
        secret.push_str(prefix);
        let mut pool = Zeroizing::new([0_u8; 64]);
        while secret.len() < prefix.len() + RANDOM_CHARS {
            entropy.fill(pool.as_mut_slice());
            // Bytes past the last multiple of 62 would favour the first characters: they are dropped.
            for byte in pool.iter().filter(|byte| **byte < 248) {
                if secret.len() < prefix.len() + RANDOM_CHARS {
                    secret.push(char::from(ALPHABET[usize::from(byte % 62)]));
                }
            }
        }
        let checksum = checksum(secret.as_bytes());
        for byte in checksum {
            secret.push(char::from(byte));
        }
        Self(secret)
    }

    /// The secret, for the person who may see it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What the secret can be.
    pub fn shape(&self) -> SecretShape {
        shape(&self.0)
    }

    /// The digest that look-ups start from.
    pub fn digest(&self) -> SecretDigest {
        SecretDigest::of(&self.0)
    }

    /// What may be shown of a secret that keysweep generated.
    pub fn display_prefix(&self) -> String {
        self.0.chars().take(DISPLAY_CHARS).collect()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What may be shown of a secret that was imported.
pub fn imported_prefix(secret: &Secret) -> String {
    match secret.shape() {
        SecretShape::Own => secret.display_prefix(),
        SecretShape::Foreign | SecretShape::Malformed if secret.0.chars().count() >= IMPORTED_DISPLAY_MIN_CHARS => {
            secret.0.chars().take(IMPORTED_DISPLAY_CHARS).collect()
        }
        SecretShape::Foreign | SecretShape::Malformed => String::new(),
    }
}

fn shape(secret: &str) -> SecretShape {
    let bytes = secret.as_bytes();
    if secret.starts_with(AGENCY_PREFIX) || secret.starts_with(LOCATION_PREFIX) {
        let body = bytes.len().saturating_sub(CHECKSUM_CHARS);
        let own = bytes.len() == SECRET_CHARS
            && bytes[AGENCY_PREFIX.len()..].iter().all(u8::is_ascii_alphanumeric)
            && bytes[body..] == checksum(&bytes[..body]);
        return if own { SecretShape::Own } else { SecretShape::Malformed };
    }
    let foreign = (1..=MAX_PRESENTED_BYTES).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic);
    if foreign { SecretShape::Foreign } else { SecretShape::Malformed }
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM_CHARS] {
    let mut rest = crc32fast::hash(body) as usize;
    let mut text = [b'0'; CHECKSUM_CHARS];
    for place in text.iter_mut().rev() {
        *place = ALPHABET[rest % 62];
        rest /= 62;
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use service_kit::entropy::SeededEntropy;

    use super::*;

    fn owner(location: bool) -> Owner {
        Owner { agency_id: "agy_1".into(), location_id: location.then(|| "loc_1".into()) }
    }

    #[test]
    fn a_secret_tells_its_kind_and_nothing_in_debug() {
        let entropy = SeededEntropy::new(1);
        let agency = Secret::generate(&owner(false), &entropy);
        let location = Secret::generate(&owner(true), &entropy);
        assert!(agency.expose().starts_with("ksw_agy_") && location.expose().starts_with("ksw_loc_"));
        assert_eq!(agency.expose().len(), 54);
        assert_eq!(format!("{agency:?} {:?}", agency.digest()), "Secret(..) SecretDigest(..)");
        assert_eq!(agency.display_prefix(), agency.expose()[..12]);
    }

    #[test]
    fn every_base62_character_is_drawn_about_equally_often() {
        let entropy = SeededEntropy::new(2);
        let mut counts = std::collections::HashMap::new();
        for _ in 0..2_000 {
            for byte in &Secret::generate(&owner(false), &entropy).expose().as_bytes()[8..48] {
                *counts.entry(*byte).or_insert(0_u32) += 1;
            }
        }
        // 80,000 draws: 1,290 each, standard deviation 36.
        assert_eq!(counts.len(), 62);
        assert!(counts.values().all(|count| (1_100..1_480).contains(count)), "{counts:?}");
    }

    #[test]
    fn shapes() {
        for (secret, expected) in [
            ("", SecretShape::Malformed),
            ("with blank", SecretShape::Malformed),
            ("tab\t", SecretShape::Malformed),
            ("schlüssel", SecretShape::Malformed),
            ("x", SecretShape::Foreign),
            ("sk_live_4eC39HqLyjWDarjtT1zdp7dc", SecretShape::Foreign),
            ("ksw_agy", SecretShape::Foreign),
            ("ksw_agy_", SecretShape::Malformed),
            ("ksw_loc_tooshort", SecretShape::Malformed),
        ] {
            assert_eq!(Secret::new(secret).shape(), expected, "{secret:?}");
        }
        assert_eq!(Secret::new("x".repeat(512)).shape(), SecretShape::Foreign);
        assert_eq!(Secret::new("x".repeat(513)).shape(), SecretShape::Malformed);
    }

    #[test]
    fn imported_secrets_show_little() {
        assert_eq!(imported_prefix(&Secret::new("a".repeat(19))), "");
        assert_eq!(imported_prefix(&Secret::new("abcdefghijklmnopqrst")), "abcd");
    }

    proptest! {
        #[test]
        fn one_wrong_character_is_seen(seed in any::<u64>(), place in 0_usize..54, by in 1_usize..62) {
            let secret = Secret::generate(&owner(seed % 2 == 0), &SeededEntropy::new(seed));
            prop_assert_eq!(secret.shape(), SecretShape::Own);
            let mut bytes = secret.expose().as_bytes().to_vec();
            let old = ALPHABET.iter().position(|c| *c == bytes[place]).unwrap_or(0);
            bytes[place] = ALPHABET[(old + by) % 62];
            let typo = Secret::new(String::from_utf8(bytes).unwrap());
            prop_assert!(typo.shape() != SecretShape::Own || typo == secret);
        }

        #[test]
        fn any_text_has_a_shape(text in ".*") {
            prop_assert_ne!(Secret::new(text).shape(), SecretShape::Own);
        }
    }
}
