//! Requests as bytes, read as the service reads them.

use chrono::{DateTime, TimeDelta};
use keysweep_proto::key::v1 as proto;
use prost::Message;
use service_kit::page;

use super::convert::raw_import_row;
use super::requests;
use crate::domain::key::{MAX_OVERLAP, Scopes};

pub use super::ext_authz::fuzz::check_request;
pub use super::sweep::fuzz::sweep_request;

fn sound(scopes: &Scopes) {
    assert!(scopes.as_slice().len() <= 50);
    assert!(scopes.as_slice().iter().all(|scope| !scope.is_empty() && scope.len() <= 100 && !scope.contains(' ')));
}

/// A request to `KeyService`: the first byte says which, the others are its message. What is let through keeps the limits of the contract.
pub fn key_request(data: &[u8]) {
    let Some((kind, message)) = data.split_first() else { return };
    let now = DateTime::UNIX_EPOCH + TimeDelta::days(20_000);
    match kind % 8 {
        0 => {
            let Ok(request) = proto::GenerateApiKeyRequest::decode(message) else { return };
            let Ok(command) = requests::generate(request, now) else { return };
            assert!(command.spec.owner.agency_id.len() <= 128 && command.spec.owner.agency_id.starts_with("agy_"));
            assert!(command.spec.display_name.chars().count() <= 100);
            sound(&command.spec.scopes);
        }
        1 => {
            let Ok(request) = proto::VerifyKeyRequest::decode(message) else { return };
            if let Ok((_, presented)) = requests::verify(request) {
                sound(&presented.required_scopes);
            }
        }
        2 => {
            let Ok(request) = proto::ListApiKeysRequest::decode(message) else { return };
            let Ok((_, page, name)) = requests::list_keys(&request) else { return };
            assert!((1..=page::MAX_SIZE).contains(&page.size));
            let token = page.cursor.map(|cursor| page::encode(&cursor, &name)).unwrap_or_default();
            assert_eq!(token, request.page_token, "a token that was not issued");
        }
        3 => {
            let Ok(request) = proto::ListAuditEventsRequest::decode(message) else { return };
            let _ = requests::list_events(&request);
        }
        4 => {
            let Ok(request) = proto::UpdateApiKeyRequest::decode(message) else { return };
            let Ok(command) = requests::update(request, now) else { return };
            assert!(!command.key_id.is_empty());
            command.changes.scopes.iter().for_each(sound);
        }
        5 => {
            let Ok(request) = proto::RotateApiKeyRequest::decode(message) else { return };
            let Ok(command) = requests::rotate(request) else { return };
            let overlap = TimeDelta::microseconds(command.overlap.micros());
            assert!(overlap >= TimeDelta::zero() && overlap <= MAX_OVERLAP);
        }
        6 => {
            let Ok(request) = proto::RevokeApiKeyRequest::decode(message) else { return };
            let _ = requests::revoke(request);
        }
        _ => {
            let Ok(request) = proto::ImportApiKeysRequest::decode(message) else { return };
            for row in request.rows {
                let Ok(row) = raw_import_row(row).check(now) else { continue };
                assert!(
                    row.created_at <= now && row.last_used_at.is_none_or(|used| used >= row.created_at && used <= now)
                );
                assert_eq!(row.fingerprint(), row.clone().fingerprint());
                sound(&row.scopes);
            }
        }
    }
}
