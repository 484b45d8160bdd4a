//! What restricts a key — expiry, networks, scopes — held against a second, naive telling of the rules: addresses are
//! strings of bits, scopes lists of words, and each rule is one line.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;
use service_kit::violations::Violations;

use super::{ApiKeyState, Hash, Networks, Owner, Presented, Scopes, StoredKey, VerifyCode, decide};

const HASH: Hash = [7; 32];

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp_micros(1_790_000_000_000_000).unwrap()
}

/// An address as its bits, an IPv4 one in IPv6 clothes undressed.
fn bits(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(v4) => v4.octets().map(|octet| format!("{octet:08b}")).concat(),
        IpAddr::V6(v6) => {
            let all = v6.octets().map(|octet| format!("{octet:08b}")).concat();
            let mapped = format!("{}{}", "0".repeat(80), "1".repeat(16));
            all.strip_prefix(&mapped).map_or(all.clone(), str::to_owned)
        }
    }
}

fn lies_in(ip: IpAddr, network: IpAddr, length: usize) -> bool {
    let (ip, network) = (bits(ip), bits(network));
    ip.len() == network.len() && ip[..length] == network[..length]
}

fn parse(cidrs: &[&str]) -> Result<Networks, String> {
    let mut faults = Violations::default();
    let cidrs: Vec<_> = cidrs.iter().map(|cidr| (*cidr).to_owned()).collect();
    let networks = Networks::parse(&cidrs, "n", &mut faults);
    faults.into_result().map(|()| networks).map_err(|faults| faults.to_string())
}

#[test]
fn networks_admit_what_lies_in_them_and_nothing_beside() {
    for (cidr, inside, outside) in [
        (
            "0.0.0.0/0",
            &["0.0.0.0", "255.255.255.255", "::ffff:8.8.8.8"][..],
            &["::", "::1", "2001:db8::1", "::8.8.8.8"][..],
        ),
        ("::/0", &["::", "::1", "2001:db8::1", "ffff::", "::8.8.8.8"], &["0.0.0.0", "8.8.8.8", "::ffff:8.8.8.8"]),
        (
            "10.0.0.0/8",
            &["10.0.0.0", "10.255.255.255", "::ffff:10.0.0.1"],
            &["9.255.255.255", "11.0.0.0", "::ffff:11.0.0.0"],
        ),
        ("10.0.0.1/32", &["10.0.0.1", "::ffff:10.0.0.1"], &["10.0.0.0", "10.0.0.2", "::10.0.0.1"]),
        ("192.0.2.128/25", &["192.0.2.128", "192.0.2.255"], &["192.0.2.127", "192.0.3.0"]),
        ("128.0.0.0/1", &["128.0.0.0", "255.0.0.1"], &["127.255.255.255"]),
        ("2001:db8::/32", &["2001:db8::", "2001:db8:ffff:ffff::1"], &["2001:db7:ffff::", "2001:db9::", "32.1.13.184"]),
        ("2001:db8::1/128", &["2001:db8::1"], &["2001:db8::", "2001:db8::2"]),
        ("8000::/1", &["8000::", "fe80::1"], &["7fff::1", "128.0.0.1"]),
        ("64:ff9b::/96", &["64:ff9b::10.0.0.1"], &["10.0.0.1", "::ffff:10.0.0.1"]),
    ] {
        let networks = parse(&[cidr]).expect(cidr);
        for (ips, admitted) in [(inside, true), (outside, false)] {
            for ip in ips {
                assert_eq!(networks.admit(Some(ip.parse().expect(ip))), admitted, "{ip} in {cidr}");
            }
        }
        assert!(!networks.admit(None), "an unknown source lies in {cidr}");
    }
}

#[test]
fn only_networks_are_networks() {
    for (cidr, told) in [
        ("10.0.0.1/8", "10.0.0.0/8"),
        ("128.0.0.0/0", "0.0.0.0/0"),
        ("2001:db8::1/32", "2001:db8::/32"),
        ("1::/0", "::/0"),
        ("::ffff:10.0.0.0/104", "IPv4 network"),
        ("::ffff:0:0/96", "IPv4 network"),
        ("10.0.0.0/33", "CIDR notation"),
        ("2001:db8::/129", "CIDR notation"),
        ("10.0.0.0/-1", "CIDR notation"),
        ("10.0.0.0/", "CIDR notation"),
        ("10.0.0.0", "CIDR notation"),
        ("2001:db8::1", "CIDR notation"),
        ("10.0.0/8", "CIDR notation"),
        ("010.0.0.0/8", "CIDR notation"),
        ("10.0.0.0/255.0.0.0", "CIDR notation"),
        (" 10.0.0.0/8", "CIDR notation"),
        ("fe80::%eth0/10", "CIDR notation"),
        ("", "CIDR notation"),
        ("*", "CIDR notation"),
    ] {
        let fault = parse(&[cidr]).expect_err(cidr);
        assert!(fault.contains(told), "{cidr}: {fault}");
    }
}

#[test]
fn scopes_suffice_when_every_required_one_is_there() {
    for (have, required, suffice) in [
        (&[][..], &[][..], true),
        (&["read"], &[], true),
        (&[], &["read"], false),
        (&["read"], &["read"], true),
        (&["read", "write"], &["write", "read", "read"], true),
        (&["read", "write"], &["read", "pay"], false),
        // Neither a prefix, nor a pattern, nor another case is the scope.
        (&["read"], &["rea"], false),
        (&["rea"], &["read"], false),
        (&["*"], &["read"], false),
        (&["read:*"], &["read:users"], false),
        (&["Read"], &["read"], false),
    ] {
        let scopes = |words: &[&str]| Scopes::from_stored(words.iter().map(|word| (*word).to_owned()).collect());
        assert_eq!(scopes(have).cover(&scopes(required)), suffice, "{have:?} for {required:?}");
    }
}

fn any_ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(|octets| IpAddr::V4(octets.into())),
        any::<[u8; 16]>().prop_map(|octets| IpAddr::V6(octets.into())),
        any::<[u8; 4]>().prop_map(|octets| IpAddr::V6(Ipv4Addr::from(octets).to_ipv6_mapped())),
        // Much of the world's addressing begins with zeros.
        any::<u32>().prop_map(|low| IpAddr::V6(Ipv6Addr::from(u128::from(low)))),
    ]
}

/// A network whose bits behind the prefix are zero, as text, and what it was made of.
fn any_network() -> impl Strategy<Value = (IpAddr, usize)> {
    (any_ip(), any::<u8>()).prop_map(|(ip, length)| match ip.to_canonical() {
        IpAddr::V4(v4) => {
            let length = u32::from(length) % 33;
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            (IpAddr::V4((u32::from(v4) & mask).into()), length as usize)
        }
        IpAddr::V6(v6) => {
            let length = u32::from(length) % 129;
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            (IpAddr::V6((u128::from(v6) & mask).into()), length as usize)
        }
    })
}

/// An address near a network: its own with one bit turned, perhaps in IPv6 clothes; or any.
fn near((network, _): (IpAddr, usize), turned: u8, dressed: bool) -> IpAddr {
    match network {
        IpAddr::V4(v4) => {
            let near = Ipv4Addr::from(u32::from(v4) ^ 1_u32.checked_shl(u32::from(turned) % 40).unwrap_or(0));
            if dressed { IpAddr::V6(near.to_ipv6_mapped()) } else { IpAddr::V4(near) }
        }
        IpAddr::V6(v6) => {
            IpAddr::V6((u128::from(v6) ^ 1_u128.checked_shl(u32::from(turned) % 140).unwrap_or(0)).into())
        }
    }
}

/// The rules of a key, told once more.
struct Told {
    state: ApiKeyState,
    revoke_in: Option<i64>,
    expire_in: Option<i64>,
    networks: Vec<(IpAddr, usize)>,
    scopes: Vec<String>,
}

impl Told {
    fn expect(&self, source: Option<IpAddr>, required: &[String]) -> VerifyCode {
        let from_there = source.is_some_and(|ip| self.networks.iter().any(|(net, length)| lies_in(ip, *net, *length)));
        match () {
            () if self.state == ApiKeyState::Deleted => VerifyCode::DeletedBySweep,
            () if self.state == ApiKeyState::Revoked => VerifyCode::Revoked,
            () if self.revoke_in.is_some_and(|micros| micros <= 0) => VerifyCode::Revoked,
            () if self.expire_in.is_some_and(|micros| micros <= 0) => VerifyCode::Expired,
            () if !self.networks.is_empty() && !from_there => VerifyCode::IpNotAllowed,
            () if required.iter().any(|scope| !self.scopes.contains(scope)) => VerifyCode::InsufficientScope,
            () => VerifyCode::Valid,
        }
    }

    fn stored(&self) -> StoredKey {
        let at = |micros: Option<i64>| micros.map(|micros| now() + TimeDelta::microseconds(micros));
        let cidrs: Vec<_> = self.networks.iter().map(|(network, length)| format!("{network}/{length}")).collect();
        let cidrs: Vec<_> = cidrs.iter().map(String::as_str).collect();
        StoredKey {
            key_id: "key_1".into(),
            owner: Owner { agency_id: "agy_1".into(), location_id: None },
            state: self.state,
            secret_hash: Some(HASH),
            scopes: Scopes::from_stored(self.scopes.clone()),
            networks: parse(&cidrs).expect("networks"),
            created_at: now() - TimeDelta::days(1),
            last_used_at: None,
            expires_at: at(self.expire_in),
            revoke_at: at(self.revoke_in),
            deleted_at: None,
        }
    }
}

fn offset() -> impl Strategy<Value = Option<i64>> {
    prop::option::weighted(0.4, -2..=4_i64)
}

fn words() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("[a-c]{1,2}", 0..4)
}

proptest! {
    #[test]
    fn a_source_is_admitted_exactly_where_its_bits_begin_as_the_networks_do(
        networks in prop::collection::vec(any_network(), 1..4),
        turned in any::<u8>(), dressed in any::<bool>(), chosen in any::<prop::sample::Index>(), elsewhere in any_ip(),
    ) {
        let texts: Vec<_> = networks.iter().map(|(network, length)| format!("{network}/{length}")).collect();
        let parsed = parse(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        let parsed = parsed.map_err(TestCaseError::fail)?;
        for ip in [near(networks[chosen.index(networks.len())], turned, dressed), elsewhere] {
            let expected = networks.iter().any(|(network, length)| lies_in(ip, *network, *length));
            prop_assert_eq!(parsed.admit(Some(ip)), expected, "{} in {:?}", ip, texts);
        }
    }

    #[test]
    fn a_network_is_taken_exactly_when_nothing_stands_behind_its_prefix(ip in any_ip(), length in 0_usize..=128) {
        let all = match ip {
            IpAddr::V4(v4) => v4.octets().map(|octet| format!("{octet:08b}")).concat(),
            IpAddr::V6(v6) => v6.octets().map(|octet| format!("{octet:08b}")).concat(),
        };
        let undressed = bits(ip).len() == all.len();
        let sound = undressed && length <= all.len() && all[length..].chars().all(|bit| bit == '0');
        prop_assert_eq!(parse(&[&format!("{ip}/{length}")]).is_ok(), sound, "{}/{}", ip, length);
    }

    #[test]
    fn a_decision_is_what_the_rules_tell(
        state in prop_oneof![8 => Just(ApiKeyState::Active), 1 => Just(ApiKeyState::Revoked), 1 => Just(ApiKeyState::Deleted)],
        revoke_in in offset(), expire_in in offset(),
        networks in prop::collection::vec(any_network(), 0..3),
        scopes in words(), required in words(),
        source in prop::option::weighted(0.9, (any::<u8>(), any::<bool>(), any::<prop::sample::Index>(), any_ip())),
    ) {
        let told = Told { state, revoke_in, expire_in, networks, scopes };
        let source = source.map(|(turned, dressed, chosen, elsewhere)| match told.networks.as_slice() {
            [] => elsewhere,
            networks => near(networks[chosen.index(networks.len())], turned, dressed),
        });
        let presented = Presented { required_scopes: Scopes::from_stored(required.clone()), source_ip: source };
        let code = decide(&told.stored(), &HASH, &presented, now());
        prop_assert_eq!(code, told.expect(source, &required));
    }
}
