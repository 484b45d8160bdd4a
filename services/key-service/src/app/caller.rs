//! Who a use case runs for.

use service_kit::actor::Actor;

use super::KeyError;
use crate::domain::audit::Origin;

/// Who may where a person or a service may.
pub(crate) const PERSON_OR_SERVICE: &str = "user/<id> or service/<name>";

/// Who a call is made for, and the id it is logged and audited under.
#[derive(Debug, Clone, Default)]
pub struct Caller {
    /// The actor, if the trusted caller named one.
    pub actor: Option<Actor>,
    /// The `x-request-id` of the call.
    pub call_id: String,
    /// Where the call came from.
    pub origin: Origin,
}

impl Caller {
    /// The person that the call is made for: a stolen key must not mint, show or end another.
    pub fn person(&self) -> Result<Actor, KeyError> {
        match &self.actor {
            Some(actor @ Actor::User(_)) => Ok(actor.clone()),
            Some(actor @ (Actor::ApiKey(_) | Actor::Service(_))) => {
                Err(KeyError::ActorNotAllowed { actor: actor.to_string(), required: "user/<id>" })
            }
            None => Err(KeyError::ActorRequired),
        }
    }

    /// A person or a service; a caller that names nobody acts for itself.
    pub fn person_or_service(&self) -> Result<Actor, KeyError> {
        match &self.actor {
            Some(actor @ (Actor::User(_) | Actor::Service(_))) => Ok(actor.clone()),
            Some(actor @ Actor::ApiKey(_)) => {
                Err(KeyError::ActorNotAllowed { actor: actor.to_string(), required: PERSON_OR_SERVICE })
            }
            None => Ok(Actor::local_service()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_person_is_a_person() {
        let caller = |actor: &str| Caller { actor: actor.parse().ok(), ..Caller::default() };
        assert!(caller("user/usr_1").person().is_ok());
        assert!(matches!(caller("").person(), Err(KeyError::ActorRequired)));
        for actor in ["api-key/key_1", "service/location-service"] {
            assert!(matches!(caller(actor).person(), Err(KeyError::ActorNotAllowed { .. })), "{actor}");
        }
        assert_eq!(caller("").person_or_service().unwrap(), Actor::Service("local".into()));
        assert!(caller("service/importer").person_or_service().is_ok());
        assert!(matches!(caller("api-key/key_1").person_or_service(), Err(KeyError::ActorNotAllowed { .. })));
    }
}
