//! Settings and layers.

use std::path::Path;

use notification_service::Config;
use notification_service::config::DEFAULTS;
use service_kit::config::{Faults, Validate};

fn defaults() -> Config {
    service_kit::config::load(DEFAULTS, None).expect("the defaults are valid")
}

#[test]
fn the_default_is_a_folder_beside_the_database() {
    let config = defaults();
    assert!(config.smtp.options(&config.mail.sender().expect("a sender")).is_none());
    assert_eq!(config.mail.domain(), "localhost");
}

#[test]
fn every_fault_of_the_settings_is_named() {
    let mut config = defaults();
    config.mail.from = "nobody".into();
    config.mail.message_id_domain = "a b".into();
    config.mail.connections = 0;
    config.smtp.tls = "maybe".into();
    config.smtp.port = 0;
    config.smtp.timeout_ms = 0;
    config.smtp.username = "me".into();
    config.maildir.path = "".into();
    config.key_service.endpoint = "nowhere".into();
    let mut faults = Faults::default();
    config.validate(&mut faults);
    let text = faults.to_string();
    for setting in [
        "mail.from",
        "mail.message_id_domain",
        "mail.connections",
        "smtp.tls",
        "smtp.port",
        "smtp.timeout_ms",
        "smtp.password",
        "maildir.path",
    ] {
        assert!(text.contains(setting), "{setting} is not in: {text}");
    }
}

#[test]
fn domain_and_app_know_no_transport_and_no_database() {
    fn walk(folder: &Path, check: &mut dyn FnMut(&Path, &str)) {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, check);
            } else {
                check(&path, &std::fs::read_to_string(&path).expect("a file"));
            }
        }
    }
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for room in ["domain", "app"] {
        walk(&src.join(room), &mut |path, text| {
            for name in ["tonic", "prost", "keysweep_proto", "sea_orm", "sqlx", "lettre", "std::env"] {
                assert!(!text.contains(name), "{} names {name}", path.display());
            }
        });
    }
}
