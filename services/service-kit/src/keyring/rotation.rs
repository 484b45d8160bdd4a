//! Rotating the master key of a database: everything sealed anew under the current one, and said in words.

use anyhow::Context;
use sea_orm::DatabaseConnection;

use super::KeyRing;
use super::sealed::SealedColumn;
use crate::entropy::Entropy;

/// Progress is told after so many secrets.
const TELL_EVERY: u64 = 10_000;

/// Seals everything in these columns anew under the ring's current master key, says on standard output how it goes, and which
/// master keys of the ring this database needs no more. Answers how many secrets were sealed anew. It may be ended at any moment
/// and begun again, beside running replicas.
///
/// # Errors
/// When the database does not answer, and at the end when some secrets do not open.
#[expect(clippy::print_stdout, reason = "the answer is for a person")]
pub async fn rotate_master_key(
    db: &DatabaseConnection,
    ring: &KeyRing,
    columns: &[SealedColumn],
    entropy: &dyn Entropy,
) -> anyhow::Result<u64> {
    let current = ring.current_master();
    let (mut done, mut unreadable) = (0, Vec::new());
    for column in columns {
        let place = format!("{}.{}", column.table, column.sealed);
        let mut told = 0;
        let resealed = column.reseal(db, ring, entropy, |so_far| {
            if so_far.done / TELL_EVERY > told {
                told = so_far.done / TELL_EVERY;
                println!("{place}: {} secrets so far", so_far.done);
            }
        });
        let resealed = resealed.await.with_context(|| format!("{done} secrets were sealed anew; begin again"))?;
        println!("{place}: {} secrets sealed anew", resealed.done);
        done += resealed.done;
        unreadable.extend(resealed.unreadable.into_iter().map(|key| format!("{place} of {key}")));
    }
    println!("{done} secrets sealed anew under master {current}");
    for version in ring.masters().filter(|version| *version < current) {
        let needed = needs_master(db, columns, version).await?;
        println!(
            "master {version} {}",
            if needed { "is still needed" } else { "is no longer needed in this database" }
        );
    }
    for key in &unreadable {
        println!("{key} does not open: restore it, or the master key that it was sealed under");
    }
    anyhow::ensure!(unreadable.is_empty(), "{} secrets do not open and were left as they are", unreadable.len());
    Ok(done)
}

/// Whether anything in these columns is sealed under the master key of this version.
///
/// # Errors
/// As the database has them.
pub async fn needs_master(
    db: &DatabaseConnection,
    columns: &[SealedColumn],
    version: u32,
) -> Result<bool, sea_orm::DbErr> {
    for column in columns {
        if column.needs(db, version).await? {
            return Ok(true);
        }
    }
    Ok(false)
}
