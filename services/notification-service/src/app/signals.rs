//! Tells those who wait inside this process that something was written. Whoever misses a signal finds the change by looking
//! again after a while, as it must anyway where another replica wrote it.

use tokio::sync::watch;

/// What waiting parties are woken by.
#[derive(Debug, Default)]
pub struct Signals {
    projection: watch::Sender<u64>,
    inbox: watch::Sender<u64>,
}

impl Signals {
    /// Events were applied, or an instant's notices were dispatched.
    pub fn projection_changed(&self) {
        self.projection.send_modify(|n| *n = n.wrapping_add(1));
        self.inbox_changed();
    }

    /// Notifications were made or marked as read.
    pub fn inbox_changed(&self) {
        self.inbox.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Wakes at each change of the projection.
    pub fn projection(&self) -> watch::Receiver<u64> {
        self.projection.subscribe()
    }

    /// Wakes at each change of an inbox.
    pub fn inbox(&self) -> watch::Receiver<u64> {
        self.inbox.subscribe()
    }
}
