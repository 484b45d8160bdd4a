//! The binary `key-service`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use key_service::KeyService;
use key_service::clients::import_command::{self, ImportOptions};
use mimalloc::MiMalloc;
use service_kit::cli::{self, Options};

/// A call makes and frees some dozens of small pieces of memory: with this allocator it costs about a tenth less.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Keeps the API keys of agencies and locations, verifies them, and sweeps away the unused ones
#[derive(Parser)]
#[command(name = "key-service", version)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Service(cli::Command),
    /// Take over existing keys from a CSV file, through a running service; exit code 1 if a row was refused
    Import(ImportOptions),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command {
        Command::Service(command) => cli::execute::<KeyService>(command, &arguments.options),
        Command::Import(options) => import_command::execute(&options),
    }
}
