//! One email to one person: its life, what a mail server's answers mean, and when to try again.

use chrono::{DateTime, TimeDelta, Utc};

use super::ids::{AgencyId, DeliveryId, PlanId, UserId};
use super::limits::Deferral;
use super::stage::Stage;

/// The life of an email.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryState {
    /// Waits for its first or next attempt.
    Pending,
    /// An attempt is being made.
    Sending,
    /// The mail server accepted it.
    Accepted,
    /// Refused for good, or its attempts ran out.
    Failed,
    /// Had nothing left to tell before it could be sent.
    Cancelled,
}

impl DeliveryState {
    const ALL: [Self; 5] = [Self::Pending, Self::Sending, Self::Accepted, Self::Failed, Self::Cancelled];

    /// The number that stands for the state in the database.
    pub fn code(self) -> i16 {
        match self {
            Self::Pending => 1,
            Self::Sending => 2,
            Self::Accepted => 3,
            Self::Failed => 4,
            Self::Cancelled => 5,
        }
    }

    /// The state of a number in the database.
    pub fn from_code(code: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.code() == code)
    }

    /// The name, as in errors.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Sending => "SENDING",
            Self::Accepted => "ACCEPTED",
            Self::Failed => "FAILED_PERMANENTLY",
            Self::Cancelled => "CANCELLED",
        }
    }
}

/// Where the receipt of a stage stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiptState {
    /// Not all notices are out.
    NotDue,
    /// Owed to key-service.
    Owed,
    /// Recorded by key-service.
    Recorded,
    /// The lot was closed before.
    LotClosed,
    /// Refused by key-service: a fault.
    Refused,
    /// Nobody could be told.
    Undeliverable,
}

/// One email, as operators see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Its id.
    pub id: DeliveryId,
    /// The plan.
    pub plan_id: PlanId,
    /// The agency.
    pub agency_id: AgencyId,
    /// The stage whose notice it is.
    pub stage: Stage,
    /// The admin.
    pub user_id: UserId,
    /// The address in full.
    pub recipient: String,
    /// What became of it.
    pub state: DeliveryState,
    /// Attempts begun since it was created or last retried.
    pub attempts: i32,
    /// The last answer of the mail server.
    pub last_reply: String,
    /// The `Message-ID` without its angle brackets.
    pub message_id: String,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When the last attempt began.
    pub attempted_at: Option<DateTime<Utc>>,
    /// Attempts of which nobody can say whether the server took the message, since it was created.
    pub in_doubt: i32,
    /// When the next attempt is due.
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// What puts off an attempt that is due.
    pub deferral: Option<Deferral>,
    /// When it was settled.
    pub settled_at: Option<DateTime<Utc>>,
    /// Where the receipt of its stage stands.
    pub receipt: ReceiptState,
    /// What key-service answered, where it refused the receipt.
    pub receipt_detail: String,
}

/// What one attempt came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The server took responsibility for the message.
    Accepted(String),
    /// The server refused this recipient or this message for good.
    Refused(String),
    /// The server wants this message later.
    Deferred(String),
    /// The server could not be reached, or refused us rather than the recipient. Says nothing about the address.
    Unavailable(String),
    /// The connection broke after the message was handed over: it may or may not have been taken.
    InDoubt(String),
    /// No attempt was begun.
    Untried,
}

/// How far an attempt that is to be repeated came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contact {
    /// No server looked at the message.
    None,
    /// The server put the message off.
    Answered,
    /// The server may have taken the message.
    InDoubt,
}

/// What to record of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Settled: accepted.
    Accepted {
        /// The server's answer.
        reply: String,
    },
    /// Settled: failed for good.
    Failed {
        /// The server's answer, or why no further attempt is made.
        reply: String,
    },
    /// To be tried again.
    Retry {
        /// When.
        at: DateTime<Utc>,
        /// Since when the server has put this message off; `None` while it has not.
        deferred_since: Option<DateTime<Utc>>,
        /// How far the attempt came.
        contact: Contact,
        /// The server's answer, or what kept it from answering.
        reply: String,
    },
    /// Not attempted after all: its lease would not have lasted, or the process stops. Counts for nothing.
    Untried,
}

/// For how long a server may put one message off before it counts as undeliverable.
pub const PATIENCE: TimeDelta = TimeDelta::hours(24);

/// The delay after the first attempt; it doubles from there.
const FIRST_DELAY_MS: i64 = 5_000;
/// No delay is longer, so that a server that is back gets its mail soon.
const LONGEST_DELAY_MS: i64 = 15 * 60 * 1_000;

/// How long to wait after attempt number `attempt`, from 1. `jitter`, any number, spreads attempts over the second half of
/// the delay, so that a thousand failures do not come back at once.
pub fn retry_delay(attempt: i32, jitter: u32) -> TimeDelta {
    let doublings = attempt.saturating_sub(1).clamp(0, 16);
    let full = (FIRST_DELAY_MS << doublings).min(LONGEST_DELAY_MS);
    let half = full / 2;
    TimeDelta::milliseconds(half + i64::from(jitter) % (half + 1))
}

/// What an attempt's outcome means. Only what a server says of *this* message wears out its patience: an unreachable server is
/// waited for without end, since the lot then is put off rather than its mail given up.
pub fn judge(
    outcome: Outcome,
    attempt: i32,
    deferred_since: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
    jitter: u32,
) -> Verdict {
    let at = now + retry_delay(attempt, jitter);
    match outcome {
        Outcome::Accepted(reply) => Verdict::Accepted { reply },
        Outcome::Refused(reply) => Verdict::Failed { reply },
        Outcome::Unavailable(reply) => Verdict::Retry { at, deferred_since, contact: Contact::None, reply },
        Outcome::Deferred(reply) => put_off(at, attempt, deferred_since, now, Contact::Answered, reply),
        Outcome::InDoubt(reply) => put_off(at, attempt, deferred_since, now, Contact::InDoubt, reply),
        Outcome::Untried => Verdict::Untried,
    }
}

/// Tries again while there is patience left.
fn put_off(
    at: DateTime<Utc>,
    attempt: i32,
    deferred_since: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
    contact: Contact,
    reply: String,
) -> Verdict {
    let since = deferred_since.unwrap_or(now);
    if now - since >= PATIENCE {
        let hours = (now - since).num_hours();
        return Verdict::Failed { reply: format!("gave up after {attempt} attempts in {hours} h: {reply}") };
    }
    Verdict::Retry { at, deferred_since: Some(since), contact, reply }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use service_kit::time::from_micros;

    proptest! {
        #[test]
        fn delays_grow_stay_capped_and_never_vanish(attempt in any::<i32>(), jitter in any::<u32>()) {
            let delay = retry_delay(attempt, jitter).num_milliseconds();
            prop_assert!((FIRST_DELAY_MS / 2..=LONGEST_DELAY_MS).contains(&delay));
        }
    }

    #[test]
    fn delays_double_until_their_cap() {
        let longest: Vec<_> = (1..=10).map(|n| retry_delay(n, u32::MAX).num_seconds()).collect();
        assert!(longest.windows(2).all(|w| w[0] <= w[1] + 1), "{longest:?}");
        assert_eq!(retry_delay(1, 0).num_milliseconds(), FIRST_DELAY_MS / 2);
        assert_eq!(retry_delay(30, 0).num_milliseconds(), LONGEST_DELAY_MS / 2);
    }

    #[test]
    fn only_answers_about_the_message_wear_patience_out() {
        let now = from_micros(1_700_000_000_000_000);
        let long_ago = now - PATIENCE;
        let later =
            |since| matches!(judge(Outcome::Unavailable("x".into()), 9, Some(since), now, 0), Verdict::Retry { .. });
        assert!(later(long_ago - TimeDelta::days(9)));
        let deferred = |since| judge(Outcome::Deferred("451 later".into()), 9, since, now, 0);
        assert!(matches!(deferred(None), Verdict::Retry { deferred_since: Some(since), .. } if since == now));
        assert!(matches!(deferred(Some(long_ago + TimeDelta::microseconds(1))), Verdict::Retry { .. }));
        assert!(
            matches!(deferred(Some(long_ago)), Verdict::Failed { reply } if reply == "gave up after 9 attempts in 24 h: 451 later")
        );
        assert!(matches!(judge(Outcome::InDoubt("lost".into()), 1, None, now, 0), Verdict::Retry { .. }));
        assert!(matches!(judge(Outcome::Refused("550".into()), 1, None, now, 0), Verdict::Failed { .. }));
    }
}
