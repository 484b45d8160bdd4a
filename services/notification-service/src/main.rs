//! The binary `notification-service`.

use std::process::ExitCode;

use clap::Parser;
use notification_service::NotificationService;
use service_kit::cli::{self, Command, Options};

/// Tells people what the quarterly sweep is about to delete: in-app, by banner and by email
#[derive(Debug, Parser)]
#[command(name = "notification-service", version)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    cli::execute::<NotificationService>(arguments.command, &arguments.options)
}
