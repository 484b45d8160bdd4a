//! What strangers send, as bytes: the targets of the fuzzer in `fuzz/`, whose corpus the tests play again. Each fails where
//! something is let through that should not be.

use std::io::Write;

use service_kit::page;

pub use crate::clients::import_csv::fuzz::import_file;
pub use crate::grpc::fuzz::{check_request, key_request, sweep_request};

use crate::config::{Config, DEFAULTS};
use crate::domain::key::{Secret, SecretShape, imported_prefix};

/// A target and the name of its corpus.
pub type Target = (&'static str, fn(&[u8]));

/// Every target of this crate.
pub const TARGETS: [Target; 7] = [
    ("secret", secret),
    ("page_token", page_token),
    ("key_config", config),
    ("import_file", import_file),
    ("key_request", key_request),
    ("sweep_request", sweep_request),
    ("check_request", check_request),
];

/// A presented secret: one that has the form of keysweep's own differs from every other by its checksum.
pub fn secret(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let secret = Secret::new(text);
    let shape = secret.shape();
    assert!(shape == SecretShape::Malformed || (1..=512).contains(&text.len()));
    assert!(imported_prefix(&secret).chars().count() <= 12);
    assert_eq!(secret.digest().as_bytes(), Secret::new(text).digest().as_bytes());
    let own = text.starts_with("ksw_agy_") || text.starts_with("ksw_loc_");
    assert!(!own || shape != SecretShape::Foreign, "one of keysweep's own passes for another's");
    if shape != SecretShape::Own {
        return;
    }
    assert!(own && text.len() == 54);
    for place in 8..text.len() {
        let mut typo = text.as_bytes().to_vec();
        typo[place] = if typo[place] == b'A' { b'B' } else { b'A' };
        let typo = String::from_utf8(typo).unwrap_or_default();
        assert_eq!(Secret::new(typo).shape(), SecretShape::Malformed, "a typo passes");
    }
}

/// A page's size and token, and the list it is presented to, parted by the first two zero bytes: a token that is taken is the one that
/// was issued.
pub fn page_token(data: &[u8]) {
    let mut parts = data.splitn(3, |byte| *byte == 0).map(String::from_utf8_lossy);
    let (Some(size), Some(token)) = (parts.next(), parts.next()) else { return };
    let filter = parts.next().unwrap_or_default();
    let size = size.parse().unwrap_or_default();
    if let Ok(page) = page::decode(size, &token, &filter) {
        assert!((1..=page::MAX_SIZE).contains(&page.size));
        if let Some(cursor) = page.cursor {
            assert_eq!(page::encode(&cursor, &filter), token, "two tokens for one page");
        }
    }
    let issued = page::encode(&token, &filter);
    assert_eq!(page::decode(size.max(0), &issued, &filter).ok().and_then(|page| page.cursor).as_deref(), Some(&*token));
}

/// A file of settings: it is taken, or every fault has a place and a reason.
pub fn config(data: &[u8]) {
    let Ok(mut file) = tempfile::NamedTempFile::new() else { return };
    if file.write_all(data).is_err() {
        return;
    }
    match service_kit::config::load_from::<Config>(DEFAULTS, Some(file.path()), std::iter::empty()) {
        Ok(config) => assert!(config.sweep_policy().is_ok(), "settings that the sweep cannot go by"),
        Err(faults) => assert!(!faults.is_empty() && !faults.to_string().is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::TARGETS;

    #[test]
    fn what_the_fuzzer_has_found_is_answered() {
        for (name, target) in TARGETS {
            service_kit::testing::replay(name, target);
        }
    }
}
