//! Sources that present bad secrets are slowed down.
//!
//! A source is an IPv4 address or the /64 of an IPv6 one. Each has a budget of secrets that are not in memory; what
//! goes over it is looked up in a narrow lane, and if it is bad it is answered with an error that says when to come again. A
//! key in memory is never counted, and a good one never refused.

use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::time::Duration;

use service_kit::clock::SharedClock;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::app::limiter::PerMinute;

/// Look-ups at once for all the sources that are over their budgets.
const LANE: usize = 4;

/// How guessing is slowed.
#[derive(Debug, Clone, Copy)]
pub struct GuessSettings {
    /// Secrets not in memory that one source may present a minute before it is slowed.
    pub per_minute: NonZeroU32,
    /// Sources that are remembered; what is over shares one budget.
    pub max_sources: usize,
}

/// Counts the guesses of each source.
#[derive(Debug)]
pub(super) struct Guesses {
    budgets: PerMinute<Source>,
    lane: Semaphore,
}

/// Who guesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Source {
    V4([u8; 4]),
    V6([u8; 8]),
}

/// Leave to look a secret up.
pub(super) enum Leave<'a> {
    /// Within the budget.
    Free,
    /// Over it: one of few at a time, and a bad secret is refused until then.
    Slowed(#[expect(dead_code, reason = "held for as long as the look-up takes")] SemaphorePermit<'a>, Duration),
}

impl Guesses {
    pub(super) fn new(settings: GuessSettings, clock: SharedClock) -> Self {
        Self { budgets: PerMinute::new(settings.per_minute, settings.max_sources, clock), lane: Semaphore::new(LANE) }
    }

    /// Counts a secret that is not in memory. A call that does not say where it comes from stands for many sources and is
    /// not counted.
    pub(super) async fn leave(&self, source: Option<IpAddr>) -> Leave<'_> {
        let Some(source) = source else { return Leave::Free };
        match self.budgets.admit(Source::of(source)) {
            Ok(()) => Leave::Free,
            Err(retry_after) => match self.lane.acquire().await {
                Ok(permit) => Leave::Slowed(permit, retry_after),
                Err(_) => Leave::Free,
            },
        }
    }

    /// Forgets the sources that have been quiet.
    pub(super) fn tidy(&self) {
        self.budgets.tidy();
    }
}

impl Source {
    fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip.octets()),
            IpAddr::V6(ip) => Self::V6(network_of(ip)),
        }
    }
}

/// Whoever has one address of a /64 has all of them.
fn network_of(ip: Ipv6Addr) -> [u8; 8] {
    let mut network = [0; 8];
    network.copy_from_slice(&ip.octets()[..8]);
    network
}
