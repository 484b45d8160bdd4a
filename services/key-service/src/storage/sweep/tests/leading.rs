//! Several replicas, wrong clocks: one sweeps, and one that has lost the lease writes nothing.

use std::time::Duration;

use futures::future::BoxFuture;
use service_kit::both_databases;
use service_kit::clock::{SharedClock, SystemClock};
use service_kit::testing::Kind;
use tokio::sync::Semaphore;

use super::super::lease::begin;
use super::deleting::ready;
use super::*;
use crate::app::sweep::{
    BatchOrder, LeaseAnswer, LotOrder, LotOutcome, PlanDraft, SweepJobError, SweepJobs, SweepLease, SweepStanding,
};
use crate::storage::sweep::entities::{plans, receipts};

const LASTS: TimeDelta = TimeDelta::seconds(15);

/// Everything that the sweep may change.
async fn snapshot(house: &House) -> String {
    let db = &house.db;
    format!(
        "{:?} {:?} {:?} {:?} {:?} {:?} {:?}",
        plans::Entity::find().order_by_asc(plans::Column::PlanId).all(db).await.unwrap(),
        lots::Entity::find().order_by_asc(lots::Column::AgencyId).all(db).await.unwrap(),
        receipts::Entity::find().count(db).await.unwrap(),
        entries::Entity::find().order_by_asc(entries::Column::KeyId).all(db).await.unwrap(),
        events::Entity::find().order_by_asc(events::Column::Sequence).all(db).await.unwrap(),
        api_keys::Entity::find().order_by_asc(api_keys::Column::Id).all(db).await.unwrap(),
        audit_events::Entity::find().order_by_asc(audit_events::Column::Sequence).all(db).await.unwrap(),
    )
}

async fn take(house: &House, owner: &str, at: DateTime<Utc>) -> Option<Lease> {
    match house.store.take_lease(owner, LASTS, at).await.unwrap() {
        LeaseAnswer::Held(lease) => Some(lease),
        LeaseAnswer::Other { .. } => None,
    }
}

/// A lease that was lost to another replica, and that replica's.
async fn leases(house: &House) -> (Lease, Lease) {
    let now = house.clock.now();
    let stale = take(house, "rep_stale", now + TimeDelta::days(1)).await.expect("free");
    let current = take(house, "rep_current", now + TimeDelta::days(2)).await.expect("run out");
    assert!(current.token > stale.token);
    (stale, current)
}

/// Tries a write with a lost lease, which changes nothing, and then with the lease.
pub(super) async fn only_the_holder<T>(
    house: &House,
    what: &str,
    write: impl AsyncFn(&Lease) -> Result<T, SweepJobError>,
) -> T {
    let (stale, current) = leases(house).await;
    let before = snapshot(house).await;
    assert!(matches!(write(&stale).await, Err(SweepJobError::LeaseLost)), "{what}");
    let forged = Lease { owner: stale.owner.clone(), ..current.clone() };
    assert!(matches!(write(&forged).await, Err(SweepJobError::LeaseLost)), "{what}: another owner");
    assert_eq!(snapshot(house).await, before, "{what}");
    let done = write(&current).await.expect(what);
    assert_ne!(snapshot(house).await, before, "{what}: it had something to do");
    done
}

/// A flush that waits until it is let through: the sweeper stands between its reading and its writing.
struct Gate {
    arrived: Semaphore,
    open: Semaphore,
}

#[async_trait]
impl LocalUses for Gate {
    async fn flush(&self) {
        self.arrived.add_permits(1);
        self.open.acquire().await.expect("open").forget();
    }

    fn verified(&self) -> u64 {
        0
    }
}

/// A process that is told to end after the first batch of a deletion.
struct Interrupted(CancellationToken);

#[async_trait]
impl LocalUses for Interrupted {
    async fn flush(&self) {}

    fn verified(&self) -> u64 {
        self.0.cancel();
        0
    }
}

/// The system's clock, wrongly set.
#[derive(Debug)]
struct Off(TimeDelta);

impl Clock for Off {
    fn now(&self) -> DateTime<Utc> {
        SystemClock.now() + self.0
    }

    fn lived(&self) -> Duration {
        SystemClock.lived()
    }

    fn sleep_until(&self, at: DateTime<Utc>) -> BoxFuture<'_, ()> {
        SystemClock.sleep_until(at - self.0)
    }

    fn sleep(&self, by: Duration) -> BoxFuture<'_, ()> {
        SystemClock.sleep(by)
    }
}

/// A lot whose every key may be deleted at D, with the clock there.
async fn due(db: TestDatabase) -> House {
    let house = House::new(db).await;
    house.key("key_1", None).await;
    house.key("key_2", None).await;
    house.tick_at(plan_time()).await;
    house.deliver_through("agy_1", Stage::D1).await;
    house.clock.advance_to(d());
    house
}

both_databases! {
    async fn a_lost_lease_makes_no_plan(db: TestDatabase) {
        let house = House::new(db).await;
        house.key("key_1", None).await;
        let draft = PlanDraft {
            plan_id: "plan_1".into(),
            delete_at: d(),
            idle_since: idle(),
            last_delete_at: d() + TimeDelta::days(14),
            stage_window: TimeDelta::hours(6),
            breaker: Breaker::default(),
            active_key_count: 1,
        };
        let made = only_the_holder(&house, "make_plan", async |lease| house.store.make_plan(lease, &draft, plan_time()).await).await;
        assert_eq!(made.map(|plan| plan.entry_count), Some(1));
    }

    async fn a_lost_lease_publishes_and_cancels_nothing(db: TestDatabase) {
        let house = House::with(db, tight_breaker()).await;
        for id in ["key_1", "key_2", "key_3"] {
            house.key(id, None).await;
        }
        house.tick_at(plan_time()).await;
        let plan_id = house.plan().await.plan.plan_id;
        house.service.confirm_plan(&plan_id, operator("yes")).await.unwrap();
        let row = plans::Entity::find_by_id(&plan_id).one(&house.db).await.unwrap().unwrap();
        let publish = async |lease: &Lease| house.store.publish_confirmed(lease, &plan_id, idle(), plan_time()).await;
        assert!(only_the_holder(&house, "publish_confirmed", publish).await.is_some());
        // Back to waiting, for the other end.
        plans::Entity::update_many().col_expr(plans::Column::State, Expr::value(row.state)).exec(&house.db).await.unwrap();
        let cancel = async |lease: &Lease| house.store.cancel_unpublished(lease, &plan_id, "too late", plan_time()).await;
        assert!(only_the_holder(&house, "cancel_unpublished", cancel).await);
    }

    async fn a_lost_lease_rescues_and_deletes_nothing(db: TestDatabase) {
        let house = due(db).await;
        house.set("key_1", api_keys::Column::LastUsedAt, to_micros(d())).await;
        let plan = house.plan().await.plan;
        let rescue = async |lease: &Lease| house.store.rescue_ineligible(lease, &plan, None, d()).await;
        assert_eq!(only_the_holder(&house, "rescue_ineligible", rescue).await.rescued, 1);
        let zero = TimeDelta::zero();
        let lots = vec![LotOrder { agency_id: "agy_1".into(), delete_at: d(), slack: zero }];
        let order = BatchOrder { plan_id: plan.plan_id.clone(), lots, limit: 9 };
        let done = only_the_holder(&house, "delete_batch", async |lease| house.store.delete_batch(lease, &order, d()).await).await;
        assert_eq!(done, [LotOutcome::Done { deleted: 1, kept: 0, closed: true }]);
        let complete = async |lease: &Lease| house.store.complete_plan(lease, &plan.plan_id, d()).await;
        assert!(only_the_holder(&house, "complete_plan", complete).await);
    }

    async fn a_lost_lease_closes_and_defers_nothing(db: TestDatabase) {
        let house = House::new(db).await;
        house.key_of("key_1", "agy_1", None, None).await;
        house.key_of("key_2", "agy_2", None, None).await;
        house.tick_at(plan_time()).await;
        house.use_key("key_1").await.unwrap();
        assert_eq!(only_the_holder(&house, "close_emptied", async |lease| house.store.close_emptied(lease, 9, d()).await).await, 1);
        let late = d() + TimeDelta::days(14) + TICK;
        assert_eq!(only_the_holder(&house, "defer_overdue", async |lease| house.store.defer_overdue(lease, 9, late).await).await, 1);
    }

    async fn a_sweeper_that_stood_still_between_reading_and_writing_writes_nothing(db: TestDatabase) {
        let house = due(db).await;
        // Time passes unseen by the one that stands still, as for a stopped process, or so that it can tell.
        for seen in [false, true] {
            let gate = Arc::new(Gate { arrived: Semaphore::new(0), open: Semaphore::new(0) });
            let name = if seen { "rep_slow" } else { "rep_stopped" };
            let parts = house.parts(house.clock.clone(), name, 9);
            let paused = Sweeper::new(SweeperParts { usage: gate.clone(), ..parts });
            let now = house.clock.now();
            let (tick, ()) = tokio::join!(paused.tick(now), async {
                gate.arrived.acquire().await.unwrap().forget();
                let later = now + TimeDelta::minutes(1);
                if seen { house.clock.advance_to(later) } else { house.clock.set_to(later) }
                take(&house, "rep_other", later).await.expect("it has run out");
                gate.open.add_permits(1);
            });
            let tick = tick.unwrap();
            assert_eq!((tick.standing, tick.lease_taken, tick.work()), (SweepStanding::LeaseLost, true, 0), "{name}");
            assert_eq!((house.key_state("key_1").await, house.key_state("key_2").await), (1, 1), "{name}");
            assert_eq!(house.lease().await.owner, "rep_other");
            assert_eq!(paused.tick(house.clock.now()).await.unwrap().standing, SweepStanding::Following);
            house.clock.advance(TimeDelta::minutes(1));
        }
        let tick = house.tick_at(house.clock.now()).await;
        assert_eq!((tick.standing, tick.keys_deleted), (SweepStanding::Leading, 2));
    }

    async fn a_process_that_ends_leaves_the_rest_of_a_deletion_to_the_next(db: TestDatabase) {
        let house = ready(db, &["key_1", "key_2", "key_3", "key_4", "key_5"], 2).await;
        let end = CancellationToken::new();
        let parts = house.parts(house.clock.clone(), "rep_ending", 9);
        let ending = Sweeper::new(SweeperParts { usage: Arc::new(Interrupted(end.clone())), end, ..parts });
        let tick = ending.tick(d()).await.unwrap();
        assert_eq!((tick.standing, tick.keys_deleted), (SweepStanding::Leading, 2), "the batch that was under way");
        ending.resign().await.unwrap();
        let tick = house.tick_at(d()).await;
        assert_eq!((tick.keys_deleted, tick.plans_completed), (3, 1));
    }

    async fn one_sweeps_until_it_stops_or_falls_silent(db: TestDatabase) {
        let house = House::new(db).await;
        house.key("key_1", None).await;
        let other = house.another_sweeper();
        let now = plan_time() - TimeDelta::hours(1);
        let tick = house.tick_at(now).await;
        assert_eq!((tick.standing, tick.lease_taken), (SweepStanding::Leading, true));
        assert!(!house.tick_at(now).await.lease_taken, "held already");
        let first = house.lease().await;
        assert_eq!(first.owner, "rep_me");
        // A sign of life each second keeps it.
        for second in 1..60 {
            let at = now + TimeDelta::seconds(second);
            assert_eq!(house.tick_at(at).await.standing, SweepStanding::Leading);
            assert_eq!(other.tick(at).await.unwrap(), SweepTick { clock_offset_us: Some(0), ..SweepTick::default() });
        }
        assert_eq!(house.lease().await, first);
        // Silent, it loses the lease when that has run out, and the one that takes it does in the same activation what is due.
        house.clock.advance_to(plan_time());
        let tick = other.tick(plan_time()).await.unwrap();
        assert_eq!((tick.standing, tick.lease_taken, tick.plans_made), (SweepStanding::Leading, true, 1));
        assert_eq!(house.lease().await.token, first.token + 1);
        assert_eq!(house.tick_at(plan_time()).await.standing, SweepStanding::Following);
        // Stopped, it gives the lease back, and nobody needs to wait.
        other.resign().await.unwrap();
        let tick = house.tick_at(plan_time()).await;
        assert_eq!((tick.standing, tick.lease_taken), (SweepStanding::Leading, true));
        assert_eq!(house.lease().await.token, first.token + 2);
        other.resign().await.unwrap();
        assert_eq!(house.lease().await.owner, "rep_me", "what is lost is not given back");
    }

    async fn a_lease_runs_out_at_its_instant_and_not_before(db: TestDatabase) {
        let house = House::new(db).await;
        let at = plan_time();
        assert!(take(&house, "rep_1", at).await.is_some());
        assert_eq!(take(&house, "rep_2", at + LASTS - TICK).await, None);
        assert_eq!(take(&house, "rep_2", at).await, None);
        // A reading of a moment ago is no clock that was set back.
        assert_eq!(take(&house, "rep_2", at - LASTS).await, None);
        assert!(take(&house, "rep_2", at + LASTS).await.is_some());
        assert!(take(&house, "rep_3", at - TICK).await.is_some(), "a lease of a future that was taken back binds nobody");
    }

    async fn a_clock_off_the_databases_plans_and_deletes_nothing(db: TestDatabase) {
        let house = House::new(db).await;
        house.key("key_1", None).await;
        let (limit, zero) = (TimeDelta::seconds(10), TimeDelta::zero());
        for off in [limit + TICK, -limit - TICK] {
            house.clock.set_database_lead(off);
            let tick = house.tick_at(plan_time()).await;
            assert_eq!((tick.standing, tick.plans_made, tick.waits.len()), (SweepStanding::ClockOff, 0, 1));
            assert_eq!(tick.clock_offset_us, Some(-off.num_microseconds().unwrap()));
            assert!(tick.waits[0].contains("off the database's"), "{:?}", tick.waits);
        }
        house.clock.set_database_lead(limit);
        assert_eq!(house.tick_at(plan_time()).await.plans_made, 1);
        house.clock.set_database_lead(zero);
        house.deliver_through("agy_1", Stage::D1).await;
        house.tick_at(d() - TICK).await;
        assert_eq!(house.lease().await.owner, "rep_me");
        house.clock.set_database_lead(-limit - TICK);
        let tick = house.tick_at(d()).await;
        assert_eq!((tick.standing, tick.keys_deleted), (SweepStanding::ClockOff, 0));
        let waits = house.lot("agy_1").await.waits_for;
        assert!(waits.iter().any(|wait| wait.contains("off the database's")), "{waits:?}");
        // Another replica, whose clock is right, has the lease at once and does what is due.
        let right = Arc::new(SimulatedClock::new(d()));
        let tick = house.another_sweeper_by(right).tick(d()).await.unwrap();
        assert_eq!((tick.standing, tick.lease_taken, tick.keys_deleted), (SweepStanding::Leading, true, 1));
    }

    /// By the real clocks: PostgreSQL tells its own, SQLite has none.
    async fn the_databases_own_clock_is_asked(db: TestDatabase) {
        let house = House::new(db).await;
        let own = house.store.database_time().await.unwrap();
        for (off, trusted) in [(0, true), (5, true), (30, false), (-30, false)] {
            let clock: SharedClock = Arc::new(Off(TimeDelta::seconds(off)));
            let sweeper = house.another_sweeper_by(clock.clone());
            let tick = sweeper.tick(clock.now()).await.unwrap();
            let leads = tick.standing == SweepStanding::Leading;
            assert_eq!(leads, trusted || own.is_none(), "{off}: {tick:?}");
            let seen = tick.clock_offset_us.map(|micros| (micros as f64 / 1e6).round() as i64);
            assert_eq!(seen, own.map(|_| off), "{off}");
            sweeper.resign().await.unwrap();
        }
    }
}

#[tokio::test]
#[cfg_attr(keysweep_no_postgres, ignore = "left out: no PostgreSQL server is installed")]
async fn a_lease_is_not_taken_from_under_a_transaction() {
    let house = House::new(TestDatabase::new(Kind::Postgres)).await;
    let at = plan_time();
    let lease = take(&house, "rep_1", at).await.unwrap();
    let tx = begin(&house.db, &lease).await.unwrap();
    let later = at + TimeDelta::minutes(1);
    assert_eq!(take(&house, "rep_2", later).await, None, "its holder is writing");
    tx.commit().await.unwrap();
    assert!(take(&house, "rep_2", later).await.is_some());
    assert!(matches!(begin(&house.db, &lease).await, Err(SweepJobError::LeaseLost)));
}

#[tokio::test]
#[cfg_attr(keysweep_no_postgres, ignore = "left out: no PostgreSQL server is installed")]
async fn who_stops_in_a_transaction_loses_it_with_its_lease() {
    let house = House::new(TestDatabase::new(Kind::Postgres)).await;
    let at = plan_time();
    let lease = Lease { lasts: TimeDelta::milliseconds(50), ..take(&house, "rep_1", at).await.unwrap() };
    let tx = begin(&house.db, &lease).await.unwrap();
    plans::Entity::delete_many().exec(&tx).await.unwrap();
    let taken = async { while take(&house, "rep_2", at + LASTS).await.is_none() {} };
    tokio::time::timeout(Duration::from_secs(30), taken).await.expect("the database ends the transaction");
    assert!(tx.commit().await.is_err());
}
