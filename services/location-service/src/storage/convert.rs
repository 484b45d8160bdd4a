//! Rows to the domain and back.

use sea_orm::ActiveValue::{NotSet, Set};
use service_kit::keyring::Sealed;
use service_kit::time::{from_micros, to_micros};

use super::entities::{agencies, locations, security_settings, users};
use crate::app::ports::{StoreError, StoredLocation};
use crate::domain::contact::email_key;
use crate::domain::profile::{Profile, name_key};
use crate::domain::resources::{Agency, Location};
use crate::domain::security::Choice;
use crate::domain::user::{Role, RoleLevel, RoleType, User, UserDetails};

pub(super) fn agency(row: agencies::Model) -> Agency {
    Agency {
        id: row.id,
        profile: Profile {
            name: row.name,
            email: row.email,
            phone: row.phone,
            address: row.address,
            city: row.city,
            state: row.state,
            postal_code: row.postal_code,
            country: row.country,
            time_zone: row.time_zone,
            website: row.website,
        },
        created_at: from_micros(row.created_at),
        updated_at: from_micros(row.updated_at),
        revision: row.revision,
    }
}

pub(super) fn agency_row(agency: &Agency) -> agencies::ActiveModel {
    let p = &agency.profile;
    agencies::ActiveModel {
        id: Set(agency.id.clone()),
        name: Set(p.name.clone()),
        name_key: Set(name_key(&p.name)),
        email: Set(p.email.clone()),
        phone: Set(p.phone.clone()),
        address: Set(p.address.clone()),
        city: Set(p.city.clone()),
        state: Set(p.state.clone()),
        postal_code: Set(p.postal_code.clone()),
        country: Set(p.country.clone()),
        time_zone: Set(p.time_zone.clone()),
        website: Set(p.website.clone()),
        created_at: Set(to_micros(agency.created_at)),
        updated_at: Set(to_micros(agency.updated_at)),
        revision: Set(agency.revision),
    }
}

pub(super) fn location(row: locations::Model) -> Result<StoredLocation, StoreError> {
    let sealed_key = match (row.sealed_key, row.master_version) {
        (Some(bytes), Some(version)) => Some(Sealed {
            master_version: u32::try_from(version).map_err(|_| strange("master_version", version))?,
            bytes,
        }),
        _ => None,
    };
    let location = Location {
        id: row.id,
        agency_id: row.agency_id,
        profile: Profile {
            name: row.name,
            email: row.email,
            phone: row.phone,
            address: row.address,
            city: row.city,
            state: row.state,
            postal_code: row.postal_code,
            country: row.country,
            time_zone: row.time_zone,
            website: row.website,
        },
        created_at: from_micros(row.created_at),
        updated_at: from_micros(row.updated_at),
        deleted_at: row.deleted_at.map(from_micros),
        revision: row.revision,
    };
    Ok(StoredLocation { location, sealed_key })
}

/// The row without its sealed key, which has its own ways.
pub(super) fn location_row(location: &Location) -> locations::ActiveModel {
    let p = &location.profile;
    locations::ActiveModel {
        id: Set(location.id.clone()),
        agency_id: Set(location.agency_id.clone()),
        name: Set(p.name.clone()),
        name_key: Set(name_key(&p.name)),
        email: Set(p.email.clone()),
        phone: Set(p.phone.clone()),
        address: Set(p.address.clone()),
        city: Set(p.city.clone()),
        state: Set(p.state.clone()),
        postal_code: Set(p.postal_code.clone()),
        country: Set(p.country.clone()),
        time_zone: Set(p.time_zone.clone()),
        website: Set(p.website.clone()),
        deleted_at: Set(location.deleted_at.map(to_micros)),
        sealed_key: NotSet,
        master_version: NotSet,
        created_at: Set(to_micros(location.created_at)),
        updated_at: Set(to_micros(location.updated_at)),
        revision: Set(location.revision),
    }
}

pub(super) fn choice(row: security_settings::Model) -> Result<Choice, StoreError> {
    let actor = row.actor.parse().map_err(|_| strange("actor", &row.actor))?;
    Ok(Choice { enabled: row.enabled, actor, chosen_at: from_micros(row.chosen_at) })
}

/// `location_ids` must be sorted.
pub(super) fn user(row: users::Model, location_ids: Vec<String>) -> Result<User, StoreError> {
    let kind = match row.role_type {
        AGENCY => RoleType::Agency,
        LOCATION => RoleType::Location,
        other => return Err(strange("role_type", other)),
    };
    let level = match row.role_level {
        ADMIN => RoleLevel::Admin,
        USER => RoleLevel::User,
        other => return Err(strange("role_level", other)),
    };
    Ok(User {
        id: row.id,
        agency_id: row.agency_id,
        details: UserDetails {
            first_name: row.first_name,
            last_name: row.last_name,
            email: row.email,
            role: Some(Role { kind, level }),
            location_ids,
            disabled: row.disabled,
        },
        created_at: from_micros(row.created_at),
        updated_at: from_micros(row.updated_at),
        deleted_at: row.deleted_at.map(from_micros),
        revision: row.revision,
    })
}

pub(super) fn user_row(user: &User) -> Result<users::ActiveModel, StoreError> {
    let details = &user.details;
    let role = details.role.ok_or_else(|| strange("role", "none"))?;
    Ok(users::ActiveModel {
        id: Set(user.id.clone()),
        agency_id: Set(user.agency_id.clone()),
        first_name: Set(details.first_name.clone()),
        last_name: Set(details.last_name.clone()),
        email: Set(details.email.clone()),
        email_key: Set(user.deleted_at.is_none().then(|| email_key(&details.email))),
        role_type: Set(role_type(role.kind)),
        role_level: Set(role_level(role.level)),
        disabled: Set(details.disabled),
        deleted_at: Set(user.deleted_at.map(to_micros)),
        created_at: Set(to_micros(user.created_at)),
        updated_at: Set(to_micros(user.updated_at)),
        revision: Set(user.revision),
    })
}

const AGENCY: i16 = 1;
const LOCATION: i16 = 2;
const ADMIN: i16 = 1;
const USER: i16 = 2;

pub(super) fn role_type(kind: RoleType) -> i16 {
    match kind {
        RoleType::Agency => AGENCY,
        RoleType::Location => LOCATION,
    }
}

pub(super) fn role_level(level: RoleLevel) -> i16 {
    match level {
        RoleLevel::Admin => ADMIN,
        RoleLevel::User => USER,
    }
}

fn strange(column: &str, value: impl std::fmt::Display) -> StoreError {
    StoreError::Internal(format!("the column {column} holds {value}, which this version does not know"))
}
