//! What becomes of each key of a played quarter, drawn from the seed.

use chrono::{DateTime, TimeDelta, Utc};
use rand::RngExt;
use rand::rngs::StdRng;

use crate::quarter::calendar::{IDLE, TICK, lead};
use crate::quarter::facts::Stage;

/// What becomes of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Used now and then: never listed.
    Busy,
    /// Never used: deleted.
    Idle,
    /// Used between the first notice and the second.
    RescuedEarly,
    /// Used between the second notice and the third.
    RescuedLate,
    /// Used in the last 24 hours.
    RescuedLast,
    /// Listed, then revoked by an admin.
    Revoked,
    /// Listed, then rotated by an admin.
    Rotated,
    /// Last used exactly 90 days before the sweep: deleted.
    EdgeListed,
    /// Last used a microsecond later: not even listed.
    EdgeSpared,
    /// Taken over from a file; nobody uses it.
    Imported,
}

/// The fates with their shares of a hundred.
const SHARES: [(Fate, u32); 9] = [
    (Fate::Idle, 31),
    (Fate::Busy, 45),
    (Fate::RescuedEarly, 8),
    (Fate::RescuedLate, 6),
    (Fate::RescuedLast, 4),
    (Fate::Revoked, 2),
    (Fate::Rotated, 2),
    (Fate::EdgeListed, 1),
    (Fate::EdgeSpared, 1),
];

/// What somebody does with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Deed {
    /// Presents its secret.
    Use,
    /// Revokes it.
    Revoke,
    /// Rotates it, without overlap.
    Rotate,
}

impl Fate {
    /// The fate of the key with this number. The first keys share out all fates, so that the smallest world shows each.
    pub(crate) fn draw(number: usize, rng: &mut StdRng) -> Self {
        if let Some((fate, _)) = SHARES.get(number) {
            return *fate;
        }
        let mut lot = rng.random_range(0..SHARES.iter().map(|(_, share)| share).sum());
        for (fate, share) in SHARES {
            if lot < share {
                return fate;
            }
            lot -= share;
        }
        Self::Idle
    }

    /// What is done with the key, and when, given the instants of its creation and of the sweep.
    pub(crate) fn deeds(
        self,
        start: DateTime<Utc>,
        sweep: DateTime<Utc>,
        rng: &mut StdRng,
    ) -> Vec<(DateTime<Utc>, Deed)> {
        // Half past, since notices go out on the hour: which of two things at one instant came first nobody can say.
        let mut after = |stage: Stage, hours: std::ops::Range<i64>| {
            sweep - lead(stage) + TimeDelta::hours(rng.random_range(hours)) + TimeDelta::minutes(30)
        };
        match self {
            Self::Idle | Self::Imported => vec![],
            Self::Busy => {
                let mut day = |days: std::ops::Range<i64>| start + TimeDelta::days(rng.random_range(days));
                vec![(day(5..40), Deed::Use), (day(41..74), Deed::Use)]
            }
            Self::RescuedEarly => vec![(after(Stage::D15, 0..180), Deed::Use)],
            Self::RescuedLate => vec![(after(Stage::D7, 0..130), Deed::Use)],
            Self::RescuedLast => vec![(after(Stage::D1, 0..24), Deed::Use)],
            Self::Revoked => vec![(after(Stage::D15, 0..180), Deed::Revoke)],
            Self::Rotated => vec![(after(Stage::D15, 0..180), Deed::Rotate)],
            Self::EdgeListed => vec![(sweep - IDLE, Deed::Use)],
            Self::EdgeSpared => vec![(sweep - IDLE + TICK, Deed::Use)],
        }
    }
}
