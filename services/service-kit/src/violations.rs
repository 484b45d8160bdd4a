//! Faults of a request's fields, collected so that a caller sees all of them at once.

/// One field at fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldViolation {
    /// The field's path in the request, such as `location.time_zone`.
    pub field: String,
    /// What is wrong with it; lower case, no full stop, never with a secret's text.
    pub description: String,
}

/// All faults of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Violations(Vec<FieldViolation>);

impl Violations {
    /// Notes one more fault.
    pub fn push(&mut self, field: impl Into<String>, description: impl Into<String>) {
        self.0.push(FieldViolation { field: field.into(), description: description.into() });
    }

    /// The faults of one field alone.
    pub fn of(field: impl Into<String>, description: impl Into<String>) -> Self {
        let mut one = Self::default();
        one.push(field, description);
        one
    }

    /// Takes over the faults of a part of the request.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Whether nothing is at fault.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The faults in the order in which they were found.
    pub fn iter(&self) -> impl Iterator<Item = &FieldViolation> {
        self.0.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The first of them, as many as together weigh at most so many bytes, and at least one.
    pub fn fitting(&self, bytes: usize) -> Self {
        // What a fault weighs beside its texts, in a message of a wire format or in a line.
        const FRAME: usize = 8;
        let mut weight = 0;
        let fits = |one: &&FieldViolation| {
            let first = weight == 0;
            weight += one.field.len() + one.description.len() + FRAME;
            first || weight <= bytes
        };
        Self(self.0.iter().take_while(fits).cloned().collect())
    }

    /// `Err` with all faults if there are any.
    pub fn into_result(self) -> Result<(), Self> {
        if self.is_empty() { Ok(()) } else { Err(self) }
    }

    /// A text for people: at most `max` characters, of which none is a control character or changes the direction of
    /// writing, so that it shows in a terminal, a mail and a page as what it is.
    pub fn check_text(&mut self, field: &str, text: &str, max: usize) {
        if text.chars().count() > max {
            self.push(field, format!("must be at most {max} characters"));
        }
        if text.chars().any(is_deceptive) {
            self.push(field, "must not contain control or text-direction characters");
        }
    }

    /// As [`Violations::check_text`], and not blank.
    pub fn check_required_text(&mut self, field: &str, text: &str, max: usize) {
        if text.trim().is_empty() {
            self.push(field, "is required");
        }
        self.check_text(field, text, max);
    }

    /// A `request_id`: empty, or 1 to 128 visible ASCII characters.
    pub fn check_request_id(&mut self, field: &str, request_id: &str) {
        if request_id.len() > 128 || !request_id.bytes().all(|b| b.is_ascii_graphic()) {
            self.push(field, "must be at most 128 visible ASCII characters");
        }
    }
}

impl std::fmt::Display for Violations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, one) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{}: {}", one.field, one.description)?;
        }
        Ok(())
    }
}

/// Whether a character could make a text show as something else than it is.
pub fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{061c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_of_a_text_is_named() {
        let mut faults = Violations::default();
        faults.check_required_text("name", &"\u{202e}".repeat(5), 3);
        faults.check_required_text("city", "  ", 3);
        faults.check_text("ok", "Zürich 東京", 10);
        let fields: Vec<_> = faults.iter().map(|v| v.field.as_str()).collect();
        assert_eq!(fields, ["name", "name", "city"]);
    }
}
