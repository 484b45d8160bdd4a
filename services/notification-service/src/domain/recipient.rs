//! The people to tell, as location-service knows them at the moment of asking.

use super::ids::{LocationId, UserId};

/// One person to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipient {
    /// The user.
    pub user_id: UserId,
    /// Where the user reads mail.
    pub email: String,
    /// First name.
    pub first_name: String,
    /// Last name; may be empty.
    pub last_name: String,
    /// What the user is told about.
    pub reach: Reach,
}

/// What a person is told about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// An agency admin: the whole lot.
    WholeLot,
    /// A location admin: the keys of these of the locations asked for.
    Locations(Vec<LocationId>),
}

/// A part of the answer about an agency's people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecipientChunk {
    /// Name and IANA time zone of the agency, in the first part.
    pub agency: Option<AgencyFacts>,
    /// Some of the people.
    pub recipients: Vec<Recipient>,
    /// Some names of the locations asked for.
    pub locations: Vec<(LocationId, String)>,
}

/// What notices say of an agency.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgencyFacts {
    /// Its name.
    pub name: String,
    /// Its IANA time zone.
    pub time_zone: String,
}
