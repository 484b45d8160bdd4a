//! The binary of location-service.

use std::process::ExitCode;

use clap::Parser;
use location_service::commands::{self, Command};
use service_kit::cli::{self, Options};

/// Agencies, locations and users, and the explicit generation of their API keys
#[derive(Debug, Parser)]
#[command(name = "location-service", version)]
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
