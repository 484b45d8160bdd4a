//! What a transaction has to say at its end: audit first, then events, in the order of the locks.

use chrono::{DateTime, Utc};
use sea_orm::DatabaseTransaction;
use serde_json::{Value, json};
use service_kit::actor::Actor;

use super::outbox;
use crate::domain::audit::{NewAuditEvent, Origin};
use crate::domain::sweep::{EventPayload, NewEvent, RescueCause};
use crate::storage::{StorageError, audit};

/// Who the sweep itself is in the audit.
pub(super) fn sweep_actor() -> Actor {
    Actor::Service("sweep".to_owned())
}

/// Audit events and events of one transaction.
pub(super) struct Journal {
    now: DateTime<Utc>,
    actor: Actor,
    call_id: String,
    origin: Origin,
    audits: Vec<NewAuditEvent>,
    events: Vec<NewEvent>,
}

impl Journal {
    /// For what the sweep does by itself.
    pub(super) fn of_sweep(now: DateTime<Utc>) -> Self {
        Self::of(sweep_actor(), String::new(), Origin::default(), now)
    }

    /// For what somebody asked for.
    pub(super) fn of(actor: Actor, call_id: String, origin: Origin, now: DateTime<Utc>) -> Self {
        Self { now, actor, call_id, origin, audits: Vec::new(), events: Vec::new() }
    }

    /// The audit learns of something done to a plan.
    pub(super) fn plan(&mut self, action: &'static str, plan_id: &str, reason: &str, detail: Value) {
        self.audit(action, plan_id, None, None, reason, detail);
    }

    /// The audit learns of something done to a lot.
    pub(super) fn lot(&mut self, action: &'static str, plan_id: &str, agency_id: &str, reason: &str, detail: Value) {
        self.audit(action, plan_id, Some(agency_id), None, reason, detail);
    }

    /// The audit learns of something done to a key.
    pub(super) fn key(&mut self, action: &'static str, plan_id: &str, agency_id: &str, key_id: &str, detail: Value) {
        self.audit(action, plan_id, Some(agency_id), Some(key_id), "", detail);
    }

    /// Subscribers learn of something.
    pub(super) fn event(&mut self, plan_id: &str, payload: EventPayload) {
        self.events.push(NewEvent { plan_id: plan_id.to_owned(), payload });
    }

    /// Audit and subscribers learn of an entry that left.
    pub(super) fn rescued(&mut self, plan_id: &str, agency_id: &str, key_id: &str, cause: RescueCause) {
        self.key("key.rescued", plan_id, agency_id, key_id, json!({ "cause": cause.as_str() }));
        let (agency_id, key_id) = (agency_id.to_owned(), key_id.to_owned());
        self.event(plan_id, EventPayload::EntryRescued { agency_id, key_id, cause, rescued_at: self.now });
    }

    /// Writes everything; to be followed by the commit and nothing else.
    pub(super) async fn write(self, tx: &DatabaseTransaction) -> Result<(), StorageError> {
        audit::append(tx, self.audits).await?;
        if !self.events.is_empty() {
            outbox::append(tx, self.events, self.now).await?;
        }
        Ok(())
    }

    fn audit(
        &mut self,
        action: &'static str,
        plan_id: &str,
        agency_id: Option<&str>,
        key_id: Option<&str>,
        reason: &str,
        detail: Value,
    ) {
        self.audits.push(NewAuditEvent {
            occurred_at: self.now,
            actor: self.actor.clone(),
            action,
            agency_id: agency_id.map(ToOwned::to_owned),
            key_id: key_id.map(ToOwned::to_owned),
            plan_id: Some(plan_id.to_owned()),
            reason: reason.to_owned(),
            request_id: self.call_id.clone(),
            origin: self.origin.clone(),
            detail,
        });
    }
}
