//! Who a certificate says its holder is.

use std::fmt;
use std::sync::Arc;

use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::actor::Actor;

/// The longest that SPIFFE allows.
const MAX_BYTES: usize = 2_048;
/// The longest id of an actor.
const MAX_NAME_BYTES: usize = 128;

/// Who a caller is: a URI such as `spiffe://keysweep/ui`, or a host name in small letters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity(Arc<str>);

/// Why a certificate says nothing about its holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoIdentity {
    /// It is no X.509 certificate, or its names cannot be read.
    #[error("the certificate cannot be read")]
    Unreadable,
    /// Which of them is meant?
    #[error("the certificate names {0} URIs; one is its holder's identity")]
    SeveralUris(usize),
    /// No URI, and which of the host names is meant?
    #[error("the certificate names no URI and {0} host names; one is its holder's identity")]
    HostNames(usize),
    /// A name that no policy could list.
    #[error(
        "an identity is a URI such as spiffe://keysweep/ui or a host name: visible ASCII, its last part 1 to 128 characters"
    )]
    Malformed,
}

impl Identity {
    /// A URI that has a scheme and an authority.
    fn of_uri(text: &str) -> Result<Self, NoIdentity> {
        let (scheme, rest) = text.split_once("://").ok_or(NoIdentity::Malformed)?;
        let known = !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
        let name = rest.rsplit('/').next().unwrap_or_default();
        let fits = text.len() <= MAX_BYTES && (1..=MAX_NAME_BYTES).contains(&name.len());
        if known && fits && text.bytes().all(|b| b.is_ascii_graphic()) {
            Ok(Self(text.into()))
        } else {
            Err(NoIdentity::Malformed)
        }
    }

    /// A host name. Its letters are such that it never passes for a URI.
    fn of_host(text: &str) -> Result<Self, NoIdentity> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        if (1..=MAX_NAME_BYTES).contains(&text.len()) && text.bytes().all(plain) {
            Ok(Self(text.to_ascii_lowercase().into()))
        } else {
            Err(NoIdentity::Malformed)
        }
    }

    /// Reads an identity as a policy names it.
    ///
    /// # Errors
    /// When it is neither such a URI nor a host name.
    pub(crate) fn parse(text: &str) -> Result<Self, NoIdentity> {
        if text.contains(':') { Self::of_uri(text) } else { Self::of_host(text) }
    }

    /// Its text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Who it acts as unless it names somebody: the service of its last part.
    pub(crate) fn actor(&self) -> Actor {
        Actor::Service(self.0.rsplit('/').next().unwrap_or_default().to_owned())
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is read off a certificate.
#[derive(Clone, Debug)]
pub(crate) struct Certificate {
    /// Who holds it.
    pub(crate) identity: Identity,
    /// The host names that it is valid for.
    pub(crate) hosts: Vec<String>,
    /// The last second of its validity, seconds since 1970.
    pub(crate) not_after: i64,
}

impl Certificate {
    /// Reads a certificate. That it is genuine and valid is not looked at.
    pub(crate) fn read(der: &[u8]) -> Result<Self, NoIdentity> {
        let certificate = parse(der)?;
        let names = certificate.subject_alternative_name().map_err(|_| NoIdentity::Unreadable)?;
        let (mut uris, mut hosts) = (Vec::new(), Vec::new());
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::URI(uri) => uris.push(*uri),
                GeneralName::DNSName(host) => hosts.push((*host).to_owned()),
                GeneralName::Invalid(..) => return Err(NoIdentity::Unreadable),
                _ => {}
            }
        }
        let identity = match (uris.as_slice(), hosts.as_slice()) {
            ([uri], _) => Identity::of_uri(uri)?,
            ([], [host]) => Identity::of_host(host)?,
            ([], hosts) => return Err(NoIdentity::HostNames(hosts.len())),
            (uris, _) => return Err(NoIdentity::SeveralUris(uris.len())),
        };
        Ok(Self { identity, hosts, not_after: certificate.validity().not_after.timestamp() })
    }
}

/// The last second of a certificate's validity, seconds since 1970.
pub(crate) fn not_after(der: &[u8]) -> Result<i64, NoIdentity> {
    parse(der).map(|certificate| certificate.validity().not_after.timestamp())
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, NoIdentity> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(NoIdentity::Unreadable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_uris_and_host_names() {
        for (text, acts_as) in [
            ("spiffe://keysweep/ui", "service/ui"),
            ("spiffe://cluster.local/ns/keysweep/sa/key-service", "service/key-service"),
            ("https://example.com", "service/example.com"),
            ("batch.example.com", "service/batch.example.com"),
        ] {
            let identity = Identity::parse(text).expect(text);
            assert_eq!((identity.as_str(), identity.actor().to_string().as_str()), (text, acts_as));
        }
        assert_eq!(Identity::parse("Batch.Example.COM").expect("a host").as_str(), "batch.example.com");
        let (long, longer) = (format!("spiffe://{}", "a".repeat(129)), format!("spiffe://{}/ui", "a".repeat(2_048)));
        let malformed = [
            "",
            "*.example.com",
            "a b",
            "spiffe:/keysweep/ui",
            "://keysweep/ui",
            "spiffe://keysweep/",
            "spiffe://keysweep/u i",
            "spiffe://keysweep/\u{fc}i",
            "sp iffe://keysweep/ui",
            "keysweep/ui",
            "b\u{fc}ro.example.com",
            long.as_str(),
            longer.as_str(),
        ];
        for text in malformed {
            assert_eq!(Identity::parse(text), Err(NoIdentity::Malformed), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_certificate_names_nobody() {
        for bytes in [&b""[..], b"\x30\x00", b"nonsense"] {
            assert_eq!(Certificate::read(bytes).expect_err("no certificate"), NoIdentity::Unreadable);
        }
    }
}
