//! Who may do what, in one place: every use case asks [`decide`].

use service_kit::actor::Actor;

use crate::domain::user::{RoleType, User, UserDetails};

/// Who is behind a call.
#[derive(Clone, Debug)]
pub enum Caller {
    /// No actor is named: the trusted caller acts for itself.
    Nobody,
    /// A service acting for itself.
    Service(Actor),
    /// An API client; that it stays within its agency is seen to at the edge.
    ApiClient(Actor),
    /// A person, known and not deleted.
    Person(Box<User>),
    /// A person nobody knows.
    Stranger(Actor),
}

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub enum Action<'a> {
    /// Take in an agency, or see all of them.
    Installation,
    /// See the agency, its settings, locations or users.
    Read,
    /// Change the agency, or create, change or delete its locations.
    Write,
    /// Create, change or delete a user, who was and will be as given.
    ManageUser(&'a [&'a UserDetails]),
    /// Generate a key of the agency, or choose its security.
    ActAsAgencyAdmin,
    /// Generate a key of this location.
    ActAsLocationAdmin(&'a str),
    /// List whom to tell about keys.
    ListRecipients,
}

/// Why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A person must be named.
    ActorRequired,
    /// Whoever is named may not.
    NotAllowed {
        /// Who may.
        required: &'static str,
    },
    /// The actor may not even see what it asks for.
    Hidden,
}

const PLATFORM: &str = "service/<name>";
const AGENCY_ADMIN: &str = "an agency admin";
const LOCATION_ADMIN: &str = "an agency admin or an admin of the location";
const USER_ADMIN: &str = "an agency admin or an admin of every location of the user";
const ENABLED: &str = "a user who is not disabled";

/// `Ok` if the caller may do this in the agency.
///
/// # Errors
/// See [`Refusal`].
pub fn decide(caller: &Caller, action: Action<'_>, agency_id: &str) -> Result<(), Refusal> {
    let allow = |yes: bool, required: &'static str| {
        if yes { Ok(()) } else { Err(Refusal::NotAllowed { required }) }
    };
    // Installation-wide actions concern no agency, so there is nothing to hide.
    if let Action::Installation = action {
        return allow(matches!(caller, Caller::Nobody | Caller::Service(_)), PLATFORM);
    }
    match caller {
        Caller::Stranger(_) => Err(Refusal::Hidden),
        Caller::Person(user) if user.agency_id != agency_id => Err(Refusal::Hidden),
        Caller::Person(user) => {
            let me = &user.details;
            let admin = me.is_agency_admin();
            if me.disabled {
                return allow(false, ENABLED);
            }
            match action {
                Action::Read => Ok(()),
                Action::Write | Action::ActAsAgencyAdmin => allow(admin, AGENCY_ADMIN),
                Action::ActAsLocationAdmin(location_id) => allow(admin || me.is_admin_of(location_id), LOCATION_ADMIN),
                Action::ManageUser(states) => allow(admin || states.iter().all(|state| reaches(me, state)), USER_ADMIN),
                Action::ListRecipients | Action::Installation => allow(false, PLATFORM),
            }
        }
        Caller::Nobody => match action {
            Action::ActAsAgencyAdmin | Action::ActAsLocationAdmin(_) => Err(Refusal::ActorRequired),
            _ => Ok(()),
        },
        Caller::Service(_) => person_only(action),
        Caller::ApiClient(_) => match action {
            Action::ListRecipients => allow(false, PLATFORM),
            _ => person_only(action),
        },
    }
}

fn person_only(action: Action<'_>) -> Result<(), Refusal> {
    match action {
        Action::ActAsAgencyAdmin => Err(Refusal::NotAllowed { required: AGENCY_ADMIN }),
        Action::ActAsLocationAdmin(_) => Err(Refusal::NotAllowed { required: LOCATION_ADMIN }),
        Action::Installation | Action::Read | Action::Write | Action::ManageUser(_) | Action::ListRecipients => Ok(()),
    }
}

/// Whether a location admin manages a user in this state: a LOCATION user who works in no location but the admin's.
fn reaches(admin: &UserDetails, state: &UserDetails) -> bool {
    admin.is_location_admin()
        && state.role.is_some_and(|role| role.kind == RoleType::Location)
        && !state.location_ids.is_empty()
        && state.location_ids.iter().all(|id| admin.works_in(id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::user::{Role, RoleLevel};
    use service_kit::time::from_micros;

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

    fn person(agency_id: &str, details: UserDetails) -> Caller {
        let at = from_micros(0);
        Caller::Person(Box::new(User {
            id: "usr_1".into(),
            agency_id: agency_id.into(),
            details,
            created_at: at,
            updated_at: at,
            deleted_at: None,
            revision: 1,
        }))
    }

    /// The table of docs: a row per caller, a column per action.
    /// `+` allowed, `-` not allowed, `?` actor required, `0` hidden.
    #[test]
    fn the_role_matrix_holds() {
        let admin =
            |kind| details(kind, RoleLevel::Admin, if kind == RoleType::Location { &["l1", "l2"] } else { &[] });
        let worker = |kind| details(kind, RoleLevel::User, if kind == RoleType::Location { &["l1"] } else { &[] });
        let mine = details(RoleType::Location, RoleLevel::Admin, &["l2"]);
        let shared = details(RoleType::Location, RoleLevel::User, &["l1", "l3"]);
        let boss = admin(RoleType::Agency);
        let (own, partly, up, promoted) = ([&mine], [&shared], [&boss], [&mine, &boss]);
        let actions = [
            Action::Installation,
            Action::Read,
            Action::Write,
            Action::ActAsAgencyAdmin,
            Action::ActAsLocationAdmin("l1"),
            Action::ActAsLocationAdmin("l3"),
            Action::ManageUser(&own),
            Action::ManageUser(&partly),
            Action::ManageUser(&up),
            Action::ManageUser(&promoted),
            Action::ListRecipients,
        ];
        let disabled = UserDetails { disabled: true, ..admin(RoleType::Agency) };
        let rows = [
            (Caller::Nobody, "+++???+++++"),
            (Caller::Service(Actor::Service("n".into())), "+++---+++++"),
            (Caller::ApiClient(Actor::ApiKey("k".into())), "-++---++++-"),
            (Caller::Stranger(Actor::User("usr_9".into())), "-0000000000"),
            (person("a", admin(RoleType::Agency)), "-+++++++++-"),
            (person("a", worker(RoleType::Agency)), "-+---------"),
            (person("a", admin(RoleType::Location)), "-+--+-+----"),
            (person("a", worker(RoleType::Location)), "-+---------"),
            (person("a", disabled), "-----------"),
            (person("b", admin(RoleType::Agency)), "-0000000000"),
        ];
        for (caller, expected) in rows {
            let row: String = actions
                .iter()
                .map(|action| match decide(&caller, *action, "a") {
                    Ok(()) => '+',
                    Err(Refusal::NotAllowed { .. }) => '-',
                    Err(Refusal::ActorRequired) => '?',
                    Err(Refusal::Hidden) => '0',
                })
                .collect();
            assert_eq!(row, expected, "{caller:?}");
        }
    }
}
