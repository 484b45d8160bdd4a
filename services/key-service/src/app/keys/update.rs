//! Changing a key's metadata.

use chrono::{DateTime, Utc};
use serde_json::json;
use service_kit::time::to_micros;
use service_kit::violations::Violations;

use super::{Attempt, Change, KeyError, Keys, Record, Repeated, decide, key_event, request};
use crate::app::Caller;
use crate::domain::key::{ApiKey, ApiKeyState, Networks, Scopes, check_expiry};

/// New values, each `Some` that is to change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyChanges {
    /// The name for people.
    pub display_name: Option<String>,
    /// What the key may be used for.
    pub scopes: Option<Scopes>,
    /// From where the key may be used.
    pub networks: Option<Networks>,
    /// When the key stops verifying; `Some(None)`: never.
    pub expires_at: Option<Option<DateTime<Utc>>>,
}

impl KeyChanges {
    fn names(&self) -> Vec<&'static str> {
        [
            ("display_name", self.display_name.is_some()),
            ("scopes", self.scopes.is_some()),
            ("allowed_cidrs", self.networks.is_some()),
            ("expire_time", self.expires_at.is_some()),
        ]
        .into_iter()
        .filter_map(|(name, changes)| changes.then_some(name))
        .collect()
    }

    fn apply(&self, key: &mut ApiKey) {
        if let Some(display_name) = &self.display_name {
            key.display_name.clone_from(display_name);
        }
        if let Some(scopes) = &self.scopes {
            key.scopes.clone_from(scopes);
        }
        if let Some(networks) = &self.networks {
            key.networks.clone_from(networks);
        }
        if let Some(expires_at) = self.expires_at {
            key.expires_at = expires_at;
        }
    }
}

/// A change of one key.
#[derive(Debug, Clone)]
pub struct Update {
    /// The key.
    pub key_id: String,
    /// What the caller has read; empty: whatever is there is overwritten.
    pub etag: String,
    /// The new values.
    pub changes: KeyChanges,
    /// Makes the call repeatable for 24 h; empty: it is not.
    pub request_id: String,
}

impl Keys {
    /// Changes the metadata of an ACTIVE key.
    pub async fn update(&self, caller: &Caller, command: &Update) -> Result<ApiKey, KeyError> {
        caller.person_or_service()?;
        let now = self.now();
        decide(|| self.try_update(caller, command, now)).await
    }

    async fn try_update(
        &self,
        caller: &Caller,
        command: &Update,
        now: DateTime<Utc>,
    ) -> Result<Attempt<ApiKey>, KeyError> {
        let actor = caller.person_or_service()?;
        let mut key = self.existing(&command.key_id).await?;
        let agency_id = key.owner.agency_id.clone();
        let request = request("UpdateApiKey", &agency_id, &command.request_id, &actor, contents(command));
        if self.repeated(request.as_ref(), now).await?.is_some() {
            // The first call may have been made after the key was read above.
            return self.existing(&key.key_id).await.map(Attempt::Done);
        }
        let state = key.state_at(now);
        if state != ApiKeyState::Active {
            return Err(KeyError::NotActive { key_id: key.key_id, state: state.as_str() });
        }
        if !command.etag.is_empty() && command.etag != key.etag() {
            return Err(KeyError::EtagMismatch { key_id: key.key_id });
        }
        let mut faults = Violations::default();
        check_expiry(command.changes.expires_at.flatten(), now, "api_key.expire_time", &mut faults);
        faults.into_result().map_err(KeyError::Invalid)?;
        let names = command.changes.names();
        if names.is_empty() {
            return Ok(Attempt::Done(key));
        }
        command.changes.apply(&mut key);

        let audit = key_event("key.updated", &agency_id, &key.key_id, &actor, caller, now, json!({ "changed": names }));
        let repeated = Repeated { key_id: key.key_id.clone(), sealed: None };
        let record = Record { now, actor, request: request.map(|request| (request, repeated)), audit };
        match self.parts.store.update(&key, record).await? {
            Change::Made { rescued } => {
                self.changed(rescued).await;
                self.existing(&key.key_id).await.map(Attempt::Done)
            }
            Change::Repeated(_) => self.existing(&key.key_id).await.map(Attempt::Done),
            Change::Reused => Err(KeyError::RequestIdReused),
            Change::Stale => Ok(Attempt::Stale),
        }
    }
}

/// Everything that makes two updates the same.
fn contents(command: &Update) -> Vec<Vec<u8>> {
    let changes = &command.changes;
    let networks = changes
        .networks
        .as_ref()
        .map(|networks| networks.as_slice().iter().map(ToString::to_string).collect::<Vec<_>>());
    vec![
        command.key_id.clone().into_bytes(),
        command.etag.clone().into_bytes(),
        // JSON tells "no change" from "changed to nothing".
        json!([
            changes.display_name,
            changes.scopes.as_ref().map(Scopes::as_slice),
            networks,
            changes.expires_at.map(|expires_at| json!([expires_at.map(to_micros)])),
        ])
        .to_string()
        .into_bytes(),
    ]
}
