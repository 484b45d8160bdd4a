//! Reading requests: every fault of every field at once.
//!
//! An expiry in the past counts here only beside other faults. Alone it is for the use case to judge: it may have come since the
//! call was first made, and a repeated call is answered all the same.

use chrono::{DateTime, Utc};
use keysweep_proto::key::v1 as proto;
use service_kit::page::{self, Page, PageError};
use service_kit::time::duration_from_proto;
use service_kit::violations::Violations;

use super::convert::{instant, raw_owner, state_filter};
use crate::app::audit::AuditFilter;
use crate::app::keys::{Generate, KeyChanges, KeyFilter, Revoke, Rotate, Update};
use crate::domain::key::{Networks, Overlap, Presented, RawKeySpec, Scopes, Secret, check_display_name, check_expiry};

/// A reason given for the audit.
const MAX_REASON_CHARS: usize = 500;
/// What an update may change.
const MASK_PATHS: &[&str] = &["display_name", "scopes", "expire_time", "allowed_cidrs"];

/// What is wrong with a request.
#[derive(Debug)]
pub(super) enum BadRequest {
    /// Fields.
    Fields(Violations),
    /// The page asked for.
    Page(PageError),
}

impl From<Violations> for BadRequest {
    fn from(faults: Violations) -> Self {
        Self::Fields(faults)
    }
}

pub(super) fn required_id(id: String, field: &str, faults: &mut Violations) -> String {
    if id.is_empty() {
        faults.push(field, "is required");
    }
    id
}

pub(super) fn generate(request: proto::GenerateApiKeyRequest, now: DateTime<Utc>) -> Result<Generate, Violations> {
    let mut faults = Violations::default();
    let raw = RawKeySpec {
        owner: raw_owner(request.owner),
        display_name: request.display_name,
        scopes: request.scopes,
        allowed_cidrs: request.allowed_cidrs,
        expires_at: instant(request.expire_time.as_ref(), "expire_time", &mut faults),
    };
    let expires_at = raw.expires_at;
    let spec = raw.check(&mut faults);
    faults.check_request_id("request_id", &request.request_id);
    match spec {
        Some(spec) if faults.is_empty() => Ok(Generate { spec, request_id: request.request_id }),
        _ => {
            check_expiry(expires_at, now, "expire_time", &mut faults);
            Err(faults)
        }
    }
}

pub(super) fn verify(request: proto::VerifyKeyRequest) -> Result<(Secret, Presented), Violations> {
    let secret = Secret::new(request.secret);
    let mut faults = Violations::default();
    let required_scopes = Scopes::parse(request.required_scopes, "required_scopes", &mut faults);
    let source_ip = match request.source_ip.as_str() {
        "" => None,
        text => {
            let ip = text.parse().ok();
            if ip.is_none() {
                faults.push("source_ip", "must be an IPv4 or IPv6 address");
            }
            ip
        }
    };
    faults.into_result()?;
    Ok((secret, Presented { required_scopes, source_ip }))
}

pub(super) fn list_keys(request: &proto::ListApiKeysRequest) -> Result<(KeyFilter, Page, String), BadRequest> {
    let mut faults = Violations::default();
    let filter = KeyFilter {
        agency_id: filled(&request.agency_id),
        location_id: filled(&request.location_id),
        state: state_filter(request.state, "state", &mut faults),
        idle_since: instant(request.idle_since_time.as_ref(), "idle_since_time", &mut faults),
    };
    let name = format!("ListApiKeys {filter:?}");
    let page = page(request.page_size, &request.page_token, &name, faults)?;
    Ok((filter, page, name))
}

pub(super) fn list_events(request: &proto::ListAuditEventsRequest) -> Result<(AuditFilter, Page, String), BadRequest> {
    let mut faults = Violations::default();
    let filter = AuditFilter {
        agency_id: filled(&request.agency_id),
        key_id: filled(&request.key_id),
        from: instant(request.start_time.as_ref(), "start_time", &mut faults),
        until: instant(request.end_time.as_ref(), "end_time", &mut faults),
    };
    let name = format!("ListAuditEvents {filter:?}");
    let page = page(request.page_size, &request.page_token, &name, faults)?;
    Ok((filter, page, name))
}

/// A wrong size is one more fault of a field; a foreign token has a reason of its own, told once the fields are right.
pub(super) fn page(size: i32, token: &str, name: &str, mut faults: Violations) -> Result<Page, BadRequest> {
    match page::decode(size, token, name) {
        Err(PageError::NegativeSize) => {
            faults.push("page_size", PageError::NegativeSize.to_string());
            Err(BadRequest::Fields(faults))
        }
        _ if !faults.is_empty() => Err(BadRequest::Fields(faults)),
        Err(foreign @ PageError::ForeignToken) => Err(BadRequest::Page(foreign)),
        Ok(page) => Ok(page),
    }
}

fn filled(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

pub(super) fn update(request: proto::UpdateApiKeyRequest, now: DateTime<Utc>) -> Result<Update, Violations> {
    let mut faults = Violations::default();
    faults.check_request_id("request_id", &request.request_id);
    let Some(key) = request.api_key else {
        faults.push("api_key", "is required");
        return Err(faults);
    };
    let expires_at = instant(key.expire_time.as_ref(), "api_key.expire_time", &mut faults);
    let mask = request.update_mask.map(|mask| mask.paths).unwrap_or_default();
    for path in mask.iter().filter(|path| !MASK_PATHS.contains(&path.as_str())) {
        faults.push("update_mask", format!("cannot change {path:?}: only {}", MASK_PATHS.join(", ")));
    }
    // Without a mask, what is set is meant.
    let meant = |path: &str, set: bool| if mask.is_empty() { set } else { mask.iter().any(|named| named == path) };
    let mut changes = KeyChanges::default();
    if meant("display_name", !key.display_name.is_empty()) {
        check_display_name(&key.display_name, "api_key.display_name", &mut faults);
        changes.display_name = Some(key.display_name);
    }
    if meant("scopes", !key.scopes.is_empty()) {
        changes.scopes = Some(Scopes::parse(key.scopes, "api_key.scopes", &mut faults));
    }
    if meant("expire_time", expires_at.is_some()) {
        changes.expires_at = Some(expires_at);
    }
    if meant("allowed_cidrs", !key.allowed_cidrs.is_empty()) {
        changes.networks = Some(Networks::parse(&key.allowed_cidrs, "api_key.allowed_cidrs", &mut faults));
    }
    let key_id = required_id(key.key_id, "api_key.key_id", &mut faults);
    if !faults.is_empty() {
        check_expiry(changes.expires_at.flatten(), now, "api_key.expire_time", &mut faults);
    }
    faults.into_result()?;
    Ok(Update { key_id, etag: key.etag, changes, request_id: request.request_id })
}

pub(super) fn rotate(request: proto::RotateApiKeyRequest) -> Result<Rotate, Violations> {
    let mut faults = Violations::default();
    let key_id = required_id(request.key_id, "key_id", &mut faults);
    let overlap = match request.overlap.as_ref().map(duration_from_proto) {
        None => Some(Overlap::NONE),
        Some(Some(overlap)) => Some(Overlap::parse(overlap, "overlap", &mut faults)),
        Some(None) => {
            faults.push("overlap", "is no duration");
            None
        }
    };
    faults.check_request_id("request_id", &request.request_id);
    match overlap {
        Some(overlap) if faults.is_empty() => Ok(Rotate { key_id, overlap, request_id: request.request_id }),
        _ => Err(faults),
    }
}

pub(super) fn revoke(request: proto::RevokeApiKeyRequest) -> Result<Revoke, Violations> {
    let mut faults = Violations::default();
    let key_id = required_id(request.key_id, "key_id", &mut faults);
    faults.check_text("reason", &request.reason, MAX_REASON_CHARS);
    faults.check_request_id("request_id", &request.request_id);
    faults.into_result()?;
    Ok(Revoke { key_id, reason: request.reason, request_id: request.request_id })
}

#[cfg(test)]
mod tests {
    use prost_types::{Duration, FieldMask, Timestamp};

    use super::*;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_795_000_000, 0).unwrap()
    }

    fn fields(faults: &Violations) -> Vec<&str> {
        faults.iter().map(|fault| fault.field.as_str()).collect()
    }

    #[test]
    fn a_generation_is_told_every_fault_at_once() {
        let request = proto::GenerateApiKeyRequest {
            owner: None,
            display_name: "x".repeat(101),
            scopes: vec!["a b".into()],
            expire_time: Some(Timestamp { seconds: i64::MAX, nanos: 0 }),
            allowed_cidrs: vec!["here".into()],
            request_id: "a b".into(),
        };
        let faults = generate(request, now()).unwrap_err();
        assert_eq!(
            fields(&faults),
            ["expire_time", "owner", "display_name", "scopes[0]", "allowed_cidrs[0]", "request_id"]
        );
    }

    #[test]
    fn an_expiry_in_the_past_is_told_beside_other_faults_and_left_to_the_use_case_alone() {
        let past = Some(Timestamp { seconds: now().timestamp(), nanos: 0 });
        let agency = proto::owner::Account::AgencyId("agy_1".into());
        let request = proto::GenerateApiKeyRequest {
            owner: Some(proto::Owner { account: Some(agency) }),
            expire_time: past,
            allowed_cidrs: vec!["10.0.0.0/99".into()],
            ..Default::default()
        };
        assert_eq!(fields(&generate(request.clone(), now()).unwrap_err()), ["allowed_cidrs[0]", "expire_time"]);
        assert!(generate(proto::GenerateApiKeyRequest { allowed_cidrs: vec![], ..request }, now()).is_ok());

        let ask = |allowed_cidrs: Vec<String>, paths: &[&str]| {
            let mask = FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() };
            let key = proto::ApiKey { key_id: "key_1".into(), expire_time: past, allowed_cidrs, ..Default::default() };
            let request =
                proto::UpdateApiKeyRequest { api_key: Some(key), update_mask: Some(mask), request_id: String::new() };
            update(request, now())
        };
        let here = || vec!["here".to_owned()];
        assert_eq!(fields(&ask(here(), &[]).unwrap_err()), ["api_key.allowed_cidrs[0]", "api_key.expire_time"]);
        assert!(ask(vec![], &[]).is_ok());
        // What the mask leaves out is not looked at.
        assert_eq!(fields(&ask(here(), &["allowed_cidrs"]).unwrap_err()), ["api_key.allowed_cidrs[0]"]);
    }

    #[test]
    fn a_mask_names_what_changes_and_its_absence_means_what_is_set() {
        let key = proto::ApiKey { key_id: "key_1".into(), display_name: "new".into(), ..Default::default() };
        let ask = |paths: Option<Vec<&str>>| {
            let update_mask = paths.map(|paths| FieldMask { paths: paths.into_iter().map(str::to_owned).collect() });
            let request =
                proto::UpdateApiKeyRequest { api_key: Some(key.clone()), update_mask, request_id: String::new() };
            update(request, now())
        };
        let name = Some("new".to_owned());
        let changes = ask(None).unwrap().changes;
        assert_eq!(changes, KeyChanges { display_name: name.clone(), ..KeyChanges::default() });
        let changes = ask(Some(vec!["scopes", "expire_time"])).unwrap().changes;
        let cleared = KeyChanges { scopes: Some(Scopes::default()), expires_at: Some(None), ..KeyChanges::default() };
        assert_eq!(changes, cleared);
        assert_eq!(fields(&ask(Some(vec!["display_name", "owner", "*"])).unwrap_err()), ["update_mask", "update_mask"]);
    }

    #[test]
    fn an_overlap_is_a_duration_of_at_most_seven_days() {
        for (seconds, nanos, sound) in
            [(0, 0, true), (604_800, 0, true), (604_800, 1_000, false), (-1, 0, false), (1, -1, false)]
        {
            let overlap = Some(Duration { seconds, nanos });
            let request = proto::RotateApiKeyRequest { key_id: "key_1".into(), overlap, request_id: String::new() };
            assert_eq!(rotate(request).is_ok(), sound, "{seconds} s {nanos} ns");
        }
        let request = proto::RotateApiKeyRequest { key_id: "key_1".into(), ..Default::default() };
        assert!(rotate(request).unwrap().overlap.is_zero());
    }

    #[test]
    fn a_verification_is_refused_only_for_what_is_not_the_secret() {
        let ask = |source_ip: &str, scope: &str| {
            verify(proto::VerifyKeyRequest {
                secret: "\u{0}".into(),
                required_scopes: vec![scope.into()],
                source_ip: source_ip.into(),
            })
        };
        assert!(ask("", "read").is_ok() && ask("2001:db8::1", "read").is_ok());
        assert_eq!(fields(&ask("300.1.1.1", "a b").unwrap_err()), ["required_scopes[0]", "source_ip"]);
    }
}
