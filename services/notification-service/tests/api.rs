//! The calls that people and operators make.

mod support;

use std::time::Duration;

use chrono::TimeDelta;
use keysweep_proto::notification::v1::*;
use service_kit::both_databases;
use service_kit::clock::Clock;
use service_kit::testing::{Kind, TestDatabase};
use support::{World, deletion, due};
use tonic::{Code, Request, Streaming};
use tonic_types::StatusExt;

const PLAN: &str = "plan_1";
const KEYS: [(&str, &str, &str); 3] =
    [("agy_1", "", "key_1"), ("agy_1", "loc_1", "key_2"), ("agy_1", "loc_2", "key_3")];

/// A world in which `usr_a` was told of three keys.
async fn told_world(db: &TestDatabase) -> World {
    let world = World::start(db).await;
    world.peer.admin("agy_1", "usr_a", "a@acme.example");
    world.peer.plan(PLAN, world.clock.now(), deletion(), &KEYS);
    world.settle().await;
    world.advance_to(due(15)).await;
    world
}

async fn next<T>(stream: &mut Streaming<T>) -> T {
    let message = tokio::time::timeout(Duration::from_secs(20), stream.message()).await.expect("in time");
    message.expect("no error").expect("a message")
}

fn mark(ids: &[&str], all: bool, request_id: &str) -> MarkNotificationsReadRequest {
    MarkNotificationsReadRequest {
        user_id: "usr_a".into(),
        notification_ids: ids.iter().map(|&id| id.to_owned()).collect(),
        all,
        request_id: request_id.into(),
    }
}

both_databases! {
    async fn an_inbox_is_paged_and_marked(db: TestDatabase) {
        let mut world = told_world(&db).await;
        for key in ["key_1", "key_2"] {
            world.peer.rescue(PLAN, world.clock.now(), "agy_1", key);
        }
        world.settle().await;
        let mut seen = Vec::new();
        let mut asked = ListNotificationsRequest { user_id: "usr_a".into(), page_size: 2, ..Default::default() };
        loop {
            let page = world.api.list_notifications(asked.clone()).await.expect("a page").into_inner();
            assert_eq!(page.unread_count, 3);
            seen.extend(page.notifications.into_iter().map(|one| one.notification_id));
            if page.next_page_token.is_empty() {
                break;
            }
            asked.page_token = page.next_page_token;
        }
        assert_eq!(seen, world.inbox("usr_a").await.into_iter().map(|one| one.notification_id).collect::<Vec<_>>());
        asked.unread_only = true;
        let foreign = world.api.list_notifications(asked).await.expect_err("a token of another list");
        assert_eq!(foreign.get_error_details().error_info().expect("a reason").reason, "PAGE_TOKEN_INVALID");

        let missing = world.api.mark_notifications_read(mark(&[&seen[0], "ntf_other"], false, "")).await.expect_err("one is missing");
        assert_eq!(missing.code(), Code::NotFound);
        let first = world.api.mark_notifications_read(mark(&[&seen[0]], false, "r1")).await.expect("marked").into_inner();
        assert_eq!((first.marked_count, first.unread_count), (1, 2));
        let again = world.api.mark_notifications_read(mark(&[&seen[0]], false, "r1")).await.expect("marked").into_inner();
        assert_eq!((again.marked_count, again.unread_count), (1, 2));
        let reused = world.api.mark_notifications_read(mark(&[&seen[1]], false, "r1")).await.expect_err("reused");
        assert_eq!(reused.code(), Code::AlreadyExists);
        let read_time = world.inbox("usr_a").await[0].read_time;
        world.clock.advance(TimeDelta::hours(1));
        let all = world.api.mark_notifications_read(mark(&[], true, "")).await.expect("marked").into_inner();
        assert_eq!((all.marked_count, all.unread_count), (2, 0));
        assert_eq!(world.inbox("usr_a").await[0].read_time, read_time, "the first reading counts");
        let unread = ListNotificationsRequest { user_id: "usr_a".into(), unread_only: true, ..Default::default() };
        assert!(world.api.list_notifications(unread).await.expect("a page").into_inner().notifications.is_empty());
        world.stop().await;
    }

    async fn the_same_mark_twice_at_once_is_one(db: TestDatabase) {
        let mut world = told_world(&db).await;
        let calls = (0..8).map(|_| {
            let mut api = world.api.clone();
            async move { api.mark_notifications_read(mark(&[], true, "r1")).await.expect("marked").into_inner().marked_count }
        });
        assert_eq!(futures::future::join_all(calls).await, [1; 8]);
        world.stop().await;
    }

    async fn an_inbox_is_watched_from_where_one_left(db: TestDatabase) {
        let mut world = told_world(&db).await;
        let watch = |after: &str| WatchNotificationsRequest { user_id: "usr_a".into(), after_notification_id: after.into() };
        let mut live = world.api.watch_notifications(watch("")).await.expect("a stream").into_inner();
        let start = next(&mut live).await;
        assert_eq!((start.notification, start.unread_count), (None, 1));
        world.peer.rescue(PLAN, world.clock.now(), "agy_1", "key_1");
        let rescued = next(&mut live).await;
        assert_eq!((rescued.notification.map(|one| one.kind()), rescued.unread_count), (Some(NotificationKind::Rescued), 2));
        world.api.mark_notifications_read(mark(&[], true, "")).await.expect("marked");
        let read = next(&mut live).await;
        assert_eq!((read.notification, read.unread_count), (None, 0));

        let first = world.inbox("usr_a").await.pop().expect("the first").notification_id;
        let mut resumed = world.api.watch_notifications(watch(&first)).await.expect("a stream").into_inner();
        next(&mut resumed).await;
        assert_eq!(next(&mut resumed).await.notification.map(|one| one.kind()), Some(NotificationKind::Rescued));
        let unknown = world.api.watch_notifications(watch("ntf_other")).await.expect_err("unknown");
        assert_eq!(unknown.code(), Code::NotFound);

        world.stop().await;
        let end = tokio::time::timeout(Duration::from_secs(20), live.message()).await.expect("in time").expect_err("the drain");
        assert_eq!(end.get_error_details().error_info().expect("a reason").reason, "DRAINING");
    }

    async fn banners_are_watched_as_they_come_shrink_and_go(db: TestDatabase) {
        let mut world = told_world(&db).await;
        let watch = WatchBannersRequest { agency_id: "agy_1".into(), location_ids: vec!["loc_1".into(), "loc_2".into()] };
        let mut live = world.api.watch_banners(watch).await.expect("a stream").into_inner();
        for _ in 0..3 {
            assert!(next(&mut live).await.banners.is_empty(), "each account, without a banner");
        }
        world.advance_to(due(7)).await;
        world.advance_to(due(1)).await;
        // By the clock alone: no event comes at this instant.
        world.clock.advance_to(deletion() - TimeDelta::hours(24));
        let mut counts = Vec::new();
        for _ in 0..3 {
            counts.push(next(&mut live).await.banners[0].key_count);
        }
        assert_eq!(counts, [3, 1, 1]);
        world.peer.rescue(PLAN, world.clock.now(), "agy_1", "key_2");
        assert_eq!(next(&mut live).await.banners[0].key_count, 2, "the agency's");
        let gone = next(&mut live).await;
        assert!(gone.banners.is_empty(), "that of loc_1 is gone at once");
        world.settle().await;
        world.clock.advance_to(deletion());
        for _ in 0..2 {
            assert!(next(&mut live).await.banners.is_empty());
        }
        world.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_reads_anothers_inbox_and_no_api_key_any() {
    let db = TestDatabase::new(Kind::Sqlite);
    let mut world = told_world(&db).await;
    let as_actor = |actor: &str| {
        let mut request = Request::new(ListNotificationsRequest { user_id: "usr_a".into(), ..Default::default() });
        request.metadata_mut().insert("x-keysweep-actor", actor.parse().expect("ascii"));
        request
    };
    for (actor, code) in [
        ("user/usr_a", Code::Ok),
        ("service/platform", Code::Ok),
        ("user/usr_b", Code::PermissionDenied),
        ("api-key/key_1", Code::PermissionDenied),
    ] {
        let answer = world.api.list_notifications(as_actor(actor)).await;
        assert_eq!(answer.map_or_else(|status| status.code(), |_| Code::Ok), code, "{actor}");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_of_a_request_is_named() {
    let db = TestDatabase::new(Kind::Sqlite);
    let mut world = World::start(&db).await;
    let bad = MarkNotificationsReadRequest {
        user_id: "a b".into(),
        notification_ids: vec![String::new()],
        all: true,
        request_id: "ü".into(),
    };
    let status = world.api.mark_notifications_read(bad).await.expect_err("refused");
    let details = status.get_error_details();
    let fields: Vec<_> =
        details.bad_request().expect("fields").field_violations.iter().map(|v| v.field.as_str()).collect();
    assert_eq!(fields, ["user_id", "notification_ids[0]", "notification_ids", "request_id"]);
    let unknown = RetryDeliveryRequest { delivery_id: "dlv_other".into(), ..Default::default() };
    assert_eq!(world.api.retry_delivery(unknown).await.expect_err("unknown").code(), Code::NotFound);
    let state = ListDeliveriesRequest { state: 99, ..Default::default() };
    assert_eq!(world.api.list_deliveries(state).await.expect_err("no state").code(), Code::InvalidArgument);
    world.stop().await;
}
