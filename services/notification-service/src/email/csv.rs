//! The whole list of a long letter, as a table for spreadsheets.

use chrono::{DateTime, SecondsFormat, Utc};

use crate::app::letter::{LetterEntry, LetterError};
use crate::domain::text::plain;

/// Tells spreadsheets that the text is UTF-8.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

const COLUMNS: [&str; 9] = [
    "owner",
    "owner_name",
    "location_id",
    "key_id",
    "key_name",
    "key_prefix",
    "created",
    "last_used",
    "will_be_deleted",
];

/// A table that grows key by key.
pub(super) struct Table {
    rows: ::csv::Writer<Vec<u8>>,
    agency_name: String,
    delete_at: String,
}

impl Table {
    pub(super) fn new(agency_name: &str, delete_at: DateTime<Utc>) -> Result<Self, LetterError> {
        let mut rows =
            ::csv::WriterBuilder::new().terminator(::csv::Terminator::CRLF).from_writer(BYTE_ORDER_MARK.to_vec());
        rows.write_record(COLUMNS).map_err(fault)?;
        Ok(Self { rows, agency_name: cell(agency_name), delete_at: instant(delete_at) })
    }

    pub(super) fn add(&mut self, entry: &LetterEntry) -> Result<(), LetterError> {
        let (owner, name, location_id) = match &entry.location_id {
            Some(id) => ("location", cell(&entry.location_name), cell(id.as_str())),
            None => ("agency", self.agency_name.clone(), String::new()),
        };
        let last_used = entry.last_used_at.map_or_else(|| "never".to_owned(), instant);
        let record = [
            owner,
            &name,
            &location_id,
            &cell(entry.key_id.as_str()),
            &cell(&entry.display_name),
            &cell(&entry.display_prefix),
            &instant(entry.created_at),
            &last_used,
            &self.delete_at,
        ];
        self.rows.write_record(record).map_err(fault)
    }

    pub(super) fn finish(self) -> Result<Vec<u8>, LetterError> {
        self.rows.into_inner().map_err(|error| LetterError::Fault(error.to_string()))
    }
}

fn fault(error: ::csv::Error) -> LetterError {
    LetterError::Fault(error.to_string())
}

fn instant(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// Text that no spreadsheet takes for a formula.
fn cell(text: &str) -> String {
    let text = plain(text);
    if text.starts_with(['=', '+', '-', '@']) { format!("'{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cell_is_a_formula() {
        for (text, expected) in [
            ("=HYPERLINK(\"x\")", "'=HYPERLINK(\"x\")"),
            ("+1", "'+1"),
            ("-1", "'-1"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("\t=1+1", "'=1+1"),
            ("a=b", "a=b"),
        ] {
            assert_eq!(cell(text), expected);
        }
    }
}
