//! Which of several replicas sweeps: the one that holds the lease in the database and whose clock goes with the database's.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use service_kit::clock::SharedClock;

use super::ports::{Lease, LeaseAnswer, SweepJobError, SweepStore};
use crate::app::StorageError;
use crate::domain::sweep::offset_wait;

/// The database's time, as one reading tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reading {
    /// What its clock showed.
    at: DateTime<Utc>,
    /// How far this process's clock is ahead of it; none: the database has no clock of its own.
    offset: Option<TimeDelta>,
    /// Half the time that the reading took.
    uncertainty: TimeDelta,
}

/// What a replica is at the beginning of an activation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// It holds the lease, since this activation or for longer.
    Leader {
        /// Whether it took the lease just now.
        taken: bool,
    },
    /// Another one holds it.
    Follower,
    /// Its clock cannot be trusted, so that it holds no lease.
    ClockOff {
        /// Why, in words.
        wait: String,
    },
}

#[derive(Debug)]
struct Held {
    lease: Lease,
    /// Lived time at the beginning of its last renewal.
    renewed: Duration,
}

#[derive(Debug, Default)]
struct State {
    held: Option<Held>,
    offset: Option<TimeDelta>,
    wait: Option<String>,
}

/// This replica's part in the lease.
pub struct Leadership {
    store: Arc<dyn SweepStore>,
    clock: SharedClock,
    replica_id: String,
    lasts: TimeDelta,
    state: Mutex<State>,
}

impl std::fmt::Debug for Leadership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leadership").field("replica_id", &self.replica_id).finish_non_exhaustive()
    }
}

impl Leadership {
    /// Of the replica that is `replica_id` in `usage_writers`, without the lease; one that it takes `lasts` so long.
    pub fn new(store: Arc<dyn SweepStore>, clock: SharedClock, replica_id: String, lasts: TimeDelta) -> Self {
        Self { store, clock, replica_id, lasts, state: Mutex::default() }
    }

    /// This replica's name.
    #[must_use]
    pub fn replica_id(&self) -> &str {
        &self.replica_id
    }

    /// Why nothing is planned or deleted by this replica's clock, as far as its last activation could tell.
    #[must_use]
    pub fn clock_wait(&self) -> Option<String> {
        self.with(|state| state.wait.clone())
    }

    /// How far this replica's clock was last seen ahead of the database's; none: the database has no clock of its own.
    pub(super) fn clock_offset(&self) -> Option<TimeDelta> {
        self.with(|state| state.offset)
    }

    /// The time of the sweep: the database's where it has a clock, so that all replicas tell the same, else this process's.
    pub(super) async fn time(&self) -> Result<DateTime<Utc>, StorageError> {
        Ok(self.read().await?.at)
    }

    /// Looks at the clocks, and takes or renews the lease. A replica whose clock is off leaves the lease to others.
    pub(super) async fn stand(&self) -> Result<Standing, StorageError> {
        let reading = self.read().await?;
        let wait = reading.offset.and_then(|offset| offset_wait(offset, reading.uncertainty));
        let was_off = self.with(|state| {
            state.offset = reading.offset;
            std::mem::replace(&mut state.wait, wait.clone()).is_some()
        });
        if let Some(wait) = wait {
            if !was_off {
                tracing::error!(wait, "this replica neither plans nor deletes: its clock and the database's differ");
            }
            self.resign().await?;
            return Ok(Standing::ClockOff { wait });
        }
        if self.fresh().is_some() {
            return Ok(Standing::Leader { taken: false });
        }
        let before = self.with(|state| state.held.as_ref().map(|held| held.lease.token));
        match self.renew(reading.at).await? {
            Some(lease) => Ok(Standing::Leader { taken: before != Some(lease.token) }),
            None => Ok(Standing::Follower),
        }
    }

    /// The lease, for the next transaction; renewed when a third of it has passed.
    pub(super) async fn lease(&self) -> Result<Lease, SweepJobError> {
        if let Some(lease) = self.fresh() {
            return Ok(lease);
        }
        let before = self.with(|state| state.held.as_ref().map(|held| held.lease.token));
        let at = self.read().await?.at;
        match self.renew(at).await? {
            // Lost and taken again: what was read before may have been changed by another since.
            Some(lease) if before != Some(lease.token) => Err(SweepJobError::LeaseLost),
            Some(lease) => Ok(lease),
            None => Err(SweepJobError::LeaseLost),
        }
    }

    /// Forgets a lease that turned out to be another's.
    pub(super) fn lost(&self) {
        self.with(|state| state.held = None);
    }

    /// Gives the lease back, if this replica holds it.
    pub(super) async fn resign(&self) -> Result<(), StorageError> {
        match self.with(|state| state.held.take()) {
            Some(held) => self.store.give_back(&held.lease).await,
            None => Ok(()),
        }
    }

    /// The lease while it needs no renewal.
    fn fresh(&self) -> Option<Lease> {
        let lived = self.clock.lived();
        let third = self.lasts.to_std().unwrap_or_default() / 3;
        self.with(|state| {
            state.held.as_ref().filter(|held| lived < held.renewed + third).map(|held| held.lease.clone())
        })
    }

    async fn renew(&self, at: DateTime<Utc>) -> Result<Option<Lease>, StorageError> {
        let renewed = self.clock.lived();
        let answer = self.store.take_lease(&self.replica_id, self.lasts, at).await?;
        self.with(|state| {
            let before = state.held.take().map(|held| held.lease.token);
            match answer {
                LeaseAnswer::Held(lease) => {
                    if before != Some(lease.token) {
                        tracing::info!(token = lease.token, "this replica sweeps from now on");
                    }
                    state.held = Some(Held { lease: lease.clone(), renewed });
                    Ok(Some(lease))
                }
                LeaseAnswer::Other { owner } => {
                    if before.is_some() {
                        tracing::warn!(owner, "another replica sweeps from now on");
                    }
                    Ok(None)
                }
            }
        })
    }

    async fn read(&self) -> Result<Reading, StorageError> {
        let zero = TimeDelta::zero();
        let sent = self.clock.now();
        if let Some(at) = self.clock.database_now() {
            return Ok(Reading { at, offset: Some(sent - at), uncertainty: zero });
        }
        let before = self.clock.lived();
        let Some(at) = self.store.database_time().await? else {
            return Ok(Reading { at: sent, offset: None, uncertainty: zero });
        };
        let took = TimeDelta::from_std(self.clock.lived().saturating_sub(before)).unwrap_or(TimeDelta::MAX);
        let uncertainty = took / 2;
        Ok(Reading { at, offset: Some(sent + uncertainty - at), uncertainty })
    }

    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
