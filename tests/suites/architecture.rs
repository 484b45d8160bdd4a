//! The rules of the house, read off the sources and the contracts.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use keysweep_proto::FILE_DESCRIPTOR_SET;
use prost::Message;
use prost_types::FileDescriptorSet;

const SERVICES: [&str; 3] = ["key-service", "location-service", "notification-service"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source");
                found.push((path, text));
            }
        }
    }
    assert!(!found.is_empty(), "{} has no sources", folder.display());
    found
}

#[test]
fn domain_and_app_know_neither_transport_nor_storage_nor_environment() {
    let foreign = ["tonic", "prost", "keysweep_proto", "sea_orm", "sqlx", "std::env", "lettre", "minijinja"];
    let mut offences = Vec::new();
    for service in SERVICES {
        for room in ["domain", "app"] {
            for (path, text) in sources(&root().join("services").join(service).join("src").join(room)) {
                let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
                for line in code.filter(|line| {
                    foreign
                        .iter()
                        .any(|name| line.contains(&format!("{name}::")) || line.contains(&format!("use {name}")))
                }) {
                    offences.push(format!("{}: {}", path.display(), line.trim()));
                }
            }
        }
    }
    assert_eq!(offences, Vec::<String>::new());
}

#[test]
fn entities_stay_in_storage_and_messages_in_grpc_and_clients() {
    let mut offences = Vec::new();
    for service in SERVICES {
        let src = root().join("services").join(service).join("src");
        for (path, text) in sources(&src) {
            let room = path
                .strip_prefix(&src)
                .expect("below src")
                .components()
                .next()
                .map(|c| c.as_os_str().to_string_lossy().into_owned());
            let room = room.as_deref().unwrap_or_default();
            if !["storage", "lib.rs", "run.rs"].contains(&room) && text.contains("entities::") {
                offences.push(format!("{} names an entity", path.display()));
            }
            // `run` puts the servers together.
            if !["grpc", "clients", "lib.rs", "run.rs"].contains(&room) && text.contains("keysweep_proto::") {
                offences.push(format!("{} names a message", path.display()));
            }
        }
    }
    assert_eq!(offences, Vec::<String>::new());
}

#[test]
fn services_import_neither_each_other_nor_more_of_the_house_than_they_may() {
    for service in SERVICES {
        let manifest =
            std::fs::read_to_string(root().join("services").join(service).join("Cargo.toml")).expect("a manifest");
        for other in SERVICES.into_iter().filter(|other| *other != service) {
            assert!(!manifest.contains(&format!("{other}.workspace")), "{service} depends on {other}");
        }
    }
    let kit = std::fs::read_to_string(root().join("services/service-kit/Cargo.toml")).expect("a manifest");
    assert!(!kit.contains("keysweep-proto"), "the kit knows business");
}

#[test]
fn main_files_are_short() {
    for service in SERVICES.into_iter().chain(["keysweep"]) {
        let main = std::fs::read_to_string(root().join("services").join(service).join("src/main.rs")).expect("a main");
        assert!(main.lines().count() < 40, "{service}: {} lines", main.lines().count());
    }
}

/// Every method of the contract, so that none is lost or renamed by accident.
const METHODS: [(&str, &[&str]); 8] = [
    ("envoy.service.auth.v3.Authorization", &["Check"]),
    (
        "keysweep.key.v1.KeyService",
        &[
            "GenerateApiKey",
            "VerifyKey",
            "GetApiKey",
            "ListApiKeys",
            "UpdateApiKey",
            "RevealKey",
            "RotateApiKey",
            "RevokeApiKey",
            "ImportApiKeys",
            "ListAuditEvents",
            "VerifyAuditChain",
        ],
    ),
    (
        "keysweep.key.v1.SweepService",
        &[
            "SubscribeSweepPlans",
            "AcknowledgeNotices",
            "GetSweepPlan",
            "ListSweepPlans",
            "ListLots",
            "ListEntries",
            "PreviewSweep",
            "ConfirmPlan",
            "CancelPlan",
            "HoldLot",
            "ReleaseLot",
        ],
    ),
    (
        "keysweep.location.v2.AgencyService",
        &[
            "CreateAgency",
            "GetAgency",
            "ListAgencies",
            "UpdateAgency",
            "GenerateAgencyApiKey",
            "GetSecuritySettings",
            "UpdateSecuritySettings",
        ],
    ),
    (
        "keysweep.location.v2.LocationService",
        &[
            "CreateLocation",
            "GetLocation",
            "ListLocations",
            "UpdateLocation",
            "DeleteLocation",
            "UndeleteLocation",
            "GenerateLocationApiKey",
        ],
    ),
    (
        "keysweep.location.v2.UserService",
        &["CreateUser", "GetUser", "ListUsers", "UpdateUser", "DeleteUser", "ListNoticeRecipients"],
    ),
    ("keysweep.location.v1.UserService", &["CreateUser", "UpdateUser", "DeleteUser", "GetUser", "ListUsers"]),
    (
        "keysweep.notification.v1.NotificationService",
        &[
            "ListNotifications",
            "WatchNotifications",
            "MarkNotificationsRead",
            "ListBanners",
            "WatchBanners",
            "ListDeliveries",
            "RetryDelivery",
            "GetSubscription",
        ],
    ),
];

#[test]
fn the_contract_has_every_service_and_method() {
    let files = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("descriptors").file;
    let mut there = BTreeSet::new();
    for file in &files {
        for service in &file.service {
            there.extend(
                service.method.iter().map(|method| format!("{}.{}/{}", file.package(), service.name(), method.name())),
            );
        }
    }
    let expected: BTreeSet<_> = METHODS
        .iter()
        .flat_map(|(service, methods)| methods.iter().map(move |method| format!("{service}/{method}")))
        .collect();
    assert_eq!(there, expected);
}

#[test]
fn every_reason_is_documented_with_a_sample() {
    let errors = std::fs::read_to_string(root().join("docs/errors.md")).expect("docs/errors.md");
    let files = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("descriptors").file;
    let reasons = files.iter().find(|file| file.package() == "keysweep.error.v1").expect("the reasons");
    for value in &reasons.enum_type[0].value {
        let name = value.name().trim_start_matches("ERROR_REASON_");
        assert!(value.number() == 0 || errors.contains(&format!("`{name}`")), "docs/errors.md lacks {name}");
    }
}
