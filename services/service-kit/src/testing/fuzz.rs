//! The corpus of a fuzz target, played again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::entropy::{Entropy, OsEntropy, SeededEntropy};

/// Inputs made from the corpus, besides it.
const VARIATIONS: u32 = 2_000;

/// Runs a target on each input of its corpus, `fuzz/corpus/<target>`, and on inputs made from them at random. The environment variable
/// `KEYSWEEP_FUZZ_SEED` makes the same ones again.
///
/// # Panics
/// When the target fails, with the input in hexadecimal, or there is no corpus.
pub fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let files = std::fs::read_dir(&folder).expect("the corpus is there");
    let mut corpus: Vec<Vec<u8>> =
        files.map(|file| std::fs::read(file.expect("a file").path()).expect("an input")).collect();
    corpus.sort();
    assert!(!corpus.is_empty(), "the corpus of {target} is empty");
    for input in &corpus {
        attempt(target, run, input, "of the corpus");
    }
    let mut seed = [0; 8];
    OsEntropy.fill(&mut seed);
    let seed = match std::env::var("KEYSWEEP_FUZZ_SEED") {
        Ok(text) => text.parse().expect("KEYSWEEP_FUZZ_SEED is a number"),
        Err(_) => u64::from_le_bytes(seed),
    };
    let entropy = SeededEntropy::new(seed);
    let below = |bound: usize| {
        let mut bytes = [0; 8];
        entropy.fill(&mut bytes);
        usize::try_from(u64::from_le_bytes(bytes) % bound as u64).unwrap_or_default()
    };
    for _ in 0..VARIATIONS {
        let mut input = corpus[below(corpus.len())].clone();
        for _ in 0..=below(4) {
            vary(&mut input, &corpus, &below);
        }
        attempt(target, run, &input, &format!("of KEYSWEEP_FUZZ_SEED={seed}"));
    }
}

/// Changes, inserts or removes a byte, cuts the input off, or goes on with another input's end.
fn vary(input: &mut Vec<u8>, corpus: &[Vec<u8>], below: &impl Fn(usize) -> usize) {
    let place = below(input.len() + 1);
    let byte = u8::try_from(below(256)).unwrap_or_default();
    match below(5) {
        0 if place < input.len() => input[place] = byte,
        1 if place < input.len() => _ = input.remove(place),
        2 => input.truncate(place),
        3 => {
            let other = &corpus[below(corpus.len())];
            input.truncate(place);
            input.extend_from_slice(&other[below(other.len() + 1)..]);
        }
        _ => input.insert(place, byte),
    }
}

fn attempt(target: &str, run: fn(&[u8]), input: &[u8], origin: &str) {
    if catch_unwind(AssertUnwindSafe(|| run(input))).is_err() {
        panic!("{target} fails for {} ({origin})", hex::encode(input));
    }
}
