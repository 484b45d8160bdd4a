//! Plays one quarter and looks after each step whether everything holds.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use key_service::app::StorageError;
use key_service::app::keys::{Generate, ImportTally, KeyChanges, Revoke, Rotate, Update};
use key_service::app::sweep::{NoticeReply, OperatorCall, SweepStanding};
use key_service::domain::audit::Origin;
use key_service::domain::key::{Overlap, Presented, RawCredential, RawImportRow, RawOwner, RawTime, Secret};
use key_service::domain::sweep::{Breaker, HoldReason, Notice, NoticeKind, Stage, SweepPolicy};
use key_service::storage::Migrator;
use sea_orm::DatabaseConnection;
use service_kit::actor::Actor;
use service_kit::clock::{Clock, SimulatedClock};
use service_kit::db;
use service_kit::testing::TestDatabase;
use service_kit::time::{from_micros, to_micros};
use service_kit::violations::Violations;

use super::check::Checker;
use super::model::{CUTOFF, D, DAY, HOUR, Hold, Key, LAST, LEADS, MINUTE, Model};
use super::replica::Replica;
use super::steps::{AGENCIES, Quarter, REPLICAS, Step};
use crate::support::{admin, order, text};

/// How long after its change a key may still be answered as it was.
const STALE: TimeDelta = TimeDelta::seconds(5);

/// What was played.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) quarters: u64,
    pub(super) steps: u64,
    pub(super) crashes: u64,
    pub(super) clock_jumps: u64,
    pub(super) uses: u64,
    pub(super) deleted: u64,
    pub(super) rescued: u64,
}

impl Totals {
    pub(super) fn add(&mut self, other: &Self) {
        self.quarters += other.quarters;
        self.steps += other.steps;
        self.crashes += other.crashes;
        self.clock_jumps += other.clock_jumps;
        self.uses += other.uses;
        self.deleted += other.deleted;
        self.rescued += other.rescued;
    }
}

/// When each phase of a quarter begins, and how long a usual wait in it is.
const PHASES: [(i64, i64); 6] = [
    (CUTOFF - 3 * HOUR, 40 * MINUTE),
    (D - LEADS[0] - 6 * HOUR, 3 * HOUR),
    (D - LEADS[0], 2 * DAY),
    (D - LEADS[1], 2 * DAY),
    (D - LEADS[2], 6 * HOUR),
    (D, 3 * DAY),
];

struct Play {
    db: DatabaseConnection,
    clock: Arc<SimulatedClock>,
    policy: SweepPolicy,
    replicas: Vec<Replica>,
    hanging: [bool; REPLICAS],
    /// Processes that came up so far.
    started: u64,
    wait: i64,
    model: Model,
    checker: Checker,
    /// The processes whose sweepers the step has woken.
    swept: Vec<usize>,
    totals: Totals,
    _database: TestDatabase,
}

pub(super) async fn play(database: TestDatabase, quarter: Quarter) -> Totals {
    let mut play = Play::begin(database, quarter.tight).await;
    for (phase, steps) in quarter.phases.iter().enumerate() {
        let (begins, wait) = PHASES[phase];
        play.wait = wait;
        play.until(begins).await;
        if phase > 0 {
            play.step(&Step::Tick { replica: Some(0) }).await;
        }
        if let (true, Some(stage)) = (quarter.told, phase.checked_sub(2).filter(|stage| *stage < 3)) {
            for agency in 0..AGENCIES {
                let step = Step::Delivered { agency, stage, minutes_ago: 0, twice: false, behind: Some(0) };
                play.step(&step).await;
            }
        }
        for step in steps {
            play.step(step).await;
        }
    }
    play.end().await
}

fn agency_id(agency: usize) -> String {
    format!("agy_{agency}")
}

impl Play {
    async fn begin(database: TestDatabase, tight: bool) -> Self {
        let db = db::connect(&database.config()).await.unwrap();
        db::migrate::<Migrator>(&db).await.unwrap();
        let clock = Arc::new(SimulatedClock::new(from_micros(PHASES[0].0)));
        let breaker = if tight { Breaker { max_percent: 1, max_keys: 2 } } else { Breaker::default() };
        let policy = SweepPolicy { delete_batch: 2, breaker, ..SweepPolicy::default() };
        let mut play = Self {
            db,
            clock,
            policy,
            replicas: Vec::new(),
            hanging: [false; REPLICAS],
            started: 0,
            wait: 0,
            model: Model::default(),
            checker: Checker::default(),
            swept: Vec::new(),
            totals: Totals { quarters: 1, ..Totals::default() },
            _database: database,
        };
        for _ in 0..REPLICAS {
            let replica = play.start().await;
            play.replicas.push(replica);
        }
        for key in 0..4 * AGENCIES {
            play.import(key % AGENCIES, 100 * DAY).await;
        }
        play
    }

    async fn start(&mut self) -> Replica {
        self.started += 1;
        Replica::start(&self.db, &self.clock, self.policy, self.started).await
    }

    fn now(&self) -> i64 {
        to_micros(self.clock.now())
    }

    /// Time passes; every second each process does its jobs.
    async fn pass(&mut self, by: i64) {
        self.clock.advance(TimeDelta::microseconds(by));
        if by >= 1_000_000 {
            for replica in &self.replicas {
                replica.jobs().await;
            }
        }
    }

    async fn until(&mut self, at: i64) {
        let by = at - self.now();
        if by > 0 {
            self.pass(by).await;
        }
    }

    async fn step(&mut self, step: &Step) {
        self.totals.steps += 1;
        self.swept.clear();
        match step {
            Step::Generate { .. } | Step::Import { .. } | Step::Use { .. } => self.make_or_use(step).await,
            Step::Revoke { .. } | Step::Rotate { .. } | Step::Expire { .. } => self.change(step).await,
            Step::Tick { replica } => self.tick(*replica).await,
            Step::Delivered { agency, stage, minutes_ago, twice, behind } => {
                let (now, told) = (self.now(), self.now() - minutes_ago * MINUTE);
                let behind = behind.map(|behind| behind * MINUTE);
                let at = from_micros(told - behind.unwrap_or(0));
                let kind = NoticeKind::Delivered { at, in_app_count: 1, emails_accepted: 1 };
                let sent_at = behind.map(|behind| from_micros(now - behind));
                // What a clock says that is ahead is believed, as far as it can be.
                let counts = behind.map_or(now, |behind| now.min(told + (-behind).max(0)));
                for _ in 0..1 + usize::from(*twice) {
                    self.report(*agency, *stage, kind, sent_at, counts).await;
                }
            }
            Step::Nobody { agency, stage } => {
                let kind = NoticeKind::Undeliverable(HoldReason::NoAgencyAdmin);
                self.report(*agency, *stage, kind, None, 0).await;
            }
            Step::Hold { .. } | Step::Release { .. } | Step::Confirm | Step::Cancel => self.operate(step).await,
            Step::Wait { thousandths } => self.pass(self.wait / 1_000 * thousandths).await,
            Step::Moment => self.pass(1).await,
            Step::SetClock { minutes } => {
                self.totals.clock_jumps += 1;
                self.clock.set_to(from_micros(self.now() + minutes * MINUTE));
                self.model.clock_was_set(minutes * MINUTE);
                for (place, replica) in self.replicas.iter().enumerate() {
                    replica.jobs().await;
                    assert_eq!(replica.ahead().num_microseconds(), Some(self.model.ahead[place]), "the watch");
                }
            }
            Step::Crash { replica } | Step::Restart { replica } => {
                let new = self.start().await;
                let old = std::mem::replace(&mut self.replicas[*replica], new);
                (self.model.ahead[*replica], self.hanging[*replica]) = (0, false);
                if matches!(step, Step::Restart { .. }) {
                    old.stop().await;
                } else {
                    self.totals.crashes += 1;
                    drop(old);
                }
            }
            Step::Hang { replica } => {
                self.hanging[*replica] ^= true;
                self.replicas[*replica].hang(self.hanging[*replica]);
            }
        }
        let now = self.now();
        self.checker.check(&self.db, &mut self.model, now, &self.swept).await;
    }

    async fn make_or_use(&mut self, step: &Step) {
        match step {
            Step::Generate { agency, location } => {
                let mut order = order("");
                order.spec.owner.agency_id = agency_id(*agency);
                order.spec.owner.location_id = location.then(|| format!("loc_{agency}"));
                self.generate(&order).await;
            }
            Step::Import { agency, used_minutes_ago } => self.import(*agency, used_minutes_ago * MINUTE).await,
            Step::Use { key, replica } => {
                let place = key % self.model.keys.len();
                let (key, now) = (self.model.keys[place].clone(), self.now());
                let secret = Secret::new(&key.secret);
                let answer = self.replicas[*replica].verifier.verify(&secret, &Presented::default()).await.unwrap();
                let code = answer.code.as_str();
                let stale = key.changed.is_some_and(|changed| self.clock.lived() < changed + STALE.to_std().unwrap());
                assert!(code == key.code(now) || stale, "{code} for {key:?} at {now}");
                if code == "valid" {
                    self.totals.uses += 1;
                    self.model.used(place, now);
                }
            }
            other => unreachable!("{other:?}"),
        }
    }

    async fn generate(&mut self, order: &Generate) {
        let issued = self.replicas[0].keys.generate(&admin(), order).await.unwrap();
        let (id, secret) = (issued.key.key_id.clone(), text(&issued));
        self.add(id, secret, &order.spec.owner.agency_id, self.now());
    }

    async fn import(&mut self, agency: usize, used_ago: i64) {
        let number = self.model.keys.len();
        let (secret, agency_id) = (format!("an-older-secret-{number:04}"), agency_id(agency));
        let used_at = self.now() - used_ago;
        let row = RawImportRow {
            owner: RawOwner::Agency(agency_id.clone()),
            credential: RawCredential::Secret(Secret::new(&secret)),
            created_at: RawTime::At(from_micros(PHASES[0].0 - 500 * DAY)),
            last_used_at: RawTime::At(from_micros(used_at)),
            external_reference: format!("old-{number}"),
            display_name: String::new(),
            scopes: Vec::new(),
        };
        let mut tally = ImportTally::default();
        self.replicas[0].keys.import_chunk(&admin(), vec![row], &mut tally).await.unwrap();
        assert_eq!(tally.imported, 1);
        let sql = format!("SELECT id FROM api_keys WHERE external_reference = 'old-{number}'");
        let id = super::check::rows(&self.db, &sql).await[0].try_get("", "id").unwrap();
        self.add(id, secret, &agency_id, used_at);
    }

    fn add(&mut self, id: String, secret: String, agency: &str, last_use: i64) {
        let changed = Some(self.clock.lived());
        let agency = agency.to_owned();
        let key =
            Key { id, secret, agency, last_use, ends: None, successor: false, expires: None, deleted: None, changed };
        self.model.keys.push(key);
    }

    async fn change(&mut self, step: &Step) {
        let now = self.now();
        let keys = |replica: &usize| self.replicas[*replica].keys.clone();
        let (Step::Revoke { key, .. } | Step::Rotate { key, .. } | Step::Expire { key, .. }) = step else {
            unreachable!()
        };
        let place = key % self.model.keys.len();
        let key = self.model.keys[place].clone();
        let (key_id, active) = (key.id.clone(), matches!(key.code(now), "valid" | "expired"));
        let changed = Some(self.clock.lived());
        match step {
            Step::Revoke { replica, .. } => {
                let command = Revoke { key_id, reason: String::new(), request_id: String::new() };
                let revoked = keys(replica).revoke(&admin(), &command).await;
                assert_eq!(revoked.is_ok(), key.deleted.is_none(), "{key:?}: {revoked:?}");
                if active {
                    let key = &mut self.model.keys[place];
                    (key.ends, key.changed) = (Some(now), changed);
                }
            }
            Step::Rotate { replica, overlap_hours, .. } => {
                let overlap = TimeDelta::hours(*overlap_hours);
                let overlap = Overlap::parse(overlap, "overlap", &mut Violations::default());
                let command = Rotate { key_id, overlap, request_id: String::new() };
                let rotated = keys(replica).rotate(&admin(), &command).await;
                assert_eq!(rotated.is_ok(), key.code(now) == "valid" && !key.successor, "{key:?}: {rotated:?}");
                if let Ok(rotated) = rotated {
                    let old = &mut self.model.keys[place];
                    (old.ends, old.successor, old.changed) = (Some(now + overlap_hours * HOUR), true, changed);
                    let (id, secret) = (rotated.successor.key.key_id.clone(), text(&rotated.successor));
                    self.add(id, secret, &key.agency, now);
                    self.model.keys.last_mut().unwrap().expires = key.expires;
                }
            }
            Step::Expire { replica, hours, .. } => {
                let expires = hours.map(|hours| now + hours * HOUR);
                let changes = KeyChanges { expires_at: Some(expires.map(from_micros)), ..KeyChanges::default() };
                let command = Update { key_id, etag: String::new(), changes, request_id: String::new() };
                let updated = keys(replica).update(&admin(), &command).await;
                assert_eq!(updated.is_ok(), active, "{key:?}: {updated:?}");
                if active {
                    let key = &mut self.model.keys[place];
                    (key.expires, key.changed) = (expires, changed);
                }
            }
            other => unreachable!("{other:?}"),
        }
    }

    /// Another sweeper's transaction may be in the way of one: the next activation goes on.
    async fn tick(&mut self, replica: Option<usize>) {
        let now: DateTime<Utc> = self.clock.now();
        self.swept = replica.map_or_else(|| (0..REPLICAS).collect(), |replica| vec![replica]);
        let ticks =
            futures::future::join_all(self.swept.iter().map(|place| self.replicas[*place].sweeper.tick(now))).await;
        let mut done = false;
        for tick in ticks {
            match tick {
                Ok(tick) => done |= tick.standing == SweepStanding::Leading && tick.waits.is_empty(),
                Err(StorageError::Conflict(_)) if replica.is_none() => return,
                Err(error) => panic!("{error}"),
            }
        }
        // Who does not lead, or waits, has nothing to show; where several are at work, the last one may have come too late.
        if done && replica.is_some() {
            let now = self.now();
            self.checker.check(&self.db, &mut self.model, now, &self.swept).await;
            Checker::after_work(&self.model, now);
        }
    }

    /// A report of notices that, if they were delivered, count as delivered at `counts`.
    async fn report(
        &mut self,
        agency: usize,
        stage: usize,
        kind: NoticeKind,
        sent_at: Option<DateTime<Utc>>,
        counts: i64,
    ) {
        let Some(plan_id) = self.checker.plan_id() else { return };
        let notice = Notice { plan_id, agency_id: agency_id(agency), stage: Stage::ALL[stage], kind };
        let (results, _) = self.replicas[0].service.acknowledge(&[notice], sent_at).await.unwrap();
        let Some(lot) = self.model.lots.get_mut(&agency_id(agency)) else {
            assert_eq!(results[0].reply, NoticeReply::Refused, "a lot that is not");
            return;
        };
        if results[0].reply != NoticeReply::Recorded {
            return;
        }
        assert!(lot.receipts[stage].is_some() || stage == 0 || lot.receipts[stage - 1].is_some(), "out of order");
        match kind {
            NoticeKind::Delivered { .. } => lot.told(stage, counts),
            NoticeKind::Undeliverable(_) => lot.nobody(stage),
        }
    }

    async fn operate(&mut self, step: &Step) {
        let Some(plan_id) = self.checker.plan_id() else { return };
        let service = &self.replicas[1].service;
        let call = OperatorCall {
            actor: Some(Actor::User("usr_op".into())),
            reason: "because".into(),
            request_id: String::new(),
            call_id: "call-1".into(),
            origin: Origin::default(),
        };
        // What a state does not allow is refused, which is an answer like others.
        match step {
            Step::Hold { agency } => {
                let held = service.hold_lot(&plan_id, &agency_id(*agency), call).await.is_ok();
                let lot = self.model.lots.get_mut(&agency_id(*agency)).filter(|lot| !lot.closed);
                assert_eq!(held, lot.is_some(), "HoldLot");
                lot.into_iter().for_each(|lot| lot.hold = Some(Hold::Operator));
            }
            Step::Release { agency } => {
                let released = service.release_lot(&plan_id, &agency_id(*agency), call).await.is_ok();
                let lot = self.model.lots.get_mut(&agency_id(*agency)).filter(|lot| lot.hold.is_some());
                assert_eq!(released, lot.is_some(), "ReleaseLot");
                lot.into_iter().for_each(|lot| lot.hold = None);
            }
            Step::Confirm => {
                let _ = service.confirm_plan(&plan_id, call).await;
            }
            Step::Cancel => {
                if service.cancel_plan(&plan_id, call).await.is_ok() {
                    self.model.cancelled = true;
                    self.model.lots.values_mut().for_each(super::model::Lot::close);
                }
            }
            other => unreachable!("{other:?}"),
        }
    }

    /// Whatever happened: when all processes are well again, everything comes to an end with the plan's last date.
    async fn end(mut self) -> Totals {
        for replica in 0..REPLICAS {
            self.step(&Step::Restart { replica }).await;
        }
        self.until(LAST + 1).await;
        for replica in [Some(0), None] {
            self.step(&Step::Tick { replica }).await;
        }
        self.checker.end(&self.db, &self.model).await;
        for replica in std::mem::take(&mut self.replicas) {
            replica.stop().await;
        }
        Totals { deleted: self.checker.deleted, rescued: self.checker.rescued, ..self.totals }
    }
}
