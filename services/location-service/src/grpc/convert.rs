//! Messages to the domain and back.

use chrono::TimeDelta;
use keysweep_proto::location::{v1, v2};
use prost_types::Timestamp;
use secrecy::ExposeSecret;
use service_kit::time::{from_proto, to_proto};
use service_kit::violations::Violations;

use crate::app::listing::CreatedRange;
use crate::app::ports::{GeneratedKey, Recipient};
use crate::app::{GenerateKey, LocationView};
use crate::domain::profile::Profile;
use crate::domain::resources::{Agency, etag};
use crate::domain::security::SecuritySetting;
use crate::domain::user::{Role, RoleLevel, RoleType, User, UserDetails};

/// What is wrong with a timestamp that is none.
const NO_INSTANT: &str = "must lie in the years 1 to 9999";

/// The parts of a message that describe a business; agencies and locations name them alike.
macro_rules! profile_of {
    ($message:expr) => {{
        let m = $message;
        Profile {
            name: m.name,
            email: m.email,
            phone: m.phone,
            address: m.address,
            city: m.city,
            state: m.state,
            postal_code: m.postal_code,
            country: m.country,
            time_zone: m.time_zone,
            website: m.website,
        }
    }};
}

pub(super) fn agency_profile(message: v2::Agency) -> Profile {
    profile_of!(message)
}

pub(super) fn location_profile(message: v2::Location) -> Profile {
    profile_of!(message)
}

pub(super) fn agency(agency: Agency) -> v2::Agency {
    let p = agency.profile;
    v2::Agency {
        agency_id: agency.id,
        name: p.name,
        email: p.email,
        phone: p.phone,
        address: p.address,
        city: p.city,
        state: p.state,
        postal_code: p.postal_code,
        country: p.country,
        time_zone: p.time_zone,
        website: p.website,
        create_time: Some(to_proto(agency.created_at)),
        update_time: Some(to_proto(agency.updated_at)),
        etag: etag(agency.revision),
    }
}

pub(super) fn location(view: LocationView) -> v2::Location {
    let LocationView { location, api_key } = view;
    let p = location.profile;
    v2::Location {
        location_id: location.id,
        agency_id: location.agency_id,
        name: p.name,
        email: p.email,
        phone: p.phone,
        address: p.address,
        city: p.city,
        state: p.state,
        postal_code: p.postal_code,
        country: p.country,
        time_zone: p.time_zone,
        website: p.website,
        api_key: api_key.map(|key| key.expose_secret().to_owned()).unwrap_or_default(),
        create_time: Some(to_proto(location.created_at)),
        update_time: Some(to_proto(location.updated_at)),
        delete_time: location.deleted_at.map(to_proto),
        etag: etag(location.revision),
    }
}

pub(super) fn user(user: User) -> v2::User {
    let details = user.details;
    let role = |role: Role| v2::Role {
        r#type: match role.kind {
            RoleType::Agency => v2::RoleType::Agency,
            RoleType::Location => v2::RoleType::Location,
        }
        .into(),
        level: match role.level {
            RoleLevel::Admin => v2::RoleLevel::Admin,
            RoleLevel::User => v2::RoleLevel::User,
        }
        .into(),
    };
    v2::User {
        user_id: user.id,
        agency_id: user.agency_id,
        first_name: details.first_name,
        last_name: details.last_name,
        email: details.email,
        role: details.role.map(role),
        location_ids: details.location_ids,
        disabled: details.disabled,
        create_time: Some(to_proto(user.created_at)),
        update_time: Some(to_proto(user.updated_at)),
        etag: etag(user.revision),
    }
}

pub(super) fn user_details(message: v2::User) -> UserDetails {
    UserDetails {
        first_name: message.first_name,
        last_name: message.last_name,
        email: message.email,
        role: message.role.and_then(|role| {
            let kind = match role.r#type() {
                v2::RoleType::Unspecified => return None,
                v2::RoleType::Agency => RoleType::Agency,
                v2::RoleType::Location => RoleType::Location,
            };
            let level = match role.level() {
                v2::RoleLevel::Unspecified => return None,
                v2::RoleLevel::Admin => RoleLevel::Admin,
                v2::RoleLevel::User => RoleLevel::User,
            };
            Some(Role { kind, level })
        }),
        location_ids: message.location_ids,
        disabled: message.disabled,
    }
}

/// The roles that a list is narrowed to. `None`: all.
pub(super) fn role_filter(kind: i32, level: i32, faults: &mut Violations) -> (Option<RoleType>, Option<RoleLevel>) {
    let kind = match v2::RoleType::try_from(kind) {
        Ok(v2::RoleType::Agency) => Some(RoleType::Agency),
        Ok(v2::RoleType::Location) => Some(RoleType::Location),
        Ok(v2::RoleType::Unspecified) => None,
        Err(_) => {
            faults.push("role_type", "is no type of role");
            None
        }
    };
    let level = match v2::RoleLevel::try_from(level) {
        Ok(v2::RoleLevel::Admin) => Some(RoleLevel::Admin),
        Ok(v2::RoleLevel::User) => Some(RoleLevel::User),
        Ok(v2::RoleLevel::Unspecified) => None,
        Err(_) => {
            faults.push("role_level", "is no level of role");
            None
        }
    };
    (kind, level)
}

/// When listed items were created. Instants are kept to the microsecond: of a finer bound the next one holds.
pub(super) fn created_range(start: Option<Timestamp>, end: Option<Timestamp>, faults: &mut Violations) -> CreatedRange {
    let mut bound = |field: &str, stamp: Option<Timestamp>| {
        let stamp = stamp?;
        let at = from_proto(&stamp);
        if at.is_none() {
            faults.push(field, NO_INSTANT);
        }
        let finer = TimeDelta::microseconds(i64::from(stamp.nanos % 1_000 != 0));
        at.map(|at| at + finer)
    };
    CreatedRange { from: bound("start_create_time", start), before: bound("end_create_time", end) }
}

/// The legacy user, which is version 2's without what came later.
pub(super) fn legacy_user(current: User) -> v1::User {
    let current = user(current);
    v1::User {
        user_id: current.user_id,
        agency_id: current.agency_id,
        first_name: current.first_name,
        last_name: current.last_name,
        email: current.email,
        // Both versions number their roles alike.
        role: current.role.map(|role| v1::Role { r#type: role.r#type, level: role.level }),
        location_ids: current.location_ids,
        create_time: current.create_time,
        update_time: current.update_time,
    }
}

pub(super) fn legacy_user_details(message: v1::User) -> UserDetails {
    user_details(v2::User {
        first_name: message.first_name,
        last_name: message.last_name,
        email: message.email,
        role: message.role.map(|role| v2::Role { r#type: role.r#type, level: role.level }),
        location_ids: message.location_ids,
        ..v2::User::default()
    })
}

pub(super) fn setting(agency_id: String, setting: SecuritySetting) -> v2::SecuritySettings {
    let provenance =
        if setting.choice.is_some() { v2::SettingProvenance::Explicit } else { v2::SettingProvenance::Default };
    v2::SecuritySettings {
        agency_id,
        enhanced_account_security: setting.enabled,
        provenance: provenance.into(),
        update_actor: setting.choice.as_ref().map(|choice| choice.actor.to_string()).unwrap_or_default(),
        update_time: setting.choice.as_ref().map(|choice| to_proto(choice.chosen_at)),
    }
}

/// What a person asks for, and what is wrong with it so far.
pub(super) fn wish(
    display_name: String,
    scopes: Vec<String>,
    expire_time: Option<Timestamp>,
    allowed_cidrs: Vec<String>,
    request_id: String,
) -> (GenerateKey, Violations) {
    let mut faults = Violations::default();
    let expires_at = expire_time.as_ref().and_then(from_proto);
    if expire_time.is_some() && expires_at.is_none() {
        faults.push("expire_time", NO_INSTANT);
    }
    (GenerateKey { display_name, scopes, expires_at, allowed_cidrs, request_id }, faults)
}

/// A key's metadata, and its secret.
pub(super) fn generated(key: GeneratedKey) -> (v2::ApiKey, String) {
    let metadata = v2::ApiKey {
        key_id: key.key_id,
        display_name: key.display_name,
        display_prefix: key.display_prefix,
        create_time: Some(to_proto(key.created_at)),
        expire_time: key.expires_at.map(to_proto),
        scopes: key.scopes,
    };
    (metadata, key.secret.expose_secret().to_owned())
}

pub(super) fn recipient(one: Recipient) -> v2::NoticeRecipient {
    v2::NoticeRecipient {
        user_id: one.user_id,
        email: one.email,
        first_name: one.first_name,
        last_name: one.last_name,
        agency_admin: one.agency_admin,
        location_ids: one.location_ids,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_number_their_roles_alike() {
        for kind in [v2::RoleType::Unspecified, v2::RoleType::Agency, v2::RoleType::Location] {
            assert_eq!(
                v1::RoleType::try_from(i32::from(kind)).map(|legacy| legacy.as_str_name()),
                Ok(kind.as_str_name())
            );
        }
        for level in [v2::RoleLevel::Unspecified, v2::RoleLevel::Admin, v2::RoleLevel::User] {
            assert_eq!(
                v1::RoleLevel::try_from(i32::from(level)).map(|legacy| legacy.as_str_name()),
                Ok(level.as_str_name())
            );
        }
    }

    #[test]
    fn an_unknown_role_is_none() {
        let details = user_details(v2::User { role: Some(v2::Role { r#type: 99, level: 1 }), ..v2::User::default() });
        assert_eq!(details.role, None);
    }
}
