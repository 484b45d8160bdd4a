//! Pages of lists: opaque tokens that are bound to the filter they were issued for.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

/// The size of a page when the caller asks for none.
pub const DEFAULT_SIZE: u32 = 50;
/// The largest page; a greater wish is cut to it, as AIP-158 has it.
pub const MAX_SIZE: u32 = 1_000;

/// Which page is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// At most this many, 1 to [`MAX_SIZE`].
    pub size: u32,
    /// Only what comes after this cursor. `None`: from the first.
    pub cursor: Option<String>,
}

/// Why a page cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// The size is negative.
    #[error("must not be negative")]
    NegativeSize,
    /// The token is not one of ours, or was issued for another list or filter.
    #[error("was not issued for this list with these filters")]
    ForeignToken,
}

const TAG_BYTES: usize = 8;

/// Reads a page request. `filter` names the list and everything that filters it.
pub fn decode(page_size: i32, page_token: &str, filter: &str) -> Result<Page, PageError> {
    let size = match u32::try_from(page_size) {
        Err(_) => return Err(PageError::NegativeSize),
        Ok(0) => DEFAULT_SIZE,
        Ok(size) => size.min(MAX_SIZE),
    };
    if page_token.is_empty() {
        return Ok(Page { size, cursor: None });
    }
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(page_token).map_err(|_| PageError::ForeignToken)?;
    let (tag, cursor) = bytes.split_at_checked(TAG_BYTES).ok_or(PageError::ForeignToken)?;
    let cursor = std::str::from_utf8(cursor).map_err(|_| PageError::ForeignToken)?;
    if tag != self::tag(filter, cursor) {
        return Err(PageError::ForeignToken);
    }
    Ok(Page { size, cursor: Some(cursor.to_owned()) })
}

/// The token of the page after `cursor`.
pub fn encode(cursor: &str, filter: &str) -> String {
    let mut bytes = tag(filter, cursor).to_vec();
    bytes.extend_from_slice(cursor.as_bytes());
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// A token grants nothing that the list itself does not, so it is tagged against mistakes, not against forgery.
fn tag(filter: &str, cursor: &str) -> [u8; TAG_BYTES] {
    let digest = Sha256::new()
        .chain_update((filter.len() as u64).to_be_bytes())
        .chain_update(filter)
        .chain_update(cursor)
        .finalize();
    let mut tag = [0; TAG_BYTES];
    tag.copy_from_slice(&digest[..TAG_BYTES]);
    tag
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_token_leads_back_to_its_cursor_and_nowhere_else(cursor in ".{0,80}", filter in ".{0,80}", other in ".{0,80}", noise in ".{1,120}") {
            let token = encode(&cursor, &filter);
            prop_assert_eq!(decode(10, &token, &filter), Ok(Page { size: 10, cursor: Some(cursor) }));
            if other != filter {
                prop_assert_eq!(decode(10, &token, &other), Err(PageError::ForeignToken));
            }
            prop_assert_eq!(decode(10, &noise, &filter), Err(PageError::ForeignToken));
        }
    }

    #[test]
    fn sizes_are_bounded() {
        assert_eq!(decode(0, "", "f").map(|p| p.size), Ok(DEFAULT_SIZE));
        assert_eq!(decode(5_000, "", "f").map(|p| p.size), Ok(MAX_SIZE));
        assert_eq!(decode(-1, "", "f"), Err(PageError::NegativeSize));
    }
}
