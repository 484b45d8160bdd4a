//! What a key may be given: owner, name, scopes, networks and expiry, each checked so that all faults show at once.

use std::net::IpAddr;

use chrono::{DateTime, Utc};
use ipnet::IpNet;
use service_kit::violations::Violations;

use super::Owner;

/// Characters of a display name.
const MAX_DISPLAY_NAME_CHARS: usize = 100;
/// Scopes of one key.
const MAX_SCOPES: usize = 50;
/// Networks of one key.
const MAX_CIDRS: usize = 50;
const MAX_SCOPE_CHARS: usize = 100;
/// Account ids: the prefix and up to this many characters in all.
const MAX_ID_CHARS: usize = 128;

/// What a key may be used for: sorted, without repeats.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Scopes(Vec<String>);

impl Scopes {
    /// Checks scopes and puts them in order; faults go to `faults` under `field`.
    pub fn parse(scopes: Vec<String>, field: &str, faults: &mut Violations) -> Self {
        if scopes.len() > MAX_SCOPES {
            faults.push(field, format!("at most {MAX_SCOPES} scopes"));
        }
        for (place, scope) in scopes.iter().enumerate() {
            if scope.is_empty() || scope.len() > MAX_SCOPE_CHARS || !scope.bytes().all(|byte| byte.is_ascii_graphic()) {
                faults.push(
                    format!("{field}[{place}]"),
                    format!("must be 1 to {MAX_SCOPE_CHARS} visible ASCII characters"),
                );
            }
        }
        Self::from_stored(scopes)
    }

    /// Scopes that were checked before they were stored.
    pub fn from_stored(mut scopes: Vec<String>) -> Self {
        scopes.sort_unstable();
        scopes.dedup();
        Self(scopes)
    }

    /// The scopes in order.
    pub fn as_slice(&self) -> &[String] {
        &self.0
    }

    /// The scopes in order, to keep.
    pub fn into_vec(self) -> Vec<String> {
        self.0
    }

    /// Whether every one of `required` is among them.
    pub fn cover(&self, required: &Self) -> bool {
        required.0.iter().all(|scope| self.0.binary_search(scope).is_ok())
    }
}

/// From where a key may be used: sorted, without repeats. None: from everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Networks(Vec<IpNet>);

impl Networks {
    /// Checks networks in CIDR notation and puts them in order; faults go to `faults` under `field`.
    pub fn parse(cidrs: &[String], field: &str, faults: &mut Violations) -> Self {
        if cidrs.len() > MAX_CIDRS {
            faults.push(field, format!("at most {MAX_CIDRS} networks"));
        }
        let mut networks = Vec::with_capacity(cidrs.len());
        for (place, cidr) in cidrs.iter().enumerate() {
            match parse_network(cidr) {
                Ok(network) => networks.push(network),
                Err(fault) => faults.push(format!("{field}[{place}]"), fault),
            }
        }
        Self::from_stored(networks)
    }

    /// Networks that were checked before they were stored.
    pub fn from_stored(mut networks: Vec<IpNet>) -> Self {
        networks.sort_unstable();
        networks.dedup();
        Self(networks)
    }

    /// The networks in order.
    pub fn as_slice(&self) -> &[IpNet] {
        &self.0
    }

    /// Whether a request from `source` may use the key. An unknown source may where every one may.
    pub fn admit(&self, source: Option<IpAddr>) -> bool {
        // An IPv4 client of a dual-stack server shows up as ::ffff:a.b.c.d.
        self.0.is_empty() || source.is_some_and(|ip| self.0.iter().any(|network| network.contains(&ip.to_canonical())))
    }
}

fn parse_network(cidr: &str) -> Result<IpNet, String> {
    const NOTATION: &str = "must be a network in CIDR notation, such as 192.0.2.0/24";
    let network: IpNet = cidr.parse().map_err(|_| NOTATION.to_owned())?;
    // 010.0.0.0 is 8.0.0.0 to some and 10.0.0.0 to others.
    if cidr.split('/').next().is_none_or(|address| address.parse::<IpAddr>().is_err()) {
        return Err(NOTATION.to_owned());
    }
    if matches!(network, IpNet::V6(v6) if v6.addr().to_ipv4_mapped().is_some()) {
        return Err("must be written as an IPv4 network".to_owned());
    }
    if network.trunc() != network {
        return Err(format!("has bits set behind its prefix; the network is {}", network.trunc()));
    }
    Ok(network)
}

/// What makes a key, as received.
#[derive(Debug, Clone, Default)]
pub struct RawKeySpec {
    /// The owner, as received.
    pub owner: RawOwner,
    /// A name for people.
    pub display_name: String,
    /// Free strings.
    pub scopes: Vec<String>,
    /// Networks in CIDR notation.
    pub allowed_cidrs: Vec<String>,
    /// When the key stops verifying.
    pub expires_at: Option<DateTime<Utc>>,
}

/// An owner as received: exactly one of the two is set if it is right.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum RawOwner {
    /// Nothing was said.
    #[default]
    Missing,
    /// An agency's id.
    Agency(String),
    /// An agency's id and a location's id.
    Location(String, String),
}

/// What makes a key, checked; whether its expiry lies ahead is asked when the key is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySpec {
    /// Who will own the key.
    pub owner: Owner,
    /// A name for people; empty: none.
    pub display_name: String,
    /// What the key may be used for.
    pub scopes: Scopes,
    /// From where the key may be used.
    pub networks: Networks,
    /// When the key stops verifying.
    pub expires_at: Option<DateTime<Utc>>,
}

impl RawKeySpec {
    /// Checks everything; `None` only with a fault in `faults`.
    pub fn check(self, faults: &mut Violations) -> Option<KeySpec> {
        let owner = parse_owner(self.owner, "owner", faults);
        check_display_name(&self.display_name, "display_name", faults);
        let scopes = Scopes::parse(self.scopes, "scopes", faults);
        let networks = Networks::parse(&self.allowed_cidrs, "allowed_cidrs", faults);
        Some(KeySpec { owner: owner?, display_name: self.display_name, scopes, networks, expires_at: self.expires_at })
    }
}

/// Checks an owner; `None` only with a fault in `faults`.
pub fn parse_owner(owner: RawOwner, field: &str, faults: &mut Violations) -> Option<Owner> {
    match owner {
        RawOwner::Missing => {
            faults.push(field, "is required: agency_id or location");
            None
        }
        RawOwner::Agency(agency_id) => {
            let sound = check_id("agy_", &agency_id, &format!("{field}.agency_id"), faults);
            sound.then_some(Owner { agency_id, location_id: None })
        }
        RawOwner::Location(agency_id, location_id) => {
            let agency = check_id("agy_", &agency_id, &format!("{field}.location.agency_id"), faults);
            let location = check_id("loc_", &location_id, &format!("{field}.location.location_id"), faults);
            (agency && location).then_some(Owner { agency_id, location_id: Some(location_id) })
        }
    }
}

/// Ids are opaque here, for other services make them: only their kind and their characters are checked.
fn check_id(prefix: &str, id: &str, field: &str, faults: &mut Violations) -> bool {
    let sound = id.len() <= MAX_ID_CHARS
        && id.strip_prefix(prefix).is_some_and(|rest| {
            !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        });
    if id.is_empty() {
        faults.push(field, "is required");
    } else if !sound {
        faults
            .push(field, format!("must be {prefix} and up to {} letters, digits, - or _", MAX_ID_CHARS - prefix.len()));
    }
    sound
}

/// Checks a name for people.
pub fn check_display_name(name: &str, field: &str, faults: &mut Violations) {
    faults.check_text(field, name, MAX_DISPLAY_NAME_CHARS);
}

/// A key must be usable when it is made: its expiry lies after `now`.
pub fn check_expiry(expires_at: Option<DateTime<Utc>>, now: DateTime<Utc>, field: &str, faults: &mut Violations) {
    if expires_at.is_some_and(|expires_at| expires_at <= now) {
        faults.push(field, "must lie in the future");
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use proptest::prelude::*;

    use super::*;

    fn fields(faults: &Violations) -> Vec<&str> {
        faults.iter().map(|fault| fault.field.as_str()).collect()
    }

    #[test]
    fn every_fault_of_a_specification_is_named() {
        let mut faults = Violations::default();
        let spec = RawKeySpec {
            owner: RawOwner::Location("loc_1".into(), String::new()),
            display_name: "invoice\u{202e}fdp".into(),
            scopes: vec!["read".into(), String::new(), "two words".into()],
            allowed_cidrs: vec![
                "10.0.0.0/8".into(),
                "10.0.0.1/8".into(),
                "nowhere".into(),
                "::ffff:10.0.0.0/104".into(),
            ],
            expires_at: None,
        };
        assert_eq!(spec.check(&mut faults), None);
        assert_eq!(
            fields(&faults),
            [
                "owner.location.agency_id",
                "owner.location.location_id",
                "display_name",
                "scopes[1]",
                "scopes[2]",
                "allowed_cidrs[1]",
                "allowed_cidrs[2]",
                "allowed_cidrs[3]",
            ]
        );
    }

    #[test]
    fn limits_are_inclusive() {
        let check = |name: usize, scopes: usize, scope: usize, cidrs: usize| {
            let mut faults = Violations::default();
            RawKeySpec {
                owner: RawOwner::Agency(format!("agy_{}", "a".repeat(124))),
                display_name: "é".repeat(name),
                scopes: (0..scopes).map(|n| format!("{n:0>scope$}")).collect(),
                allowed_cidrs: (0..cidrs).map(|n| format!("10.{n}.0.0/16")).collect(),
                expires_at: None,
            }
            .check(&mut faults);
            faults.iter().count()
        };
        assert_eq!(check(100, 50, 100, 50), 0);
        assert_eq!(check(101, 51, 100, 51), 3);
        assert_eq!(check(0, 1, 101, 0), 1);
    }

    #[test]
    fn expiry_lies_after_now_by_a_microsecond_at_least() {
        let now = DateTime::UNIX_EPOCH;
        for (offset, faults_expected) in [(-1, 1), (0, 1), (1, 0)] {
            let mut faults = Violations::default();
            check_expiry(Some(now + TimeDelta::microseconds(offset)), now, "expire_time", &mut faults);
            assert_eq!(faults.iter().count(), faults_expected, "{offset} µs");
        }
    }

    #[test]
    fn networks_admit_their_own() {
        let mut faults = Violations::default();
        let networks = Networks::parse(
            &["192.0.2.0/24".into(), "2001:db8::/32".into(), "198.51.100.7/32".into()],
            "n",
            &mut faults,
        );
        assert!(faults.is_empty());
        for (ip, admitted) in [
            ("192.0.2.255", true),
            ("192.0.3.0", false),
            ("::ffff:192.0.2.1", true),
            ("2001:db8:ffff::1", true),
            ("2001:db9::1", false),
            ("198.51.100.7", true),
            ("198.51.100.8", false),
        ] {
            assert_eq!(networks.admit(ip.parse().ok()), admitted, "{ip}");
        }
        assert!(!networks.admit(None));
        assert!(Networks::default().admit(None));
    }

    proptest! {
        #[test]
        fn scopes_cover_exactly_their_subsets(have in prop::collection::vec("[a-d]{1,2}", 0..8), want in prop::collection::vec("[a-d]{1,2}", 0..4)) {
            let covered = want.iter().all(|scope| have.contains(scope));
            let (have, want) = (Scopes::from_stored(have), Scopes::from_stored(want));
            prop_assert_eq!(have.cover(&want), covered);
        }
    }
}
