//! Instants in microseconds, the finest that every store here keeps, and their forms on the wire.

use chrono::{DateTime, TimeDelta, Utc};

/// Unix time in microseconds.
pub fn to_micros(at: DateTime<Utc>) -> i64 {
    at.timestamp_micros()
}

/// The instant of a stored unix time in microseconds. Out of chrono's range (some 260,000 years) it is the nearest bound.
pub fn from_micros(micros: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(micros).unwrap_or(if micros < 0 {
        DateTime::<Utc>::MIN_UTC
    } else {
        DateTime::<Utc>::MAX_UTC
    })
}

/// Cuts to the microsecond, towards the past.
pub fn truncate(at: DateTime<Utc>) -> DateTime<Utc> {
    from_micros(to_micros(at))
}

/// The instant as a protobuf timestamp.
pub fn to_proto(at: DateTime<Utc>) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: at.timestamp(), nanos: at.timestamp_subsec_nanos().min(999_999_999) as i32 }
}

/// The instant of a protobuf timestamp, cut to the microsecond. `None` outside the years 1 to 9999 that protobuf allows.
pub fn from_proto(stamp: &prost_types::Timestamp) -> Option<DateTime<Utc>> {
    const FIRST: i64 = -62_135_596_800;
    const LAST: i64 = 253_402_300_799;
    let nanos = u32::try_from(stamp.nanos).ok().filter(|n| *n < 1_000_000_000)?;
    if !(FIRST..=LAST).contains(&stamp.seconds) {
        return None;
    }
    DateTime::from_timestamp(stamp.seconds, nanos).map(truncate)
}

/// The span as a protobuf duration.
pub fn duration_to_proto(span: TimeDelta) -> prost_types::Duration {
    prost_types::Duration { seconds: span.num_seconds(), nanos: span.subsec_nanos() }
}

/// The span of a protobuf duration. `None` where its parts are out of range or of different signs.
pub fn duration_from_proto(span: &prost_types::Duration) -> Option<TimeDelta> {
    const LIMIT: i64 = 315_576_000_000;
    let mixed = (span.seconds > 0 && span.nanos < 0) || (span.seconds < 0 && span.nanos > 0);
    if mixed || span.seconds.abs() > LIMIT || span.nanos.unsigned_abs() > 999_999_999 {
        return None;
    }
    TimeDelta::try_seconds(span.seconds)?.checked_add(&TimeDelta::nanoseconds(span.nanos.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn microseconds_survive_the_wire(micros in -62_135_596_800_000_000i64..253_402_300_799_999_999) {
            let at = from_micros(micros);
            prop_assert_eq!(from_proto(&to_proto(at)), Some(at));
            prop_assert_eq!(to_micros(at), micros);
        }

        #[test]
        fn durations_survive_the_wire(micros in -600_000_000_000i64..600_000_000_000) {
            let span = TimeDelta::microseconds(micros);
            prop_assert_eq!(duration_from_proto(&duration_to_proto(span)), Some(span));
        }
    }

    #[test]
    fn impossible_timestamps_are_refused() {
        for (seconds, nanos) in [(0, -1), (0, 1_000_000_000), (-62_135_596_801, 0), (253_402_300_800, 0), (i64::MAX, 0)]
        {
            assert_eq!(from_proto(&prost_types::Timestamp { seconds, nanos }), None, "{seconds} {nanos}");
        }
    }
}
