//! What may happen in a quarter.

use proptest::prelude::*;

/// Agencies of a quarter.
pub(super) const AGENCIES: usize = 3;
/// Processes of key-service on its database.
pub(super) const REPLICAS: usize = 2;
/// The parts of a quarter: around the cutoff, after the plan is due, and after each mark.
pub(super) const PHASES: usize = 6;

/// One thing that happens. Keys are named by a number that is taken modulo how many there are.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Generate {
        agency: usize,
        location: bool,
    },
    /// A key taken over, last used so many minutes ago.
    Import {
        agency: usize,
        used_minutes_ago: i64,
    },
    Use {
        key: usize,
        replica: usize,
    },
    Revoke {
        key: usize,
        replica: usize,
    },
    Rotate {
        key: usize,
        replica: usize,
        overlap_hours: i64,
    },
    /// The key shall expire in so many hours; none: never.
    Expire {
        key: usize,
        replica: usize,
        hours: Option<i64>,
    },
    /// One sweeper, or both at once.
    Tick {
        replica: Option<usize>,
    },
    /// The notices of a stage were delivered, by a sender whose clock is behind by so many minutes; none: it does not tell its time.
    Delivered {
        agency: usize,
        stage: usize,
        minutes_ago: i64,
        twice: bool,
        behind: Option<i64>,
    },
    /// Nobody can be told.
    Nobody {
        agency: usize,
        stage: usize,
    },
    Hold {
        agency: usize,
    },
    Release {
        agency: usize,
    },
    Confirm,
    Cancel,
    /// Time passes, in thousandths of the phase's usual wait.
    Wait {
        thousandths: i64,
    },
    /// The least time passes.
    Moment,
    /// The clock is set, by so many minutes.
    SetClock {
        minutes: i64,
    },
    /// A process dies with what it has in memory, and another one comes up.
    Crash {
        replica: usize,
    },
    /// A process ends as it should, and another one comes up.
    Restart {
        replica: usize,
    },
    /// A process stores its uses no more, or again.
    Hang {
        replica: usize,
    },
}

/// Where a sender's clock stands, in minutes behind.
fn behind() -> impl Strategy<Value = Option<i64>> {
    prop_oneof![3 => Just(Some(0)), 3 => (-600..2_000_i64).prop_map(Some), 1 => Just(None)]
}

fn any_step() -> impl Strategy<Value = Step> {
    let (agency, replica, key) = (0..AGENCIES, 0..REPLICAS, 0..24_usize);
    prop_oneof![
        2 => (agency.clone(), any::<bool>()).prop_map(|(agency, location)| Step::Generate { agency, location }),
        2 => (agency.clone(), 0..240_i64).prop_map(|(agency, used_minutes_ago)| Step::Import { agency, used_minutes_ago }),
        14 => (key.clone(), replica.clone()).prop_map(|(key, replica)| Step::Use { key, replica }),
        1 => (key.clone(), replica.clone()).prop_map(|(key, replica)| Step::Revoke { key, replica }),
        1 => (key.clone(), replica.clone(), 0..48_i64)
            .prop_map(|(key, replica, overlap_hours)| Step::Rotate { key, replica, overlap_hours }),
        1 => (key, replica.clone(), proptest::option::of(1..200_i64))
            .prop_map(|(key, replica, hours)| Step::Expire { key, replica, hours }),
        4 => proptest::option::weighted(0.7, replica.clone()).prop_map(|replica| Step::Tick { replica }),
        6 => (agency.clone(), 0..3_usize, -1..1_800_i64, any::<bool>(), behind())
            .prop_map(|(agency, stage, minutes_ago, twice, behind)| Step::Delivered { agency, stage, minutes_ago, twice, behind }),
        1 => (agency.clone(), 0..3_usize).prop_map(|(agency, stage)| Step::Nobody { agency, stage }),
        1 => agency.clone().prop_map(|agency| Step::Hold { agency }),
        1 => agency.prop_map(|agency| Step::Release { agency }),
        9 => (0..1_000_i64).prop_map(|thousandths| Step::Wait { thousandths }),
        1 => Just(Step::Moment),
        1 => prop_oneof![-3_000..-1_i64, 1..6_000_i64].prop_map(|minutes| Step::SetClock { minutes }),
        2 => replica.clone().prop_map(|replica| Step::Crash { replica }),
        1 => replica.clone().prop_map(|replica| Step::Restart { replica }),
        1 => replica.prop_map(|replica| Step::Hang { replica }),
    ]
}

/// Around the cutoff it matters which use was stored when, and which was lost.
fn step_at_the_cutoff() -> impl Strategy<Value = Step> {
    let replica = 0..REPLICAS;
    prop_oneof![
        10 => (0..6_usize, replica.clone()).prop_map(|(key, replica)| Step::Use { key, replica }),
        8 => (0..1_000_i64).prop_map(|thousandths| Step::Wait { thousandths }),
        1 => Just(Step::Moment),
        2 => replica.clone().prop_map(|replica| Step::Crash { replica }),
        2 => replica.prop_map(|replica| Step::Hang { replica }),
        2 => any_step(),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    // What ends a whole plan comes seldom, or nothing else would be seen.
    prop_oneof![200 => any_step(), 3 => Just(Step::Confirm), 1 => Just(Step::Cancel)]
}

/// A quarter: what happens in each of its phases, whether every notice goes out on its mark, and whether the breaker is tight.
#[derive(Debug, Clone)]
pub(super) struct Quarter {
    pub(super) phases: Vec<Vec<Step>>,
    pub(super) told: bool,
    pub(super) tight: bool,
}

pub(super) fn quarter() -> impl Strategy<Value = Quarter> {
    let first = proptest::collection::vec(step_at_the_cutoff(), 4..30);
    let others = proptest::collection::vec(proptest::collection::vec(step(), 2..12), PHASES - 1);
    let phases = (first, others).prop_map(|(first, others)| std::iter::once(first).chain(others).collect());
    (phases, proptest::bool::weighted(0.7), proptest::bool::weighted(0.15)).prop_map(|(phases, told, tight)| Quarter {
        phases,
        told,
        tight,
    })
}
