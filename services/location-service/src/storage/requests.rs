//! Repeated requests and the audit.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use service_kit::idempotency::{self, Recall};

use super::{DatabaseStore, fault, request_key, write_audit};
use crate::app::ports::{AuditEvent, MutationKey, Recalled, RequestLog, StoreError};

#[async_trait]
impl RequestLog for DatabaseStore {
    async fn recall(&self, key: &MutationKey, now: DateTime<Utc>) -> Result<Recalled, StoreError> {
        idempotency::recall(&self.db, &request_key(key), now).await.map(recalled).map_err(fault)
    }

    async fn reserve(&self, key: &MutationKey, id: &str, now: DateTime<Utc>) -> Result<Recalled, StoreError> {
        let tx = self.begin().await?;
        let key = request_key(key);
        match recalled(idempotency::recall(&tx, &key, now).await.map_err(fault)?) {
            Recalled::New => {
                idempotency::record(&tx, &key, id, None, now).await.map_err(fault)?;
                tx.commit().await.map_err(fault)?;
                Ok(Recalled::Replay(id.to_owned()))
            }
            known => Ok(known),
        }
    }

    async fn purge_requests(&self, before: DateTime<Utc>) -> Result<u64, StoreError> {
        idempotency::purge(&self.db, before).await.map_err(fault)
    }

    async fn audit(&self, event: &AuditEvent) -> Result<(), StoreError> {
        write_audit(&self.db, event).await
    }
}

fn recalled(recall: Recall) -> Recalled {
    match recall {
        Recall::New => Recalled::New,
        Recall::Replay { resource_id, .. } => Recalled::Replay(resource_id),
        Recall::Reused => Recalled::Reused,
    }
}
