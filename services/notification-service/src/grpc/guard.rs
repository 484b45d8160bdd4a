//! Who may ask for what, and whether what is asked for can be.

use service_kit::actor::Actor;
use service_kit::violations::Violations;

use crate::app::error::CallError;

/// Ids are opaque here, but never longer or stranger than those of this installation.
const ID_CHARS: usize = 128;

/// An inbox is its user's own. A caller that names no actor, or a service, acts for the platform.
pub(super) fn own_inbox(actor: Option<&Actor>, user_id: &str) -> Result<(), CallError> {
    match actor {
        None | Some(Actor::Service(_)) => Ok(()),
        Some(Actor::User(id)) if id == user_id => Ok(()),
        Some(other @ (Actor::User(_) | Actor::ApiKey(_))) => {
            Err(CallError::ActorNotAllowed { actor: other.to_string(), required: format!("user/{user_id}") })
        }
    }
}

/// People and services, but no API client.
pub(super) fn no_api_key(actor: Option<&Actor>) -> Result<(), CallError> {
    match actor {
        None | Some(Actor::Service(_) | Actor::User(_)) => Ok(()),
        Some(key @ Actor::ApiKey(_)) => Err(CallError::ActorNotAllowed {
            actor: key.to_string(),
            required: "user/<id> or service/<name>".to_owned(),
        }),
    }
}

/// Notes what is wrong with an id that must be there.
pub(super) fn required_id(faults: &mut Violations, field: &str, id: &str) {
    if id.is_empty() {
        faults.push(field, "is required");
    } else {
        optional_id(faults, field, id);
    }
}

/// Notes what is wrong with an id that may be missing.
pub(super) fn optional_id(faults: &mut Violations, field: &str, id: &str) {
    if id.len() > ID_CHARS || !id.bytes().all(|b| b.is_ascii_graphic()) {
        faults.push(field, format!("must be at most {ID_CHARS} visible ASCII characters"));
    }
}

/// Notes what is wrong with a list of ids.
pub(super) fn ids(faults: &mut Violations, field: &str, ids: &[String], max: usize) {
    if ids.len() > max {
        faults.push(field, format!("must be at most {max}"));
    }
    for (i, id) in ids.iter().enumerate().take(max) {
        required_id(faults, &format!("{field}[{i}]"), id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inbox_is_its_users_own() {
        let ask = |actor: &str| own_inbox(Some(&actor.parse().expect("an actor")), "usr_1").is_ok();
        assert!(own_inbox(None, "usr_1").is_ok());
        assert!(ask("user/usr_1") && ask("service/platform"));
        assert!(!ask("user/usr_2") && !ask("api-key/usr_1"));
        assert!(no_api_key(Some(&Actor::ApiKey("key_1".into()))).is_err());
    }

    #[test]
    fn every_bad_id_is_named() {
        let mut faults = Violations::default();
        ids(&mut faults, "ids", &["ok".into(), String::new(), "a b".into(), "x".repeat(129)], 3);
        let fields: Vec<_> = faults.iter().map(|one| one.field.as_str()).collect();
        assert_eq!(fields, ["ids", "ids[1]", "ids[2]"]);
    }
}
