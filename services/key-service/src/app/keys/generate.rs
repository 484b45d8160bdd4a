//! Generation: the only way a key comes into being besides import.

use chrono::{DateTime, Utc};
use serde_json::json;
use service_kit::time::to_micros;
use service_kit::violations::Violations;

use super::{
    Attempt, Change, KEY_PREFIX, KeyError, Keys, NewKey, Record, Repeated, Request, decide, key_event, request,
};
use crate::app::Caller;
use crate::domain::key::{ApiKey, ApiKeyState, KeySpec, Secret, check_expiry};

/// What to generate.
#[derive(Debug, Clone)]
pub struct Generate {
    /// The key's owner and properties.
    pub spec: KeySpec,
    /// Makes the call repeatable for 24 h; empty: it is not.
    pub request_id: String,
}

/// A key with its secret.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The key's metadata.
    pub key: ApiKey,
    /// The secret. `None` only in the answer to a repeated call whose key has ended since: the secret is destroyed.
    pub secret: Option<Secret>,
}

/// A new key, and its secret sealed for whoever repeats the call.
pub(super) struct Fresh {
    pub(super) new: NewKey,
    pub(super) secret: Secret,
    pub(super) repeated: Repeated,
}

impl Keys {
    /// Brings a key into being. Repeated within 24 h it answers the same key, secret included.
    pub async fn generate(&self, caller: &Caller, command: &Generate) -> Result<Issued, KeyError> {
        caller.person()?;
        let now = self.now();
        decide(|| self.try_generate(caller, command, now)).await
    }

    async fn try_generate(
        &self,
        caller: &Caller,
        command: &Generate,
        now: DateTime<Utc>,
    ) -> Result<Attempt<Issued>, KeyError> {
        let actor = caller.person()?;
        let spec = &command.spec;
        let request = request("GenerateApiKey", &spec.owner.agency_id, &command.request_id, &actor, contents(spec));
        if let Some(repeated) = self.repeated(request.as_ref(), now).await? {
            return self.reissue(repeated, now).await.map(Attempt::Done);
        }
        let mut faults = Violations::default();
        check_expiry(spec.expires_at, now, "expire_time", &mut faults);
        faults.into_result().map_err(KeyError::Invalid)?;

        let fresh = self.fresh(spec, request.as_ref(), now)?;
        let key = fresh.new.key.clone();
        let detail = json!({
            "location_id": key.owner.location_id,
            "display_prefix": key.display_prefix,
            "scopes": key.scopes.as_slice(),
        });
        let audit = key_event("key.generated", &key.owner.agency_id, &key.key_id, &actor, caller, now, detail);
        let record = Record { now, actor, request: request.map(|request| (request, fresh.repeated)), audit };
        match self.parts.store.insert(fresh.new, record).await? {
            Change::Made { .. } => Ok(Attempt::Done(Issued { key, secret: Some(fresh.secret) })),
            Change::Repeated(repeated) => self.reissue(repeated, now).await.map(Attempt::Done),
            Change::Reused => Err(KeyError::RequestIdReused),
            Change::Stale => Ok(Attempt::Stale),
        }
    }

    /// A new key with a new secret, not stored yet.
    pub(super) fn fresh(
        &self,
        spec: &KeySpec,
        request: Option<&Request>,
        now: DateTime<Utc>,
    ) -> Result<Fresh, KeyError> {
        let key_id = self.ids.next(KEY_PREFIX, now);
        let secret = Secret::generate(&spec.owner, &*self.parts.entropy);
        let recoverable = self.parts.settings.recoverable;
        let sealed = if recoverable || request.is_some() { Some(self.seal(&secret, &key_id)?) } else { None };
        let (kept, lent) = if recoverable { (sealed, None) } else { (None, sealed) };
        let key = ApiKey {
            key_id: key_id.clone(),
            owner: spec.owner.clone(),
            display_name: spec.display_name.clone(),
            display_prefix: secret.display_prefix(),
            state: ApiKeyState::Active,
            scopes: spec.scopes.clone(),
            networks: spec.networks.clone(),
            created_at: now,
            last_used_at: None,
            expires_at: spec.expires_at,
            revoke_at: None,
            deleted_at: None,
            pending_deletion: None,
            successor_id: None,
            external_reference: None,
            sealed: kept.is_some(),
            revision: 1,
        };
        let material = self.material(&secret.digest(), kept)?;
        Ok(Fresh { new: NewKey { key, material }, secret, repeated: Repeated { key_id, sealed: lent } })
    }

    /// The answer to a repeated call: the key as it is now, and its secret unless the key has ended.
    pub(super) async fn reissue(&self, repeated: Repeated, now: DateTime<Utc>) -> Result<Issued, KeyError> {
        let key = self.existing(&repeated.key_id).await?;
        if key.state_at(now) != ApiKeyState::Active {
            return Ok(Issued { key, secret: None });
        }
        let sealed = match repeated.sealed {
            Some(sealed) => Some(sealed),
            None => self.parts.store.sealed_secret(&key.key_id).await?,
        };
        let secret = sealed.map(|sealed| self.open(&sealed, &key.key_id)).transpose()?;
        Ok(Issued { key, secret })
    }
}

/// Everything that makes two generations the same.
fn contents(spec: &KeySpec) -> Vec<Vec<u8>> {
    let networks: Vec<_> = spec.networks.as_slice().iter().map(ToString::to_string).collect();
    vec![
        spec.owner.location_id.clone().unwrap_or_default().into_bytes(),
        spec.display_name.clone().into_bytes(),
        // Neither scopes nor networks contain a blank.
        spec.scopes.as_slice().join(" ").into_bytes(),
        networks.join(" ").into_bytes(),
        spec.expires_at.map(|at| to_micros(at).to_be_bytes().to_vec()).unwrap_or_default(),
    ]
}
