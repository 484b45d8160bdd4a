//! Repeatable requests in the transactions of keys.

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DatabaseTransaction};
use service_kit::idempotency::{self, RequestKey};
use service_kit::keyring::Sealed;

use super::StorageError;
use crate::app::keys::{Change, Recall, Record, Repeated, Request};

fn request_key(request: &Request) -> RequestKey {
    let parts: Vec<&[u8]> = request.contents.iter().map(Vec::as_slice).collect();
    RequestKey {
        method: request.method,
        scope: request.agency_id.clone(),
        request_id: request.request_id.clone(),
        fingerprint: idempotency::fingerprint(&parts),
    }
}

/// What is remembered of a request.
pub(super) async fn recall(
    db: &impl ConnectionTrait,
    request: &Request,
    now: DateTime<Utc>,
) -> Result<Recall, StorageError> {
    match idempotency::recall(db, &request_key(request), now).await? {
        idempotency::Recall::New => Ok(Recall::New),
        idempotency::Recall::Reused => Ok(Recall::Reused),
        idempotency::Recall::Replay { resource_id, payload } => {
            let sealed = payload.map(|payload| sealed(&payload)).transpose()?;
            Ok(Recall::Repeated(Repeated { key_id: resource_id, sealed }))
        }
    }
}

/// The answer, if the call was made before.
pub(super) async fn answered(tx: &DatabaseTransaction, record: &Record) -> Result<Option<Change>, StorageError> {
    let Some((request, _)) = &record.request else { return Ok(None) };
    match recall(tx, request, record.now).await? {
        Recall::New => Ok(None),
        Recall::Repeated(repeated) => Ok(Some(Change::Repeated(repeated))),
        Recall::Reused => Ok(Some(Change::Reused)),
    }
}

/// Remembers the call. Of two calls that race, one fails here with a conflict and finds the other's answer when it is
/// made again.
pub(super) async fn remember(tx: &DatabaseTransaction, record: &Record) -> Result<(), StorageError> {
    if let Some((request, repeated)) = &record.request {
        let payload = repeated.sealed.as_ref().map(Sealed::to_bytes);
        idempotency::record(tx, &request_key(request), &repeated.key_id, payload, record.now).await?;
    }
    Ok(())
}

fn sealed(payload: &[u8]) -> Result<Sealed, StorageError> {
    Sealed::from_bytes(payload).ok_or_else(|| StorageError::Internal("requests.payload is no sealed secret".to_owned()))
}
