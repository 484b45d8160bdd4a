//! `key-service import`: a file, a running service, a progress bar and a table of what was refused.

use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use keysweep_proto::key::v1::key_service_client::KeyServiceClient;
use service_kit::Deps;
use service_kit::auth::{CertificateFiles, Trust};
use service_kit::cli;
use service_kit::client::{ClientConfig, channel};
use service_kit::violations::is_deceptive;

use super::import_csv::{ImportEvent, ImportSummary, RefusedLine, import};

/// What to import, and where.
#[derive(Args, Debug)]
pub struct ImportOptions {
    /// CSV file with a header; columns: agency_id, location_id, secret, secret_sha256, create_time, last_use_time,
    /// external_reference, display_name, scopes
    file: PathBuf,
    /// The running service
    #[arg(long, default_value = "http://127.0.0.1:50051", value_name = "URL")]
    endpoint: String,
    #[command(flatten)]
    certificates: Certificates,
}

/// What is shown to a service that takes no plaintext, and whom it is believed from. All three, for an https:// endpoint
#[derive(Args, Debug)]
struct Certificates {
    /// PEM file with a certificate that the service lets import, such as one for spiffe://keysweep/operator
    #[arg(long, value_name = "FILE", requires_all = ["private_key", "ca"])]
    certificate: Option<PathBuf>,
    /// PEM file with its private key
    #[arg(long, value_name = "FILE", requires = "certificate")]
    private_key: Option<PathBuf>,
    /// PEM file with the authorities that the service's certificate may come from
    #[arg(long, value_name = "FILE", requires = "certificate")]
    ca: Option<PathBuf>,
}

impl Certificates {
    fn trust(&self) -> anyhow::Result<Trust> {
        let (Some(certificate), Some(private_key), Some(ca)) = (&self.certificate, &self.private_key, &self.ca) else {
            return Ok(Trust::plaintext());
        };
        let files =
            CertificateFiles { certificate: certificate.clone(), private_key: private_key.clone(), ca: ca.clone() };
        Trust::of_client(files, &Deps::system().clock)
    }
}

const CONNECT_TIMEOUT_MS: u64 = 5_000;

/// Imports the file. The exit code is 1 if a row was refused or the import ended early.
pub fn execute(options: &ImportOptions) -> ExitCode {
    match run(options) {
        Ok(summary) if summary.refused == 0 => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => cli::exit_code(Err(error)),
    }
}

#[expect(clippy::print_stdout, reason = "the answer of the import is for a person")]
fn run(options: &ImportOptions) -> anyhow::Result<ImportSummary> {
    let path = options.file.display();
    let file = File::open(&options.file).with_context(|| format!("cannot open {path}"))?;
    let size = file.metadata().with_context(|| format!("cannot read {path}"))?.len();
    // Draws nothing where standard error is no terminal.
    let bar = ProgressBar::new(size);
    bar.set_style(ProgressStyle::with_template("{bar:30} {percent:>3} %  {msg}  {elapsed} gone, {eta} left")?);
    let mut table = Table::default();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")?;
    let trust = options.certificates.trust()?;
    let summary = runtime.block_on(async {
        let config = ClientConfig {
            endpoint: options.endpoint.clone(),
            connect_timeout_ms: CONNECT_TIMEOUT_MS,
            request_timeout_ms: CONNECT_TIMEOUT_MS,
        };
        let channel = channel(&config, &trust).with_context(|| format!("cannot call {}", options.endpoint))?;
        let observe = |event: ImportEvent<'_>| match event {
            ImportEvent::Refused(refused) => bar.suspend(|| table.row(refused)),
            ImportEvent::Progress { bytes, summary } => {
                bar.set_position(bytes);
                bar.set_message(format!("{} imported, {} refused", summary.imported, summary.refused));
            }
        };
        import(file, KeyServiceClient::new(channel), observe).await.with_context(|| format!("cannot import {path}"))
    });
    bar.finish_and_clear();
    let summary = summary?;
    println!("{} imported, {} unchanged, {} refused", summary.imported, summary.unchanged, summary.refused);
    Ok(summary)
}

/// The table of refused rows, printed row by row: an import of millions keeps none in memory.
#[derive(Default)]
struct Table {
    begun: bool,
}

impl Table {
    #[expect(clippy::print_stdout, reason = "the answer of the import is for a person")]
    fn row(&mut self, refused: &RefusedLine) {
        if !self.begun {
            println!("{:>8}  {:<24}  {:<18}  REASON", "LINE", "EXTERNAL REFERENCE", "FIELD");
            self.begun = true;
        }
        let reference = printable(&refused.external_reference);
        println!(
            "{:>8}  {reference:<24}  {:<18}  {}",
            refused.line,
            printable(&refused.field),
            printable(&refused.reason)
        );
    }
}

/// What a file holds must not move the cursor of a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if is_deceptive(c) { '\u{fffd}' } else { c }).collect()
}
