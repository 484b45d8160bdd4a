//! Imports a CSV file into a running key-service, a chunk at a time: memory stays bounded however long the file is.
//!
//! The file begins with a header. Columns, in any order: `agency_id`, `create_time` and `external_reference`, one of
//! `secret` and `secret_sha256` (hexadecimal), and, as wanted, `location_id`, `last_use_time`, `display_name` and
//! `scopes` (separated by blanks). Times are RFC 3339. A row that cannot be read or is refused is told by its line; the
//! others are imported all the same. Sending the file again is safe: what was imported is found unchanged.

mod columns;
#[cfg(any(test, fuzzing))]
pub mod fuzz;

use std::io::Read;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use csv::ByteRecord;
use keysweep_proto::key::v1 as proto;
use keysweep_proto::key::v1::key_service_client::KeyServiceClient;
use tonic::transport::Channel;
use tonic::{Code, Status};

use columns::Columns;

/// What the service takes in one chunk.
const CHUNK_ROWS: usize = 1_000;
/// A chunk stays well below the 4 MiB that a server receives at once.
const CHUNK_BYTES: usize = 2 * 1024 * 1024;
/// Far longer than a chunk takes, also on a busy database.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a chunk is sent again while the service cannot be reached: some 12 s in all.
const RETRIES: usize = 6;

/// Why an import ended early. What was stored until then stays, and the same file may be imported again.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The header is missing or wrong.
    #[error("the header of the file is wrong: {0}")]
    Header(String),
    /// The file cannot be read.
    #[error("the file cannot be read: {0}")]
    Read(#[from] csv::Error),
    /// The service refuses the import or cannot be reached.
    #[error("the service answered {code:?}: {message}", code = .0.code(), message = .0.message())]
    Service(Box<Status>),
    /// The service's answer does not fit what was sent.
    #[error("the service answered about a row that was not sent")]
    Answer,
}

/// Why a row was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedLine {
    /// The line of the file on which the row begins, from 1.
    pub line: u64,
    /// The row's external reference; empty: it could not be read.
    pub external_reference: String,
    /// The field at fault.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

/// What an import has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImportSummary {
    /// Rows that became keys.
    pub imported: u64,
    /// Rows imported before, the same.
    pub unchanged: u64,
    /// Rows refused.
    pub refused: u64,
}

/// What an import tells while it goes on.
#[derive(Debug)]
pub enum ImportEvent<'a> {
    /// A row was refused.
    Refused(&'a RefusedLine),
    /// A chunk is stored.
    Progress {
        /// Bytes of the file that are dealt with.
        bytes: u64,
        /// What was done so far.
        summary: ImportSummary,
    },
}

/// Imports all rows of `file`, and tells `observe` how it goes.
///
/// # Errors
/// When the header is wrong, the file cannot be read, or the service cannot be reached or refuses the import as a whole.
pub async fn import<R: Read + Send>(
    file: R,
    client: KeyServiceClient<Channel>,
    mut observe: impl FnMut(ImportEvent<'_>) + Send,
) -> Result<ImportSummary, ImportError> {
    // Rows of another length are told one by one instead of ending the import. Lines are counted right only where they
    // end with one byte: a carriage return before it is cut off with the field.
    let mut reader = csv::ReaderBuilder::new().flexible(true).terminator(csv::Terminator::Any(b'\n')).from_reader(file);
    let columns = Columns::read(reader.byte_headers()?)?;
    let mut summary = ImportSummary::default();
    let mut chunk = Chunk::default();
    let mut record = ByteRecord::new();
    loop {
        let more = reader.read_byte_record(&mut record)?;
        if more && !is_blank(&record) {
            let line = record.position().map_or(0, csv::Position::line);
            match columns.row(&record) {
                Ok(row) => chunk.push(line, row, record.as_slice().len()),
                Err(fault) => {
                    summary.refused += 1;
                    observe(ImportEvent::Refused(&RefusedLine { line, ..fault }));
                }
            }
        }
        if chunk.is_full() || (!more && !chunk.rows.is_empty()) {
            let answer = send(&client, std::mem::take(&mut chunk.rows)).await?;
            summary.imported += answer.imported_count.unsigned_abs();
            summary.unchanged += answer.unchanged_count.unsigned_abs();
            summary.refused += answer.refused_count.unsigned_abs();
            for refused in answer.refused_rows {
                observe(ImportEvent::Refused(&chunk.told(refused)?));
            }
            chunk = Chunk::default();
            observe(ImportEvent::Progress { bytes: reader.position().byte(), summary });
        }
        if !more {
            observe(ImportEvent::Progress { bytes: reader.position().byte(), summary });
            return Ok(summary);
        }
    }
}

fn is_blank(record: &ByteRecord) -> bool {
    record.len() == 1 && record.as_slice() == b"\r"
}

/// Rows on their way, and the lines they came from.
#[derive(Default)]
struct Chunk {
    rows: Vec<proto::ImportRow>,
    lines: Vec<u64>,
    bytes: usize,
}

impl Chunk {
    fn push(&mut self, line: u64, row: proto::ImportRow, bytes: usize) {
        self.rows.push(row);
        self.lines.push(line);
        self.bytes += bytes;
    }

    fn is_full(&self) -> bool {
        self.rows.len() >= CHUNK_ROWS || self.bytes >= CHUNK_BYTES
    }

    /// The refused row with its line in place of its number.
    fn told(&self, refused: proto::RefusedRow) -> Result<RefusedLine, ImportError> {
        let place = usize::try_from(refused.row_number).ok().and_then(|number| number.checked_sub(1));
        let line = place.and_then(|place| self.lines.get(place)).ok_or(ImportError::Answer)?;
        Ok(RefusedLine {
            line: *line,
            external_reference: refused.external_reference,
            field: refused.field,
            reason: refused.reason,
        })
    }
}

/// Each chunk is a stream of its own: the service tells at most 1,000 refused rows a stream, so none goes untold, and after
/// a lost connection only one chunk is sent again.
async fn send(
    client: &KeyServiceClient<Channel>,
    rows: Vec<proto::ImportRow>,
) -> Result<proto::ImportApiKeysResponse, ImportError> {
    let chunk = proto::ImportApiKeysRequest { rows };
    let attempt = || async {
        let mut request = tonic::Request::new(tokio_stream::iter([chunk.clone()]));
        request.set_timeout(CHUNK_TIMEOUT);
        client.clone().import_api_keys(request).await.map(tonic::Response::into_inner)
    };
    let backoff = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(200))
        .with_max_delay(Duration::from_secs(5))
        .with_max_times(RETRIES);
    attempt
        .retry(backoff)
        .when(|status| matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded))
        .await
        .map_err(|status| ImportError::Service(Box::new(status)))
}
