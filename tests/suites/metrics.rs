//! What the running binaries show as metrics, beside what `docs/metrics.md` says that they do.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use keysweep_e2e::account::{create_account, generate, verify};
use keysweep_e2e::installation::{Installation, SERVICES};
use keysweep_e2e::metrics::{Shown, scrape};
use keysweep_e2e::wait;
use service_kit::testing::Kind;

/// A row of the document: type, labels and meaning.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    kind: String,
    labels: BTreeSet<String>,
    help: String,
}

/// The tables of `docs/metrics.md`: section by section, each metric by its name.
fn documented() -> BTreeMap<String, BTreeMap<String, Row>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let text = std::fs::read_to_string(path).expect("docs/metrics.md");
    let mut sections = BTreeMap::<String, BTreeMap<String, Row>>::new();
    let mut section = String::new();
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            title.clone_into(&mut section);
        }
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        if let [name, kind, labels, help] = cells.as_slice()
            && let Some(name) = name.strip_prefix('`').and_then(|name| name.strip_suffix('`'))
        {
            let labels = labels.split(", ").map(|label| label.trim_matches('`').to_owned());
            let row = Row {
                kind: (*kind).to_owned(),
                labels: labels.filter(|label| !label.is_empty()).collect(),
                help: help.replace('`', ""),
            };
            assert!(
                sections.entry(section.clone()).or_default().insert(name.to_owned(), row).is_none(),
                "{name} twice"
            );
        }
    }
    sections
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(keysweep_no_postgres, ignore = "left out: no PostgreSQL server is installed")]
async fn the_binaries_show_what_the_document_says() {
    let documented = documented();
    let installation = Installation::new(Kind::Postgres).with_metrics();
    let mut processes = Vec::new();
    for place in 0..SERVICES.len() {
        processes.push(installation.start(place).await);
    }
    let clients = installation.clients();
    let account = create_account(&clients).await;
    let made = generate(&clients, &account, "k1").await.expect("a key");
    assert!(verify(&clients, &made.secret).await.valid);

    for (place, name) in SERVICES.into_iter().enumerate() {
        let mut expected: BTreeMap<&str, &Row> = BTreeMap::new();
        for section in ["Every service", name] {
            expected.extend(documented.get(section).into_iter().flatten().map(|(name, row)| (name.as_str(), row)));
        }
        let address = installation.metrics_address(place);
        // A gauge appears with the first activation of its job.
        let shown = wait::until("every metric of the document", async || {
            let shown = scrape(address).await;
            expected.keys().all(|name| shown.contains_key(*name)).then_some(shown)
        })
        .await;
        for (metric, Shown { kind, help, labels, .. }) in &shown {
            let row =
                expected.get(metric.as_str()).unwrap_or_else(|| panic!("{name}: {metric} is not in the document"));
            assert_eq!((&row.kind, &row.help), (kind, help), "{name}: {metric}");
            assert_eq!(&row.labels, labels, "{name}: the labels of {metric}");
        }
    }
    let keys = scrape(installation.metrics_address(0)).await;
    assert!(
        keys["rpc_server_call_duration_seconds"]
            .text
            .contains("rpc_method=\"keysweep.key.v1.KeyService/VerifyKey\",rpc_response_status_code=\"OK\",le=\"0.1\""),
        "{}",
        keys["rpc_server_call_duration_seconds"].text
    );
    wait::until("the key to be counted", async || {
        let shown = scrape(installation.metrics_address(0)).await;
        shown["keysweep_keys"].text.contains("keysweep_keys{state=\"ACTIVE\"} 1\n").then_some(())
    })
    .await;
}
