//! Randomness, passed and never fetched.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Fills buffers with random bytes.
pub trait Entropy: Send + Sync + Debug {
    /// Fills the whole buffer.
    fn fill(&self, buffer: &mut [u8]);
}

/// A source that many tasks share.
pub type SharedEntropy = Arc<dyn Entropy>;

/// The operating system's cryptographically secure generator, the only one that live secrets come from.
#[derive(Clone, Copy, Debug)]
pub struct OsEntropy;

impl Entropy for OsEntropy {
    /// # Panics
    /// If the operating system has no randomness to give: no secret may then be made.
    #[expect(clippy::expect_used, reason = "going on without randomness would make guessable secrets")]
    fn fill(&self, buffer: &mut [u8]) {
        getrandom::fill(buffer).expect("the operating system must provide randomness");
    }
}

/// Repeatable randomness for simulations: the same seed gives the same bytes.
pub struct SeededEntropy(Mutex<StdRng>);

impl SeededEntropy {
    /// A source that `seed` determines.
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }
}

impl Debug for SeededEntropy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SeededEntropy")
    }
}

impl Entropy for SeededEntropy {
    fn fill(&self, buffer: &mut [u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(buffer);
    }
}
