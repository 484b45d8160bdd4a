//! The binary `notification-service`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use notification_service::{NotificationService, rebuild_command};
use service_kit::cli::{self, Options};

/// Tells people what the quarterly sweep is about to delete: in-app, by banner and by email
#[derive(Debug, Parser)]
#[command(name = "notification-service", version)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Service(cli::Command),
    /// Make the projection of the plans anew from key-service's first event, and stop
    ///
    /// Plans, lots and keys listed are replaced, in one transaction, by what key-service's events up to the last one applied make
    /// of them. Inboxes, notices, emails and receipts are not touched, and nothing is sent. The service may go on running: it waits
    /// where it would apply an event or dispatch a notice. key-service must answer.
    Rebuild,
}

fn main() -> ExitCode {
    let Arguments { options, command } = Arguments::parse();
    cli::private(|| match command {
        Command::Service(command) => cli::execute::<NotificationService>(command, &options),
        Command::Rebuild => cli::execute_own::<NotificationService, _>(&options, rebuild_command::execute),
    })
}
