//! Files of imports as bytes.

use csv::ByteRecord;
use keysweep_proto::key::v1::import_row::Credential;

use super::columns::Columns;

/// A file: whatever stands in it, each row is read or refused with its field, and what is read has one credential at most.
pub fn import_file(data: &[u8]) {
    let mut reader = csv::ReaderBuilder::new().flexible(true).terminator(csv::Terminator::Any(b'\n')).from_reader(data);
    let Ok(Ok(columns)) = reader.byte_headers().map(Columns::read) else { return };
    let mut record = ByteRecord::new();
    while let Ok(true) = reader.read_byte_record(&mut record) {
        match columns.row(&record) {
            Ok(row) => {
                assert!(row.owner.is_some());
                if let Some(Credential::Secret(secret)) = &row.credential {
                    assert!(!secret.is_empty());
                }
                assert!(row.scopes.iter().all(|scope| !scope.is_empty()));
            }
            Err(refused) => assert!(!refused.field.is_empty() && !refused.reason.is_empty()),
        }
    }
}
