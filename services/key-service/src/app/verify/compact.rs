//! Ids and owners in few bytes: what keysweep makes itself is a prefix and 32 hexadecimal digits.

use crate::app::keys::KEY_PREFIX;
use crate::domain::key::Owner;

const AGENCY_PREFIX: &str = "agy_";
const LOCATION_PREFIX: &str = "loc_";

/// The 32 digits of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Digits([u8; 16]);

impl Digits {
    /// All zero, as no id is made.
    const NIL: Self = Self([0; 16]);

    /// The digits of an id that this very text can be made of again.
    fn parse(prefix: &str, id: &str) -> Option<Self> {
        let digits = id.strip_prefix(prefix)?;
        let mut bytes = [0; 16];
        let lower = digits.len() == 32 && !digits.bytes().any(|byte| byte.is_ascii_uppercase());
        (lower && hex::decode_to_slice(digits, &mut bytes).is_ok()).then_some(Self(bytes))
    }

    fn text(self, prefix: &str) -> String {
        let mut digits = [0; 32];
        // Neither can fail: there is room for the digits, and they are ASCII.
        let _ = hex::encode_to_slice(self.0, &mut digits);
        [prefix, std::str::from_utf8(&digits).unwrap_or_default()].concat()
    }

    /// The digits of a key's id; `None`: keysweep did not make it.
    pub(super) fn of_key(key_id: &str) -> Option<Self> {
        Self::parse(KEY_PREFIX, key_id)
    }

    /// The key's id.
    pub(super) fn key_id(self) -> String {
        self.text(KEY_PREFIX)
    }
}

/// An owner whose ids keysweep made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CompactOwner {
    agency: Digits,
    /// Nil: the agency itself owns the key.
    location: Digits,
}

impl CompactOwner {
    /// No owner.
    pub(super) const NIL: Self = Self { agency: Digits::NIL, location: Digits::NIL };

    /// `None`: platforms may name their accounts as they like, though few do.
    pub(super) fn of(owner: &Owner) -> Option<Self> {
        let agency = Digits::parse(AGENCY_PREFIX, &owner.agency_id)?;
        let location = match owner.location_id.as_deref() {
            Some(id) => Digits::parse(LOCATION_PREFIX, id).filter(|digits| *digits != Digits::NIL)?,
            None => Digits::NIL,
        };
        Some(Self { agency, location })
    }

    pub(super) fn owner(self) -> Owner {
        let location = (self.location != Digits::NIL).then_some(self.location);
        Owner {
            agency_id: self.agency.text(AGENCY_PREFIX),
            location_id: location.map(|digits| digits.text(LOCATION_PREFIX)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_owner_comes_back_as_it_was(
            agency in "(agy_[0-9a-f]{32})|(agy_[0-9a-fA-F]{30,34})|([a-z_0-9]{1,12})",
            location in
                proptest::option::of("(loc_[0-9a-f]{32})|(loc_0{32})|(loc_[0-9A-F]{32})|(agy_[0-9a-f]{32})|[a-z]{1,9}"),
        ) {
            let owner = Owner { agency_id: agency, location_id: location };
            if let Some(compact) = CompactOwner::of(&owner) {
                prop_assert_eq!(compact.owner(), owner);
            }
        }

        #[test]
        fn owners_that_keysweep_named_are_compact(agency in "agy_[0-9a-f]{32}", location in "loc_[0-9a-f]{31}[1-9]") {
            for location_id in [None, Some(location)] {
                let owner = Owner { agency_id: agency.clone(), location_id };
                prop_assert!(CompactOwner::of(&owner).is_some());
            }
        }

        #[test]
        fn an_id_is_taken_only_if_it_comes_back_as_it_was(id in "(key_)?[0-9a-fA-F]{31,33}") {
            if let Some(digits) = Digits::of_key(&id) {
                prop_assert_eq!(digits.key_id(), id);
            } else {
                prop_assert!(id.len() != 36 || id.bytes().any(|byte| byte.is_ascii_uppercase()));
            }
        }
    }
}
