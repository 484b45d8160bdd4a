//! The commands of the binary.

mod audit;
mod rotate;

use std::process::ExitCode;

use clap::Subcommand;
use service_kit::cli::{self, Options};

use crate::clients::import_command::{self, ImportOptions};
use crate::run::KeyService;

/// What the binary can be told to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// What every service can be told.
    #[command(flatten)]
    Service(cli::Command),
    /// Take over existing keys from a CSV file, through a running service; exit code 1 if a row was refused
    Import(ImportOptions),
    /// Seal every kept secret anew under the key ring's current master key, and say which older ones are no longer needed
    ///
    /// Works on the database itself, beside running replicas, in batches; ended at any moment it is begun again. Every replica must
    /// have the new key ring before.
    RotateMasterKey,
    /// Look into the audit, without a running service
    #[command(subcommand)]
    Audit(audit::AuditCommand),
}

/// Does what was told.
pub fn execute(command: Command, options: &Options) -> ExitCode {
    match command {
        Command::Service(command) => cli::execute::<KeyService>(command, options),
        Command::Import(import) => import_command::execute(&import),
        Command::RotateMasterKey => cli::execute_own::<KeyService, _>(options, rotate::execute),
        Command::Audit(command) => cli::execute_own::<KeyService, _>(options, |config| audit::execute(command, config)),
    }
}
