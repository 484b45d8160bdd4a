//! Reading what a process shows as metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// One metric as shown.
#[derive(Debug, Default)]
pub struct Shown {
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// What it says of itself.
    pub help: String,
    /// The names of its labels, over all its series.
    pub labels: BTreeSet<String>,
    /// Its series, a line each.
    pub text: String,
}

/// Everything that is shown at an address, as text.
///
/// # Panics
/// When nothing answers there.
pub async fn scrape_text(address: SocketAddr) -> String {
    get(address, "/metrics").await
}

/// What is answered at a path of an address, its head included.
///
/// # Panics
/// When nothing answers there.
pub(crate) async fn get(address: SocketAddr, path: &str) -> String {
    let mut connection = TcpStream::connect(address).await.expect("somebody listens");
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    connection.write_all(request.as_bytes()).await.expect("it listens");
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).await.expect("it answers");
    String::from_utf8(answer).expect("text")
}

/// Everything that is shown at an address, by name.
///
/// # Panics
/// When nothing answers there.
pub async fn scrape(address: SocketAddr) -> BTreeMap<String, Shown> {
    let mut all = BTreeMap::<String, Shown>::new();
    for line in scrape_text(address).await.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            help.clone_into(&mut all.entry(name.to_owned()).or_default().help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            kind.clone_into(&mut all.entry(name.to_owned()).or_default().kind);
        } else if let Some((series, _)) = line.rsplit_once(' ') {
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let mut of = ["", "_bucket", "_sum", "_count"].iter().filter_map(|end| name.strip_suffix(end));
            let Some(shown) = of.find(|name| all.contains_key(*name)) else { continue };
            let shown = all.entry(shown.to_owned()).or_default();
            let labels = labels.trim_end_matches('}').split("\",").filter_map(|label| label.split_once('='));
            shown.labels.extend(labels.map(|(label, _)| label.to_owned()).filter(|label| label != "le"));
            shown.text.push_str(line);
            shown.text.push('\n');
        }
    }
    all
}
