//! Messages as bytes.

use keysweep_proto::location::v2;
use prost::Message;
use service_kit::violations::Violations;

use super::convert::{agency_profile, location_profile};
use crate::domain::profile::{Profile, ProfileField};

/// An agency or a location, by the first byte: a profile that is taken is short, and every fault of another has its field.
pub fn profile(data: &[u8]) {
    let Some((kind, message)) = data.split_first() else { return };
    let profile: Option<Profile> = if kind % 2 == 0 {
        v2::Agency::decode(message).ok().map(agency_profile)
    } else {
        v2::Location::decode(message).ok().map(location_profile)
    };
    let Some(profile) = profile else { return };
    let mut faults = Violations::default();
    profile.check("profile", &mut faults);
    let known = |path: &str| ProfileField::ALL.iter().any(|field| path == format!("profile.{}", field.name()));
    assert!(faults.iter().all(|fault| known(&fault.field) && !fault.description.is_empty()));
    if faults.is_empty() {
        assert!(!profile.name.is_empty() && profile.text_bytes() <= 16 * 1024);
        let mut again = Profile::default();
        again.merge(&profile, &profile.set_fields());
        assert_eq!(again.text_bytes(), profile.text_bytes());
    }
}
