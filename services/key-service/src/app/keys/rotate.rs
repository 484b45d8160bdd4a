//! Rotation: a successor with the same properties, and an end for the old secret.

use chrono::{DateTime, Utc};
use serde_json::json;

use super::{Attempt, Change, Issued, KeyError, Keys, Record, Repeated, Retirement, decide, key_event, request};
use crate::app::Caller;
use crate::domain::key::{ApiKey, KeySpec, Overlap, RotationRefusal, rotate};

/// Which key to rotate.
#[derive(Debug, Clone)]
pub struct Rotate {
    /// The key.
    pub key_id: String,
    /// For how long both secrets verify.
    pub overlap: Overlap,
    /// Makes the call repeatable for 24 h; empty: it is not.
    pub request_id: String,
}

/// A rotated key and its successor.
#[derive(Debug, Clone)]
pub struct Rotated {
    /// The successor, with its secret.
    pub successor: Issued,
    /// The old key; `revoke_at` says when its secret ends.
    pub retired: ApiKey,
}

impl Keys {
    /// Issues a successor and lets the old secret end after the overlap.
    pub async fn rotate(&self, caller: &Caller, command: &Rotate) -> Result<Rotated, KeyError> {
        caller.person()?;
        let now = self.now();
        decide(|| self.try_rotate(caller, command, now)).await
    }

    async fn try_rotate(
        &self,
        caller: &Caller,
        command: &Rotate,
        now: DateTime<Utc>,
    ) -> Result<Attempt<Rotated>, KeyError> {
        let actor = caller.person()?;
        let key = self.existing(&command.key_id).await?;
        let agency_id = &key.owner.agency_id;
        let contents = vec![command.key_id.clone().into_bytes(), command.overlap.micros().to_be_bytes().to_vec()];
        let request = request("RotateApiKey", agency_id, &command.request_id, &actor, contents);
        if let Some(repeated) = self.repeated(request.as_ref(), now).await? {
            return self.rotated(repeated, &command.key_id, now).await.map(Attempt::Done);
        }
        let revoke_at = rotate(&key, command.overlap, now).map_err(|refusal| refused(refusal, &key.key_id))?;
        let spec = KeySpec {
            owner: key.owner.clone(),
            display_name: key.display_name.clone(),
            scopes: key.scopes.clone(),
            networks: key.networks.clone(),
            expires_at: key.expires_at,
        };
        let fresh = self.fresh(&spec, request.as_ref(), now)?;
        let successor = fresh.new.key.clone();
        let detail = json!({ "successor_key_id": successor.key_id, "revoke_time": revoke_at });
        let audit = key_event("key.rotated", agency_id, &key.key_id, &actor, caller, now, detail);
        let record = Record { now, actor, request: request.map(|request| (request, fresh.repeated)), audit };
        let retirement = Retirement { key_id: key.key_id.clone(), revision: key.revision, revoke_at };
        match self.parts.store.rotate(retirement, fresh.new, record).await? {
            Change::Made { rescued } => {
                self.changed(rescued).await;
                let successor = Issued { key: successor, secret: Some(fresh.secret) };
                Ok(Attempt::Done(Rotated { successor, retired: self.existing(&key.key_id).await? }))
            }
            Change::Repeated(repeated) => self.rotated(repeated, &key.key_id, now).await.map(Attempt::Done),
            Change::Reused => Err(KeyError::RequestIdReused),
            Change::Stale => Ok(Attempt::Stale),
        }
    }

    async fn rotated(&self, repeated: Repeated, old_key_id: &str, now: DateTime<Utc>) -> Result<Rotated, KeyError> {
        Ok(Rotated { successor: self.reissue(repeated, now).await?, retired: self.existing(old_key_id).await? })
    }
}

fn refused(refusal: RotationRefusal, key_id: &str) -> KeyError {
    let key_id = key_id.to_owned();
    match refusal {
        RotationRefusal::NotActive(state) => KeyError::NotActive { key_id, state },
        RotationRefusal::AlreadyRotated(successor_key_id) => KeyError::AlreadyRotated { key_id, successor_key_id },
    }
}
