//! Between the messages of the contract and the domain.

use chrono::{DateTime, Utc};
use keysweep_proto::key::v1 as proto;
use prost_types::Timestamp;
use service_kit::time::{from_proto, to_proto};
use service_kit::violations::Violations;

use crate::app::keys::RefusedRow;
use crate::app::verify::Verification;
use crate::domain::audit::AuditEvent;
use crate::domain::key::{
    ApiKey, ApiKeyState, Owner, RawCredential, RawImportRow, RawOwner, RawTime, Secret, VerifyCode,
};

/// An owner as answered.
pub(crate) fn owner_to_proto(owner: Owner) -> proto::Owner {
    let account = match owner.location_id {
        None => proto::owner::Account::AgencyId(owner.agency_id),
        Some(location_id) => {
            proto::owner::Account::Location(proto::LocationRef { agency_id: owner.agency_id, location_id })
        }
    };
    proto::Owner { account: Some(account) }
}

pub(super) fn raw_owner(owner: Option<proto::Owner>) -> RawOwner {
    match owner.and_then(|owner| owner.account) {
        None => RawOwner::Missing,
        Some(proto::owner::Account::AgencyId(agency_id)) => RawOwner::Agency(agency_id),
        Some(proto::owner::Account::Location(location)) => RawOwner::Location(location.agency_id, location.location_id),
    }
}

/// An instant, if one was sent; an impossible one is a fault of `field`.
pub(super) fn instant(stamp: Option<&Timestamp>, field: &str, faults: &mut Violations) -> Option<DateTime<Utc>> {
    let at = from_proto(stamp?);
    if at.is_none() {
        faults.push(field, "is not an instant of the years 1 to 9999");
    }
    at
}

fn raw_time(stamp: Option<&Timestamp>) -> RawTime {
    match stamp {
        None => RawTime::Unset,
        Some(stamp) => from_proto(stamp).map_or(RawTime::Impossible, RawTime::At),
    }
}

pub(super) fn raw_import_row(row: proto::ImportRow) -> RawImportRow {
    RawImportRow {
        owner: raw_owner(row.owner),
        credential: match row.credential {
            None => RawCredential::Missing,
            Some(proto::import_row::Credential::Secret(secret)) => RawCredential::Secret(Secret::new(secret)),
            Some(proto::import_row::Credential::SecretSha256(digest)) => RawCredential::Digest(digest),
        },
        created_at: raw_time(row.create_time.as_ref()),
        last_used_at: raw_time(row.last_use_time.as_ref()),
        external_reference: row.external_reference,
        display_name: row.display_name,
        scopes: row.scopes,
    }
}

pub(super) fn state_to_proto(state: ApiKeyState) -> proto::ApiKeyState {
    match state {
        ApiKeyState::Active => proto::ApiKeyState::Active,
        ApiKeyState::Revoked => proto::ApiKeyState::Revoked,
        ApiKeyState::Deleted => proto::ApiKeyState::Deleted,
    }
}

/// The state of a filter; `None`: every one.
pub(super) fn state_filter(state: i32, field: &str, faults: &mut Violations) -> Option<ApiKeyState> {
    match proto::ApiKeyState::try_from(state) {
        Ok(proto::ApiKeyState::Unspecified) => None,
        Ok(proto::ApiKeyState::Active) => Some(ApiKeyState::Active),
        Ok(proto::ApiKeyState::Revoked) => Some(ApiKeyState::Revoked),
        Ok(proto::ApiKeyState::Deleted) => Some(ApiKeyState::Deleted),
        Err(_) => {
            faults.push(field, "is no known state");
            None
        }
    }
}

/// A key as it is at `now`.
pub(super) fn key_to_proto(key: ApiKey, now: DateTime<Utc>) -> proto::ApiKey {
    proto::ApiKey {
        state: state_to_proto(key.state_at(now)).into(),
        recoverable: key.is_recoverable_at(now),
        etag: key.etag(),
        key_id: key.key_id,
        owner: Some(owner_to_proto(key.owner)),
        display_name: key.display_name,
        display_prefix: key.display_prefix,
        scopes: key.scopes.as_slice().to_vec(),
        allowed_cidrs: key.networks.as_slice().iter().map(ToString::to_string).collect(),
        create_time: Some(to_proto(key.created_at)),
        last_use_time: key.last_used_at.map(to_proto),
        expire_time: key.expires_at.map(to_proto),
        revoke_time: key.revoke_at.map(to_proto),
        delete_time: key.deleted_at.map(to_proto),
        pending_deletion: key.pending_deletion.map(|deletion| proto::PendingDeletion {
            plan_id: deletion.plan_id,
            delete_time: Some(to_proto(deletion.delete_at)),
        }),
        successor_key_id: key.successor_id.unwrap_or_default(),
        external_reference: key.external_reference.unwrap_or_default(),
    }
}

pub(super) fn code_to_proto(code: VerifyCode) -> proto::VerifyCode {
    match code {
        VerifyCode::Valid => proto::VerifyCode::Valid,
        VerifyCode::NotFound => proto::VerifyCode::NotFound,
        VerifyCode::Malformed => proto::VerifyCode::Malformed,
        VerifyCode::Revoked => proto::VerifyCode::Revoked,
        VerifyCode::Expired => proto::VerifyCode::Expired,
        VerifyCode::DeletedBySweep => proto::VerifyCode::DeletedBySweep,
        VerifyCode::InsufficientScope => proto::VerifyCode::InsufficientScope,
        VerifyCode::IpNotAllowed => proto::VerifyCode::IpNotAllowed,
    }
}

pub(super) fn verification_to_proto(verification: Verification) -> proto::VerifyKeyResponse {
    let mut response = proto::VerifyKeyResponse {
        valid: verification.code == VerifyCode::Valid,
        code: code_to_proto(verification.code).into(),
        delete_time: verification.deleted_at.map(to_proto),
        ..Default::default()
    };
    if let Some(key) = verification.key {
        response.key_id = key.key_id;
        response.owner = Some(owner_to_proto(key.owner));
        response.scopes = key.scopes.into_vec();
        response.plan_id = key.plan_id.unwrap_or_default();
    }
    response
}

pub(super) fn refused_to_proto(refused: RefusedRow) -> proto::RefusedRow {
    proto::RefusedRow {
        row_number: i64::try_from(refused.row_number).unwrap_or(i64::MAX),
        external_reference: refused.external_reference,
        field: refused.field,
        reason: refused.reason,
    }
}

pub(super) fn event_to_proto(event: AuditEvent) -> proto::AuditEvent {
    let origin = event.origin();
    proto::AuditEvent {
        caller: origin.caller.unwrap_or_default(),
        peer_address: origin.peer.map(|peer| peer.to_string()).unwrap_or_default(),
        sequence: event.sequence,
        event_time: Some(to_proto(event.occurred_at)),
        actor: event.actor,
        action: event.action,
        agency_id: event.agency_id,
        key_id: event.key_id,
        plan_id: event.plan_id,
        reason: event.reason,
        request_id: event.request_id,
        hash: event.hash.to_vec(),
        detail: event.detail,
    }
}
