//! The real Prometheus, which reads what the services show.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::metrics::get;
use crate::process::free_port;
use crate::wait;

/// Prometheus on a port of loopback; stopped when dropped.
#[derive(Debug)]
pub struct Prometheus {
    address: SocketAddr,
    _folder: TempDir,
    _child: Child,
}

impl Prometheus {
    /// Starts it with these jobs and rules, once a second each, and waits until it has read every job.
    ///
    /// # Panics
    /// When it cannot be started.
    pub async fn start(jobs: &[(&str, SocketAddr)], rules: &Path) -> Self {
        let (folder, address) =
            (tempfile::tempdir().expect("a folder"), SocketAddr::from(([127, 0, 0, 1], free_port())));
        let jobs: String = jobs
            .iter()
            .map(|(name, address)| format!("- job_name: {name}\n  static_configs: [{{ targets: [\"{address}\"] }}]\n"))
            .collect();
        let rules = std::fs::canonicalize(rules).expect("rules");
        let configuration = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nrule_files: [\"{}\"]\nscrape_configs:\n{jobs}",
            rules.display()
        );
        let file = folder.path().join("prometheus.yml");
        std::fs::write(&file, configuration).expect("a configuration");
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.path().join("prometheus.log")).expect("a log"))
            .kill_on_drop(true)
            .spawn()
            .expect("prometheus runs");
        let prometheus = Self { address, _folder: folder, _child: child };
        wait::until("Prometheus to read every job", async || {
            tokio::net::TcpStream::connect(address).await.ok()?;
            // Until it has read its own files it answers everything else with this alone.
            if get(address, "/-/ready").await.split_whitespace().nth(1) != Some("200") {
                return None;
            }
            let missing = prometheus.ask("count(up == 1) == count(up)").await.ok()?;
            (!missing.is_empty()).then_some(())
        })
        .await;
        prometheus
    }

    /// The series that answer a query at this instant.
    ///
    /// # Errors
    /// What Prometheus says against it.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn ask(&self, query: &str) -> Result<Vec<Value>, String> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = self.get(&format!("/api/v1/query?query={encoded}")).await;
        match answer["data"]["result"].as_array() {
            Some(series) => Ok(series.clone()),
            None => Err(answer["error"].to_string()),
        }
    }

    /// Every rule, with its state and its health.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn rules(&self) -> Vec<Value> {
        let answer = self.get("/api/v1/rules").await;
        let groups = answer["data"]["groups"].as_array().expect("groups");
        groups.iter().flat_map(|group| group["rules"].as_array().expect("rules").clone()).collect()
    }

    async fn get(&self, path: &str) -> Value {
        let answer = get(self.address, path).await;
        let body = answer.split_once("\r\n\r\n").expect("a body").1;
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"))
    }
}
