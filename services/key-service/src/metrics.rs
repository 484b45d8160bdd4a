//! What key-service shows besides what all services do; `docs/metrics.md` lists the same.
//!
//! Figures of the database are the same from every replica, those of the sweep are known to the replica that sweeps: take the
//! maximum of them. Figures of memory are each replica's own.

use service_kit::telemetry::Metric;

/// Everything.
pub(crate) const METRICS: &[Metric] = &[
    VERIFICATIONS,
    VERIFICATION_LOOKUPS,
    VERIFICATIONS_THROTTLED,
    REVOCATION_LAG,
    KEYS_IN_MEMORY,
    USES_STORED,
    USES_WAITING,
    USAGE_FLUSH_LAG,
    KEYS,
    SWEEP_PLANS,
    SWEEP_LOTS,
    SWEEP_LOTS_HELD,
    SWEEP_KEYS_DELETED,
    SWEEP_EVENTS_REMOVED,
    SWEEP_LEADER,
    SWEEP_LEASES_TAKEN,
    SWEEP_LEASES_LOST,
    SWEEP_WAITS,
    CLOCK_OFFSET,
];

pub(crate) const VERIFICATIONS: Metric =
    Metric::counter("keysweep_verifications_total", "Answers to presented secrets, by code").by("code", &[]);

pub(crate) const VERIFICATION_LOOKUPS: Metric = Metric::counter(
    "keysweep_verification_lookups_total",
    "Well-formed secrets, by where the answer was found: keys or refusals (memory: hits), database (misses)",
)
.by("from", &[]);

pub(crate) const VERIFICATIONS_THROTTLED: Metric = Metric::counter(
    "keysweep_verifications_throttled_total",
    "Bad secrets refused because their source had presented too many",
);

pub(crate) const REVOCATION_LAG: Metric = Metric::gauge(
    "keysweep_revocation_lag_seconds",
    "Seconds since memory was last known to be in step with the database, just before it is brought in step again: a revocation elsewhere may be unseen for so long; past 4 s nothing is answered from memory",
);

pub(crate) const KEYS_IN_MEMORY: Metric =
    Metric::gauge("keysweep_keys_in_memory", "Keys that this replica verifies from memory");

pub(crate) const USES_STORED: Metric =
    Metric::counter("keysweep_uses_stored_total", "Uses that waited in memory and were stored, one a key and turn");

pub(crate) const USES_WAITING: Metric =
    Metric::gauge("keysweep_uses_waiting", "Keys whose latest use waits in memory to be stored");

pub(crate) const USAGE_FLUSH_LAG: Metric = Metric::gauge(
    "keysweep_usage_flush_lag_seconds",
    "Seconds back to the instant through which every use of this replica is stored; a sweep waits for it",
);

pub(crate) const KEYS: Metric =
    Metric::gauge("keysweep_keys", "Keys in the database, by state: ACTIVE, REVOKED or DELETED");

pub(crate) const SWEEP_PLANS: Metric = Metric::gauge(
    "keysweep_sweep_plans",
    "Plans of sweeps so far, by state: AWAITING_CONFIRMATION, OPEN, COMPLETED or CANCELLED",
);

pub(crate) const SWEEP_LOTS: Metric = Metric::gauge(
    "keysweep_sweep_lots",
    "Lots of the newest plan, by state: OPEN, HELD, EXECUTED, DEFERRED or CANCELLED",
);

pub(crate) const SWEEP_LOTS_HELD: Metric = Metric::gauge(
    "keysweep_sweep_lots_held",
    "Lots that are held while a plan is open, by reason: OPERATOR, NO_AGENCY_ADMIN or ALL_ADDRESSES_REFUSED; from the replica that sweeps",
);

pub(crate) const SWEEP_KEYS_DELETED: Metric =
    Metric::counter("keysweep_sweep_keys_deleted_total", "Keys deleted by sweeps");

pub(crate) const SWEEP_EVENTS_REMOVED: Metric =
    Metric::counter("keysweep_sweep_events_removed_total", "Events of ended plans removed for their age");

pub(crate) const SWEEP_LEADER: Metric = Metric::gauge("keysweep_sweep_leader", "1 on the replica that sweeps, else 0");

pub(crate) const SWEEP_LEASES_TAKEN: Metric =
    Metric::counter("keysweep_sweep_leases_taken_total", "Times that this replica began to be the one that sweeps");

pub(crate) const SWEEP_LEASES_LOST: Metric = Metric::counter(
    "keysweep_sweep_leases_lost_total",
    "Times that another replica had taken over while this one was sweeping",
);

pub(crate) const SWEEP_WAITS: Metric = Metric::gauge(
    "keysweep_sweep_waits",
    "Things that are due in the sweep and cannot be done; the log says which and why",
);

pub(crate) const CLOCK_OFFSET: Metric =
    Metric::gauge("keysweep_clock_offset_seconds", "Seconds that this replica's clock is ahead of PostgreSQL's");
