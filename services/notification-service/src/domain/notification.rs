//! What stands in a user's inbox.

use chrono::{DateTime, TimeDelta, Utc};

use super::ids::{AgencyId, KeyId, NotificationId, PlanId, UserId};
use super::plan::Owner;
use super::stage::Stage;

/// What a notification tells. Each is made once per lot and user, and, where it names one, per stage, key or instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Keys will be deleted.
    Notice(Stage),
    /// A key was used and stays.
    Rescued,
    /// The deletion moved to a later instant.
    Rescheduled,
    /// The deletion does not take place in this quarter.
    Kept,
    /// The deletion has taken place.
    Deleted,
}

impl Kind {
    /// The number that stands for the kind in the database.
    pub fn code(self) -> i16 {
        match self {
            Self::Notice(_) => 1,
            Self::Rescued => 2,
            Self::Rescheduled => 3,
            Self::Kept => 4,
            Self::Deleted => 5,
        }
    }

    /// The kind of a number in the database, with the stage where it names one.
    pub fn from_code(code: i16, stage: Option<Stage>) -> Option<Self> {
        match code {
            1 => stage.map(Self::Notice),
            2 => Some(Self::Rescued),
            3 => Some(Self::Rescheduled),
            4 => Some(Self::Kept),
            5 => Some(Self::Deleted),
            _ => None,
        }
    }
}

/// How many of a notification's keys an answer lists.
pub const LISTED_KEYS: u64 = 100;

/// One notification, with the first of the keys it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// Its id.
    pub id: NotificationId,
    /// Position in the order of all notifications.
    pub sequence: i64,
    /// Whose inbox it is in.
    pub user_id: UserId,
    /// The agency it is about.
    pub agency_id: AgencyId,
    /// The plan it is about.
    pub plan_id: PlanId,
    /// What it tells.
    pub kind: Kind,
    /// The deletion instant announced.
    pub delete_at: DateTime<Utc>,
    /// The deletion instant as known now; `None` where none of its keys is to be deleted any more.
    pub current_delete_at: Option<DateTime<Utc>>,
    /// How many keys it was about when it was made.
    pub key_count: i64,
    /// The first [`LISTED_KEYS`] of them.
    pub keys: Vec<NotificationKey>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was first marked as read.
    pub read_at: Option<DateTime<Utc>>,
    /// Why the deletion does not take place; may be empty.
    pub reason: String,
}

/// One key that a notification is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotificationKey {
    /// The key.
    pub key_id: KeyId,
    /// The account that owns it.
    pub owner: Owner,
    /// That account's name; empty where it is not known.
    pub owner_name: String,
    /// The key's name for people; may be empty.
    pub display_name: String,
    /// The first characters of its secret; may be empty.
    pub display_prefix: String,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// Its last use when the plan was made.
    pub last_used_at: Option<DateTime<Utc>>,
    /// When it left the lot.
    pub left_at: Option<DateTime<Utc>>,
}

/// One page of an inbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboxPage {
    /// Newest first, or, where the inbox is followed, oldest first.
    pub notifications: Vec<Notification>,
    /// Whether there are more after these.
    pub more: bool,
    /// Unread notifications in the whole inbox.
    pub unread: i64,
}

/// Whole days from `now` to `delete_at`, rounded down: a promise of days must never sound longer than it is.
pub fn days_left(delete_at: Option<DateTime<Utc>>, now: DateTime<Utc>) -> i32 {
    let left = delete_at.map_or(TimeDelta::zero(), |at| at - now).max(TimeDelta::zero());
    i32::try_from(left.num_days()).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use service_kit::time::from_micros;

    #[test]
    fn days_left_are_whole_and_never_negative() {
        let now = from_micros(1_000_000_000_000_000);
        let day = TimeDelta::days(1);
        let tick = TimeDelta::microseconds(1);
        assert_eq!(days_left(Some(now + day * 15), now), 15);
        assert_eq!(days_left(Some(now + day * 15 - tick), now), 14);
        assert_eq!(days_left(Some(now + day - tick), now), 0);
        assert_eq!(days_left(Some(now - day * 3), now), 0);
        assert_eq!(days_left(None, now), 0);
    }

    #[test]
    fn kinds_keep_their_codes() {
        for kind in [Kind::Notice(Stage::D7), Kind::Rescued, Kind::Rescheduled, Kind::Kept, Kind::Deleted] {
            assert_eq!(Kind::from_code(kind.code(), Some(Stage::D7)), Some(kind));
        }
        assert_eq!(Kind::from_code(1, None), None);
        assert_eq!(Kind::from_code(9, None), None);
    }
}
