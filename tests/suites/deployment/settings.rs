//! `docs/settings.md` is written from the built-in settings, whose comments it repeats.

use std::fmt::Write;

use key_service::KeyService;
use location_service::LocationService;
use notification_service::NotificationService;
use service_kit::cli::Service;

use crate::rendered::{read, root};

const HEAD: &str = "# Settings

Every setting of the three services, with its default, unit and meaning. Written from their `config.default.toml` by
`KEYSWEEP_UPDATE_DOCS=1 cargo test -p keysweep-e2e --test deployment settings`; the same test fails where the two differ.

A file given with `--config` (or named by `KEYSWEEP_CONFIG`) goes over the defaults, and the environment over both: the setting `a.b` is
`KEYSWEEP_A__B`, or a file that `KEYSWEEP_A__B_FILE` names. The command `check-config` names every fault; a service with one does not start.
";

#[test]
fn the_settings_are_documented_as_they_are() {
    let mut page = HEAD.to_owned();
    describe(&mut page, "key-service", KeyService::DEFAULTS);
    describe(&mut page, "location-service", LocationService::DEFAULTS);
    describe(&mut page, "notification-service", NotificationService::DEFAULTS);
    if std::env::var_os("KEYSWEEP_UPDATE_DOCS").is_some() {
        std::fs::write(root().join("docs/settings.md"), &page).expect("the page is written");
    }
    assert!(read("docs/settings.md") == page, "docs/settings.md is not up to date; it says how it is written");
}

fn describe(page: &mut String, service: &str, defaults: &str) {
    let _ = write!(page, "\n## {service}\n\n| setting | default | meaning |\n| --- | --- | --- |\n");
    let (mut section, mut comment) = (String::new(), Vec::new());
    for line in defaults.lines() {
        if let Some(text) = line.strip_prefix("# ") {
            comment.push(text);
        } else if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.to_owned();
            comment.clear();
        } else if let Some((name, value)) = line.split_once(" = ") {
            assert!(!comment.is_empty(), "{service}: {section}.{name} has no meaning");
            let meaning = comment.join(" ").replace('|', "\\|");
            let _ = writeln!(page, "| `{section}.{name}` | `{value}` | {meaning} |");
            comment.clear();
        } else {
            assert!(line.is_empty(), "{service}: {line:?} is none of a comment, a section and a setting");
            comment.clear();
        }
    }
}
