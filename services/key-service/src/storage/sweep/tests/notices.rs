use serde_json::json;
use service_kit::both_databases;

use super::*;
use crate::app::sweep::SweepError;
use crate::domain::sweep::PlanState;

async fn planned(db: TestDatabase) -> House {
    let house = House::new(db).await;
    house.key("key_1", None).await;
    house.tick_at(plan_time()).await;
    house
}

fn mark(stage: Stage) -> DateTime<Utc> {
    d() - stage.lead()
}

both_databases! {
    async fn a_late_receipt_moves_the_lot_and_what_follows(db: TestDatabase) {
        let house = planned(db).await;
        let late = mark(Stage::D15) + TimeDelta::days(5) + TICK;
        let moved = d() + TimeDelta::days(5) + TimeDelta::hours(1);
        let result = house.deliver("agy_1", Stage::D15, late).await;
        assert_eq!((result.reply, result.delete_at), (NoticeReply::Recorded, Some(moved)));
        let events = house.events().await;
        assert!(matches!(&events[3], EventPayload::LotRescheduled { previous_delete_at, delete_at, stage: Stage::D15, .. }
            if *previous_delete_at == d() && *delete_at == moved));

        let again = house.deliver("agy_1", Stage::D15, late + TimeDelta::days(1)).await;
        assert_eq!((again.reply, again.delete_at), (NoticeReply::Recorded, Some(moved)));
        assert_eq!(house.events().await.len(), 4, "a repeat changes nothing");

        let early = house.deliver("agy_1", Stage::D7, mark(Stage::D7)).await;
        assert_eq!(early.reply, NoticeReply::Refused);
        assert!(early.detail.contains("window"), "{}", early.detail);
        house.deliver_through("agy_1", Stage::D1).await;
        assert_eq!(house.tick_at(d()).await.work(), 0, "D itself is too early now");
        assert_eq!(house.tick_at(moved - TICK).await.work(), 0);
        assert_eq!(house.tick_at(moved).await.keys_deleted, 1);
        let rescheduled = json!({
            "previous_delete_time": "2027-01-01T00:00:00Z", "delete_time": "2027-01-06T01:00:00Z", "stage": "d15",
        });
        assert_eq!(house.facts("lot.rescheduled").await, [(String::new(), rescheduled)]);
        let deleted = json!({ "create_time": "2025-08-29T00:00:00Z", "last_use_time": null });
        assert_eq!(house.facts("key.deleted").await, [(String::new(), deleted)]);
    }

    async fn stages_are_refused_out_of_order_and_of_unknown_lots(db: TestDatabase) {
        let house = planned(db).await;
        assert_eq!(house.deliver("agy_1", Stage::D7, mark(Stage::D7)).await.reply, NoticeReply::Refused);
        let unknown = house.deliver("agy_9", Stage::D15, mark(Stage::D7)).await;
        assert_eq!((unknown.reply, unknown.delete_at), (NoticeReply::Refused, None));
        assert!(house.lot("agy_1").await.lot.receipts.iter().next().is_none());
    }

    async fn a_batch_answers_in_order_and_applies_stages_in_order(db: TestDatabase) {
        let house = House::new(db).await;
        for agency in ["agy_2", "agy_1"] {
            house.key_of(&format!("key_{agency}"), agency, None, None).await;
        }
        house.tick_at(plan_time()).await;
        let plan_id = house.plan().await.plan.plan_id;
        house.clock.advance_to(d());
        let notice = |agency: &str, stage: Stage| Notice {
            plan_id: plan_id.clone(), agency_id: agency.into(), stage,
            kind: NoticeKind::Delivered { at: mark(stage), in_app_count: 1, emails_accepted: 1 },
        };
        let batch = [
            notice("agy_2", Stage::D15), notice("agy_9", Stage::D15), notice("agy_1", Stage::D7), notice("agy_1", Stage::D15),
            notice("agy_2", Stage::D7), notice("agy_2", Stage::D1), notice("agy_2", Stage::D1),
        ];
        let (results, head) = house.service.acknowledge(&batch, Some(d())).await.unwrap();
        use NoticeReply::{Recorded, Refused};
        let replies: Vec<_> = results.iter().map(|result| result.reply).collect();
        assert_eq!(replies, [Recorded, Refused, Refused, Recorded, Recorded, Recorded, Recorded]);
        assert_eq!(head, 3);
        assert_eq!(house.lot("agy_2").await.lot.receipts.iter().count(), 3);
    }

    async fn a_lot_too_late_waits_for_the_next_quarter(db: TestDatabase) {
        let house = planned(db).await;
        let last = d() + TimeDelta::days(14);
        let too_late = last - Stage::D15.lead() + TICK;
        let result = house.deliver("agy_1", Stage::D15, too_late).await;
        assert_eq!((result.reply, result.delete_at), (NoticeReply::Recorded, Some(d())));
        let lot = house.lot("agy_1").await;
        assert_eq!((lot.lot.state, lot.counts), (LotState::Deferred, counted(0, 0, 0, 1)));
        assert!(!lot.lot.state_reason.is_empty() && lot.waits_for.is_empty());
        assert_eq!(house.deliver("agy_1", Stage::D7, too_late).await.reply, NoticeReply::LotClosed);
        assert_eq!(house.deliver("agy_1", Stage::D15, too_late).await.reply, NoticeReply::Recorded);
        assert_eq!(house.event_names().await[3..], ["lot_deferred"]);
        assert_eq!(house.tick_at(d()).await.plans_completed, 1);
        assert_eq!(house.key_state("key_1").await, 1);
        assert_eq!(house.plan().await.counts.spared, 1);
    }

    async fn a_lot_never_told_is_deferred_after_its_last_date(db: TestDatabase) {
        let house = planned(db).await;
        let last = d() + TimeDelta::days(14);
        assert_eq!(house.lot("agy_1").await.waits_for.len(), 3);
        assert_eq!(house.tick_at(last).await.work(), 0);
        let tick = house.tick_at(last + TICK).await;
        assert_eq!((tick.lots_deferred, tick.plans_completed, tick.keys_deleted), (1, 1, 0));
        assert_eq!((house.entry_state("key_1").await, house.key_state("key_1").await), (SPARED, 1));
        assert_eq!(house.event_names().await[3..], ["lot_deferred", "plan_completed"]);
        // The next quarter lists the key again.
        let next = d() + TimeDelta::days(90);
        assert_eq!(house.tick_at(next - TimeDelta::days(15)).await.plans_made, 1);
        assert_eq!(house.entry_count().await, 2);
    }

    async fn nobody_to_tell_holds_the_lot_until_somebody_is_told(db: TestDatabase) {
        let house = planned(db).await;
        let nobody = HoldReason::NoAgencyAdmin;
        for _ in 0..2 {
            let held = house.undeliverable("agy_1", Stage::D15, nobody, mark(Stage::D15)).await;
            assert_eq!(held.reply, NoticeReply::Recorded);
        }
        let lot = house.lot("agy_1").await;
        assert_eq!((lot.lot.state, lot.lot.hold_reason), (LotState::Held, Some(nobody)));
        assert!(lot.waits_for.contains(&nobody.words().to_owned()));
        assert_eq!(house.event_names().await[3..], ["lot_held"], "held once");

        let told = mark(Stage::D15) + TimeDelta::days(2);
        assert_eq!(house.deliver("agy_1", Stage::D15, told).await.delete_at, Some(d() + TimeDelta::days(2)));
        let lot = house.lot("agy_1").await.lot;
        assert_eq!((lot.state, lot.hold_reason, lot.state_reason), (LotState::Open, None, String::new()));
        assert_eq!(house.event_names().await[3..], ["lot_held", "lot_released", "lot_rescheduled"]);
        house.deliver_through("agy_1", Stage::D1).await;
        assert_eq!(house.tick_at(d() + TimeDelta::days(2)).await.keys_deleted, 1);
    }

    async fn an_operators_hold_outlasts_receipts(db: TestDatabase) {
        let house = planned(db).await;
        let plan_id = house.plan().await.plan.plan_id;
        house.service.hold_lot(&plan_id, "agy_1", operator("they asked for time")).await.unwrap();
        house.deliver_through("agy_1", Stage::D1).await;
        let lot = house.lot("agy_1").await;
        assert_eq!((lot.lot.state, lot.lot.receipts.iter().count()), (LotState::Held, 3));
        let tick = house.tick_at(d()).await;
        assert_eq!((tick.work(), tick.lots_held), (0, vec![(HoldReason::Operator, 1)]), "held");
        let view = house.service.release_lot(&plan_id, "agy_1", operator("they are ready")).await.unwrap();
        assert_eq!(view.lot.state, LotState::Open);
        assert_eq!(house.tick_at(d() + TICK).await.keys_deleted, 1);
        assert_eq!(house.event_names().await[3..], ["lot_held", "lot_released", "lot_executed", "plan_completed"]);
        let audited = house.audited().await;
        assert!(audited.contains(&"lot.held".to_owned()) && audited.contains(&"lot.released".to_owned()));
        let closed = house.service.hold_lot(&plan_id, "agy_1", operator("too late")).await;
        assert!(matches!(closed, Err(SweepError::LotState { state: LotState::Executed, .. })));
    }

    async fn a_lot_held_through_its_last_date_is_deferred(db: TestDatabase) {
        let house = planned(db).await;
        let plan_id = house.plan().await.plan.plan_id;
        house.service.hold_lot(&plan_id, "agy_1", operator("forgotten")).await.unwrap();
        house.deliver_through("agy_1", Stage::D1).await;
        let tick = house.tick_at(d() + TimeDelta::days(14) + TICK).await;
        assert_eq!((tick.lots_deferred, tick.keys_deleted), (1, 0));
        let lot = house.lot("agy_1").await.lot;
        assert_eq!((lot.state, lot.hold_reason), (LotState::Deferred, None));
        assert!(lot.state_reason.contains("forgotten"));
        assert_eq!(house.plan().await.plan.state, PlanState::Completed);
    }
}
