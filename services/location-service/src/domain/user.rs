//! People: their place in an agency and what is valid of them.

use chrono::{DateTime, Utc};
use serde::Serialize;
use service_kit::violations::Violations;

use super::contact;

const NAME_MAX: usize = 100;
/// More locations than one person works in; it keeps a user's row and its check small.
pub const LOCATIONS_MAX: usize = 1_000;

/// Where a user works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum RoleType {
    /// For the agency as a whole.
    Agency,
    /// In the locations it lists.
    Location,
}

/// What a user may do there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum RoleLevel {
    /// Manages it.
    Admin,
    /// Works in it.
    User,
}

/// A user's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Role {
    /// Where.
    pub kind: RoleType,
    /// As what.
    pub level: RoleLevel,
}

/// What can be chosen of a user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UserDetails {
    /// Never empty.
    pub first_name: String,
    /// Empty: none.
    pub last_name: String,
    /// Unique within the agency, whatever its case.
    pub email: String,
    /// `None`: not given, which is not valid.
    pub role: Option<Role>,
    /// Sorted, without repeats.
    pub location_ids: Vec<String>,
    /// Whether it is kept out.
    pub disabled: bool,
}

/// One of a user's fields, by the name it has on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserField {
    /// See [`UserDetails::first_name`].
    FirstName,
    /// See [`UserDetails::last_name`].
    LastName,
    /// See [`UserDetails::email`].
    Email,
    /// See [`UserDetails::role`].
    Role,
    /// See [`UserDetails::location_ids`].
    LocationIds,
    /// See [`UserDetails::disabled`].
    Disabled,
}

impl UserField {
    /// Every field.
    pub const ALL: [Self; 6] =
        [Self::FirstName, Self::LastName, Self::Email, Self::Role, Self::LocationIds, Self::Disabled];

    /// The field's name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::FirstName => "first_name",
            Self::LastName => "last_name",
            Self::Email => "email",
            Self::Role => "role",
            Self::LocationIds => "location_ids",
            Self::Disabled => "disabled",
        }
    }

    /// The field of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.name() == name)
    }
}

impl UserDetails {
    /// The fields that are set.
    pub fn set_fields(&self) -> Vec<UserField> {
        let set = |field: &UserField| match field {
            UserField::FirstName => !self.first_name.is_empty(),
            UserField::LastName => !self.last_name.is_empty(),
            UserField::Email => !self.email.is_empty(),
            UserField::Role => self.role.is_some(),
            UserField::LocationIds => !self.location_ids.is_empty(),
            UserField::Disabled => self.disabled,
        };
        UserField::ALL.into_iter().filter(set).collect()
    }

    /// The bytes of all texts together.
    pub fn text_bytes(&self) -> usize {
        let ids = self.location_ids.iter().map(String::len).sum::<usize>();
        self.first_name.len() + self.last_name.len() + self.email.len() + ids
    }

    /// Takes the given fields over from `other`.
    pub fn merge(&mut self, other: &Self, fields: &[UserField]) {
        for field in fields {
            match field {
                UserField::FirstName => self.first_name.clone_from(&other.first_name),
                UserField::LastName => self.last_name.clone_from(&other.last_name),
                UserField::Email => self.email.clone_from(&other.email),
                UserField::Role => self.role = other.role,
                UserField::LocationIds => self.location_ids.clone_from(&other.location_ids),
                UserField::Disabled => self.disabled = other.disabled,
            }
        }
    }

    /// Notes everything that is wrong in itself; whose the locations are is for the store to say.
    pub fn check(&self, faults: &mut Violations) {
        self.check_fields(&UserField::ALL, faults);
        match self.role.map(|role| role.kind) {
            Some(RoleType::Agency) if !self.location_ids.is_empty() => {
                faults.push("user.location_ids", "must be empty for an AGENCY user")
            }
            Some(RoleType::Location) if self.location_ids.is_empty() => {
                faults.push("user.location_ids", "must name a location for a LOCATION user")
            }
            None | Some(RoleType::Agency | RoleType::Location) => {}
        }
    }

    /// Notes what is wrong with these fields, each by itself.
    pub fn check_fields(&self, fields: &[UserField], faults: &mut Violations) {
        for field in fields {
            match field {
                UserField::FirstName => faults.check_required_text("user.first_name", &self.first_name, NAME_MAX),
                UserField::LastName => faults.check_text("user.last_name", &self.last_name, NAME_MAX),
                UserField::Email if self.email.is_empty() => faults.push("user.email", "is required"),
                UserField::Email => {
                    if let Err(fault) = contact::check_email(&self.email) {
                        faults.push("user.email", fault);
                    }
                }
                UserField::Role if self.role.is_none() => faults.push("user.role", "must have a type and a level"),
                UserField::LocationIds if self.location_ids.len() > LOCATIONS_MAX => {
                    faults.push("user.location_ids", format!("must be at most {LOCATIONS_MAX}"))
                }
                UserField::Role | UserField::LocationIds | UserField::Disabled => {}
            }
        }
    }

    /// Whether it manages the whole agency.
    pub fn is_agency_admin(&self) -> bool {
        self.role == Some(Role { kind: RoleType::Agency, level: RoleLevel::Admin })
    }

    /// Whether it manages the locations it lists.
    pub fn is_location_admin(&self) -> bool {
        self.role == Some(Role { kind: RoleType::Location, level: RoleLevel::Admin })
    }

    /// Whether it manages this location as one of its own.
    pub fn is_admin_of(&self, location_id: &str) -> bool {
        self.is_location_admin() && self.works_in(location_id)
    }

    /// Whether it lists this location.
    pub fn works_in(&self, location_id: &str) -> bool {
        self.location_ids.binary_search_by(|id| id.as_str().cmp(location_id)).is_ok()
    }
}

/// A person of one agency.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// `usr_…`.
    pub id: String,
    /// The agency it belongs to.
    pub agency_id: String,
    /// What can be chosen of it.
    pub details: UserDetails,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
    /// When it was deleted. `None`: it is not.
    pub deleted_at: Option<DateTime<Utc>>,
    /// Counts its changes, from 1.
    pub revision: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn details(kind: RoleType, level: RoleLevel, locations: &[&str]) -> UserDetails {
        UserDetails {
            first_name: "Ada".into(),
            last_name: String::new(),
            email: "ada@example.com".into(),
            role: Some(Role { kind, level }),
            location_ids: locations.iter().map(|id| (*id).to_owned()).collect(),
            disabled: false,
        }
    }

    #[test]
    fn a_role_and_its_locations_must_fit() {
        for (user, fields) in [
            (details(RoleType::Agency, RoleLevel::Admin, &[]), vec![]),
            (details(RoleType::Location, RoleLevel::User, &["loc_1"]), vec![]),
            (details(RoleType::Agency, RoleLevel::User, &["loc_1"]), vec!["user.location_ids"]),
            (details(RoleType::Location, RoleLevel::Admin, &[]), vec!["user.location_ids"]),
            (
                UserDetails {
                    role: None,
                    first_name: String::new(),
                    email: "x".into(),
                    ..details(RoleType::Agency, RoleLevel::User, &[])
                },
                vec!["user.first_name", "user.email", "user.role"],
            ),
        ] {
            let mut faults = Violations::default();
            user.check(&mut faults);
            assert_eq!(faults.iter().map(|one| one.field.as_str()).collect::<Vec<_>>(), fields, "{user:?}");
        }
    }

    #[test]
    fn admins_are_told_apart() {
        let agency = details(RoleType::Agency, RoleLevel::Admin, &[]);
        let location = details(RoleType::Location, RoleLevel::Admin, &["loc_1", "loc_3"]);
        let worker = details(RoleType::Location, RoleLevel::User, &["loc_1"]);
        assert!(agency.is_agency_admin() && !agency.is_admin_of("loc_1"));
        assert!(location.is_admin_of("loc_3") && !location.is_admin_of("loc_2") && !location.is_agency_admin());
        assert!(worker.works_in("loc_1") && !worker.is_admin_of("loc_1"));
    }
}
