use serde_json::json;
use service_kit::both_databases;

use super::*;
use crate::app::sweep::SweepError;
use crate::domain::sweep::PlanState;

both_databases! {
    async fn a_cancelled_plan_deletes_nothing_more(db: TestDatabase) {
        let house = House::new(db).await;
        for agency in ["agy_1", "agy_2"] {
            house.key_of(&format!("key_{agency}"), agency, None, None).await;
        }
        house.tick_at(plan_time()).await;
        house.deliver_through("agy_1", Stage::D1).await;
        let plan_id = house.plan().await.plan.plan_id;
        house.service.hold_lot(&plan_id, "agy_2", operator("wait")).await.unwrap();
        let view = house.service.cancel_plan(&plan_id, operator("the import was wrong")).await.unwrap();
        assert_eq!((view.plan.state, view.plan.state_reason.as_str()), (PlanState::Cancelled, "the import was wrong"));
        assert_eq!(view.counts, counted(0, 0, 0, 2));
        for agency in ["agy_1", "agy_2"] {
            assert_eq!(house.lot(agency).await.lot.state, LotState::Cancelled);
        }
        assert_eq!(house.tick_at(d() + TICK).await.work(), 0);
        assert_eq!((house.key_state("key_agy_1").await, house.key_state("key_agy_2").await), (1, 1));
        assert_eq!(house.event_names().await.last().map(String::as_str), Some("plan_cancelled"));
        let again = house.service.cancel_plan(&plan_id, operator("again")).await;
        assert!(matches!(again, Err(SweepError::PlanState { state: PlanState::Cancelled, .. })));
        assert_eq!(house.deliver("agy_2", Stage::D15, d()).await.reply, NoticeReply::LotClosed);
    }

    async fn an_operators_hold_takes_the_place_of_any_other(db: TestDatabase) {
        let house = House::new(db).await;
        house.key("key_1", None).await;
        house.key_of("key_2", "agy_2", None, None).await;
        house.tick_at(plan_time()).await;
        let plan_id = house.plan().await.plan.plan_id;
        let mark = d() - Stage::D15.lead();
        let held = async |agency: &'static str| {
            let lot = house.lot(agency).await.lot;
            (lot.state, lot.hold_reason, lot.state_reason)
        };
        let by_operator = |words: &str| (LotState::Held, Some(HoldReason::Operator), words.to_owned());
        for (agency, nobody) in [("agy_1", HoldReason::NoAgencyAdmin), ("agy_2", HoldReason::AllAddressesRefused)] {
            house.undeliverable(agency, Stage::D15, nobody, mark).await;
            assert_eq!(held(agency).await, (LotState::Held, Some(nobody), nobody.words().to_owned()));
            house.service.hold_lot(&plan_id, agency, operator("a dispute")).await.unwrap();
            assert_eq!(held(agency).await, by_operator("a dispute"));
            let view = house.service.hold_lot(&plan_id, agency, operator("in court now")).await.unwrap();
            assert_eq!(view.lot.state_reason, "in court now");
            // Neither report nor receipt ends or changes it.
            for why in [HoldReason::NoAgencyAdmin, HoldReason::AllAddressesRefused] {
                assert_eq!(house.undeliverable(agency, Stage::D15, why, mark).await.reply, NoticeReply::Recorded);
                assert_eq!(held(agency).await, by_operator("in court now"));
            }
            assert_eq!(house.deliver(agency, Stage::D15, mark).await.reply, NoticeReply::Recorded);
            assert_eq!(held(agency).await, by_operator("in court now"));
        }
        let said: Vec<_> = house.events().await.into_iter().filter_map(|event| match event {
            EventPayload::LotHeld { agency_id, hold_reason, reason } if agency_id == "agy_2" => Some((hold_reason, reason)),
            _ => None,
        }).collect();
        let refused = HoldReason::AllAddressesRefused;
        let operators = |words: &str| (HoldReason::Operator, words.to_owned());
        assert_eq!(said, [(refused, refused.words().to_owned()), operators("a dispute"), operators("in court now")]);
        let fact = |reason: &str, word: &str| (reason.to_owned(), json!({ "hold_reason": word }));
        let admins = HoldReason::NoAgencyAdmin.words();
        assert_eq!(house.facts("lot.held").await, [
            fact(admins, "no_agency_admin"), fact("a dispute", "operator"), fact("in court now", "operator"),
            fact(refused.words(), "all_addresses_refused"), fact("a dispute", "operator"), fact("in court now", "operator"),
        ]);
        assert!(!house.event_names().await.contains(&"lot_released".to_owned()));
    }

    async fn a_held_lot_told_too_late_waits_with_the_operators_reason(db: TestDatabase) {
        let house = House::new(db).await;
        house.key("key_1", None).await;
        house.tick_at(plan_time()).await;
        let plan_id = house.plan().await.plan.plan_id;
        house.service.hold_lot(&plan_id, "agy_1", operator("a dispute")).await.unwrap();
        house.deliver("agy_1", Stage::D15, d() + TimeDelta::days(14) - Stage::D15.lead() + TICK).await;
        let lot = house.lot("agy_1").await.lot;
        assert_eq!(lot.state, LotState::Deferred);
        assert!(lot.state_reason.ends_with("held until then: a dispute"), "{}", lot.state_reason);
    }

    async fn a_refusal_says_which_state_is_needed(db: TestDatabase) {
        let house = House::new(db).await;
        house.key("key_1", None).await;
        house.tick_at(plan_time()).await;
        let plan_id = house.plan().await.plan.plan_id;
        let words = |error: SweepError| match error {
            SweepError::PlanState { needed, .. } | SweepError::LotState { needed, .. } => needed,
            other => panic!("{other:?}"),
        };
        let confirmed = house.service.confirm_plan(&plan_id, operator("x")).await.unwrap_err();
        assert_eq!(words(confirmed), "the plan must be AWAITING_CONFIRMATION, with time left for its notices");
        let released = house.service.release_lot(&plan_id, "agy_1", operator("x")).await.unwrap_err();
        assert_eq!(words(released), "the lot must be HELD");
        house.service.cancel_plan(&plan_id, operator("x")).await.unwrap();
        let cancelled = house.service.cancel_plan(&plan_id, operator("x")).await.unwrap_err();
        assert_eq!(words(cancelled), "the plan must be AWAITING_CONFIRMATION or OPEN");
        let held = house.service.hold_lot(&plan_id, "agy_1", operator("x")).await.unwrap_err();
        assert_eq!(words(held), "the lot must be OPEN or HELD");
    }

    async fn a_waiting_plan_is_cancelled_without_an_event(db: TestDatabase) {
        let house = House::with(db, tight_breaker()).await;
        for n in 0..3 {
            house.key(&format!("key_{n}"), None).await;
        }
        house.tick_at(plan_time()).await;
        let plan_id = house.plan().await.plan.plan_id;
        house.service.cancel_plan(&plan_id, operator("no")).await.unwrap();
        assert!(house.events().await.is_empty());
        assert_eq!(house.tick_at(plan_time() + TICK).await.work(), 0);
    }

    async fn a_call_is_done_once_under_its_request_id(db: TestDatabase) {
        let house = House::new(db).await;
        house.key("key_1", None).await;
        house.tick_at(plan_time()).await;
        let plan_id = house.plan().await.plan.plan_id;
        let call = |reason: &str| OperatorCall { request_id: "req-1".into(), ..operator(reason) };
        let (one, two) = tokio::join!(
            house.service.hold_lot(&plan_id, "agy_1", call("wait")),
            house.service.hold_lot(&plan_id, "agy_1", call("wait"))
        );
        assert_eq!((one.unwrap().lot.state, two.unwrap().lot.state), (LotState::Held, LotState::Held));
        house.service.release_lot(&plan_id, "agy_1", operator("go on")).await.unwrap();
        let replayed = house.service.hold_lot(&plan_id, "agy_1", call("wait")).await.unwrap();
        assert_eq!(replayed.lot.state, LotState::Open, "the repeated call is not done again");
        let other = house.service.hold_lot(&plan_id, "agy_1", call("something else")).await;
        assert!(matches!(other, Err(SweepError::RequestIdReused)));
        assert_eq!(house.event_names().await[3..], ["lot_held", "lot_released"]);
    }

    async fn operators_are_people_or_services_and_say_why(db: TestDatabase) {
        let house = House::new(db).await;
        house.key("key_1", None).await;
        house.tick_at(plan_time()).await;
        let plan_id = house.plan().await.plan.plan_id;
        let by_key = OperatorCall { actor: Some(Actor::ApiKey("key_1".into())), ..operator("please") };
        assert!(matches!(house.service.cancel_plan(&plan_id, by_key).await, Err(SweepError::ActorNotAllowed(_))));
        for reason in ["", "  ", &"x".repeat(501)] {
            let refused = house.service.cancel_plan(&plan_id, operator(reason)).await;
            assert!(matches!(refused, Err(SweepError::Invalid(_))));
        }
        assert!(matches!(house.service.cancel_plan("plan_9", operator("x")).await, Err(SweepError::PlanNotFound(_))));
        assert!(matches!(house.service.hold_lot(&plan_id, "agy_9", operator("x")).await, Err(SweepError::LotNotFound { .. })));
        assert!(matches!(
            house.service.release_lot(&plan_id, "agy_1", operator("x")).await,
            Err(SweepError::LotState { state: LotState::Open, .. })
        ));
        assert!(matches!(
            house.service.confirm_plan(&plan_id, operator("x")).await,
            Err(SweepError::PlanState { state: PlanState::Open, .. })
        ));
        let nobody = OperatorCall { actor: None, ..operator("local") };
        house.service.hold_lot(&plan_id, "agy_1", nobody).await.unwrap();
        let rows = audit_events::Entity::find().all(&house.db).await.unwrap();
        let held = rows.iter().find(|row| row.action == "lot.held").unwrap();
        assert_eq!((held.actor.as_str(), held.reason.as_str(), held.request_id.as_str()), ("service/local", "local", "call-1"));
    }
}
