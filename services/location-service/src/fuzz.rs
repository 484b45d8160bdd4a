//! What strangers send, as bytes: the targets of the fuzzer in `fuzz/`, whose corpus the tests play again. Each fails where
//! something is let through that should not be.

use service_kit::violations::Violations;

use crate::domain::contact::{check_email, email_key};
use crate::domain::profile::name_key;
use crate::domain::user::{UserDetails, UserField};

pub use crate::grpc::fuzz::profile;

/// A target and the name of its corpus.
pub type Target = (&'static str, fn(&[u8]));

/// Every target of this crate.
pub const TARGETS: [Target; 3] = [("email", email), ("name", name), ("profile", profile)];

/// An address: what is taken can stand in a header and in a command of SMTP as it is.
pub fn email(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if check_email(text).is_err() {
        return;
    }
    assert!(text.len() <= 254 && text.bytes().all(|byte| byte.is_ascii_graphic()));
    assert_eq!(text.matches('@').count(), 1, "one address alone");
    assert!(!text.contains(['<', '>', '"', ',', ';', ':', '(', ')', '[', ']', '\\']));
    let (local, domain) = text.split_once('@').unwrap_or_default();
    assert!(
        (1..=64).contains(&local.len()) && !local.starts_with('.') && !local.ends_with('.') && !local.contains("..")
    );
    assert!(domain.contains('.') && domain.split('.').all(|label| (1..=63).contains(&label.len())));
    assert!(check_email(&email_key(text)).is_ok(), "the form in which addresses are compared is one");
}

/// A user's names: what is taken is one line, and its form for comparison stays as it is when made again.
pub fn name(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    assert_eq!(name_key(&name_key(&text)), name_key(&text));
    let user = UserDetails {
        first_name: text.to_string(),
        last_name: String::new(),
        email: String::new(),
        role: None,
        location_ids: Vec::new(),
        disabled: false,
    };
    let mut faults = Violations::default();
    user.check_fields(&[UserField::FirstName], &mut faults);
    if faults.is_empty() {
        assert!(!text.is_empty() && !text.chars().any(char::is_control));
    }
}

#[cfg(test)]
mod tests {
    use super::TARGETS;

    #[test]
    fn what_the_fuzzer_has_found_is_answered() {
        for (name, target) in TARGETS {
            service_kit::testing::replay(name, target);
        }
    }
}
