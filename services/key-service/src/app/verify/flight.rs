//! One look-up at a time for each secret: who comes while another looks waits, and finds in memory what that one found.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::app::{KeyError, StorageError};
use crate::domain::key::Selector;

/// The look-ups under way.
#[derive(Default)]
pub(super) struct Flights {
    under_way: Mutex<HashMap<Selector, Arc<Turns>>>,
}

/// The turns of those who look the same secret up; the error of the one before, if that is how it went.
type Turns = tokio::sync::Mutex<Option<StorageError>>;

/// A place among those who look the same secret up.
pub(super) struct Flight<'a> {
    flights: &'a Flights,
    selector: Selector,
    turns: Arc<Turns>,
}

impl Flights {
    /// Joins those who look this secret up.
    pub(super) fn join(&self, selector: Selector) -> Flight<'_> {
        let turns = self.lock().entry(selector).or_default().clone();
        Flight { flights: self, selector, turns }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Selector, Arc<Turns>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flight<'_> {
    /// Waits for one's turn, then does `look`. If the one before failed, so does everybody who had joined by then: a
    /// database that is down is not asked once more for each of them.
    pub(super) async fn turn<T>(&self, look: impl AsyncFnOnce() -> Result<T, KeyError>) -> Result<T, KeyError> {
        let mut turn = self.turns.lock().await;
        if let Some(error) = &*turn {
            return Err(error.clone().into());
        }
        let found = look().await;
        if let Err(KeyError::Storage(error)) = &found {
            *turn = Some(error.clone());
            // Who comes later tries anew.
            self.flights.lock().remove(&self.selector);
        }
        found
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let mut under_way = self.flights.lock();
        // The map's own and this one's: the last to leave puts the light out.
        if under_way.get(&self.selector).is_some_and(|turns| Arc::ptr_eq(turns, &self.turns))
            && Arc::strong_count(&self.turns) == 2
        {
            under_way.remove(&self.selector);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn selector() -> Selector {
        Selector::of(&[1; 32])
    }

    #[tokio::test]
    async fn who_waited_for_a_failure_shares_it_and_who_comes_later_does_not() {
        let (flights, asked) = (Flights::default(), AtomicUsize::new(0));
        let fail = async || {
            asked.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            Err::<(), _>(KeyError::from(StorageError::Unavailable("down".into())))
        };
        let one = async || flights.join(selector()).turn(fail).await;
        let all = futures::future::join_all((0..100).map(|_| one())).await;
        assert!(all.iter().all(Result::is_err));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        assert!(one().await.is_err());
        assert_eq!(asked.load(Ordering::SeqCst), 2);
        assert!(flights.lock().is_empty());
    }

    #[tokio::test]
    async fn a_caller_that_gives_up_lets_the_next_one_look() {
        let flights = Flights::default();
        let first = flights.join(selector());
        let second = flights.join(selector());
        let mut stuck = Box::pin(first.turn(async || std::future::pending::<Result<(), KeyError>>().await));
        assert!(futures::poll!(&mut stuck).is_pending());
        drop(stuck);
        drop(first);
        assert!(second.turn(async || Ok(())).await.is_ok());
        drop(second);
        assert!(flights.lock().is_empty());
    }
}
