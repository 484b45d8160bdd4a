//! What agencies and locations tell of their business, and how a part of it changes.

use serde::Serialize;
use service_kit::violations::Violations;

use super::contact;

const NAME_MAX: usize = 200;
const ADDRESS_MAX: usize = 300;
/// As many characters as the name of a town or a state may have.
pub const PLACE_MAX: usize = 100;

/// What is known of a business. An empty text: not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Profile {
    /// Never empty.
    pub name: String,
    /// Where it reads mail.
    pub email: String,
    /// In the form of E.164, with separators.
    pub phone: String,
    /// Street and number.
    pub address: String,
    /// Town.
    pub city: String,
    /// State, province or region.
    pub state: String,
    /// In the form of its country.
    pub postal_code: String,
    /// ISO 3166-1 alpha-2.
    pub country: String,
    /// IANA name; never empty once stored.
    pub time_zone: String,
    /// `http` or `https`.
    pub website: String,
}

/// One of a profile's fields, by the name it has on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProfileField {
    /// See [`Profile::name`].
    Name,
    /// See [`Profile::email`].
    Email,
    /// See [`Profile::phone`].
    Phone,
    /// See [`Profile::address`].
    Address,
    /// See [`Profile::city`].
    City,
    /// See [`Profile::state`].
    State,
    /// See [`Profile::postal_code`].
    PostalCode,
    /// See [`Profile::country`].
    Country,
    /// See [`Profile::time_zone`].
    TimeZone,
    /// See [`Profile::website`].
    Website,
}

impl ProfileField {
    /// Every field.
    pub const ALL: [Self; 10] = [
        Self::Name,
        Self::Email,
        Self::Phone,
        Self::Address,
        Self::City,
        Self::State,
        Self::PostalCode,
        Self::Country,
        Self::TimeZone,
        Self::Website,
    ];

    /// The field's name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Email => "email",
            Self::Phone => "phone",
            Self::Address => "address",
            Self::City => "city",
            Self::State => "state",
            Self::PostalCode => "postal_code",
            Self::Country => "country",
            Self::TimeZone => "time_zone",
            Self::Website => "website",
        }
    }

    /// The field of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.name() == name)
    }
}

/// The form in which names are compared: letter by letter in small letters, so that a name's beginning stays the beginning.
pub fn name_key(name: &str) -> String {
    name.chars().flat_map(char::to_lowercase).collect()
}

impl Profile {
    /// The value of a field.
    pub fn get(&self, field: ProfileField) -> &str {
        match field {
            ProfileField::Name => &self.name,
            ProfileField::Email => &self.email,
            ProfileField::Phone => &self.phone,
            ProfileField::Address => &self.address,
            ProfileField::City => &self.city,
            ProfileField::State => &self.state,
            ProfileField::PostalCode => &self.postal_code,
            ProfileField::Country => &self.country,
            ProfileField::TimeZone => &self.time_zone,
            ProfileField::Website => &self.website,
        }
    }

    fn get_mut(&mut self, field: ProfileField) -> &mut String {
        match field {
            ProfileField::Name => &mut self.name,
            ProfileField::Email => &mut self.email,
            ProfileField::Phone => &mut self.phone,
            ProfileField::Address => &mut self.address,
            ProfileField::City => &mut self.city,
            ProfileField::State => &mut self.state,
            ProfileField::PostalCode => &mut self.postal_code,
            ProfileField::Country => &mut self.country,
            ProfileField::TimeZone => &mut self.time_zone,
            ProfileField::Website => &mut self.website,
        }
    }

    /// The fields that are set.
    pub fn set_fields(&self) -> Vec<ProfileField> {
        ProfileField::ALL.into_iter().filter(|field| !self.get(*field).is_empty()).collect()
    }

    /// The bytes of all texts together.
    pub fn text_bytes(&self) -> usize {
        ProfileField::ALL.into_iter().map(|field| self.get(field).len()).sum()
    }

    /// Takes the given fields over from `other`.
    pub fn merge(&mut self, other: &Self, fields: &[ProfileField]) {
        for field in fields {
            other.get(*field).clone_into(self.get_mut(*field));
        }
    }

    /// Notes everything that is wrong, each fault under `prefix` and the field's name.
    pub fn check(&self, prefix: &str, faults: &mut Violations) {
        self.check_fields(prefix, &ProfileField::ALL, faults);
    }

    /// As [`Profile::check`], of these fields alone.
    pub fn check_fields(&self, prefix: &str, fields: &[ProfileField], faults: &mut Violations) {
        for field in fields.iter().copied() {
            let (path, text) = (format!("{prefix}.{}", field.name()), self.get(field));
            match field {
                ProfileField::Name => faults.check_required_text(&path, text, NAME_MAX),
                ProfileField::Address => faults.check_text(&path, text, ADDRESS_MAX),
                ProfileField::City | ProfileField::State => faults.check_text(&path, text, PLACE_MAX),
                ProfileField::Email => check_form(faults, &path, text, contact::check_email),
                ProfileField::Phone => check_form(faults, &path, text, contact::check_phone),
                ProfileField::PostalCode => check_form(faults, &path, text, contact::check_postal_code),
                ProfileField::Country => check_form(faults, &path, text, contact::check_country),
                ProfileField::TimeZone => check_form(faults, &path, text, contact::check_time_zone),
                ProfileField::Website => check_form(faults, &path, text, contact::check_website),
            }
        }
    }
}

fn check_form(faults: &mut Violations, path: &str, text: &str, check: fn(&str) -> Result<(), &'static str>) {
    if let Some(Err(fault)) = (!text.is_empty()).then(|| check(text)) {
        faults.push(path, fault);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_faults_come_at_once() {
        let profile = Profile {
            name: "a\u{202e}b".into(),
            email: "nobody".into(),
            phone: "123".into(),
            address: "x".repeat(301),
            city: "\u{0}".into(),
            state: "y".repeat(101),
            postal_code: "!".into(),
            country: "XX".into(),
            time_zone: "Mars/Olympus".into(),
            website: "javascript:alert(1)".into(),
        };
        let mut faults = Violations::default();
        profile.check("location", &mut faults);
        let fields: Vec<_> = faults.iter().map(|one| one.field.clone()).collect();
        let expected: Vec<_> = ProfileField::ALL.iter().map(|field| format!("location.{}", field.name())).collect();
        assert_eq!(fields, expected);
    }

    #[test]
    fn a_merge_takes_the_named_fields_alone() {
        let mut profile = Profile { name: "Old".into(), city: "Berlin".into(), ..Profile::default() };
        let change = Profile { name: "New".into(), email: "a@b.io".into(), ..Profile::default() };
        profile.merge(&change, &[ProfileField::Name, ProfileField::City]);
        assert_eq!((profile.name.as_str(), profile.city.as_str(), profile.email.as_str()), ("New", "", ""));
        assert_eq!(change.set_fields(), [ProfileField::Name, ProfileField::Email]);
    }

    #[test]
    fn a_bare_name_is_enough() {
        let mut faults = Violations::default();
        Profile { name: "Zürich 東京".into(), ..Profile::default() }.check("agency", &mut faults);
        assert!(faults.is_empty(), "{faults}");
    }
}
