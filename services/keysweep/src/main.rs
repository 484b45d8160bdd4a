//! The `keysweep` binary.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use service_kit::cli;

/// Runs keysweep on one machine
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start all three services on their default ports, with SQLite in ./keysweep-data
    Up(keysweep::up::Options),
    /// Play a whole quarter on a simulated clock and compare what happened with what was promised
    Quarter(keysweep::quarter::Options),
}

#[tokio::main]
async fn execute(command: Command) -> ExitCode {
    cli::exit_code(match command {
        Command::Up(options) => Box::pin(keysweep::up::run(options)).await,
        Command::Quarter(options) => Box::pin(keysweep::quarter::run(options)).await,
    })
}

fn main() -> ExitCode {
    cli::private(|| execute(Cli::parse().command))
}
