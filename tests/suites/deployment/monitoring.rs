//! Whether dashboard and alerts ask for what there is, and lead to what is to be done.

use std::collections::BTreeSet;

use keysweep_e2e::account::{create_account, generate, verify};
use keysweep_e2e::installation::Installation;
use keysweep_e2e::prometheus::Prometheus;
use keysweep_e2e::wait;
use serde_json::Value;
use service_kit::testing::Kind;

use crate::rendered::{SERVICES, list, read, root, text};

const DASHBOARD: &str = "deploy/monitoring/dashboard.json";
const ALERTS: &str = "deploy/monitoring/alerts.yaml";
/// Panels about what must first happen: an error, a fault, a certificate.
const LATER: [&str; 6] = [
    "Activations that failed",
    "Certificates end",
    "Connections refused",
    "Failed calls",
    "Refused callers",
    "Subscription breaks and faults",
];

/// Every query of the dashboard: its panel and its text.
fn queries() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).expect("JSON");
    let panels = list(&dashboard["panels"]);
    let asked = panels.iter().flat_map(|panel| {
        let title = text(&panel["title"]);
        list(&panel["targets"]).iter().map(move |target| (title.to_owned(), text(&target["expr"]).to_owned()))
    });
    let asked: Vec<_> = asked.collect();
    assert!(asked.len() > 20, "the dashboard asks {} questions", asked.len());
    asked
}

fn alerts() -> Vec<Value> {
    let rules: Value = serde_saphyr::from_str(&read(ALERTS)).expect("YAML");
    list(&rules["groups"]).iter().flat_map(|group| list(&group["rules"]).to_vec()).collect()
}

/// The names of metrics of keysweep in a query.
fn metrics(query: &str) -> impl Iterator<Item = &str> {
    let words = query.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'));
    words.filter(|word| word.starts_with("keysweep_") || word.starts_with("rpc_server_"))
}

#[test]
fn every_metric_that_is_asked_for_exists() {
    // Tests of their own hold the documents to what the running binaries show.
    let documents = read("docs/metrics.md") + &read("docs/trust.md");
    let rows = documents.lines().filter_map(|line| line.strip_prefix("| `"));
    let shown: BTreeSet<&str> = rows.filter_map(|row| row.split(['`', '{']).next()).collect();
    let alerts = alerts();
    let rules = alerts.iter().map(|alert| (text(&alert["alert"]).to_owned(), text(&alert["expr"]).to_owned()));
    for (place, query) in queries().into_iter().chain(rules) {
        for metric in metrics(&query) {
            let plain = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| metric.strip_suffix(suffix));
            let exists = [Some(metric), plain].into_iter().flatten().any(|name| shown.contains(name));
            assert!(exists, "{place}: no service shows {metric}");
        }
    }
}

#[test]
fn every_alert_is_tested_and_says_what_is_to_be_done() {
    let (operations, tests) = (read("docs/operations.md"), read("deploy/monitoring/alerts.test.yaml"));
    let runbook = operations.split("\n## Runbook\n").nth(1).expect("a runbook");
    let runbook = runbook.split("\n## ").next().unwrap_or_default();
    let sections: BTreeSet<&str> = runbook.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let mut alerted = BTreeSet::new();
    let alerts = alerts();
    for alert in &alerts {
        let name = text(&alert["alert"]);
        let link = format!("docs/operations.md#{}", name.to_lowercase());
        assert_eq!(text(&alert["annotations"]["runbook"]), link, "{name}");
        assert!(["page", "ticket"].contains(&text(&alert["labels"]["severity"])), "{name}");
        assert!(!text(&alert["annotations"]["summary"]).is_empty(), "{name}");
        assert!(tests.contains(&format!("alertname: {name}\n")), "{name} has no test");
        alerted.insert(name);
    }
    assert_eq!(sections, alerted, "the sections of the runbook, and the alerts");
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(keysweep_no_prometheus, ignore = "left out: Prometheus is not installed (apt-get install prometheus)")]
#[cfg_attr(keysweep_no_postgres, ignore = "left out: no PostgreSQL server is installed")]
async fn running_services_answer_every_question() {
    let installation = Installation::new(Kind::Postgres).with_metrics();
    let mut processes = Vec::new();
    for place in 0..SERVICES.len() {
        processes.push(installation.start(place).await);
    }
    let jobs: Vec<_> =
        SERVICES.iter().enumerate().map(|(place, name)| (*name, installation.metrics_address(place))).collect();
    let prometheus = Prometheus::start(&jobs, &root().join(ALERTS)).await;
    let clients = installation.clients();
    let account = create_account(&clients).await;
    let secret = generate(&clients, &account, "g1").await.expect("a key").secret;

    for (panel, query) in queries() {
        let query = query.replace("$__rate_interval", "1m");
        if LATER.contains(&panel.as_str()) {
            prometheus.ask(&query).await.unwrap_or_else(|error| panic!("{panel}: {query}: {error}"));
            continue;
        }
        wait::until(&format!("an answer to {panel}: {query}"), async || {
            verify(&clients, &secret).await;
            let answer = prometheus.ask(&query).await.unwrap_or_else(|error| panic!("{panel}: {query}: {error}"));
            (!answer.is_empty()).then_some(())
        })
        .await;
    }
    // Each rule can be answered, and nothing is amiss once the services have found each other.
    let count = wait::until("every rule to be answered and none to hold", async || {
        let rules = prometheus.rules().await;
        let calm = |rule: &Value| (text(&rule["health"]), text(&rule["state"])) == ("ok", "inactive");
        rules.iter().all(calm).then_some(rules.len())
    })
    .await;
    assert_eq!(count, alerts().len());
}
