//! The binary `key-service`.

use std::process::ExitCode;

use clap::Parser;
use key_service::commands::{self, Command};
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

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    cli::private(|| commands::execute(arguments.command, &arguments.options))
}
