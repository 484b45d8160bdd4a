//! The columns of the file, and the rows they make.

use chrono::{DateTime, Utc};
use csv::ByteRecord;
use keysweep_proto::key::v1 as proto;
use prost_types::Timestamp;
use service_kit::time::{to_proto, truncate};

use super::{ImportError, RefusedLine};

const NAMES: [&str; 9] = [
    "agency_id",
    "location_id",
    "secret",
    "secret_sha256",
    "create_time",
    "last_use_time",
    "external_reference",
    "display_name",
    "scopes",
];
const REQUIRED: [&str; 3] = ["agency_id", "create_time", "external_reference"];

/// Where each column stands.
#[derive(Debug)]
pub(super) struct Columns {
    places: [Option<usize>; NAMES.len()],
    count: usize,
}

impl Columns {
    /// Reads the header; the error names everything that is wrong with it.
    pub(super) fn read(header: &ByteRecord) -> Result<Self, ImportError> {
        let mut places = [None; NAMES.len()];
        let mut faults = Vec::new();
        for (place, name) in header.iter().enumerate() {
            let name = String::from_utf8_lossy(name);
            let name = name.trim_start_matches('\u{feff}').trim();
            match NAMES.iter().position(|known| *known == name) {
                None => faults.push(format!("unknown column {name:?}")),
                Some(column) if places[column].is_some() => faults.push(format!("column {name} stands twice")),
                Some(column) => places[column] = Some(place),
            }
        }
        let columns = Self { places, count: header.len() };
        for name in REQUIRED {
            if columns.place(name).is_none() {
                faults.push(format!("column {name} is missing"));
            }
        }
        if columns.place("secret").is_none() && columns.place("secret_sha256").is_none() {
            faults.push("one of the columns secret and secret_sha256 is needed".to_owned());
        }
        if faults.is_empty() { Ok(columns) } else { Err(ImportError::Header(faults.join("; "))) }
    }

    fn place(&self, name: &str) -> Option<usize> {
        NAMES.iter().position(|known| *known == name).and_then(|column| self.places[column])
    }

    /// The row of a record; the error says what cannot be read, its line left to the caller.
    pub(super) fn row(&self, record: &ByteRecord) -> Result<proto::ImportRow, RefusedLine> {
        let reference = self.text(record, "external_reference").unwrap_or_default();
        self.read_row(record).map_err(|(field, reason)| RefusedLine {
            line: 0,
            external_reference: reference,
            field: field.to_owned(),
            reason,
        })
    }

    fn read_row(&self, record: &ByteRecord) -> Result<proto::ImportRow, (&'static str, String)> {
        if record.len() != self.count {
            return Err(("row", format!("has {} fields where the header has {}", record.len(), self.count)));
        }
        let text = |name: &'static str| self.text(record, name).map_err(|()| (name, "is not UTF-8".to_owned()));
        let time = |name: &'static str| parse_time(&text(name)?).map_err(|reason| (name, reason));
        let agency_id = text("agency_id")?;
        let location_id = text("location_id")?;
        let account = if location_id.is_empty() {
            proto::owner::Account::AgencyId(agency_id)
        } else {
            proto::owner::Account::Location(proto::LocationRef { agency_id, location_id })
        };
        Ok(proto::ImportRow {
            owner: Some(proto::Owner { account: Some(account) }),
            credential: credential(text("secret")?, &text("secret_sha256")?)?,
            create_time: time("create_time")?,
            last_use_time: time("last_use_time")?,
            external_reference: text("external_reference")?,
            display_name: text("display_name")?,
            scopes: text("scopes")?.split_whitespace().map(str::to_owned).collect(),
        })
    }

    /// A field's text; a column that the file does not have reads as empty.
    fn text(&self, record: &ByteRecord, name: &str) -> Result<String, ()> {
        let bytes = self.place(name).and_then(|place| record.get(place)).unwrap_or_default();
        let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| ())
    }
}

fn credential(secret: String, digest: &str) -> Result<Option<proto::import_row::Credential>, (&'static str, String)> {
    match (secret.is_empty(), digest.is_empty()) {
        (true, true) => Ok(None),
        (false, true) => Ok(Some(proto::import_row::Credential::Secret(secret))),
        (true, false) => match hex::decode(digest) {
            Ok(bytes) => Ok(Some(proto::import_row::Credential::SecretSha256(bytes))),
            Err(_) => Err(("secret_sha256", "must be 64 hexadecimal digits".to_owned())),
        },
        (false, false) => Err(("secret", "must not be given together with secret_sha256".to_owned())),
    }
}

fn parse_time(text: &str) -> Result<Option<Timestamp>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    match DateTime::parse_from_rfc3339(text) {
        Ok(at) => Ok(Some(to_proto(truncate(at.with_timezone(&Utc))))),
        Err(_) => Err("must be a time such as 2026-01-31T08:00:00Z".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(names: &[&str]) -> Result<Columns, ImportError> {
        Columns::read(&ByteRecord::from(names.to_vec()))
    }

    #[test]
    fn a_wrong_header_is_told_whole() {
        let text = header(&["agency_id", "colour", "scopes", "scopes"]).unwrap_err().to_string();
        for fault in [
            "\"colour\"",
            "scopes stands twice",
            "create_time is missing",
            "external_reference is missing",
            "secret_sha256",
        ] {
            assert!(text.contains(fault), "{fault} is not in: {text}");
        }
    }

    #[test]
    fn rows_are_read_in_any_order_of_columns() {
        let columns = header(&[
            "\u{feff}scopes",
            "secret_sha256",
            "external_reference",
            " create_time",
            "location_id",
            "agency_id",
        ])
        .unwrap();
        let digest = "ab".repeat(32);
        let record = ByteRecord::from(vec!["read  write", &digest, "r-1", "2026-01-31T08:00:00+01:00", "", "agy_1"]);
        let row = columns.row(&record).unwrap();
        assert_eq!(row.scopes, ["read", "write"]);
        assert_eq!(row.owner.unwrap().account, Some(proto::owner::Account::AgencyId("agy_1".into())));
        assert_eq!(row.credential, Some(proto::import_row::Credential::SecretSha256(vec![0xab; 32])));
        assert_eq!(row.create_time.unwrap().seconds, 1_769_842_800);
    }

    #[test]
    fn a_carriage_return_at_the_end_of_a_line_belongs_to_no_field() {
        let columns = header(&["agency_id", "secret", "create_time", "external_reference\r"]).unwrap();
        let record = ByteRecord::from(vec!["agy_1", "s", "2026-01-31T08:00:00Z", "r-1\r"]);
        assert_eq!(columns.row(&record).unwrap().external_reference, "r-1");
    }

    #[test]
    fn what_cannot_be_read_is_told_with_its_field() {
        let columns = header(&["agency_id", "secret", "secret_sha256", "create_time", "external_reference"]).unwrap();
        let time = "2026-01-31T08:00:00Z";
        let cases: [(Vec<&[u8]>, &str); 5] = [
            (vec![b"agy_1", b"s", b"", time.as_bytes()], "row"),
            (vec![b"agy_1", b"s", b"", b"yesterday", b"r"], "create_time"),
            (vec![b"agy_1", b"", b"xyz", time.as_bytes(), b"r"], "secret_sha256"),
            (vec![b"agy_1", b"s", b"ab", time.as_bytes(), b"r"], "secret"),
            (vec![b"\xff", b"s", b"", time.as_bytes(), b"r"], "agency_id"),
        ];
        for (record, field) in cases {
            assert_eq!(columns.row(&ByteRecord::from(record)).unwrap_err().field, field);
        }
    }
}
