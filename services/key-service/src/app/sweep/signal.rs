//! Wakes whoever waits for new events of the sweep.

use tokio::sync::watch;

/// A signal that events were appended. It carries nothing: who is woken reads what there is, so that a lost or doubled signal
/// does no harm.
#[derive(Debug, Clone)]
pub struct EventSignal(watch::Sender<()>);

impl EventSignal {
    /// A signal without listeners.
    #[must_use]
    pub fn new() -> Self {
        Self(watch::Sender::new(()))
    }

    /// Wakes all listeners; to be called after the commit.
    pub fn bump(&self) {
        self.0.send_replace(());
    }

    /// Sees every signal from now on.
    #[must_use]
    pub fn listen(&self) -> watch::Receiver<()> {
        self.0.subscribe()
    }
}

impl Default for EventSignal {
    fn default() -> Self {
        Self::new()
    }
}
