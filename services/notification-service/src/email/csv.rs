//! The whole list of a long letter, as a table for spreadsheets.

use std::io::{self, Write};

use chrono::{DateTime, SecondsFormat, Utc};
use flate2::Compression;
use flate2::write::GzEncoder;

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

/// Mail servers refuse messages of 10 to 25 MB, of which an attachment's encoding takes a third: a longer table is compressed.
const PLAIN_BYTES: usize = 5 * 1024 * 1024;

/// What the rows are written into: compressed as they come once they are too many, so that they never stand in memory whole.
enum Sheet {
    Plain(Vec<u8>),
    Packed(GzEncoder<Vec<u8>>),
}

impl Write for Sheet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Packed(packed) => packed.write(bytes),
            Self::Plain(plain) if plain.len() + bytes.len() <= PLAIN_BYTES => plain.write(bytes),
            Self::Plain(plain) => {
                let mut packed = GzEncoder::new(Vec::new(), Compression::default());
                packed.write_all(&std::mem::take(plain))?;
                packed.write_all(bytes)?;
                *self = Self::Packed(packed);
                Ok(bytes.len())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A finished table.
pub(super) struct Finished {
    pub(super) content: Vec<u8>,
    /// Whether it is compressed.
    pub(super) packed: bool,
}

/// A table that grows key by key.
pub(super) struct Table {
    rows: ::csv::Writer<Sheet>,
    agency_name: String,
    delete_at: String,
}

impl Table {
    pub(super) fn new(agency_name: &str, delete_at: DateTime<Utc>) -> Result<Self, LetterError> {
        let mut rows = ::csv::WriterBuilder::new()
            .terminator(::csv::Terminator::CRLF)
            .from_writer(Sheet::Plain(BYTE_ORDER_MARK.to_vec()));
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

    pub(super) fn finish(self) -> Result<Finished, LetterError> {
        let broken = |error: &dyn std::fmt::Display| LetterError::Fault(error.to_string());
        Ok(match self.rows.into_inner().map_err(|error| broken(&error))? {
            Sheet::Plain(content) => Finished { content, packed: false },
            Sheet::Packed(packed) => {
                Finished { content: packed.finish().map_err(|error| broken(&error))?, packed: true }
            }
        })
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
