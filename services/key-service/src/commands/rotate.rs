//! `key-service rotate-master-key`.

use anyhow::Context;
use serde_json::json;
use service_kit::Deps;
use service_kit::actor::Actor;
use service_kit::db::connect_existing;
use service_kit::keyring::{KeyRing, rotate_master_key};

use crate::app::keys::KeyStore;
use crate::config::Config;
use crate::domain::audit::{NewAuditEvent, Origin};
use crate::storage::sealed::SEALED;
use crate::storage::{SqlStore, keyring_check};

/// Seals everything anew, and notes in the audit that it was done.
///
/// # Errors
/// When the database or the key ring cannot be used, or a secret does not open.
pub(super) async fn execute(config: Config) -> anyhow::Result<()> {
    let deps = Deps::system();
    let db = connect_existing(&config.database).await?;
    let sqlite = config.database.sqlite_path();
    let ring = KeyRing::load(&config.keyring, sqlite.as_deref(), false, &*deps.entropy)?;
    keyring_check::check(&db, &ring).await.context("the database cannot be read; is it migrated?")?;
    let rotated = rotate_master_key(&db, &ring, &SEALED, &*deps.entropy).await;
    if let Ok(secrets @ 1..) = rotated {
        let event = NewAuditEvent {
            occurred_at: deps.clock.now(),
            actor: Actor::Service("key-service".to_owned()),
            action: "master_key.rotated",
            agency_id: None,
            key_id: None,
            plan_id: None,
            reason: String::new(),
            request_id: String::new(),
            origin: Origin::default(),
            detail: json!({ "master_version": ring.current_master(), "secrets": secrets }),
        };
        SqlStore::new(db.clone()).audit(event).await?;
    }
    let closed = db.close().await.context("the database does not close");
    rotated.map(drop).and(closed)
}
