//! `notification-service rebuild`: the projection anew, and what became of it in words.

use std::sync::Arc;

use anyhow::Context;
use service_kit::auth::Trust;
use service_kit::client::Peer;
use service_kit::ids::IdGenerator;
use service_kit::{Deps, db};
use tokio_util::sync::CancellationToken;

use crate::app::rebuild::{RebuildProjection, Rebuilt};
use crate::clients::Plans;
use crate::config::Config;
use crate::grpc::SURFACE;
use crate::storage::{Migrator, Store};

/// Rebuilds and says what was done.
///
/// # Errors
/// As [`rebuild`].
#[expect(clippy::print_stdout, reason = "the answer is for a person")]
pub async fn execute(config: Config) -> anyhow::Result<()> {
    let done = rebuild(config, &Deps::system()).await.context("nothing was changed")?;
    let now = done.projected;
    println!("{} events replayed: {} plans, {} lots, {} keys", now.cursor, now.plans, now.lots, now.entries);
    if now.cursor < done.cursor_before {
        println!(
            "key-service's history ends at event {}; the last one applied before was {}: it was restored from an older copy, or is another database",
            now.cursor, done.cursor_before
        );
    }
    Ok(())
}

/// Makes the projection anew from key-service's first event.
///
/// # Errors
/// When the database or key-service cannot be used, or key-service's events do not make a projection; nothing is changed then.
pub async fn rebuild(config: Config, deps: &Deps) -> anyhow::Result<Rebuilt> {
    let database = db::connect(&config.database).await?;
    db::prepare::<Migrator>(&database, &config.database, &deps.clock, &CancellationToken::new()).await?;
    let trust = Trust::open(&config.auth, &SURFACE, &deps.clock)?;
    let key_service = Peer::new(&config.key_service, &trust).context("key_service.endpoint")?;
    let store = Store::new(database.clone(), IdGenerator::new(deps.entropy.clone()), config.mail.domain());
    let rebuild = RebuildProjection {
        source: Arc::new(Plans::new(key_service, config.key_service.request_timeout())),
        store: Arc::new(store),
    };
    let done = rebuild.run(deps.clock.now()).await;
    let closed = database.close().await.context("the database does not close");
    let done = done?;
    closed.map(|()| done)
}
