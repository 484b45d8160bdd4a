//! Import: taking over keys that another platform made.

use chrono::{DateTime, Utc};
use serde_json::json;
use service_kit::violations::Violations;

use super::{Attempt, ImportCandidate, ImportOutcome, KEY_PREFIX, KeyError, Keys, NewKey, decide, key_event};
use crate::app::Caller;
use crate::domain::audit::KEY_IMPORTED;
use crate::domain::key::{
    ApiKey, ApiKeyState, Credential, ImportRow, Networks, RawImportRow, Selector, imported_prefix,
};
use service_kit::actor::Actor;

/// Rows of one chunk: one transaction, short enough to leave the database to others in between.
pub const MAX_CHUNK_ROWS: usize = 1_000;
/// Refused rows that are told one by one; all are counted.
const MAX_REFUSED_TOLD: usize = 1_000;

/// Why a row was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedRow {
    /// The row's number in the stream, from 1.
    pub row_number: u64,
    /// The row's external reference, as sent.
    pub external_reference: String,
    /// The first field at fault.
    pub field: String,
    /// What is wrong with it, and with further fields.
    pub reason: String,
}

/// What an import has done so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImportTally {
    /// Rows that became keys.
    pub imported: u64,
    /// Rows imported before, the same.
    pub unchanged: u64,
    /// Rows refused.
    pub refused: u64,
    /// The first refused rows.
    pub refused_rows: Vec<RefusedRow>,
}

impl ImportTally {
    fn refuse(&mut self, row_number: u64, external_reference: &str, field: &str, reason: impl Into<String>) {
        self.refused += 1;
        if self.refused_rows.len() < MAX_REFUSED_TOLD {
            self.refused_rows.push(RefusedRow {
                row_number,
                external_reference: external_reference.to_owned(),
                field: field.to_owned(),
                reason: reason.into(),
            });
        }
    }

    /// Rows seen so far.
    fn rows(&self) -> u64 {
        self.imported + self.unchanged + self.refused
    }
}

impl Keys {
    /// Stores one chunk of an import, whole, and adds what became of it to `tally`.
    pub async fn import_chunk(
        &self,
        caller: &Caller,
        rows: Vec<RawImportRow>,
        tally: &mut ImportTally,
    ) -> Result<(), KeyError> {
        let actor = caller.person_or_service()?;
        if rows.len() > MAX_CHUNK_ROWS {
            let faults = Violations::of("rows", format!("at most {MAX_CHUNK_ROWS} rows a chunk"));
            return Err(KeyError::Invalid(faults));
        }
        let now = self.now();
        let before = tally.rows();
        // The tally is changed only once the chunk is stored.
        let mut chunk = ImportTally::default();
        let mut numbers = Vec::with_capacity(rows.len());
        let mut candidates = Vec::with_capacity(rows.len());
        for (number, row) in (before + 1..).zip(rows) {
            let reference = row.external_reference.clone();
            match row.check(now) {
                Ok(row) => {
                    candidates.push(self.candidate(row, &actor, caller, now)?);
                    numbers.push((number, reference));
                }
                Err(faults) => {
                    let (field, reason) = told(&faults);
                    chunk.refuse(number, &reference, &field, reason);
                }
            }
        }
        let outcomes =
            decide(|| async { Ok(Attempt::Done(self.parts.store.import(candidates.clone()).await?)) }).await?;
        self.changed(false).await;
        for ((number, reference), outcome) in numbers.iter().zip(outcomes) {
            match outcome {
                ImportOutcome::Imported => chunk.imported += 1,
                ImportOutcome::Unchanged => chunk.unchanged += 1,
                ImportOutcome::ReferenceTaken => chunk.refuse(
                    *number,
                    reference,
                    "external_reference",
                    "was imported before for this agency with other contents",
                ),
                ImportOutcome::SecretTaken => {
                    chunk.refuse(*number, reference, "secret", "belongs to another key already");
                }
            }
        }
        chunk.refused_rows.sort_by_key(|refused| refused.row_number);
        tally.imported += chunk.imported;
        tally.unchanged += chunk.unchanged;
        tally.refused += chunk.refused;
        let room = MAX_REFUSED_TOLD.saturating_sub(tally.refused_rows.len());
        tally.refused_rows.extend(chunk.refused_rows.into_iter().take(room));
        Ok(())
    }

    /// The key that a row would become.
    fn candidate(
        &self,
        row: ImportRow,
        actor: &Actor,
        caller: &Caller,
        now: DateTime<Utc>,
    ) -> Result<ImportCandidate, KeyError> {
        let key_id = self.ids.next(KEY_PREFIX, now);
        let fingerprint = row.fingerprint();
        let digest = row.credential.digest();
        let (display_prefix, sealed) = match &row.credential {
            Credential::Secret(secret) => {
                let sealed = self.parts.settings.recoverable.then(|| self.seal(secret, &key_id)).transpose()?;
                (imported_prefix(secret), sealed)
            }
            Credential::Digest(_) => (String::new(), None),
        };
        let mut selectors = Vec::new();
        for version in self.parts.ring.peppers() {
            selectors.push(Selector::of(&self.hash(version, &digest)?));
        }
        let detail = json!({ "external_reference": row.external_reference, "location_id": row.owner.location_id });
        let audit = key_event(KEY_IMPORTED, &row.owner.agency_id, &key_id, actor, caller, now, detail);
        let key = ApiKey {
            key_id,
            owner: row.owner,
            display_name: row.display_name,
            display_prefix,
            state: ApiKeyState::Active,
            scopes: row.scopes,
            networks: Networks::default(),
            created_at: row.created_at,
            last_used_at: row.last_used_at,
            expires_at: None,
            revoke_at: None,
            deleted_at: None,
            pending_deletion: None,
            successor_id: None,
            external_reference: Some(row.external_reference),
            sealed: sealed.is_some(),
            revision: 1,
        };
        let material = self.material(&digest, sealed)?;
        Ok(ImportCandidate { new: NewKey { key, material }, selectors, fingerprint, audit })
    }
}

/// The first field at fault, and all faults in one line.
fn told(faults: &Violations) -> (String, String) {
    let mut all = faults.iter();
    let Some(first) = all.next() else { return (String::new(), String::new()) };
    let reason =
        all.fold(first.description.clone(), |text, fault| format!("{text}; {}: {}", fault.field, fault.description));
    (first.field.clone(), reason)
}
