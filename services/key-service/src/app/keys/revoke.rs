//! Revocation: the end of a key, at once.

use chrono::{DateTime, Utc};
use serde_json::json;

use super::{Attempt, Change, KeyError, Keys, Record, Repeated, decide, key_event, request};
use crate::app::Caller;
use crate::domain::audit::NewAuditEvent;
use crate::domain::key::{ApiKey, ApiKeyState};

/// Which key to end.
#[derive(Debug, Clone)]
pub struct Revoke {
    /// The key.
    pub key_id: String,
    /// Why, for the audit; empty: not said.
    pub reason: String,
    /// Makes the call repeatable for 24 h; empty: it is not.
    pub request_id: String,
}

impl Keys {
    /// Ends a key and destroys its secret material. A key that is revoked already stays as it is.
    pub async fn revoke(&self, caller: &Caller, command: &Revoke) -> Result<ApiKey, KeyError> {
        caller.person()?;
        let now = self.now();
        decide(|| self.try_revoke(caller, command, now)).await
    }

    async fn try_revoke(
        &self,
        caller: &Caller,
        command: &Revoke,
        now: DateTime<Utc>,
    ) -> Result<Attempt<ApiKey>, KeyError> {
        let actor = caller.person()?;
        let key = self.existing(&command.key_id).await?;
        let agency_id = &key.owner.agency_id;
        let contents = vec![command.key_id.clone().into_bytes(), command.reason.clone().into_bytes()];
        let request = request("RevokeApiKey", agency_id, &command.request_id, &actor, contents);
        if self.repeated(request.as_ref(), now).await?.is_some() {
            // The first call may have been made after the key was read above.
            return self.existing(&key.key_id).await.map(Attempt::Done);
        }
        match key.state_at(now) {
            ApiKeyState::Active => {}
            ApiKeyState::Revoked => return Ok(Attempt::Done(key)),
            state @ ApiKeyState::Deleted => {
                return Err(KeyError::NotActive { key_id: key.key_id, state: state.as_str() });
            }
        }
        let event = key_event("key.revoked", agency_id, &key.key_id, &actor, caller, now, json!({}));
        let audit = NewAuditEvent { reason: command.reason.clone(), ..event };
        let repeated = Repeated { key_id: key.key_id.clone(), sealed: None };
        let record = Record { now, actor, request: request.map(|request| (request, repeated)), audit };
        match self.parts.store.revoke(&key.key_id, key.revision, record).await? {
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
