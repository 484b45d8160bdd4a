//! Enhanced Account Security: an agency's choice, and what holds while it has made none.

use chrono::{DateTime, Utc};
use service_kit::actor::Actor;
use service_kit::time::from_micros;

/// 2024-06-17T00:00:00Z, from which on the setting is on for everybody who has not chosen otherwise.
const DEFAULT_ON_FROM_MICROS: i64 = 1_718_582_400_000_000;

/// What an agency admin has chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Whether the setting is on.
    pub enabled: bool,
    /// Who chose; a person.
    pub actor: Actor,
    /// When.
    pub chosen_at: DateTime<Utc>,
}

/// The setting as it holds at an instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecuritySetting {
    /// Whether Enhanced Account Security is on.
    pub enabled: bool,
    /// The choice it comes from. `None`: nobody has chosen, and the default holds.
    pub choice: Option<Choice>,
}

impl SecuritySetting {
    /// What holds at `now`: the choice if there is one, else on from the default's instant.
    pub fn effective(choice: Option<Choice>, now: DateTime<Utc>) -> Self {
        let enabled =
            choice.as_ref().map_or_else(|| now >= from_micros(DEFAULT_ON_FROM_MICROS), |choice| choice.enabled);
        Self { enabled, choice }
    }

    /// The person in whose name keys are generated with new locations: who opted out. `None` unless somebody has, since a
    /// default that merely is off is nobody's request for a key.
    pub fn standing_request(&self) -> Option<&Actor> {
        self.choice.as_ref().filter(|choice| !choice.enabled).map(|choice| &choice.actor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeDelta;

    fn start() -> DateTime<Utc> {
        "2024-06-17T00:00:00Z".parse().expect("an instant")
    }

    fn chosen(enabled: bool) -> Option<Choice> {
        Some(Choice { enabled, actor: Actor::User("usr_1".into()), chosen_at: start() })
    }

    #[test]
    fn the_default_turns_on_at_its_instant_to_the_microsecond() {
        let one = TimeDelta::microseconds(1);
        for (now, enabled) in [(start() - one, false), (start(), true), (start() + one, true)] {
            let setting = SecuritySetting::effective(None, now);
            assert_eq!((setting.enabled, setting.choice.is_none()), (enabled, true), "{now}");
            assert_eq!(setting.standing_request(), None, "{now}");
        }
    }

    #[test]
    fn a_choice_outweighs_the_default_on_both_sides() {
        let one = TimeDelta::microseconds(1);
        for now in [start() - one, start() + one] {
            assert!(SecuritySetting::effective(chosen(true), now).enabled);
            assert!(!SecuritySetting::effective(chosen(false), now).enabled);
        }
    }

    #[test]
    fn only_an_opt_out_is_a_standing_request() {
        assert_eq!(SecuritySetting::effective(chosen(true), start()).standing_request(), None);
        assert_eq!(
            SecuritySetting::effective(chosen(false), start()).standing_request(),
            Some(&Actor::User("usr_1".into()))
        );
    }
}
