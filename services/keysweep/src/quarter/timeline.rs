//! The timeline that a person watches.

use chrono::{DateTime, Utc};
use console::{Style, Term};
use indicatif::{ProgressBar, ProgressStyle};

/// What a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Topic {
    World,
    Use,
    Plan,
    Hold,
    InApp,
    Email,
    Rescue,
    Banner,
    Outage,
    Move,
    Sweep,
}

impl Topic {
    fn label(self) -> (&'static str, Style) {
        let style = Style::new().bold();
        match self {
            Self::World => ("world", style.white()),
            Self::Use => ("use", style.green()),
            Self::Plan => ("plan", style.yellow()),
            Self::Hold => ("hold", style.magenta()),
            Self::InApp => ("in-app", style.blue()),
            Self::Email => ("email", style.cyan()),
            Self::Rescue => ("rescue", style.green()),
            Self::Banner => ("banner", style.yellow()),
            Self::Outage => ("outage", style.magenta()),
            Self::Move => ("moved", style.magenta()),
            Self::Sweep => ("sweep", style.red()),
        }
    }
}

/// Prints the timeline to standard output, one line an event; silent in tests.
pub(crate) struct Timeline {
    term: Option<Term>,
    last: Option<DateTime<Utc>>,
}

impl Timeline {
    pub(crate) fn new(visible: bool) -> Self {
        Self { term: visible.then(Term::stdout), last: None }
    }

    /// A line of its own, without a date.
    pub(crate) fn plain(&self, text: &str) {
        if let Some(term) = &self.term {
            // A closed pipe must not end the quarter: its result is the exit code.
            let _ = term.write_line(text);
        }
    }

    /// What happened at `at`. The date stands only where it changed.
    pub(crate) fn line(&mut self, at: DateTime<Utc>, topic: Topic, text: &str) {
        let stamp = at.format("%_d %b %Y %H:%M").to_string();
        let shown = if self.last == Some(at) { " ".repeat(stamp.len()) } else { stamp };
        self.last = Some(at);
        let (label, style) = topic.label();
        self.plain(&format!(
            "  {}  {} {text}",
            Style::new().dim().apply_to(shown),
            style.apply_to(format!("{label:<7}"))
        ));
    }

    /// A bar for long work; invisible where nobody watches.
    pub(crate) fn bar(&self, total: u64, what: &str) -> ProgressBar {
        if self.term.as_ref().is_none_or(|term| !term.is_term()) {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template("  {msg:<20} {bar:40} {pos}/{len}  {eta} left")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        ProgressBar::new(total).with_style(style).with_message(what.to_owned())
    }
}

/// `1 key`, `2 keys`.
pub(crate) fn count(number: impl Into<i64>, noun: &str) -> String {
    let number = number.into();
    let digits = number.unsigned_abs().to_string();
    let mut grouped = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let plural = match noun.strip_suffix('y') {
        Some(stem) if !noun.ends_with("ey") => format!("{stem}ies"),
        _ => format!("{noun}s"),
    };
    format!("{grouped} {}", if number == 1 { noun } else { &plural })
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn numbers_read_as_people_write_them() {
        assert_eq!(count(1, "key"), "1 key");
        assert_eq!(count(20_000, "key"), "20,000 keys");
        assert_eq!(count(2, "agency"), "2 agencies");
        assert_eq!(count(1_234_567, "email"), "1,234,567 emails");
    }
}
