//! `key-service audit`: what is proven without a running service.

use std::str::FromStr;
use std::sync::Arc;

use anyhow::Context;
use clap::Subcommand;
use service_kit::db::connect_existing;

use crate::app::audit::Audit;
use crate::config::Config;
use crate::domain::audit::ChainHead;
use crate::storage::SqlStore;

/// What can be done with the audit.
#[derive(Subcommand, Clone, Copy, Debug)]
pub enum AuditCommand {
    /// Recompute the chain of events from the first; exit code 1, and the first event at fault, if it is broken
    Verify {
        /// An end of the chain that was noted elsewhere earlier, as this command prints it: it must still be in the chain
        #[arg(long, value_name = "SEQUENCE:HASH", value_parser = ChainHead::from_str)]
        noted: Option<ChainHead>,
    },
}

/// Reads the database itself.
///
/// # Errors
/// When the chain is broken or the database cannot be read.
#[expect(clippy::print_stdout, reason = "the answer is for a person")]
pub(super) async fn execute(command: AuditCommand, config: Config) -> anyhow::Result<()> {
    let AuditCommand::Verify { noted } = command;
    let db = connect_existing(&config.database).await?;
    let proof = Audit::new(Arc::new(SqlStore::new(db.clone()))).verify(noted).await;
    let closed = db.close().await.context("the database does not close");
    let proof = proof.context("the audit cannot be read; is the database migrated?")?;
    if let Some(sequence) = proof.first_broken {
        anyhow::bail!("the audit chain is broken at event {sequence}; {} events before it are whole", proof.checked);
    }
    println!("the audit chain is whole: {} events", proof.checked);
    println!("its end, to be noted elsewhere: {}", proof.head);
    closed
}
