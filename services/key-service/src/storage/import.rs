//! One chunk of an import in the database.

use std::collections::{BTreeMap, HashMap, HashSet};

use sea_orm::{ColumnTrait, Condition, DatabaseTransaction, EntityTrait, QueryFilter, QuerySelect};

use super::entities::api_keys::{Column, Entity};
use super::rows::to_row;
use super::{StorageError, audit};
use crate::app::keys::{ImportCandidate, ImportOutcome};
use crate::domain::key::Selector;

/// Selectors asked for by one query: below the 32,766 variables of a SQLite statement.
const SELECTORS_ASKED: usize = 10_000;
/// 22 columns a row: 1,000 rows stay below the same limit.
const INSERT_ROWS: usize = 1_000;

/// What is known of an imported key: the fingerprint of its row, and the selector of its secret.
type Known = (Option<Vec<u8>>, Selector);

/// Agency, reference, fingerprint and selector, as stored.
type KnownRow = (String, Option<String>, Option<Vec<u8>>, Vec<u8>);

/// Stores the rows that are new; answers each row in order.
pub(super) async fn store(
    tx: &DatabaseTransaction,
    rows: Vec<ImportCandidate>,
) -> Result<Vec<ImportOutcome>, StorageError> {
    // In this order: where the same rows are committed elsewhere between the two readings, the second one sees them, and a row that is
    // known is unchanged, whoever has its secret.
    let mut taken = taken_selectors(tx, &rows).await?;
    let mut known = known_references(tx, &rows).await?;
    let mut outcomes = Vec::with_capacity(rows.len());
    let (mut inserts, mut events) = (Vec::new(), Vec::new());
    for row in rows {
        let key = &row.new.key;
        let reference = (key.owner.agency_id.clone(), key.external_reference.clone().unwrap_or_default());
        if let Some((fingerprint, selector)) = known.get(&reference) {
            let same = fingerprint.as_deref() == Some(row.fingerprint.as_slice()) && row.selectors.contains(selector);
            outcomes.push(if same { ImportOutcome::Unchanged } else { ImportOutcome::ReferenceTaken });
        } else if row.selectors.iter().any(|selector| taken.contains(selector)) {
            outcomes.push(ImportOutcome::SecretTaken);
        } else {
            known.insert(reference, (Some(row.fingerprint.to_vec()), row.new.material.selector));
            taken.extend(row.selectors);
            events.push(row.audit);
            inserts.push(to_row(row.new, Some(row.fingerprint))?);
            outcomes.push(ImportOutcome::Imported);
        }
    }
    let mut inserts = inserts.into_iter().peekable();
    while inserts.peek().is_some() {
        let chunk: Vec<_> = inserts.by_ref().take(INSERT_ROWS).collect();
        Entity::insert_many(chunk).exec_without_returning(tx).await?;
    }
    audit::append(tx, events).await?;
    Ok(outcomes)
}

/// The references of the rows that were imported before.
async fn known_references(
    tx: &DatabaseTransaction,
    rows: &[ImportCandidate],
) -> Result<HashMap<(String, String), Known>, StorageError> {
    let mut by_agency: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for row in rows {
        let reference = row.new.key.external_reference.as_deref().unwrap_or_default();
        by_agency.entry(&row.new.key.owner.agency_id).or_default().push(reference);
    }
    if by_agency.is_empty() {
        return Ok(HashMap::new());
    }
    let wanted = by_agency.into_iter().fold(Condition::any(), |any, (agency_id, references)| {
        any.add(Condition::all().add(Column::AgencyId.eq(agency_id)).add(Column::ExternalReference.is_in(references)))
    });
    let found: Vec<KnownRow> = Entity::find()
        .select_only()
        .columns([Column::AgencyId, Column::ExternalReference, Column::ImportFingerprint, Column::Selector])
        .filter(wanted)
        .into_tuple()
        .all(tx)
        .await?;
    found
        .into_iter()
        .map(|(agency_id, reference, fingerprint, selector)| {
            Ok(((agency_id, reference.unwrap_or_default()), (fingerprint, stored_selector(&selector)?)))
        })
        .collect()
}

/// The selectors of the rows that belong to a key already.
async fn taken_selectors(
    tx: &DatabaseTransaction,
    rows: &[ImportCandidate],
) -> Result<HashSet<Selector>, StorageError> {
    let wanted: Vec<_> =
        rows.iter().flat_map(|row| &row.selectors).map(|selector| selector.as_bytes().to_vec()).collect();
    let mut taken = HashSet::new();
    for chunk in wanted.chunks(SELECTORS_ASKED) {
        let found: Vec<Vec<u8>> = Entity::find()
            .select_only()
            .column(Column::Selector)
            .filter(Column::Selector.is_in(chunk.iter().cloned()))
            .into_tuple()
            .all(tx)
            .await?;
        for selector in found {
            taken.insert(stored_selector(&selector)?);
        }
    }
    Ok(taken)
}

fn stored_selector(bytes: &[u8]) -> Result<Selector, StorageError> {
    Selector::from_bytes(bytes).ok_or_else(|| StorageError::Internal("api_keys.selector is not 16 bytes".to_owned()))
}
