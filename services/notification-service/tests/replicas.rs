//! Several replicas on one database do what one does; what may be sent is counted once for all of them.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use futures::StreamExt;
use keysweep_proto::key::v1::NoticeStage;
use keysweep_proto::notification::v1::{self as proto, DeliveryState};
use notification_service::app::deliver::Deliver;
use notification_service::app::dispatch::Dispatch;
use notification_service::app::ports::*;
use notification_service::app::subscribe::SharedStatus;
use notification_service::domain::delivery::{Contact, Outcome, Verdict};
use notification_service::domain::ids::{AgencyId, LocationId};
use notification_service::domain::limits::{SendLimit, SendLimits};
use notification_service::domain::recipient::{AgencyFacts, Reach, Recipient, RecipientChunk};
use notification_service::domain::stage::Stage;
use notification_service::email::Writer;
use notification_service::storage::{Migrator, Store};
use sea_orm::DatabaseConnection;
use service_kit::both_databases;
use service_kit::clock::{Clock, SimulatedClock};
use service_kit::entropy::SeededEntropy;
use service_kit::ids::IdGenerator;
use service_kit::testing::TestDatabase;
use service_kit::time::from_proto;
use support::seed::{published, tell};
use support::{World, deletion, due, told};
use tokio_util::sync::CancellationToken;

const MINUTE: TimeDelta = TimeDelta::minutes(1);

async fn connect(db: &TestDatabase) -> DatabaseConnection {
    let db = service_kit::db::connect(&db.config()).await.expect("connected");
    service_kit::db::migrate::<Migrator>(&db).await.expect("migrated");
    db
}

fn store(db: &DatabaseConnection, seed: u64) -> Store {
    let ids = IdGenerator::new(Arc::new(SeededEntropy::new(seed)));
    Store::new(db.clone(), ids, "keysweep.example".into())
}

/// A store with the emails of the first notice of these agencies, each with so many admins, due at `now`.
async fn queued(db: &TestDatabase, now: DateTime<Utc>, agencies: &[(&str, usize)]) -> (DatabaseConnection, Store) {
    let db = connect(db).await;
    let store = store(&db, 1);
    store.apply(published(agencies.iter().map(|(agency, _)| *agency)), now).await.expect("applied");
    for (agency, admins) in agencies {
        tell(&store, agency, *admins, now).await;
    }
    (db, store)
}

async fn claim(store: &Store, owner: &str, now: DateTime<Utc>, limit: u64) -> Vec<ClaimedDelivery> {
    store.claim(owner, now, now + MINUTE, limit).await.expect("claimed")
}

fn accepted(claimed: &[ClaimedDelivery]) -> Vec<(ClaimedDelivery, Verdict)> {
    claimed.iter().map(|one| (one.clone(), Verdict::Accepted { reply: "250 ok".into() })).collect()
}

fn by_agency(claimed: &[ClaimedDelivery]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for one in claimed {
        *counts.entry(one.stage.agency_id.as_str()).or_default() += 1;
    }
    counts
}

/// Lets every replica do what there is to do, all at once.
async fn settle(replicas: &[&World]) {
    futures::future::join_all(replicas.iter().map(|world| world.settle())).await;
}

/// Takes as long for its first message as a lease lasts.
struct SlowAtFirst {
    clock: Arc<SimulatedClock>,
    slow: AtomicBool,
}

#[async_trait]
impl MailTransport for SlowAtFirst {
    async fn send(&self, _: Mail) -> Outcome {
        if self.slow.swap(false, Ordering::SeqCst) {
            self.clock.advance(TimeDelta::minutes(3));
        }
        Outcome::Accepted("250 ok".into())
    }

    fn longest(&self) -> Duration {
        Duration::from_secs(60)
    }
}

/// Has one admin for every agency; the process that asks is told to end at its first question.
struct AskedAtTheEnd(CancellationToken);

#[async_trait]
impl RecipientSource for AskedAtTheEnd {
    async fn recipients(&self, agency: &AgencyId, _: Vec<LocationId>) -> Result<RecipientStream, PeerError> {
        self.0.cancel();
        let admin = Recipient {
            user_id: format!("usr_of_{agency}").into(),
            email: format!("admin@{agency}.example"),
            first_name: "Ada".into(),
            last_name: String::new(),
            reach: Reach::WholeLot,
        };
        let chunk =
            RecipientChunk { agency: Some(AgencyFacts::default()), recipients: vec![admin], locations: Vec::new() };
        Ok(futures::stream::iter([Ok(chunk)]).boxed())
    }
}

both_databases! {
    async fn three_replicas_do_what_one_does(db: TestDatabase) {
        let mut one = World::start(&db).await;
        let mut two = one.replica(2).await;
        let mut three = one.replica(3).await;
        let agencies: Vec<String> = (0..40).map(|n| format!("agy_{n:02}")).collect();
        let keys: Vec<String> = (0..40).map(|n| format!("key_{n:02}")).collect();
        for agency in &agencies {
            for admin in ["a", "b", "c"] {
                one.peer.admin(agency, &format!("usr_{agency}_{admin}"), &format!("{admin}@{agency}.example"));
            }
        }
        let listed: Vec<_> = agencies.iter().zip(&keys).map(|(a, k)| (a.as_str(), "", k.as_str())).collect();
        one.peer.plan("plan_1", one.clock.now(), deletion(), &listed);
        for days in [15, 7, 1] {
            one.clock.advance_to(due(days));
            // What one replica has done may be work for another.
            for _ in 0..3 {
                settle(&[&one, &two, &three]).await;
            }
        }
        for agency in &agencies {
            for admin in ["a", "b", "c"] {
                let user = format!("usr_{agency}_{admin}");
                assert_eq!(two.told(&user).await, told(&[("D15", 1), ("D7", 1), ("D1", 1)]), "{user}");
                assert_eq!(one.smtp.taken(&format!("{admin}@{agency}.example")).len(), 1, "{user}");
            }
        }
        let deliveries = three.deliveries().await;
        assert_eq!(deliveries.len(), 120);
        assert!(deliveries.iter().all(|d| d.state() == DeliveryState::Accepted && d.attempt_count == 1 && d.in_doubt_count == 0));
        // A receipt may be handed in by two replicas at once, which key-service takes for one.
        let receipts: BTreeSet<_> = one.peer.notices().into_iter().map(|n| (n.agency_id.clone(), n.stage(), n.in_app_count, n.emails_accepted)).collect();
        let expected = agencies.iter().flat_map(|agency| {
            [(NoticeStage::D15, 3), (NoticeStage::D7, 0), (NoticeStage::D1, 0)].map(|(stage, emails)| (agency.clone(), stage, 3, emails))
        });
        assert_eq!(receipts, expected.collect());
        for world in [&mut one, &mut two, &mut three] {
            world.stop().await;
        }
    }

    async fn claims_at_once_share_without_overlap(db: TestDatabase) {
        let now = due(15);
        let (db, _) = queued(&db, now, &[("agy_1", 70), ("agy_2", 70)]).await;
        let claimers = (0..5).map(|n| {
            let (store, owner) = (store(&db, n + 10), format!("owner {n}"));
            tokio::spawn(async move {
                let mut mine = Vec::new();
                loop {
                    let some = claim(&store, &owner, now, 6).await;
                    if some.is_empty() {
                        return mine;
                    }
                    assert!(some.len() <= 6);
                    DeliveryStore::record(&store, &owner, &accepted(&some), now).await.expect("recorded");
                    mine.extend(some.into_iter().map(|one| one.id));
                }
            })
        });
        let mut all: Vec<_> = futures::future::join_all(claimers).await.into_iter().flat_map(|mine| mine.expect("no panic")).collect();
        assert_eq!(all.len(), 140);
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 140, "none was claimed twice");
        let owed = store(&db, 1).owed(10).await.expect("owed");
        assert!(owed.iter().all(|one| matches!(one.news, StageNews::Delivered { emails: 70, .. })), "{owed:?}");
        assert_eq!(owed.len(), 2);
    }

    async fn a_process_that_ends_leaves_the_rest_of_a_dispatch_to_the_next(db: TestDatabase) {
        let now = due(15);
        let store = Arc::new(store(&connect(&db).await, 1));
        let agencies: Vec<String> = (0..100).map(|n| format!("agy_{n:03}")).collect();
        store.apply(published(agencies.iter().map(String::as_str)), now).await.expect("applied");
        let dispatch = |owner: &str, shutdown: CancellationToken| Dispatch {
            store: store.clone(),
            projection: store.clone(),
            status: SharedStatus::default(),
            recipients: Arc::new(AskedAtTheEnd(shutdown.clone())),
            signals: Arc::default(),
            owner: owner.to_owned(),
            shutdown,
        };
        let first = dispatch("first", CancellationToken::new()).run(now).await.expect("dispatched");
        assert!((1..100).contains(&first.stages), "what it had claimed, and no more: {first:?}");
        let next = dispatch("next", CancellationToken::new()).run(now).await.expect("dispatched");
        assert_eq!((next.stages, next.in_app), (100 - first.stages, 100 - first.in_app), "nothing waits for a lease");
    }

    async fn a_large_agency_does_not_delay_the_others(db: TestDatabase) {
        let now = due(15);
        let (_db, store) = queued(&db, now, &[("agy_big", 300)]).await;
        let first = claim(&store, "me", now, 50).await;
        assert_eq!(by_agency(&first), BTreeMap::from([("agy_big", 50)]), "alone it has everything");
        let later = now + TimeDelta::seconds(30);
        let more = published(["agy_b", "agy_c"]).into_iter().map(|mut event| {
            event.sequence += 3;
            event.plan_id = "plan_2".into();
            event
        });
        store.apply(more.collect(), later).await.expect("applied");
        for agency in ["agy_b", "agy_c"] {
            support::seed::tell_of(&store, "plan_2", agency, 3, later).await;
        }
        let next = claim(&store, "me", later, 10).await;
        assert_eq!(by_agency(&next), BTreeMap::from([("agy_b", 3), ("agy_big", 4), ("agy_c", 3)]));
        // Given back or put off, each keeps its turn.
        let verdicts: Vec<_> = next.iter().map(|one| (one.clone(), Verdict::Untried)).collect();
        DeliveryStore::record(&store, "me", &verdicts, later).await.expect("recorded");
        let again = claim(&store, "me", later, 6).await;
        assert_eq!(by_agency(&again), BTreeMap::from([("agy_b", 3), ("agy_c", 3)]));
        assert!(again.iter().all(|one| one.attempt == 1), "what was not tried does not count");
    }

    async fn what_a_dead_replica_left_is_taken_in_the_same_claim_and_counted_as_doubt(db: TestDatabase) {
        let now = due(15);
        let (_db, store) = queued(&db, now, &[("agy_1", 4)]).await;
        let left = claim(&store, "dead", now, 2).await;
        let later = now + MINUTE;
        let mine = claim(&store, "me", later, 4).await;
        assert_eq!(mine.iter().map(|one| one.attempt).collect::<Vec<_>>(), [2, 2, 1, 1]);
        // The dead one was only slow: its word counts for nothing now.
        DeliveryStore::record(&store, "dead", &accepted(&left), later).await.expect("passed over");
        let failed: Vec<_> = mine.iter().map(|one| (one.clone(), Verdict::Failed { reply: "550 no".into() })).collect();
        DeliveryStore::record(&store, "me", &failed, later).await.expect("recorded");
        let (listed, _) = DeliveryStore::list(&store, &DeliveryFilter::default(), None, 10, later).await.expect("listed");
        assert!(listed.iter().all(|one| one.state == notification_service::domain::delivery::DeliveryState::Failed));
        assert_eq!(listed.iter().map(|one| one.in_doubt).sum::<i32>(), 2);
    }

    async fn a_send_that_might_outlast_its_lease_is_not_begun(db: TestDatabase) {
        let now = due(15);
        let (_db, store) = queued(&db, now, &[("agy_1", 5)]).await;
        let clock = Arc::new(SimulatedClock::new(now));
        let sender = "keysweep <keysweep@keysweep.example>".parse().expect("a sender");
        let deliver = Arc::new(Deliver {
            store: Arc::new(store.clone()),
            writer: Arc::new(Writer::new(sender).expect("templates")),
            transport: Arc::new(SlowAtFirst { clock: clock.clone(), slow: AtomicBool::new(true) }),
            connections: tokio::sync::Semaphore::new(1),
            long_letter: tokio::sync::Semaphore::new(1),
            clock: clock.clone(),
            entropy: Arc::new(SeededEntropy::new(1)),
            owner: "me".into(),
            shutdown: CancellationToken::new(),
        });
        let done = deliver.run(now).await.expect("run");
        assert_eq!((done.accepted, done.failed, done.retried), (5, 0, 0), "claimed again under a new lease");
        let (listed, _) = DeliveryStore::list(&store, &DeliveryFilter::default(), None, 10, now).await.expect("listed");
        assert!(listed.iter().all(|one| one.attempts == 1 && one.in_doubt == 0), "{listed:?}");
        let begun: BTreeSet<_> = listed.iter().map(|one| one.attempted_at).collect();
        assert_eq!(begun, BTreeSet::from([Some(now), Some(now + TimeDelta::minutes(3))]));
    }

    async fn a_daily_limit_holds_over_restarts_and_replicas_and_defers(db: TestDatabase) {
        let mut world = World::start_with(&db, |config| config.mail.max_per_day = 3).await;
        for admin in ["a", "b", "c", "d", "e"] {
            world.peer.admin("agy_1", &format!("usr_{admin}"), &format!("{admin}@acme.example"));
        }
        world.peer.plan("plan_1", world.clock.now(), deletion(), &[("agy_1", "", "key_1")]);
        world.settle().await;
        world.advance_to(due(15)).await;
        let sent = |world: &World| ["a", "b", "c", "d", "e"].iter().map(|admin| world.smtp.taken(&format!("{admin}@acme.example")).len()).sum::<usize>();
        assert_eq!(sent(&world), 3);
        world.restart().await;
        let mut other = world.replica(7).await;
        world.clock.advance(TimeDelta::minutes(30));
        settle(&[&world, &other]).await;
        assert_eq!(sent(&world), 3);
        let waiting: Vec<_> = world.deliveries().await.into_iter().filter(|d| d.state() != DeliveryState::Accepted).collect();
        assert_eq!(waiting.len(), 2);
        let midnight = (due(15) + TimeDelta::days(1)).date_naive().and_time(chrono::NaiveTime::MIN).and_utc();
        for one in &waiting {
            assert_eq!((one.state(), one.send_limit(), one.attempt_count), (DeliveryState::Pending, proto::SendLimit::PerDay, 0));
            assert_eq!(one.next_attempt_time.as_ref().and_then(from_proto), Some(midnight));
        }
        assert!(world.peer.notices().is_empty(), "what was not sent is not acknowledged");
        world.clock.advance_to(midnight - TimeDelta::microseconds(1));
        settle(&[&world, &other]).await;
        assert_eq!(sent(&world), 3);
        world.clock.advance_to(midnight);
        settle(&[&world, &other]).await;
        assert_eq!(sent(&world), 5);
        assert_eq!(world.peer.notices()[0].emails_accepted, 5);
        world.stop().await;
        other.stop().await;
    }

    async fn a_day_is_not_used_up_by_a_server_that_cannot_be_reached(db: TestDatabase) {
        let now = due(15);
        let (db, _) = queued(&db, now, &[("agy_1", 4)]).await;
        let store = store(&db, 2).with_limits(SendLimits { per_second: 0, per_day: 4 });
        let retry = |contact| Verdict::Retry { at: now, deferred_since: None, contact, reply: "x".into() };
        let first = claim(&store, "me", now, 10).await;
        assert_eq!(first.len(), 4);
        let outcomes = [retry(Contact::None), Verdict::Untried, retry(Contact::Answered), retry(Contact::InDoubt)];
        let verdicts: Vec<_> = first.into_iter().zip(outcomes).collect();
        DeliveryStore::record(&store, "me", &verdicts, now).await.expect("recorded");
        assert_eq!(claim(&store, "me", now, 10).await.len(), 2);
        assert!(claim(&store, "me", now, 10).await.is_empty());
        let tomorrow = now + TimeDelta::days(1);
        assert_eq!(claim(&store, "you", tomorrow, 10).await.len(), 4);
    }

    async fn figures_tell_what_waits_and_why(db: TestDatabase) {
        let now = due(15);
        let (db, _) = queued(&db, now, &[("agy_1", 3), ("agy_2", 4)]).await;
        let store = store(&db, 2).with_limits(SendLimits { per_second: 0, per_day: 3 });
        let claimed = claim(&store, "me", now, 2).await;
        let failed = (claimed[0].clone(), Verdict::Failed { reply: "550 no".into() });
        DeliveryStore::record(&store, "me", &[failed], now).await.expect("recorded");
        let later = now + MINUTE / 2;
        let figures = store.figures(later).await.expect("figures");
        let count = |stage: Stage, state: &str| figures.notices.iter().find(|one| one.0 == stage && one.1 == state).map(|one| one.2);
        assert_eq!((count(Stage::D15, "dispatched"), count(Stage::D15, "complete"), count(Stage::D7, "waiting")), (Some(2), Some(0), Some(0)));
        assert_eq!(figures.deliveries.iter().map(|one| one.1).collect::<Vec<_>>(), [5, 1, 1], "pending, sending, failed");
        assert_eq!((figures.oldest_due_at, figures.deferred), (Some(now), None));
        claim(&store, "me", later, 9).await;
        assert_eq!(store.figures(later).await.expect("figures").deferred, Some((SendLimit::PerDay, 4)));
    }

    async fn a_rate_is_shared_by_all(db: TestDatabase) {
        let now = due(15);
        let (db, _) = queued(&db, now, &[("agy_1", 60)]).await;
        let limits = SendLimits { per_second: 20, per_day: 0 };
        let (one, two) = (store(&db, 2).with_limits(limits), store(&db, 3).with_limits(limits));
        let (a, b) = tokio::join!(claim(&one, "a", now, 12), claim(&two, "b", now, 12));
        assert_eq!(a.len() + b.len(), 20);
        let mut waits: Vec<_> = a.iter().chain(&b).map(|claimed| claimed.wait).collect();
        waits.sort();
        assert_eq!(waits, (0..20).map(|n| TimeDelta::milliseconds(50) * n).collect::<Vec<_>>());
        let (listed, _) = DeliveryStore::list(&one, &DeliveryFilter::default(), None, 100, now).await.expect("listed");
        let put_off: Vec<_> = listed.iter().filter_map(|d| d.deferral).collect();
        assert_eq!(put_off.len(), 40);
        assert!(put_off.iter().all(|deferral| deferral.until == now + TimeDelta::seconds(1)));
        assert_eq!(claim(&one, "a", now + TimeDelta::seconds(1), 100).await.len(), 20);
    }
}
