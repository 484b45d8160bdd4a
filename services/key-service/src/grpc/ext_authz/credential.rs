//! The key that a request presents: exactly one, in `authorization: Bearer …` or in `x-api-key`.
//!
//! Two that differ are refused, for one of them would decide here and the other might, unseen, elsewhere.

use super::answer::Denial;
use super::question::Headers;
use crate::domain::key::Secret;

/// The standard header; its scheme is `Bearer`.
pub(super) const AUTHORIZATION: &str = "authorization";
/// The customary header; its value is the key.
pub(super) const API_KEY: &str = "x-api-key";

/// Takes the key out of the headers.
pub(super) fn take(headers: &Headers) -> Result<Secret, Denial> {
    let bearer = only(headers, AUTHORIZATION)?.map(bearer).transpose()?;
    let plain = only(headers, API_KEY)?;
    match (bearer, plain) {
        (None, None) => Err(Denial::missing()),
        (Some(one), Some(other)) if one != other => {
            Err(Denial::malformed("authorization and x-api-key hold different keys: send one of them"))
        }
        (Some(key), _) | (None, Some(key)) => Ok(Secret::new(key)),
    }
}

/// The only value of a header. Envoy joins several by a comma, which therefore no key may hold that is sent this way.
fn only<'a>(headers: &'a Headers, name: &'a str) -> Result<Option<&'a str>, Denial> {
    let mut values = headers.values(name);
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() || value.contains(&b',') {
        return Err(Denial::malformed("authorization or x-api-key has several values: send one key"));
    }
    match std::str::from_utf8(value) {
        Ok(text) => Ok(Some(text.trim_matches([' ', '\t']))),
        Err(_) => Err(Denial::malformed("authorization or x-api-key is no text")),
    }
}

fn bearer(value: &str) -> Result<&str, Denial> {
    match value.split_once(' ') {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => Ok(key.trim_start_matches(' ')),
        _ => Err(Denial::malformed("authorization must be: Bearer, a blank, the key")),
    }
}
