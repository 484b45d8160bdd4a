//! The three notices of a lot and when each is due.

use chrono::{DateTime, TimeDelta, Utc};

/// One notice of a lot, by its lead time before the deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// 15 days before: in-app and by email.
    D15,
    /// 7 days before: in-app.
    D7,
    /// 1 day before: in-app.
    D1,
}

impl Stage {
    /// All stages, in the order in which they are due.
    pub const ALL: [Self; 3] = [Self::D15, Self::D7, Self::D1];

    /// The days that must lie between the notice and the deletion, as the policy promises them.
    pub fn lead(self) -> TimeDelta {
        TimeDelta::days(match self {
            Self::D15 => 15,
            Self::D7 => 7,
            Self::D1 => 1,
        })
    }

    /// Whether the notice also goes out by email.
    pub fn by_email(self) -> bool {
        self == Self::D15
    }

    /// The stage after this one's receipt is in.
    pub fn next(self) -> Option<Self> {
        match self {
            Self::D15 => Some(Self::D7),
            Self::D7 => Some(Self::D1),
            Self::D1 => None,
        }
    }

    /// The number that stands for the stage in the database.
    pub fn code(self) -> i16 {
        match self {
            Self::D15 => 1,
            Self::D7 => 2,
            Self::D1 => 3,
        }
    }

    /// The stage of a number in the database.
    pub fn from_code(code: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| stage.code() == code)
    }

    /// The name, as in logs and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::D15 => "D15",
            Self::D7 => "D7",
            Self::D1 => "D1",
        }
    }

    /// When the notice may begin to go out: a window before its mark, so that everybody has at least the promised days.
    pub fn due_at(self, delete_at: DateTime<Utc>, window: TimeDelta) -> DateTime<Utc> {
        delete_at - self.lead() - window
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_follow_each_other_and_keep_their_codes() {
        assert_eq!(Stage::D15.next().and_then(Stage::next), Some(Stage::D1));
        assert_eq!(Stage::D1.next(), None);
        for stage in Stage::ALL {
            assert_eq!(Stage::from_code(stage.code()), Some(stage));
        }
        assert_eq!(Stage::from_code(0), None);
    }

    #[test]
    fn a_notice_is_due_one_window_before_its_mark() {
        let delete_at = service_kit::time::from_micros(1_767_225_600_000_000);
        let due = Stage::D15.due_at(delete_at, TimeDelta::hours(6));
        assert_eq!(delete_at - due, TimeDelta::days(15) + TimeDelta::hours(6));
    }
}
