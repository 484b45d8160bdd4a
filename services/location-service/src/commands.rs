//! The commands of the binary.

use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;
use service_kit::Deps;
use service_kit::cli::{self, Options};
use service_kit::db::connect_existing;
use service_kit::keyring::KeyRing;

use crate::storage::DatabaseStore;
use crate::{Config, LocationService};

/// What the binary can be told to do.
#[derive(Subcommand, Clone, Copy, Debug)]
pub enum Command {
    /// What every service can be told.
    #[command(flatten)]
    Service(cli::Command),
    /// Seal the kept key of every location anew under the key ring's current master key, and say which older ones are no longer needed
    ///
    /// Works on the database itself, beside running replicas, in batches; ended at any moment it is begun again. Every replica must
    /// have the new key ring before.
    RotateMasterKey,
}

/// Does what was told.
pub fn execute(command: Command, options: &Options) -> ExitCode {
    match command {
        Command::Service(command) => cli::execute::<LocationService>(command, options),
        Command::RotateMasterKey => cli::execute_own::<LocationService, _>(options, rotate_master_key),
    }
}

async fn rotate_master_key(config: Config) -> anyhow::Result<()> {
    let deps = Deps::system();
    let sqlite = config.database.sqlite_path();
    let database = connect_existing(&config.database).await?;
    let store = DatabaseStore::new(database.clone());
    let ring = KeyRing::load(&config.keyring, sqlite.as_deref(), false, &*deps.entropy)?;
    store.check_keyring(&ring).await.context("the key ring cannot be used with this database")?;
    let rotated = store.rotate_master_key(&ring, &*deps.entropy).await;
    let closed = database.close().await.context("the database does not close");
    rotated.map(drop).and(closed)
}
