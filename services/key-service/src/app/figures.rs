//! How many keys, plans and lots there are in each state.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::Mutex;

use super::StorageError;
use crate::domain::key::ApiKeyState;
use crate::domain::sweep::{LotState, PlanState};

/// How many keys are in each state, or by how many more or fewer they have become.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeyCounts {
    /// ACTIVE, those included whose overlap has run out and awaits its end.
    pub active: i64,
    /// REVOKED.
    pub revoked: i64,
    /// DELETED.
    pub deleted: i64,
}

impl KeyCounts {
    /// The count of a state.
    pub fn of(&self, state: ApiKeyState) -> i64 {
        match state {
            ApiKeyState::Active => self.active,
            ApiKeyState::Revoked => self.revoked,
            ApiKeyState::Deleted => self.deleted,
        }
    }

    /// Counts `keys` more in `state`.
    pub fn add(&mut self, state: ApiKeyState, keys: i64) {
        match state {
            ApiKeyState::Active => self.active += keys,
            ApiKeyState::Revoked => self.revoked += keys,
            ApiKeyState::Deleted => self.deleted += keys,
        }
    }

    /// Counts `keys` that went from ACTIVE to `state`.
    pub fn ended(&mut self, state: ApiKeyState, keys: i64) {
        self.active -= keys;
        self.add(state, keys);
    }
}

/// What the figures need of the database.
#[async_trait]
pub trait FiguresStore: Send + Sync + 'static {
    /// The keys, counted one by one, and the place in the audit at which this is their number.
    async fn count_keys(&self) -> Result<(KeyCounts, i64), StorageError>;
    /// By how much the audit behind `after` says that the count has changed, and the place up to which it says so.
    async fn counted_since(&self, after: i64) -> Result<(KeyCounts, i64), StorageError>;
    /// The plans that there are, by state.
    async fn plans(&self) -> Result<Vec<(PlanState, i64)>, StorageError>;
    /// The lots of the newest plan, by state.
    async fn newest_lots(&self) -> Result<Vec<(LotState, i64)>, StorageError>;
}

/// Everything that is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figures {
    /// The keys.
    pub keys: KeyCounts,
    /// The plans by state; what is not named is none.
    pub plans: Vec<(PlanState, i64)>,
    /// The lots of the newest plan by state; what is not named is none.
    pub lots: Vec<(LotState, i64)>,
}

/// Keeps count. Ten million keys are counted one by one once, when the process starts; from then on the audit, which has an event
/// for every key that begins or ends, tells what has changed.
pub struct FigureKeeper {
    store: Arc<dyn FiguresStore>,
    counted: Mutex<Option<(KeyCounts, i64)>>,
}

impl std::fmt::Debug for FigureKeeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FigureKeeper")
    }
}

impl FigureKeeper {
    /// With nothing counted yet.
    pub fn new(store: Arc<dyn FiguresStore>) -> Self {
        Self { store, counted: Mutex::new(None) }
    }

    /// The figures now.
    ///
    /// # Errors
    /// When the database does not answer; what is counted stays counted.
    pub async fn figures(&self) -> Result<Figures, StorageError> {
        let keys = self.keys().await?;
        Ok(Figures { keys, plans: self.store.plans().await?, lots: self.store.newest_lots().await? })
    }

    /// How many keys are in each state now.
    ///
    /// # Errors
    /// When the database does not answer; what is counted stays counted.
    pub async fn keys(&self) -> Result<KeyCounts, StorageError> {
        let mut counted = self.counted.lock().await;
        let (mut keys, place) = match *counted {
            Some(known) => known,
            None => self.store.count_keys().await?,
        };
        let (change, through) = self.store.counted_since(place).await?;
        for state in [ApiKeyState::Active, ApiKeyState::Revoked, ApiKeyState::Deleted] {
            keys.add(state, change.of(state));
        }
        *counted = Some((keys, through));
        Ok(keys)
    }
}
