//! Whether a ring is the one that a database was filled with.

use super::KeyRing;

/// Why a ring does not serve a database.
#[derive(Debug, thiserror::Error)]
pub enum KeyRingFault {
    /// A secret of the ring is another than the one of the same name that the database was filled with.
    #[error(
        "{0} of the key ring is not the one that this database was filled with: restore the key ring from its backup, \
         or give the new secret a version of its own"
    )]
    Differs(String),
    /// The ring lacks a secret that the database needs.
    #[error("the key ring lacks {0}, which stored keys still need: restore it from the key ring's backup")]
    Missing(String),
}

/// What a ring and the fingerprints in a database have to do with each other.
#[derive(Debug)]
pub struct Recognised {
    /// Secrets of the ring that the database does not know yet, with their fingerprints.
    pub fresh: Vec<(String, [u8; 32])>,
    /// Names of secrets that the database knows and the ring lacks.
    pub absent: Vec<String>,
}

impl KeyRing {
    /// Compares the ring with the fingerprints that a database keeps of the secrets it was filled with.
    ///
    /// # Errors
    /// [`KeyRingFault::Differs`] when a secret of the same name is another.
    pub fn recognise(&self, stored: impl IntoIterator<Item = (String, Vec<u8>)>) -> Result<Recognised, KeyRingFault> {
        let mut fresh = self.fingerprints();
        let mut absent = Vec::new();
        for (name, fingerprint) in stored {
            match fresh.iter().position(|(own, _)| *own == name) {
                None => absent.push(name),
                Some(place) if fresh[place].1 == fingerprint.as_slice() => drop(fresh.swap_remove(place)),
                Some(_) => return Err(KeyRingFault::Differs(name)),
            }
        }
        Ok(Recognised { fresh, absent })
    }
}

/// The kind and version of a secret's name, such as `master 1`.
pub fn parse_name(name: &str) -> Option<(&str, u32)> {
    let (kind, version) = name.split_once(' ')?;
    Some((kind, version.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::SeededEntropy;

    #[test]
    fn a_database_knows_its_ring() {
        let ring = |seed| KeyRing::parse(&KeyRing::generate(&SeededEntropy::new(seed))).expect("a ring");
        let stored = |ring: &KeyRing| {
            ring.fingerprints().into_iter().map(|(name, print)| (name, print.to_vec())).collect::<Vec<_>>()
        };
        let known = ring(1).recognise(stored(&ring(1))).expect("the same");
        assert!(known.fresh.is_empty() && known.absent.is_empty());
        assert!(matches!(ring(2).recognise(stored(&ring(1))), Err(KeyRingFault::Differs(name)) if name == "pepper 1"));
        let mut more = stored(&ring(1));
        more.push(("master 7".to_owned(), vec![0; 32]));
        assert_eq!(ring(1).recognise(more).expect("known").absent, ["master 7"]);
        assert_eq!(ring(1).recognise(Vec::new()).expect("unknown").fresh.len(), 2);
        assert_eq!(
            (parse_name("master 7"), parse_name("master"), parse_name("x y")),
            (Some(("master", 7)), None, None)
        );
    }
}
