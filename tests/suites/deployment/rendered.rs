//! What `kubectl kustomize` makes of `deploy/`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use serde_json::Value;

/// The root of the sources.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A file of the sources.
pub(crate) fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// One way to deploy keysweep: an overlay, and components upon it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Installation {
    pub(crate) overlay: &'static str,
    pub(crate) components: &'static [&'static str],
    pub(crate) mtls: bool,
    pub(crate) postgres: bool,
}

pub(crate) const INSTALLATIONS: [Installation; 5] = [
    Installation { overlay: "sqlite", components: &[], mtls: false, postgres: false },
    Installation {
        overlay: "sqlite",
        components: &["envoy", "servicemonitor", "traces"],
        mtls: false,
        postgres: false,
    },
    Installation { overlay: "sqlite", components: &["cert-manager"], mtls: true, postgres: false },
    Installation { overlay: "postgres", components: &[], mtls: true, postgres: true },
    Installation {
        overlay: "postgres",
        components: &["envoy", "envoy-mtls", "servicemonitor", "traces"],
        mtls: true,
        postgres: true,
    },
];

pub(crate) const SERVICES: [&str; 3] = ["key-service", "location-service", "notification-service"];

/// Everything that one installation consists of.
#[derive(Debug)]
pub(crate) struct Rendered {
    pub(crate) installation: Installation,
    objects: Vec<Value>,
}

/// Every installation, rendered once.
pub(crate) fn all() -> &'static [Rendered] {
    static ALL: LazyLock<Vec<Rendered>> = LazyLock::new(|| INSTALLATIONS.into_iter().map(Rendered::new).collect());
    &ALL
}

impl Rendered {
    fn new(installation: Installation) -> Self {
        let deploy = std::fs::canonicalize(root().join("deploy")).expect("deploy/");
        // Kustomize takes relative paths alone, and the overlay has no place for the components of a test.
        let folder = tempfile::tempdir_in(&deploy).expect("a folder beside the overlays");
        let components: String =
            installation.components.iter().map(|name| format!("- ../components/{name}\n")).collect();
        let overlay = format!("resources: [../overlays/{}]\ncomponents:\n{components}", installation.overlay);
        let overlay = if components.is_empty() { overlay.replace("components:\n", "") } else { overlay };
        std::fs::write(folder.path().join("kustomization.yaml"), overlay).expect("a kustomization");
        let output = Command::new("kubectl").arg("kustomize").arg(folder.path()).output().expect("kubectl runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && errors.is_empty(), "{installation:?}: {errors}");
        let text = String::from_utf8(output.stdout).expect("text");
        let objects = serde_saphyr::from_multiple(&text).expect("YAML");
        Self { installation, objects }
    }

    /// The objects of a kind.
    pub(crate) fn of_kind(&self, kind: &str) -> Vec<&Value> {
        self.objects.iter().filter(|object| object["kind"] == kind).collect()
    }

    /// Whatever makes pods: each with its kind.
    pub(crate) fn workloads(&self) -> Vec<&Value> {
        let made = ["Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob", "Pod"];
        self.objects.iter().filter(|object| made.contains(&text(&object["kind"]))).collect()
    }

    /// The workloads that run a service's binary.
    pub(crate) fn of_services(&self) -> Vec<Workload<'_>> {
        let workloads = self.workloads().into_iter().filter_map(|object| {
            let command = text(&pod(object)["containers"][0]["command"][0]).strip_prefix("/usr/local/bin/")?;
            let service = SERVICES.into_iter().find(|service| *service == command)?;
            Some(Workload { service, object })
        });
        workloads.collect()
    }

    /// The data of a ConfigMap.
    pub(crate) fn config_map(&self, name: &str) -> BTreeMap<String, String> {
        let map = self.of_kind("ConfigMap").into_iter().find(|map| map["metadata"]["name"] == name);
        let map = map.unwrap_or_else(|| panic!("{:?} has no ConfigMap {name}", self.installation));
        serde_json::from_value(map["data"].clone()).expect("a map of texts")
    }
}

/// A Deployment or Job of one of the services.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload<'a> {
    pub(crate) service: &'static str,
    pub(crate) object: &'a Value,
}

impl<'a> Workload<'a> {
    pub(crate) fn name(&self) -> &'a str {
        text(&self.object["metadata"]["name"])
    }

    pub(crate) fn is_server(&self) -> bool {
        self.object["kind"] == "Deployment"
    }

    pub(crate) fn pod(&self) -> &'a Value {
        pod(self.object)
    }

    pub(crate) fn container(&self) -> &'a Value {
        &self.pod()["containers"][0]
    }
}

/// The specification of a workload's pods.
pub(crate) fn pod(workload: &Value) -> &Value {
    &workload["spec"]["template"]["spec"]
}

/// A text, empty where there is none.
pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The elements of a list, none where there is no list.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
