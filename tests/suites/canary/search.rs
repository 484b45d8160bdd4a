//! What is looked for, where, and what was found.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use aho_corasick::AhoCorasick;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use service_kit::keyring::KeyRing;
use sha2::{Digest, Sha256};

/// One thing to look for.
struct Needle {
    what: String,
    bytes: Vec<u8>,
}

/// Things to look for, and places looked at.
#[derive(Default)]
pub(crate) struct Search {
    needles: Vec<Needle>,
    looked_at: Vec<(String, Vec<u8>)>,
}

/// What may be shown of a secret at its beginning.
const SHOWN: usize = 12;
/// Enough of a secret to tell that it leaked.
const TELLING: usize = 12;

impl Search {
    fn look_for(&mut self, what: String, bytes: Vec<u8>) {
        self.needles.push(Needle { what, bytes });
    }

    /// A secret: a part of it behind what may be shown, as it is, in hexadecimal and in base64; and what can be guessed from.
    pub(crate) fn secret(&mut self, secret: &str) {
        let number = self.needles.len();
        let part = secret.as_bytes().get(SHOWN..SHOWN + TELLING).unwrap_or_else(|| panic!("{secret} is too short"));
        self.look_for(format!("{number}, as it is"), part.to_vec());
        self.look_for(format!("{number}, in hexadecimal"), hex::encode(part).into_bytes());
        // At each place within a group of three; the ends depend on what is around.
        for shift in 0..3 {
            let coded = BASE64_STANDARD.encode(&part[shift..]);
            self.look_for(format!("{number}, in base64"), coded.as_bytes()[..coded.len() / 4 * 4 - 4].to_vec());
        }
        let digest = Sha256::digest(secret);
        self.look_for(format!("{number}, its SHA-256"), digest.to_vec());
        self.look_for(format!("{number}, its SHA-256 in hexadecimal"), hex::encode(digest).into_bytes());
    }

    /// Every secret of a key ring, by its text.
    pub(crate) fn ring(&mut self, text: &str) {
        KeyRing::parse(text).expect("a ring");
        for coded in text.lines().filter_map(|line| line.strip_prefix("key = \"")?.strip_suffix('"')) {
            let number = self.needles.len();
            let bytes = BASE64_STANDARD.decode(coded).expect("base64");
            self.look_for(format!("{number}, a ring's secret"), coded.as_bytes()[..40].to_vec());
            self.look_for(format!("{number}, a ring's secret in hexadecimal"), hex::encode(&bytes).into_bytes());
            self.look_for(format!("{number}, a ring's secret as bytes"), bytes);
        }
    }

    /// A place.
    pub(crate) fn bytes(&mut self, place: &str, bytes: &[u8]) {
        self.looked_at.push((place.to_owned(), bytes.to_vec()));
    }

    /// Every file of a folder, and of those in it, and what they are called.
    pub(crate) fn folder(&mut self, place: &str, folder: &Path) {
        let Ok(entries) = std::fs::read_dir(folder) else { return };
        let paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
        let names: Vec<_> =
            paths.iter().filter_map(|path| path.file_name()).map(|name| name.to_string_lossy()).collect();
        self.looked_at.push((format!("{place}: names of files"), names.join("\n").into_bytes()));
        for path in paths {
            if path.is_dir() {
                self.folder(place, &path);
            } else if path.is_file() {
                // A database removes files while they are read.
                let Ok(bytes) = std::fs::read(&path) else { continue };
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                self.looked_at.push((format!("{place}: {name}"), bytes));
            }
        }
    }

    /// Where something was found, and what.
    pub(crate) fn found(&self) -> Vec<String> {
        let all = AhoCorasick::new(self.needles.iter().map(|needle| &needle.bytes)).expect("needles");
        let mut found = BTreeSet::new();
        for (place, bytes) in &self.looked_at {
            for one in all.find_overlapping_iter(bytes) {
                found.insert(format!("{place} holds secret {}", self.needles[one.pattern()].what));
            }
        }
        found.into_iter().collect()
    }

    /// The places that were looked at: how many of a kind, and how large.
    pub(crate) fn report(&self) -> String {
        let mut kinds: Vec<(&str, usize, usize)> = Vec::new();
        for (place, bytes) in &self.looked_at {
            let kind = if place.starts_with("database") { place.split(": ").next().unwrap_or(place) } else { place };
            match kinds.iter_mut().find(|(known, ..)| *known == kind) {
                Some((_, files, size)) => (*files, *size) = (*files + 1, *size + bytes.len()),
                None => kinds.push((kind, 1, bytes.len())),
            }
        }
        let mut report = format!("{} needles, looked for in:\n", self.needles.len());
        for (kind, files, size) in kinds {
            writeln!(report, "{size:>12} bytes in {files:>5} files  {kind}").expect("text");
        }
        report
    }
}
