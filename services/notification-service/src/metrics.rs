//! What notification-service shows besides what all services do; `docs/metrics.md` lists the same.
//!
//! Figures of the database are the same from every replica: take the maximum of them. Those of the subscription are each replica's
//! own.

use service_kit::telemetry::Metric;

/// Everything.
pub(crate) const METRICS: &[Metric] = &[
    NOTICES,
    NOTIFICATIONS,
    RECEIPTS_REFUSED,
    DELIVERIES,
    DELIVERY_LAG,
    EMAIL_ATTEMPTS,
    EMAILS_DEFERRED,
    EMAIL_LEASES_LOST,
    SUBSCRIPTION_CONNECTED,
    SUBSCRIPTION_LAG_EVENTS,
    SUBSCRIPTION_LAG,
    SUBSCRIPTION_BREAKS,
    SUBSCRIPTION_FAULT,
    CLOCK_OFFSET,
];

pub(crate) const NOTICES: Metric =
    Metric::gauge("keysweep_notices", "Notices of the lots of open plans, by stage (D15, D7, D1) and state");

pub(crate) const NOTIFICATIONS: Metric =
    Metric::counter("keysweep_notifications_total", "Notifications put into inboxes, by stage")
        .by("stage", &["D15", "D7", "D1"]);

pub(crate) const RECEIPTS_REFUSED: Metric =
    Metric::counter("keysweep_receipts_refused_total", "Receipts of notices that key-service did not take");

pub(crate) const DELIVERIES: Metric = Metric::gauge(
    "keysweep_deliveries",
    "Emails that wait (PENDING), are being sent (SENDING) or have failed for good (FAILED_PERMANENTLY), by state",
);

pub(crate) const DELIVERY_LAG: Metric =
    Metric::gauge("keysweep_delivery_lag_seconds", "Seconds that the email that is due the longest has been due");

pub(crate) const EMAIL_ATTEMPTS: Metric = Metric::counter(
    "keysweep_email_attempts_total",
    "Attempts to hand an email to the mail server, by outcome: accepted, retry, in_doubt, failed (for good) or untried (given back before it was sent)",
)
.by("outcome", &["accepted", "retry", "in_doubt", "failed", "untried"]);

pub(crate) const EMAILS_DEFERRED: Metric = Metric::gauge(
    "keysweep_emails_deferred",
    "Emails that are due and wait for a send limit, by limit: per_second or per_day",
);

pub(crate) const EMAIL_LEASES_LOST: Metric = Metric::counter(
    "keysweep_email_leases_lost_total",
    "Emails whose outcome was not recorded because another replica had taken them over",
);

pub(crate) const SUBSCRIPTION_CONNECTED: Metric = Metric::gauge(
    "keysweep_subscription_connected",
    "1 while this replica is subscribed to key-service's plans, else 0",
);

pub(crate) const SUBSCRIPTION_LAG_EVENTS: Metric =
    Metric::gauge("keysweep_subscription_lag_events", "Events of key-service that are not applied yet");

pub(crate) const SUBSCRIPTION_LAG: Metric = Metric::gauge(
    "keysweep_subscription_lag_seconds",
    "Seconds for which an event that was heard of has not been applied; 0 while there is none",
);

pub(crate) const SUBSCRIPTION_BREAKS: Metric =
    Metric::counter("keysweep_subscription_breaks_total", "Times that the subscription to key-service's plans broke");

pub(crate) const SUBSCRIPTION_FAULT: Metric = Metric::gauge(
    "keysweep_subscription_fault",
    "1 for the fault that keeps key-service's events from being applied, else 0, by fault",
);

pub(crate) const CLOCK_OFFSET: Metric = Metric::gauge(
    "keysweep_clock_offset_seconds",
    "Seconds that this machine's clock is ahead of key-service's, which alone counts for notices",
);
