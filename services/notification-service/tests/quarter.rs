//! The whole way: from key-service's events to inboxes, banners, emails and receipts.

mod support;

use chrono::TimeDelta;
use keysweep_proto::key::v1::sweep_event::Payload;
use keysweep_proto::key::v1::*;
use keysweep_proto::notification::v1::{DeliveryState, NotificationKind, ReceiptState, RetryDeliveryRequest};
use service_kit::both_databases;
use service_kit::clock::Clock;
use service_kit::testing::TestDatabase;
use service_kit::time::{from_proto, to_proto};
use support::smtp::Act;
use support::{World, at, deletion, due, told};

const PLAN: &str = "plan_1";

/// One agency with a key of its own and two in its locations.
const KEYS: [(&str, &str, &str); 3] =
    [("agy_1", "", "key_1"), ("agy_1", "loc_1", "key_2"), ("agy_1", "loc_2", "key_3")];

/// The stages that key-service was handed receipts of.
fn stages(world: &World) -> Vec<NoticeStage> {
    world.peer.notices().iter().map(StageNotice::stage).collect()
}

fn subject(mail: &str) -> String {
    use mailparse::MailHeaderMap;
    mailparse::parse_mail(mail.as_bytes()).expect("a mail").headers.get_first_value("Subject").expect("a subject")
}

async fn plan(world: &World) {
    world.peer.plan(PLAN, world.clock.now(), deletion(), &KEYS);
    world.settle().await;
}

both_databases! {
    async fn a_quarter_from_the_plan_to_the_deletion(db: TestDatabase) {
        let mut world = World::start(&db).await;
        world.peer.admin("agy_1", "usr_a", "a@acme.example");
        world.peer.admin("agy_1", "usr_b", "b@acme.example");
        world.peer.location_admin("agy_1", "usr_l", &["loc_1"]);
        world.peer.location_admin("agy_1", "usr_idle", &["loc_9"]);
        plan(&world).await;
        assert_eq!(world.told("usr_a").await, told(&[]), "nobody is told before the window");

        world.advance_to(due(15)).await;
        assert_eq!(world.told("usr_a").await, told(&[("D15", 3)]));
        assert_eq!(world.told("usr_l").await, told(&[("D15", 1)]));
        assert_eq!(world.told("usr_idle").await, told(&[]));
        let first = world.inbox("usr_a").await.remove(0);
        assert_eq!((first.days_left, first.keys.len(), first.keys[1].owner_name.as_str()), (15, 3, "name of loc_1"));
        assert_eq!(first.keys[0].owner_name, "name of agy_1");
        // Agency admins get one mail each, location admins none.
        for to in ["a@acme.example", "b@acme.example"] {
            let mails = world.smtp.taken(to);
            assert_eq!(mails.len(), 1);
            assert_eq!(subject(&mails[0]), "3 unused API keys of name of agy_1 will be deleted on 1 January 2026");
        }
        assert!(world.smtp.taken("usr_l@locations.example").is_empty());
        let receipt = world.peer.notices().remove(0);
        assert_eq!((receipt.stage(), receipt.in_app_count, receipt.emails_accepted), (NoticeStage::D15, 3, 2));
        assert_eq!(receipt.deliver_time.as_ref().and_then(from_proto), Some(due(15)));

        world.peer.rescue(PLAN, at("2025-12-20T10:00:00Z"), "agy_1", "key_2");
        world.settle().await;
        assert_eq!(world.told("usr_a").await, told(&[("D15", 3), ("RESCUED", 1)]));
        assert_eq!(world.told("usr_l").await, told(&[("D15", 1), ("RESCUED", 1)]));
        let rescued = world.inbox("usr_l").await.remove(0);
        assert_eq!((rescued.keys[0].key_id.as_str(), rescued.current_delete_time), ("key_2", None));

        // Restarted in between, and told the old events again: nothing changes.
        world.restart().await;
        world.advance_to(due(7)).await;
        assert_eq!(world.told("usr_a").await, told(&[("D15", 3), ("RESCUED", 1), ("D7", 2)]));
        assert_eq!(world.told("usr_l").await, told(&[("D15", 1), ("RESCUED", 1)]), "its key stays");

        world.advance_to(due(1)).await;
        assert_eq!(world.banners("agy_1", &["loc_1", "loc_2"]).await.len(), 0);
        world.advance_to(deletion() - TimeDelta::hours(24)).await;
        let banners = world.banners("agy_1", &["loc_1", "loc_2"]).await;
        assert_eq!(banners.iter().map(|b| b.key_count).collect::<Vec<_>>(), [2, 1], "the agency's and that of loc_2");
        assert_eq!(stages(&world), [NoticeStage::D15, NoticeStage::D7, NoticeStage::D1]);

        world.clock.advance_to(deletion());
        assert_eq!(world.banners("agy_1", &["loc_1", "loc_2"]).await.len(), 0);
        let executed = LotExecuted { agency_id: "agy_1".into(), deleted_count: 2, rescued_count: 1, execute_time: Some(to_proto(deletion())) };
        world.peer.event(PLAN, deletion(), Payload::LotExecuted(executed));
        world.peer.event(PLAN, deletion(), Payload::PlanCompleted(PlanCompleted { deleted_count: 2, rescued_count: 1, spared_count: 0 }));
        world.settle().await;
        assert_eq!(world.told("usr_b").await, told(&[("D15", 3), ("RESCUED", 1), ("D7", 2), ("D1", 2), ("DELETED", 2)]));
        assert!(world.deliveries().await.iter().all(|d| d.receipt_state() == ReceiptState::Recorded));
        world.stop().await;
    }

    async fn an_agency_without_an_admin_is_reported_until_it_has_one(db: TestDatabase) {
        let mut world = World::start(&db).await;
        world.peer.location_admin("agy_1", "usr_l", &["loc_1"]);
        plan(&world).await;
        world.advance_to(due(15)).await;
        world.advance(TimeDelta::hours(5)).await;
        let notices = world.peer.notices();
        assert_eq!(notices.len(), 1, "it is reported once: {notices:?}");
        assert_eq!((notices[0].undeliverable(), notices[0].in_app_count), (HoldReason::NoAgencyAdmin, 0));
        assert_eq!(world.told("usr_l").await, told(&[]));

        world.peer.admin("agy_1", "usr_a", "a@acme.example");
        world.advance(TimeDelta::minutes(5)).await;
        assert_eq!(world.told("usr_a").await, told(&[("D15", 3)]));
        assert_eq!(world.told("usr_l").await, told(&[("D15", 1)]));
        assert_eq!(world.peer.notices()[1].undeliverable(), HoldReason::Unspecified);
        world.stop().await;
    }

    async fn an_unknown_agency_has_nobody_to_tell(db: TestDatabase) {
        let mut world = World::start(&db).await;
        plan(&world).await;
        world.advance_to(due(15)).await;
        assert_eq!(world.peer.notices()[0].undeliverable(), HoldReason::NoAgencyAdmin);
        world.stop().await;
    }

    async fn one_bad_address_does_not_lose_the_mail_of_the_others(db: TestDatabase) {
        let mut world = World::start(&db).await;
        world.peer.admin("agy_1", "usr_a", "gone@acme.example");
        world.peer.admin("agy_1", "usr_b", "slow@acme.example");
        world.peer.admin("agy_1", "usr_c", "no address at all");
        world.smtp.script("gone@acme.example", &[Act::Rcpt("550 5.1.1 no such user")]);
        world.smtp.script("slow@acme.example", &[Act::Rcpt("451 4.7.1 greylisted"), Act::Data("452 4.3.1 disk full")]);
        plan(&world).await;
        world.advance_to(due(15)).await;
        let states = |deliveries: Vec<keysweep_proto::notification::v1::Delivery>| {
            deliveries.iter().map(|d| (d.user_id.clone(), d.state(), d.attempt_count)).collect::<std::collections::BTreeSet<_>>()
        };
        let expected = |b: DeliveryState, attempts: i32| {
            std::collections::BTreeSet::from([
                ("usr_a".to_owned(), DeliveryState::FailedPermanently, 1),
                ("usr_b".to_owned(), b, attempts),
                ("usr_c".to_owned(), DeliveryState::FailedPermanently, 1),
            ])
        };
        assert_eq!(states(world.deliveries().await), expected(DeliveryState::Pending, 1));
        assert!(world.peer.notices().is_empty(), "no receipt while a mail is open");
        world.advance(TimeDelta::minutes(1)).await;
        assert_eq!(states(world.deliveries().await), expected(DeliveryState::Pending, 2));
        world.advance(TimeDelta::minutes(1)).await;
        assert_eq!(states(world.deliveries().await), expected(DeliveryState::Accepted, 3));
        let receipt = world.peer.notices().remove(0);
        assert_eq!((receipt.in_app_count, receipt.emails_accepted), (3, 1));
        let failed = world.deliveries().await.into_iter().find(|d| d.user_id == "usr_a").expect("its delivery");
        assert!(failed.last_reply.contains("no such user"), "{}", failed.last_reply);
        world.stop().await;
    }

    async fn a_lost_connection_repeats_the_mail_under_its_message_id(db: TestDatabase) {
        let mut world = World::start(&db).await;
        world.peer.admin("agy_1", "usr_a", "a@acme.example");
        world.smtp.script("a@acme.example", &[Act::Vanish]);
        plan(&world).await;
        world.advance_to(due(15)).await;
        assert_eq!(world.deliveries().await[0].state(), DeliveryState::Pending);
        world.advance(TimeDelta::minutes(1)).await;
        let mails = world.smtp.taken("a@acme.example");
        assert_eq!(mails.len(), 2);
        assert_eq!(mails[0], mails[1], "the same to the last byte");
        assert!(mails[0].contains(&format!("Message-ID: {}", world.deliveries().await[0].message_id)));
        assert_eq!(world.peer.notices()[0].emails_accepted, 1);
        world.stop().await;
    }

    async fn a_refused_sender_is_not_the_recipients_fault(db: TestDatabase) {
        let mut world = World::start(&db).await;
        world.peer.admin("agy_1", "usr_a", "a@acme.example");
        world.smtp.script("", &[Act::From("550 5.7.1 sender rejected"), Act::From("421 4.3.2 closing")]);
        plan(&world).await;
        world.advance_to(due(15)).await;
        assert_eq!(world.deliveries().await[0].state(), DeliveryState::Pending);
        world.advance(TimeDelta::minutes(1)).await;
        assert_eq!(world.deliveries().await[0].state(), DeliveryState::Pending);
        world.advance(TimeDelta::minutes(1)).await;
        assert_eq!(world.deliveries().await[0].state(), DeliveryState::Accepted);
        assert_eq!(world.smtp.taken("a@acme.example").len(), 1);
        world.stop().await;
    }

    async fn a_server_that_cannot_be_reached_says_nothing_about_the_address(db: TestDatabase) {
        let mut world = World::start_with(&db, |config| config.smtp.port = 1).await;
        world.peer.admin("agy_1", "usr_a", "a@acme.example");
        plan(&world).await;
        world.advance_to(due(15)).await;
        for _ in 0..30 {
            world.advance(TimeDelta::hours(1)).await;
        }
        let delivery = world.deliveries().await.remove(0);
        assert_eq!(delivery.state(), DeliveryState::Pending, "{}", delivery.last_reply);
        assert!(world.peer.notices().is_empty());
        world.stop().await;
    }

    async fn a_server_that_puts_off_for_a_day_wears_its_patience_out(db: TestDatabase) {
        let mut world = World::start(&db).await;
        world.peer.admin("agy_1", "usr_a", "a@acme.example");
        world.smtp.script("a@acme.example", &[Act::Rcpt("451 4.7.1 later"); 60]);
        plan(&world).await;
        world.advance_to(due(15)).await;
        for _ in 0..26 {
            world.advance(TimeDelta::hours(1)).await;
        }
        let delivery = world.deliveries().await.remove(0);
        assert_eq!(delivery.state(), DeliveryState::FailedPermanently);
        assert!(delivery.last_reply.starts_with("gave up after"), "{}", delivery.last_reply);
        assert_eq!(world.peer.notices()[0].undeliverable(), HoldReason::AllAddressesRefused);
        world.stop().await;
    }

    async fn refused_addresses_go_on_by_retry_or_by_a_new_address(db: TestDatabase) {
        let mut world = World::start(&db).await;
        world.peer.admin("agy_1", "usr_a", "old@acme.example");
        world.peer.admin("agy_2", "usr_z", "z@zeta.example");
        world.smtp.script("old@acme.example", &[Act::Rcpt("550 no")]);
        world.smtp.script("z@zeta.example", &[Act::Rcpt("550 no")]);
        world.peer.plan(PLAN, world.clock.now(), deletion(), &[("agy_1", "", "key_1"), ("agy_2", "", "key_2")]);
        world.advance_to(due(15)).await;
        assert!(world.peer.notices().iter().all(|n| n.undeliverable() == HoldReason::AllAddressesRefused));
        assert_eq!(world.peer.notices().len(), 2);
        assert!(world.deliveries().await.iter().all(|d| d.receipt_state() == ReceiptState::Undeliverable));

        // An operator retries the one.
        let failed = world.deliveries().await.into_iter().find(|d| d.user_id == "usr_z").expect("its delivery");
        let retry = RetryDeliveryRequest { delivery_id: failed.delivery_id.clone(), reason: "mailbox is back".into(), request_id: "r1".into() };
        for _ in 0..2 {
            world.api.retry_delivery(retry.clone()).await.expect("retried");
        }
        world.settle().await;
        let again = world.api.retry_delivery(RetryDeliveryRequest { request_id: String::new(), ..retry.clone() }).await.expect_err("it is accepted");
        assert_eq!(again.code(), tonic::Code::FailedPrecondition);
        let reused = RetryDeliveryRequest { delivery_id: world.deliveries().await[0].delivery_id.clone(), ..retry.clone() };
        if reused.delivery_id != retry.delivery_id {
            assert_eq!(world.api.retry_delivery(reused).await.expect_err("reused").code(), tonic::Code::AlreadyExists);
        }
        assert_eq!(world.smtp.taken("z@zeta.example").len(), 1);
        assert_eq!(world.peer.notices()[2].emails_accepted, 1);

        // The other admin gets another address, and a colleague.
        world.peer.forget_people("agy_1");
        world.peer.admin("agy_1", "usr_a", "new@acme.example");
        world.peer.admin("agy_1", "usr_b", "b@acme.example");
        world.advance(TimeDelta::minutes(6)).await;
        assert_eq!(world.smtp.taken("new@acme.example").len(), 1);
        assert_eq!(world.told("usr_a").await, told(&[("D15", 1)]));
        assert_eq!(world.told("usr_b").await, told(&[("D15", 1)]));
        let receipt = world.peer.notices().remove(3);
        assert_eq!((receipt.agency_id.as_str(), receipt.emails_accepted, receipt.in_app_count), ("agy_1", 2, 2));
        world.stop().await;
    }

    async fn late_notices_move_the_lot_and_its_later_stages(db: TestDatabase) {
        let mut world = World::start(&db).await;
        world.peer.admin("agy_1", "usr_a", "a@acme.example");
        plan(&world).await;
        world.stop().await;
        let late = deletion() - TimeDelta::days(10) + TimeDelta::minutes(1);
        world.clock.advance_to(late);
        world.restart().await;
        world.settle().await;
        let moved = deletion() + TimeDelta::days(5) + TimeDelta::hours(1);
        assert_eq!(world.peer.delete_at(PLAN, "agy_1"), moved);
        assert_eq!(world.told("usr_a").await, told(&[("D15", 3), ("RESCHEDULED", 3)]));
        let news = world.inbox("usr_a").await.remove(0);
        assert_eq!(news.delete_time.as_ref().and_then(from_proto), Some(moved));
        assert_eq!(world.inbox("usr_a").await[1].current_delete_time.as_ref().and_then(from_proto), Some(moved));
        // Not due by the old instant, but by the new one.
        world.advance_to(due(7)).await;
        assert_eq!(stages(&world), [NoticeStage::D15]);
        world.advance_to(moved - TimeDelta::days(7) - TimeDelta::hours(6)).await;
        assert_eq!(stages(&world), [NoticeStage::D15, NoticeStage::D7]);
        assert_eq!(world.peer.delete_at(PLAN, "agy_1"), moved);
        world.stop().await;
    }

    /// However many events it has missed, it does not tell of a plan before it has heard the last of them.
    async fn who_was_away_tells_of_lots_as_they_are_now(db: TestDatabase) {
        let mut world = World::start(&db).await;
        world.peer.admin("agy_1", "usr_a", "a@acme.example");
        world.stop().await;
        let keys: Vec<_> = (0..300).map(|number| format!("key_{number}")).collect();
        let listed: Vec<_> = keys.iter().map(|key| ("agy_1", "", key.as_str())).collect();
        world.peer.plan(PLAN, due(15), deletion(), &listed);
        for key in &keys[1..] {
            world.peer.rescue(PLAN, due(15), "agy_1", key);
        }
        world.clock.advance_to(due(15) + TimeDelta::hours(1));
        world.restart().await;
        world.settle().await;
        assert_eq!(world.told("usr_a").await, told(&[("D15", 1)]));
        world.stop().await;
    }

    async fn the_clock_of_the_sweep_counts_and_not_the_machines(db: TestDatabase) {
        let mut world = World::start(&db).await;
        world.peer.admin("agy_1", "usr_a", "a@acme.example");
        plan(&world).await;
        let times = |world: &World| -> Vec<_> {
            world.peer.notices().iter().map(|one| one.deliver_time.as_ref().and_then(from_proto)).collect()
        };
        world.clock.set_to(world.clock.now() - TimeDelta::days(2));
        world.advance(TimeDelta::minutes(1)).await;
        assert_eq!(times(&world), [Some(due(15))]);
        world.clock.set_to(world.clock.now() + TimeDelta::days(12));
        world.restart().await;
        world.settle().await;
        assert_eq!(world.told("usr_a").await, told(&[("D15", 3)]), "by its own clock D7 would be due");
        world.advance(due(7) - due(15)).await;
        assert_eq!(times(&world), [Some(due(15)), Some(due(7))]);
        let known = world.subscription().await.expect("the service");
        assert_eq!(known.sweep_time.as_ref().and_then(from_proto), Some(due(7)));
        world.stop().await;
    }

    async fn nothing_goes_out_before_the_time_was_heard(db: TestDatabase) {
        let mut world = World::start(&db).await;
        world.peer.admin("agy_1", "usr_a", "a@acme.example");
        plan(&world).await;
        world.stop_peers();
        world.clock.advance_to(due(15) + TimeDelta::hours(7));
        world.restart().await;
        world.settle().await;
        assert_eq!((world.told("usr_a").await, world.subscription().await.expect("it serves").sweep_time), (told(&[]), None));
        world.start_peers().await;
        world.settle().await;
        assert_eq!(world.told("usr_a").await[0], ("D15".to_owned(), 3));
        let sent = world.peer.sent_at().last().copied().flatten();
        assert_eq!(sent, Some(due(15) + TimeDelta::hours(7)), "a report says when it was sent");
        world.stop().await;
    }

    async fn keys_that_are_spared_are_announced_and_their_mail_is_cancelled(db: TestDatabase) {
        let mut world = World::start(&db).await;
        world.peer.admin("agy_1", "usr_a", "a@acme.example");
        world.peer.admin("agy_1", "usr_b", "slow@acme.example");
        world.smtp.script("slow@acme.example", &[Act::Rcpt("451 later"); 9]);
        plan(&world).await;
        world.advance_to(due(15)).await;
        world.peer.event(PLAN, world.clock.now(), Payload::PlanCancelled(PlanCancelled { reason: "a mistake".into() }));
        world.settle().await;
        assert_eq!(world.told("usr_a").await, told(&[("D15", 3), ("KEPT", 3)]));
        let news = world.inbox("usr_a").await.remove(0);
        assert_eq!((news.kind(), news.reason.as_str(), news.current_delete_time), (NotificationKind::Kept, "a mistake", None));
        world.advance(TimeDelta::hours(1)).await;
        let states: Vec<_> = world.deliveries().await.iter().map(|d| d.state()).collect();
        assert!(states.contains(&DeliveryState::Cancelled) && states.contains(&DeliveryState::Accepted), "{states:?}");
        world.advance_to(due(1)).await;
        assert!(!stages(&world).contains(&NoticeStage::D7));
        world.stop().await;
    }

    async fn a_lot_held_by_an_operator_is_not_announced_until_it_is_released(db: TestDatabase) {
        let mut world = World::start(&db).await;
        world.peer.admin("agy_1", "usr_a", "a@acme.example");
        plan(&world).await;
        let held = LotHeld { agency_id: "agy_1".into(), hold_reason: HoldReason::Operator.into(), reason: "wait".into() };
        world.peer.event(PLAN, world.clock.now(), Payload::LotHeld(held));
        world.settle().await;
        world.advance_to(due(15) + TimeDelta::hours(1)).await;
        assert_eq!(world.told("usr_a").await, told(&[]));
        world.peer.event(PLAN, world.clock.now(), Payload::LotReleased(LotReleased { agency_id: "agy_1".into(), reason: "go".into() }));
        world.settle().await;
        assert_eq!(world.told("usr_a").await, told(&[("D15", 3)]));
        world.stop().await;
    }

    async fn a_refused_receipt_stays_visible(db: TestDatabase) {
        let mut world = World::start(&db).await;
        world.peer.admin("agy_1", "usr_a", "a@acme.example");
        world.peer.refuse("no such stage");
        plan(&world).await;
        world.advance_to(due(15)).await;
        let delivery = world.deliveries().await.remove(0);
        assert_eq!((delivery.receipt_state(), delivery.receipt_detail.as_str()), (ReceiptState::Refused, "no such stage"));
        assert_eq!(world.subscription().await.expect("the subscription").receipts_refused, 1);
        assert_eq!(world.peer.notices().len(), 1, "it is not handed in again");
        world.stop().await;
    }

    async fn a_large_lot_asks_for_its_people_in_pages(db: TestDatabase) {
        let mut world = World::start(&db).await;
        let locations: Vec<String> = (0..10_001).map(|n| format!("loc_{n:05}")).collect();
        let keys: Vec<String> = (0..10_001).map(|n| format!("key_{n:05}")).collect();
        let listed: Vec<_> = locations.iter().zip(&keys).map(|(l, k)| ("agy_1", l.as_str(), k.as_str())).collect();
        world.peer.admin("agy_1", "usr_a", "a@acme.example");
        let spread: Vec<&str> = vec![&locations[0], &locations[5_000], &locations[10_000]];
        world.peer.location_admin("agy_1", "usr_l", &spread);
        world.peer.plan(PLAN, world.clock.now(), deletion(), &listed);
        world.settle().await;
        world.advance_to(due(15)).await;
        assert_eq!(world.peer.asked(), [10_000, 1]);
        assert_eq!(world.told("usr_a").await, told(&[("D15", 10_001)]));
        assert_eq!(world.told("usr_l").await, told(&[("D15", 3)]));
        let inbox = world.inbox("usr_l").await.remove(0);
        assert_eq!(inbox.keys.iter().map(|k| k.key_id.as_str()).collect::<Vec<_>>(), [&keys[0], &keys[5_000], &keys[10_000]]);
        assert_eq!(world.inbox("usr_a").await[0].keys.len(), 100);
        assert_eq!(world.smtp.taken("a@acme.example").len(), 1);
        world.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_serves_while_its_peers_are_down() {
    let db = TestDatabase::new(service_kit::testing::Kind::Sqlite);
    let mut world = World::start_with(&db, |config| {
        config.key_service.endpoint = "http://127.0.0.1:1".into();
        config.location_service.endpoint = "http://127.0.0.1:1".into();
    })
    .await;
    assert!(world.inbox("usr_a").await.is_empty());
    let subscription = world.subscription().await.expect("the subscription");
    assert!(!subscription.connected);
    world.stop().await;
}
