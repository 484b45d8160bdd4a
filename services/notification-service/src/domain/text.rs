//! Text that others wrote, made safe to show.

use service_kit::violations::is_deceptive;

/// The text without control characters and those that change the direction of writing, its blanks joined to one.
pub fn plain(text: &str) -> String {
    let shown: String =
        text.chars().map(|c| if c.is_whitespace() { ' ' } else { c }).filter(|c| !is_deceptive(*c)).collect();
    shown.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// At most `max` characters of a text; what is cut off is marked by an ellipsis.
pub fn shortened(text: &str, max: usize) -> String {
    if text.chars().count() <= max {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(max.saturating_sub(1)).collect();
    short.truncate(short.trim_end().len());
    short.push('…');
    short
}

/// An address as logs may show it: enough to recognise it, too little to write to it.
pub fn masked(address: &str) -> String {
    match address.rsplit_once('@') {
        Some((local, domain)) => {
            let first: String = local.chars().take(1).collect();
            format!("{}***@{}", plain(&first), plain(domain))
        }
        None => "***".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deceptive_characters_are_gone() {
        assert_eq!(plain("Acme\u{202e}\r\nBcc: x@y \u{200b} Ltd\t."), "Acme Bcc: x@y Ltd .");
        assert_eq!(plain("Zürich 東京"), "Zürich 東京");
    }

    #[test]
    fn long_text_is_cut_at_a_character() {
        assert_eq!(shortened("東京都", 3), "東京都");
        assert_eq!(shortened("東京都庁", 3), "東京…");
    }

    #[test]
    fn addresses_are_masked() {
        assert_eq!(masked("ada.lovelace@example.com"), "a***@example.com");
        assert_eq!(masked("nonsense"), "***");
    }
}
