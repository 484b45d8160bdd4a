//! Whether the stored last uses can be trusted at a cutoff.

use chrono::{DateTime, TimeDelta, Utc};

/// A writer that has not flushed for this long is taken for dead. Flushes come every second; two minutes outlast a
/// restart of the database.
const DEAD_AFTER: TimeDelta = TimeDelta::minutes(2);

/// Margin for clocks of replicas that differ.
const CLOCK_MARGIN: TimeDelta = TimeDelta::minutes(5);

/// A process that records uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageWriter {
    /// Its name.
    pub replica_id: String,
    /// Every use it saw up to this instant is stored.
    pub flushed_through_at: DateTime<Utc>,
    /// When it stopped cleanly, everything stored; none: it runs, or died.
    pub closed_at: Option<DateTime<Utc>>,
}

/// What is to be thought of the stored last uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UsageVerdict {
    /// They are exact around the cutoff.
    Exact,
    /// A replica died near the cutoff: a stored use may be older than the true one by the slack.
    CountSlack,
    /// A replica has not stored its uses up to the cutoff yet: wait.
    Wait {
        /// The replica.
        replica_id: String,
    },
}

/// Judges the stored last uses at `cutoff`. `this_replica` flushed just before and so counts as alive.
///
/// A use is kept in memory only while the stored one is younger than `slack`, and so is what the replica has said of its flushes. So a
/// replica that was last heard of at F, dead or hanging, can lose uses in (F, F + slack] of keys whose stored use is at most `slack`
/// older. That changes a decision at the cutoff only if F lies
/// within `slack` of it.
#[must_use]
pub fn judge_usage(
    writers: &[UsageWriter],
    this_replica: &str,
    cutoff: DateTime<Utc>,
    slack: TimeDelta,
    now: DateTime<Utc>,
) -> UsageVerdict {
    let mut verdict = UsageVerdict::Exact;
    for writer in writers.iter().filter(|writer| writer.closed_at.is_none()) {
        let flushed = writer.flushed_through_at;
        let alive = writer.replica_id == this_replica || flushed >= now - DEAD_AFTER;
        if alive {
            if flushed < cutoff + slack {
                return UsageVerdict::Wait { replica_id: writer.replica_id.clone() };
            }
        } else if flushed > cutoff - slack - CLOCK_MARGIN && flushed < cutoff + slack + CLOCK_MARGIN {
            verdict = UsageVerdict::CountSlack;
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLACK: TimeDelta = TimeDelta::hours(1);

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).unwrap()
    }

    fn cutoff() -> DateTime<Utc> {
        now() - TimeDelta::days(90)
    }

    fn writer(id: &str, flushed: DateTime<Utc>, closed: bool) -> UsageWriter {
        UsageWriter { replica_id: id.into(), flushed_through_at: flushed, closed_at: closed.then_some(flushed) }
    }

    fn judge(writers: &[UsageWriter]) -> UsageVerdict {
        judge_usage(writers, "me", cutoff(), SLACK, now())
    }

    #[test]
    fn live_and_cleanly_closed_writers_leave_uses_exact() {
        assert_eq!(judge(&[]), UsageVerdict::Exact);
        assert_eq!(judge(&[writer("me", now(), false), writer("other", now(), false)]), UsageVerdict::Exact);
        assert_eq!(judge(&[writer("gone", cutoff(), true)]), UsageVerdict::Exact);
    }

    #[test]
    fn a_death_near_the_cutoff_counts_the_slack() {
        let tick = TimeDelta::microseconds(1);
        let near = SLACK + CLOCK_MARGIN;
        for (flushed, expected) in [
            (cutoff(), UsageVerdict::CountSlack),
            (cutoff() - near + tick, UsageVerdict::CountSlack),
            (cutoff() - near, UsageVerdict::Exact),
            (cutoff() + near - tick, UsageVerdict::CountSlack),
            (cutoff() + near, UsageVerdict::Exact),
            (now() - DEAD_AFTER - tick, UsageVerdict::Exact),
        ] {
            assert_eq!(judge(&[writer("dead", flushed, false)]), expected, "{flushed}");
        }
    }

    #[test]
    fn this_replica_must_have_flushed_past_the_cutoff() {
        let behind = writer("me", cutoff() + SLACK - TimeDelta::microseconds(1), false);
        assert_eq!(judge(&[behind]), UsageVerdict::Wait { replica_id: "me".into() });
        assert_eq!(judge(&[writer("me", cutoff() + SLACK, false)]), UsageVerdict::Exact);
    }

    #[test]
    fn a_live_replica_behind_a_recent_cutoff_is_waited_for() {
        let verdict = judge_usage(&[writer("other", now(), false)], "me", now() + SLACK, SLACK, now());
        assert_eq!(verdict, UsageVerdict::Wait { replica_id: "other".into() });
    }
}
