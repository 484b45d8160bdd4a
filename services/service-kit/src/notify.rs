//! A word from one replica to the others that something changed, over PostgreSQL's LISTEN and NOTIFY.
//!
//! It only makes them look sooner: a word may be lost, so whoever listens also looks from time to time.

use std::time::Duration;

use sea_orm::sqlx::postgres::PgListener;
use sea_orm::{ConnectionTrait, DatabaseBackend, DatabaseTransaction, DbErr};
use secrecy::ExposeSecret;
use tokio_util::sync::CancellationToken;

use crate::db::DatabaseConfig;

/// How long to wait before listening anew.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// Tells the listeners of `channel`, once the transaction is committed. On SQLite, which has no other replicas, nothing
/// happens.
///
/// # Errors
/// As the database has them.
pub async fn notify(tx: &DatabaseTransaction, channel: &'static str) -> Result<(), DbErr> {
    if tx.get_database_backend() == DatabaseBackend::Postgres {
        tx.execute_unprepared(&format!("NOTIFY {channel}")).await?;
    }
    Ok(())
}

/// Calls `heard` whenever something was told on `channel` or may have been missed, until `shutdown`. On SQLite it returns
/// at once.
pub async fn listen(
    config: &DatabaseConfig,
    channel: &'static str,
    shutdown: CancellationToken,
    heard: impl Fn() + Send,
) {
    if config.sqlite_path().is_some() {
        return;
    }
    let listening = async {
        loop {
            if let Err(error) = listen_once(config, channel, &heard).await {
                tracing::warn!(channel, %error, "cannot listen for changes of other replicas; looking every second goes on");
            }
            tokio::time::sleep(LISTEN_AGAIN).await;
        }
    };
    let _stopped: Option<()> = shutdown.run_until_cancelled(listening).await;
}

async fn listen_once(config: &DatabaseConfig, channel: &str, heard: &impl Fn()) -> Result<(), sea_orm::sqlx::Error> {
    let mut listener = PgListener::connect(config.url.expose_secret()).await?;
    listener.listen(channel).await?;
    heard();
    // None says that the connection was lost.
    while listener.try_recv().await?.is_some() {
        heard();
    }
    Ok(())
}
