//! Keys: who owns them, what they may do, what their secrets look like and when they verify.

mod fields;
mod import;
mod model;
#[cfg(test)]
mod restrictions;
mod rotation;
mod secret;
mod verify;

pub use fields::{KeySpec, Networks, RawKeySpec, RawOwner, Scopes, check_display_name, check_expiry, parse_owner};
pub use import::{Credential, ImportRow, RawCredential, RawImportRow, RawTime};
pub use model::{ApiKey, ApiKeyState, Owner, PendingDeletion};
pub use rotation::{MAX_OVERLAP, Overlap, RotationRefusal, rotate};
pub use secret::{Hash, Secret, SecretDigest, SecretShape, Selector, imported_prefix};
pub use verify::{Limits, Presented, StoredKey, VerifyCode, decide};
