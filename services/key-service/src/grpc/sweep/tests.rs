//! The service as its callers see it, over a real database.

use std::time::Duration;

use futures::StreamExt;
use keysweep_proto::key::v1 as proto;
use keysweep_proto::key::v1::sweep_event::Payload;
use service_kit::both_databases;
use service_kit::clock::Clock;
use tonic::Code;
use tonic_types::StatusExt;

use super::*;
use crate::domain::sweep::Stage;
use crate::storage::sweep::tests::{House, d, idle, key_row, plan_time};

fn service(house: &House) -> (SweepGrpc, CancellationToken) {
    let streams = CancellationToken::new();
    (SweepGrpc::new(house.service.clone(), streams.clone()), streams)
}

async fn subscribe(grpc: &SweepGrpc, after_sequence: i64) -> stream::EventStream {
    let request = proto::SubscribeSweepPlansRequest {
        subscriber: "notification-service".into(),
        after_sequence,
        ..Default::default()
    };
    grpc.subscribe_sweep_plans(Request::new(request)).await.unwrap().into_inner()
}

async fn next(stream: &mut stream::EventStream) -> Result<proto::SubscribeSweepPlansResponse, Status> {
    tokio::time::timeout(Duration::from_secs(20), stream.next()).await.expect("in time").expect("not ended")
}

fn payload(message: proto::SubscribeSweepPlansResponse) -> Payload {
    message.event.expect("an event").payload.expect("a payload")
}

fn stamp(seconds_after_plan: i64) -> Option<prost_types::Timestamp> {
    Some(to_proto(plan_time() + chrono::TimeDelta::seconds(seconds_after_plan)))
}

fn reason(status: &Status) -> String {
    status.get_error_details().error_info().expect("error info").reason.clone()
}

both_databases! {
    async fn a_subscriber_sees_everything_in_order_and_what_is_new(db: TestDatabase) {
        let house = House::new(db).await;
        house.insert(vec![key_row("key_1", "agy_1", None, idle(), None), key_row("key_2", "agy_1", Some("loc_1"), idle(), None)]).await;
        let (grpc, streams) = service(&house);
        let mut stream = subscribe(&grpc, 0).await;
        let greeting = next(&mut stream).await.unwrap();
        assert_eq!((greeting.event, greeting.head_sequence), (None, 0));

        house.tick_at(plan_time()).await;
        let Payload::PlanPublished(published) = payload(next(&mut stream).await.unwrap()) else { panic!("the plan first") };
        assert_eq!(published.delete_time, Some(to_proto(d())));
        assert_eq!(published.stage_window.map(|window| window.seconds), Some(6 * 3_600));
        let Payload::PlanEntries(chunk) = payload(next(&mut stream).await.unwrap()) else { panic!("then its entries") };
        assert_eq!(chunk.entries.iter().map(|entry| entry.idle_days).collect::<Vec<_>>(), [90, 90]);
        assert!(matches!(
            chunk.entries[1].owner.as_ref().and_then(|owner| owner.account.as_ref()),
            Some(proto::owner::Account::Location(place)) if place.location_id == "loc_1" && place.agency_id == "agy_1"
        ));
        let sealed = next(&mut stream).await.unwrap();
        assert_eq!(sealed.head_sequence, 3);
        assert_eq!(payload(sealed), Payload::PlanSealed(proto::PlanSealed { entry_count: 2, lot_count: 1 }));

        house.use_key("key_1").await.unwrap();
        let rescued = next(&mut stream).await.unwrap();
        assert_eq!(rescued.event.as_ref().map(|event| event.sequence), Some(4));
        assert!(matches!(payload(rescued), Payload::EntryRescued(entry) if entry.key_id == "key_1"));

        let mut resumed = subscribe(&grpc, 3).await;
        assert_eq!(next(&mut resumed).await.unwrap().head_sequence, 4);
        assert!(matches!(payload(next(&mut resumed).await.unwrap()), Payload::EntryRescued(_)));

        streams.cancel();
        for mut stream in [stream, resumed] {
            let ended = next(&mut stream).await.unwrap_err();
            assert_eq!((ended.code(), reason(&ended).as_str()), (Code::Unavailable, "DRAINING"));
            assert!(ended.get_error_details().retry_info().is_some());
            assert!(stream.next().await.is_none());
        }
    }

    async fn subscriptions_are_checked(db: TestDatabase) {
        let house = House::new(db).await;
        let (grpc, _streams) = service(&house);
        let call = |subscriber: &str, after_sequence| {
            let request = proto::SubscribeSweepPlansRequest { subscriber: subscriber.into(), after_sequence, ..Default::default() };
            let grpc = grpc.clone();
            async move { grpc.subscribe_sweep_plans(Request::new(request)).await.map(drop) }
        };
        for name in ["", "UPPER", "a b", &"x".repeat(65)] {
            assert_eq!(call(name, -1).await.unwrap_err().get_error_details().bad_request().unwrap().field_violations.len(), 2);
        }
        let ahead = call("ok-1", 1).await.unwrap_err();
        assert_eq!((ahead.code(), reason(&ahead).as_str()), (Code::OutOfRange, "CURSOR_AHEAD"));
        assert_eq!(ahead.get_error_details().error_info().unwrap().metadata["head_sequence"], "0");
        call(&"x".repeat(64), 0).await.unwrap();
        let history_id = next(&mut subscribe(&grpc, 0).await).await.unwrap().history_id;
        assert!(history_id.starts_with("his_"), "{history_id}");
        for (history_id, refused) in [(history_id.as_str(), false), ("his_other", true)] {
            let history_id = history_id.to_owned();
            let request = proto::SubscribeSweepPlansRequest { subscriber: "ok-1".into(), after_sequence: 0, history_id };
            let answer = grpc.subscribe_sweep_plans(Request::new(request)).await.map(drop);
            assert_eq!(answer.map_err(|status| (status.code(), reason(&status))).err(), refused.then(|| {
                (Code::FailedPrecondition, "OTHER_HISTORY".to_owned())
            }));
        }
    }

    async fn a_stream_whose_events_are_gone_ends_rather_than_skip_them(db: TestDatabase) {
        let house = House::new(db).await;
        house.insert(vec![key_row("key_1", "agy_1", None, idle(), None)]).await;
        let (grpc, _streams) = service(&house);
        house.tick_at(plan_time()).await;
        house.lose_events_through(2).await;
        let mut late = subscribe(&grpc, 0).await;
        next(&mut late).await.unwrap();
        let refused = next(&mut late).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::OutOfRange, "CURSOR_EXPIRED"));
        assert_eq!(refused.get_error_details().error_info().unwrap().metadata["first_sequence"], "3");
    }

    async fn a_quarter_over_the_contract(db: TestDatabase) {
        let house = House::new(db).await;
        house.insert(vec![key_row("key_1", "agy_1", Some("loc_1"), idle(), None)]).await;
        let (grpc, _streams) = service(&house);
        let preview = grpc.preview_sweep(Request::new(proto::PreviewSweepRequest::default())).await.unwrap().into_inner();
        assert_eq!((preview.total_key_count, preview.active_key_count, preview.entries.len()), (1, 1, 1));
        assert_eq!(preview.as_of_time, Some(to_proto(d())));
        house.tick_at(plan_time()).await;

        let plans = grpc.list_sweep_plans(Request::new(proto::ListSweepPlansRequest::default())).await.unwrap().into_inner();
        let plan_id = plans.sweep_plans[0].plan_id.clone();
        for stage in Stage::ALL {
            let at = d() - stage.lead();
            house.clock.advance_to(at);
            let notice = proto::StageNotice {
                plan_id: plan_id.clone(),
                agency_id: "agy_1".into(),
                stage: match stage { Stage::D15 => 1, Stage::D7 => 2, Stage::D1 => 3 },
                deliver_time: Some(to_proto(at)),
                in_app_count: 2,
                emails_accepted: 1,
                undeliverable: 0,
            };
            let request = proto::AcknowledgeNoticesRequest { notices: vec![notice], send_time: Some(to_proto(at)) };
            let answer = grpc.acknowledge_notices(Request::new(request)).await.unwrap().into_inner();
            assert_eq!(answer.results[0].outcome(), proto::NoticeOutcome::Recorded);
            assert_eq!((answer.results[0].delete_time, answer.head_sequence), (Some(to_proto(d())), 3));
        }
        house.tick_at(d()).await;
        assert_eq!(house.clock.now(), d());
        let plan = grpc.get_sweep_plan(Request::new(proto::GetSweepPlanRequest { plan_id: plan_id.clone() })).await.unwrap().into_inner();
        assert_eq!((plan.state(), plan.deleted_count, plan.last_sequence), (proto::PlanState::Completed, 1, 5));
        let request = proto::ListLotsRequest { plan_id: plan_id.clone(), ..Default::default() };
        let lots = grpc.list_lots(Request::new(request)).await.unwrap().into_inner().lots;
        assert_eq!((lots[0].state(), lots[0].receipts.len(), lots[0].deleted_count), (proto::LotState::Executed, 3, 1));
        let request = proto::ListEntriesRequest { plan_id, agency_id: "agy_1".into(), ..Default::default() };
        let entries = grpc.list_entries(Request::new(request)).await.unwrap().into_inner().entries;
        assert_eq!((entries[0].state(), entries[0].idle_days), (proto::EntryState::Deleted, 90));
        assert_eq!(entries[0].end_time, Some(to_proto(d())));
    }

    async fn requests_name_every_fault_at_once(db: TestDatabase) {
        let house = House::new(db).await;
        let (grpc, _streams) = service(&house);
        let bad = proto::StageNotice { stage: 9, undeliverable: 0, ..Default::default() };
        let good = proto::StageNotice {
            plan_id: "plan_1".into(), agency_id: "agy_1".into(), stage: 1, deliver_time: stamp(0), ..Default::default()
        };
        let send_time = Some(prost_types::Timestamp { seconds: i64::MAX, nanos: 0 });
        let request = proto::AcknowledgeNoticesRequest { notices: vec![good.clone(), bad], send_time };
        let refused = grpc.acknowledge_notices(Request::new(request)).await.unwrap_err();
        let details = refused.get_error_details();
        let fields: Vec<_> = details.bad_request().unwrap().field_violations.iter().map(|v| v.field.as_str()).collect();
        assert_eq!(fields, ["send_time", "notices[1].plan_id", "notices[1].agency_id", "notices[1].stage", "notices[1].deliver_time"]);
        for notices in [vec![], vec![good.clone(); 1_001]] {
            let refused = grpc.acknowledge_notices(Request::new(proto::AcknowledgeNoticesRequest { notices, send_time: None })).await.unwrap_err();
            assert_eq!(reason(&refused), "INVALID_FIELDS");
            assert_eq!(refused.message(), "invalid request: notices: must be 1 to 1,000 notices");
        }
        let unknown = grpc.acknowledge_notices(Request::new(proto::AcknowledgeNoticesRequest { notices: vec![good], send_time: None })).await.unwrap();
        assert_eq!(unknown.into_inner().results[0].outcome(), proto::NoticeOutcome::Refused);

        let missing = grpc.get_sweep_plan(Request::new(proto::GetSweepPlanRequest { plan_id: "plan_9".into() })).await.unwrap_err();
        assert_eq!((missing.code(), reason(&missing).as_str()), (Code::NotFound, "PLAN_NOT_FOUND"));
        let request = proto::ListSweepPlansRequest { state: 99, ..Default::default() };
        assert_eq!(reason(&grpc.list_sweep_plans(Request::new(request)).await.unwrap_err()), "INVALID_FIELDS");
        let request = proto::ListSweepPlansRequest { page_token: "x".into(), ..Default::default() };
        assert_eq!(reason(&grpc.list_sweep_plans(Request::new(request)).await.unwrap_err()), "PAGE_TOKEN_INVALID");
        let request = proto::PreviewSweepRequest {
            as_of_time: Some(prost_types::Timestamp { seconds: -1, nanos: 0 }), ..Default::default()
        };
        assert_eq!(reason(&grpc.preview_sweep(Request::new(request)).await.unwrap_err()), "INVALID_FIELDS");

        let told = |status: Status| -> Vec<String> {
            let details = status.get_error_details();
            details.bad_request().unwrap().field_violations.iter().map(|fault| fault.field.clone()).collect()
        };
        let request = proto::HoldLotRequest { request_id: "a b".into(), ..Default::default() };
        let refused = grpc.hold_lot(Request::new(request)).await.unwrap_err();
        assert_eq!(told(refused), ["plan_id", "agency_id", "reason", "request_id"]);
        let refused = grpc.cancel_plan(Request::new(proto::CancelPlanRequest::default())).await.unwrap_err();
        assert_eq!(told(refused), ["plan_id", "reason"]);
        let request = proto::ListLotsRequest { state: 99, page_size: -1, ..Default::default() };
        assert_eq!(told(grpc.list_lots(Request::new(request)).await.unwrap_err()), ["plan_id", "state", "page_size"]);
        let request = proto::ListEntriesRequest { state: 99, page_size: -1, ..Default::default() };
        assert_eq!(told(grpc.list_entries(Request::new(request)).await.unwrap_err()), ["plan_id", "state", "page_size"]);
    }

    async fn silence_is_broken_by_heartbeats(db: TestDatabase) {
        let house = House::new(db).await;
        let wake = house.service.signal().listen();
        let drain = CancellationToken::new();
        let place = house.service.subscribe("patient", 0, "").await.unwrap();
        let mut stream = stream::events(house.service.clone(), drain, wake, place, Duration::from_millis(20));
        for _ in 0..4 {
            let message = next(&mut stream).await.unwrap();
            assert_eq!((message.event, message.head_sequence), (None, 0));
        }
    }
}
