//! What makes an address, a number, a country or a time zone one.

use std::str::FromStr;

use email_address::{EmailAddress, Options};

/// An address must fit into one path of SMTP (RFC 5321, 4.5.3.1.3, without its brackets).
const EMAIL_MAX: usize = 254;
const WEBSITE_MAX: usize = 500;
const POSTAL_CODE_MAX: usize = 20;
const TIME_ZONE_MAX: usize = 64;

/// An address that any mail server takes: ASCII, unquoted, a registered kind of domain.
///
/// # Errors
/// What is wrong with it.
pub fn check_email(text: &str) -> Result<(), &'static str> {
    const NO_EMAIL: &str = "is no email address";
    if text.len() > EMAIL_MAX {
        return Err("must be at most 254 characters");
    }
    if !text.is_ascii() {
        return Err("must be ASCII; write an international domain in its xn-- form");
    }
    let options = Options::default().with_required_tld().without_display_text().without_domain_literal();
    let address = EmailAddress::parse_with_options(text, options).map_err(|_| NO_EMAIL)?;
    // The parser takes angle brackets behind a space, for a name that is empty.
    if address.email() != text {
        return Err(NO_EMAIL);
    }
    // The parser also takes quoted local parts and comments, which hide what an address is and which few servers take.
    let plain = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~.".contains(c);
    let label = |l: &str| {
        !l.is_empty()
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    let top = address.domain().rsplit('.').next().unwrap_or_default();
    let top_is_name = top.len() >= 2 && top.chars().any(|c| c.is_ascii_alphabetic());
    if address.local_part().chars().all(plain) && address.domain().split('.').all(label) && top_is_name {
        Ok(())
    } else {
        Err(NO_EMAIL)
    }
}

/// By which addresses are compared: two that differ in case alone reach the same person.
pub fn email_key(text: &str) -> String {
    text.to_ascii_lowercase()
}

/// A number of the form of E.164, with separators as people write them.
///
/// # Errors
/// What is wrong with it.
pub fn check_phone(text: &str) -> Result<(), &'static str> {
    const NO_PHONE: &str = "must be + and 7 to 15 digits, with spaces, dots, hyphens and brackets as separators";
    let rest = text.strip_prefix('+').ok_or(NO_PHONE)?;
    let digits = rest.chars().filter(char::is_ascii_digit).count();
    let known = rest.chars().all(|c| c.is_ascii_digit() || " .-()".contains(c));
    if known && text.len() <= 32 && (7..=15).contains(&digits) && !rest.starts_with('0') {
        Ok(())
    } else {
        Err(NO_PHONE)
    }
}

/// A country of ISO 3166-1, in its two capital letters.
///
/// # Errors
/// What is wrong with it.
pub fn check_country(text: &str) -> Result<(), &'static str> {
    let known =
        text.len() == 2 && text.bytes().all(|b| b.is_ascii_uppercase()) && celes::Country::from_alpha2(text).is_ok();
    if known { Ok(()) } else { Err("is no ISO 3166-1 alpha-2 country code in capitals") }
}

/// A time zone of the IANA database, in its own spelling.
///
/// # Errors
/// What is wrong with it.
pub fn check_time_zone(text: &str) -> Result<(), &'static str> {
    let known = text.len() <= TIME_ZONE_MAX && chrono_tz::Tz::from_str(text).is_ok_and(|zone| zone.name() == text);
    if known { Ok(()) } else { Err("is no IANA time zone") }
}

/// A public web address.
///
/// # Errors
/// What is wrong with it.
pub fn check_website(text: &str) -> Result<(), &'static str> {
    if text.chars().count() > WEBSITE_MAX {
        return Err("must be at most 500 characters");
    }
    // The parser drops line breaks and tabs in silence.
    if text.chars().any(char::is_whitespace) {
        return Err("must not contain white space");
    }
    let url = url::Url::parse(text).map_err(|_| "is no web address")?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return Err("must be an http or https address");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not contain credentials");
    }
    Ok(())
}

/// A postal code, whatever its country's form.
///
/// # Errors
/// What is wrong with it.
pub fn check_postal_code(text: &str) -> Result<(), &'static str> {
    let known =
        text.chars().count() <= POSTAL_CODE_MAX && text.chars().all(|c| c.is_alphanumeric() || c == ' ' || c == '-');
    if known { Ok(()) } else { Err("must be at most 20 letters, digits, spaces and hyphens") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn real_addresses_are_taken() {
        for good in
            ["a@b.io", "first.last+tag@mail.example.co.uk", "o'brien@example.com", "x_y-z@xn--bcher-kva.example"]
        {
            assert_eq!(check_email(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn addresses_that_only_look_like_one_are_refused() {
        let long = format!("{}@example.com", "a".repeat(65));
        for bad in [
            "",
            "@",
            "a@",
            "@b.io",
            "a@b",
            "a b@c.io",
            "a@b..io",
            ".a@b.io",
            "a.@b.io",
            "a@-b.io",
            "a@b-.io",
            "a@[127.0.0.1]",
            "a@127.0.0.1",
            "\"a\"@b.io",
            "a@b.io\n",
            "a@b.io, c@d.io",
            "A <a@b.io>",
            "ä@b.io",
            "a@bücher.io",
            "a@b.io(c)",
            "a@b.1",
            "a@@b.io",
            "a@b.io\r\nBcc: c@d.io",
            long.as_str(),
            " <ada@example.com>",
            "<ada@example.com>",
        ] {
            assert!(check_email(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn phones_countries_zones_and_sites() {
        for (ok, text) in [
            (true, "+49 (30) 123-45.67"),
            (true, "+14155552671"),
            (false, "030 1234567"),
            (false, "+1234"),
            (false, "+1234567890123456"),
            (false, "+49 30 x"),
        ] {
            assert_eq!(check_phone(text).is_ok(), ok, "{text}");
        }
        for (ok, text) in [(true, "DE"), (true, "US"), (false, "de"), (false, "XX"), (false, "DEU"), (false, "ß")] {
            assert_eq!(check_country(text).is_ok(), ok, "{text}");
        }
        for (ok, text) in [
            (true, "UTC"),
            (true, "Europe/Berlin"),
            (true, "America/Argentina/Ushuaia"),
            (false, "Mars/Olympus"),
            (false, "europe/berlin"),
            (false, ""),
        ] {
            assert_eq!(check_time_zone(text).is_ok(), ok, "{text}");
        }
        for (ok, text) in [
            (true, "https://example.com/a?b=c"),
            (true, "http://localhost:8080"),
            (false, "javascript:alert(1)"),
            (false, "ftp://example.com"),
            (false, "example.com"),
            (false, "https://user:pass@example.com"),
            (false, "https://exa mple.com"),
            (false, "https://"),
            (false, "ht\ntps://a.b"),
        ] {
            assert_eq!(check_website(text).is_ok(), ok, "{text}");
        }
        for (ok, text) in [
            (true, "10115"),
            (true, "SW1A 1AA"),
            (true, "〒1000001".trim_start_matches('〒')),
            (false, "1;2"),
            (false, "123456789012345678901"),
        ] {
            assert_eq!(check_postal_code(text).is_ok(), ok, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_a_check(text in "\\PC*|[\\x00-\\x7f]{0,40}") {
            let _ = (check_phone(&text), check_country(&text), check_time_zone(&text), check_website(&text), check_postal_code(&text));
            if check_email(&text).is_ok() {
                prop_assert!(text.is_ascii() && !text.contains([' ', '\r', '\n', '<', '"', ',']) && text.matches('@').count() == 1);
            }
        }
    }
}
