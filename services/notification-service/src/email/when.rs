//! Instants in words.

use chrono::{DateTime, Offset, TimeZone, Utc};
use chrono_tz::Tz;

/// `1 January 2026`, in UTC.
pub(super) fn date(at: DateTime<Utc>) -> String {
    at.format("%-d %B %Y").to_string()
}

/// `3 Mar 2024`, in UTC.
pub(super) fn short_date(at: DateTime<Utc>) -> String {
    at.format("%-d %b %Y").to_string()
}

/// `Thursday, 1 January 2026, 00:00 UTC`.
pub(super) fn instant(at: DateTime<Utc>) -> String {
    at.format("%A, %-d %B %Y, %H:%M UTC").to_string()
}

/// `1 Jan 2026, 00:00 UTC`.
pub(super) fn short_instant(at: DateTime<Utc>) -> String {
    at.format("%-d %b %Y, %H:%M UTC").to_string()
}

/// `Wednesday, 31 December 2025, 19:00 in New York (UTC−05:00)`; `None` where the zone is unknown or shows the same as UTC.
pub(super) fn local_instant(at: DateTime<Utc>, time_zone: &str) -> Option<String> {
    let zone: Tz = time_zone.parse().ok()?;
    let local = zone.from_utc_datetime(&at.naive_utc());
    let seconds = local.offset().fix().local_minus_utc();
    let place = zone.name();
    if seconds == 0 && (!place.contains('/') || place.starts_with("Etc/")) {
        return None;
    }
    let (sign, minutes) = (if seconds < 0 { '−' } else { '+' }, seconds.abs() / 60);
    let city = place.rsplit('/').next().unwrap_or(place).replace('_', " ");
    Some(format!(
        "{} in {city} (UTC{sign}{:02}:{:02})",
        local.format("%A, %-d %B %Y, %H:%M"),
        minutes / 60,
        minutes % 60
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().expect("an instant")
    }

    #[test]
    fn instants_read_well_here_and_there() {
        let midnight = at("2026-01-01T00:00:00Z");
        assert_eq!(instant(midnight), "Thursday, 1 January 2026, 00:00 UTC");
        let local = |zone| local_instant(midnight, zone);
        assert_eq!(
            local("America/New_York").as_deref(),
            Some("Wednesday, 31 December 2025, 19:00 in New York (UTC−05:00)")
        );
        assert_eq!(
            local("Asia/Kathmandu").as_deref(),
            Some("Thursday, 1 January 2026, 05:45 in Kathmandu (UTC+05:45)")
        );
        assert_eq!(local("Europe/London").as_deref(), Some("Thursday, 1 January 2026, 00:00 in London (UTC+00:00)"));
        for without in ["UTC", "Etc/UTC", "Mars/Olympus", ""] {
            assert_eq!(local(without), None, "{without}");
        }
        let summer = at("2026-07-01T00:00:00Z");
        assert_eq!(
            local_instant(summer, "Europe/London").as_deref(),
            Some("Wednesday, 1 July 2026, 01:00 in London (UTC+01:00)")
        );
    }
}
