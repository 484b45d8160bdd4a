//! Rows of an import: keys that another platform made, checked one by one.

use std::fmt;

use chrono::{DateTime, Utc};
use service_kit::time::to_micros;
use service_kit::violations::Violations;
use sha2::{Digest, Sha256};

use super::{Owner, RawOwner, Scopes, Secret, SecretDigest, SecretShape, check_display_name, parse_owner};

/// Shorter secrets can be guessed.
const MIN_SECRET_CHARS: usize = 16;
const MAX_SECRET_CHARS: usize = 512;
const MAX_REFERENCE_CHARS: usize = 200;
const FINGERPRINT_DOMAIN: &[u8] = b"keysweep/import/v1";

/// What a row says of its secret, as received.
#[derive(Clone, Default)]
pub enum RawCredential {
    /// Nothing.
    #[default]
    Missing,
    /// The secret itself.
    Secret(Secret),
    /// Its SHA-256.
    Digest(Vec<u8>),
}

impl fmt::Debug for RawCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RawCredential(..)")
    }
}

/// An instant as received.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RawTime {
    /// Nothing was said.
    #[default]
    Unset,
    /// What was said is no instant.
    Impossible,
    /// An instant.
    At(DateTime<Utc>),
}

impl RawTime {
    fn check(self, field: &str, faults: &mut Violations) -> Option<DateTime<Utc>> {
        match self {
            Self::Unset => None,
            Self::Impossible => {
                faults.push(field, "is not an instant of the years 1 to 9999");
                None
            }
            Self::At(at) => Some(at),
        }
    }
}

/// A row as received.
#[derive(Debug, Clone, Default)]
pub struct RawImportRow {
    /// Who will own the key.
    pub owner: RawOwner,
    /// What is known of the secret.
    pub credential: RawCredential,
    /// When the key was created.
    pub created_at: RawTime,
    /// When the key was last used.
    pub last_used_at: RawTime,
    /// The adopter's own name for the key.
    pub external_reference: String,
    /// A name for people.
    pub display_name: String,
    /// Free strings.
    pub scopes: Vec<String>,
}

/// What is known of a row's secret.
#[derive(Debug, Clone)]
pub enum Credential {
    /// The secret itself.
    Secret(Secret),
    /// Its SHA-256: the key verifies and can never be revealed.
    Digest(SecretDigest),
}

impl Credential {
    /// The digest that look-ups start from.
    pub fn digest(&self) -> SecretDigest {
        match self {
            Self::Secret(secret) => secret.digest(),
            Self::Digest(digest) => digest.clone(),
        }
    }
}

/// A row that can become a key.
#[derive(Debug, Clone)]
pub struct ImportRow {
    /// Who will own the key.
    pub owner: Owner,
    /// What is known of the secret.
    pub credential: Credential,
    /// When the key was created.
    pub created_at: DateTime<Utc>,
    /// When the key was last used.
    pub last_used_at: Option<DateTime<Utc>>,
    /// The adopter's own name for the key.
    pub external_reference: String,
    /// A name for people.
    pub display_name: String,
    /// What the key may be used for.
    pub scopes: Scopes,
}

impl RawImportRow {
    /// Checks everything against `now`; the error holds every fault of the row.
    pub fn check(self, now: DateTime<Utc>) -> Result<ImportRow, Violations> {
        let mut faults = Violations::default();
        let owner = parse_owner(self.owner, "owner", &mut faults);
        let credential = check_credential(self.credential, &mut faults);
        if self.created_at == RawTime::Unset {
            faults.push("create_time", "is required");
        }
        let created_at = self.created_at.check("create_time", &mut faults);
        let last_used_at = self.last_used_at.check("last_use_time", &mut faults);
        check_order(created_at, last_used_at, now, &mut faults);
        faults.check_required_text("external_reference", &self.external_reference, MAX_REFERENCE_CHARS);
        check_display_name(&self.display_name, "display_name", &mut faults);
        let scopes = Scopes::parse(self.scopes, "scopes", &mut faults);
        match (owner, credential, created_at) {
            (Some(owner), Some(credential), Some(created_at)) if faults.is_empty() => Ok(ImportRow {
                owner,
                credential,
                created_at,
                last_used_at,
                external_reference: self.external_reference,
                display_name: self.display_name,
                scopes,
            }),
            _ => Err(faults),
        }
    }
}

fn check_credential(credential: RawCredential, faults: &mut Violations) -> Option<Credential> {
    match credential {
        RawCredential::Missing => {
            faults.push("credential", "is required: secret or secret_sha256");
            None
        }
        RawCredential::Secret(secret) => {
            let text = secret.expose();
            if !(MIN_SECRET_CHARS..=MAX_SECRET_CHARS).contains(&text.len())
                || !text.bytes().all(|b| b.is_ascii_graphic())
            {
                faults.push(
                    "secret",
                    format!("must be {MIN_SECRET_CHARS} to {MAX_SECRET_CHARS} visible ASCII characters"),
                );
            } else if secret.shape() == SecretShape::Malformed {
                faults.push(
                    "secret",
                    "has the prefix of keysweep's own secrets but not their form, so it could never verify",
                );
            }
            Some(Credential::Secret(secret))
        }
        RawCredential::Digest(bytes) => {
            let digest = SecretDigest::from_bytes(&bytes);
            if digest.is_none() {
                faults.push("secret_sha256", "must be 32 bytes");
            }
            digest.map(Credential::Digest)
        }
    }
}

fn check_order(
    created_at: Option<DateTime<Utc>>,
    last_used_at: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
    faults: &mut Violations,
) {
    if created_at.is_some_and(|at| at > now) {
        faults.push("create_time", "must not lie in the future");
    }
    if last_used_at.is_some_and(|at| at > now) {
        faults.push("last_use_time", "must not lie in the future");
    }
    if let (Some(created_at), Some(last_used_at)) = (created_at, last_used_at)
        && last_used_at < created_at
    {
        faults.push("last_use_time", "must not lie before create_time");
    }
}

impl ImportRow {
    /// Tells a repeated row from a changed one. The secret is left out, for an unkeyed digest of a weak one could be
    /// guessed from; it is compared by its selector.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        digest.update(FINGERPRINT_DOMAIN);
        let mut text = |part: &str| {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part.as_bytes());
        };
        text(&self.owner.agency_id);
        text(self.owner.location_id.as_deref().unwrap_or_default());
        text(&self.external_reference);
        text(&self.display_name);
        for scope in self.scopes.as_slice() {
            text(scope);
        }
        digest.update(to_micros(self.created_at).to_be_bytes());
        match self.last_used_at {
            Some(at) => digest.update(to_micros(at).to_be_bytes()),
            None => digest.update([0]),
        }
        digest.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp_micros(1_790_000_000_000_000).unwrap()
    }

    fn row() -> RawImportRow {
        RawImportRow {
            owner: RawOwner::Agency("agy_1".into()),
            credential: RawCredential::Secret(Secret::new("sk_live_4eC39HqLyjWDarjtT1zdp7dc")),
            created_at: RawTime::At(now() - TimeDelta::days(400)),
            last_used_at: RawTime::Unset,
            external_reference: "old-1".into(),
            display_name: String::new(),
            scopes: vec![],
        }
    }

    fn faults(row: RawImportRow) -> Vec<String> {
        match row.check(now()) {
            Ok(_) => vec![],
            Err(faults) => faults.iter().map(|fault| fault.field.clone()).collect(),
        }
    }

    #[test]
    fn every_fault_of_a_row_is_named() {
        let row = RawImportRow {
            owner: RawOwner::Missing,
            credential: RawCredential::Digest(vec![1; 31]),
            created_at: RawTime::Impossible,
            last_used_at: RawTime::At(now() + TimeDelta::days(1)),
            external_reference: " ".into(),
            display_name: "\u{7}".into(),
            scopes: vec!["a b".into()],
        };
        let expected = [
            "owner",
            "secret_sha256",
            "create_time",
            "last_use_time",
            "external_reference",
            "display_name",
            "scopes[0]",
        ];
        assert_eq!(faults(row), expected);
        assert_eq!(
            faults(RawImportRow { created_at: RawTime::Unset, ..row_without_credential() }),
            ["credential", "create_time"]
        );
    }

    fn row_without_credential() -> RawImportRow {
        RawImportRow { credential: RawCredential::Missing, ..row() }
    }

    #[test]
    fn instants_are_bounded_to_the_microsecond() {
        let micro = TimeDelta::microseconds(1);
        let check = |created, used| {
            faults(RawImportRow { created_at: RawTime::At(created), last_used_at: RawTime::At(used), ..row() })
        };
        assert_eq!(check(now(), now()), Vec::<String>::new());
        assert_eq!(check(now() + micro, now() + micro), ["create_time", "last_use_time"]);
        assert_eq!(check(now(), now() - micro), ["last_use_time"]);
    }

    #[test]
    fn secrets_that_could_never_verify_are_refused() {
        for (secret, sound) in [
            ("x".repeat(15), false),
            ("x".repeat(16), true),
            ("x".repeat(512), true),
            ("x".repeat(513), false),
            ("ksw_agy_and-then-something-else".into(), false),
            ("has a blank in the middle".into(), false),
        ] {
            let row = RawImportRow { credential: RawCredential::Secret(Secret::new(secret.as_str())), ..row() };
            assert_eq!(faults(row).is_empty(), sound, "{secret}");
        }
    }

    #[test]
    fn the_fingerprint_tells_changed_rows_apart() {
        let print = |row: RawImportRow| row.check(now()).unwrap().fingerprint();
        let same = print(row());
        assert_eq!(same, print(RawImportRow { credential: RawCredential::Digest(vec![1; 32]), ..row() }));
        for changed in [
            RawImportRow { owner: RawOwner::Location("agy_1".into(), "loc_1".into()), ..row() },
            RawImportRow { display_name: "x".into(), ..row() },
            RawImportRow { scopes: vec!["x".into()], ..row() },
            RawImportRow { created_at: RawTime::At(now()), ..row() },
            RawImportRow { last_used_at: RawTime::At(now()), ..row() },
        ] {
            assert_ne!(same, print(changed));
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let text = format!("{:?} {:?}", row(), row().check(now()));
        assert!(!text.contains("4eC39"), "{text}");
    }
}
