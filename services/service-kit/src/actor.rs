//! Who a call is made for.

use std::fmt;
use std::str::FromStr;

/// The metadata key under which a trusted caller names the actor.
pub const METADATA_KEY: &str = "x-keysweep-actor";

/// Who a call is made for, as the trusted caller vouches.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Actor {
    /// A person, logged in through the UI.
    User(String),
    /// An API client, as verified at the edge.
    ApiKey(String),
    /// A service acting for itself.
    Service(String),
}

/// An actor that is not of the form `user/<id>`, `api-key/<id>` or `service/<name>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an actor is user/<id>, api-key/<id> or service/<name>, its id 1 to 128 visible ASCII characters")]
pub struct MalformedActor;

impl Actor {
    /// The actor of a call that names none: the caller acts for itself, over a plaintext loopback connection.
    pub fn local_service() -> Self {
        Self::Service("local".to_owned())
    }

    /// The kind, as it stands before the slash.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::User(_) => "user",
            Self::ApiKey(_) => "api-key",
            Self::Service(_) => "service",
        }
    }

    /// The id, as it stands after the slash.
    pub fn id(&self) -> &str {
        match self {
            Self::User(id) | Self::ApiKey(id) | Self::Service(id) => id,
        }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind(), self.id())
    }
}

impl FromStr for Actor {
    type Err = MalformedActor;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (kind, id) = text.split_once('/').ok_or(MalformedActor)?;
        if id.is_empty() || id.len() > 128 || !id.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(MalformedActor);
        }
        let id = id.to_owned();
        match kind {
            "user" => Ok(Self::User(id)),
            "api-key" => Ok(Self::ApiKey(id)),
            "service" => Ok(Self::Service(id)),
            _ => Err(MalformedActor),
        }
    }
}

/// The actor of a request, or `None` where the caller named none.
pub fn actor_of<T>(request: &tonic::Request<T>) -> Option<Actor> {
    crate::context::of(request).actor
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actors_survive_their_text() {
        for text in ["user/usr_1", "api-key/key_2", "service/location-service", "user/a/b"] {
            assert_eq!(text.parse::<Actor>().map(|a| a.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn malformed_actors_are_refused() {
        let long = format!("user/{}", "x".repeat(129));
        for text in ["", "user", "user/", "admin/1", "USER/1", "user/a b", "user/\u{202e}", "/1", long.as_str()] {
            assert_eq!(text.parse::<Actor>(), Err(MalformedActor), "{text:?}");
        }
    }
}
