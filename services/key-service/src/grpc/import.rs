//! The stream of an import: each chunk is stored whole before the next is read.

use keysweep_proto::key::v1 as proto;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

use super::convert::{raw_import_row, refused_to_proto};
use super::status::key_status;
use crate::app::Caller;
use crate::app::keys::{ImportTally, Keys};

pub(super) async fn import(
    keys: &Keys,
    caller: &Caller,
    mut chunks: impl Stream<Item = Result<proto::ImportApiKeysRequest, Status>> + Unpin,
) -> Result<proto::ImportApiKeysResponse, Status> {
    // Also an import of nothing is refused to those who may not import.
    caller.person_or_service().map_err(key_status)?;
    let mut tally = ImportTally::default();
    while let Some(chunk) = chunks.next().await {
        let rows = chunk?.rows.into_iter().map(raw_import_row).collect();
        keys.import_chunk(caller, rows, &mut tally).await.map_err(key_status)?;
    }
    let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    Ok(proto::ImportApiKeysResponse {
        imported_count: count(tally.imported),
        unchanged_count: count(tally.unchanged),
        refused_count: count(tally.refused),
        refused_rows: tally.refused_rows.into_iter().map(refused_to_proto).collect(),
    })
}
