//! What a gateway asks, as bytes.

use keysweep_proto::envoy::service::auth::v3::CheckRequest;
use prost::Message;

use super::credential;
use super::question::Question;

/// A question that can be read presents at most one key, which stands in its headers.
pub fn check_request(data: &[u8]) {
    let Ok(request) = CheckRequest::decode(data) else { return };
    let Ok(question) = Question::read(request) else { return };
    assert!(question.headers.names().all(|name| !name.bytes().any(|byte| byte.is_ascii_uppercase())));
    let Ok(secret) = credential::take(&question.headers) else { return };
    let key = secret.expose().as_bytes();
    let holds = |name| {
        question.headers.values(name).any(|value| key.is_empty() || value.windows(key.len()).any(|part| part == key))
    };
    assert!(holds(credential::AUTHORIZATION) || holds(credential::API_KEY), "a key that nobody sent");
    assert!(!key.contains(&b','), "one of several keys");
}
