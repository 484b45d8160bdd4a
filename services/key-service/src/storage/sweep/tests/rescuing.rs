use futures::future::join_all;
use service_kit::both_databases;

use super::*;
use crate::app::sweep::SweepJobs;

both_databases! {
    async fn a_use_takes_its_key_out_of_the_plan(db: TestDatabase) {
        let house = House::new(db).await;
        house.key("key_1", None).await;
        house.key("key_2", None).await;
        house.key("key_busy", Some(plan_time())).await;
        house.tick_at(plan_time()).await;
        let plan_id = house.plan().await.plan.plan_id;
        assert_eq!(house.use_key("key_busy").await.unwrap(), Some(None), "it was in no plan");
        assert_eq!(house.use_key("key_1").await.unwrap(), Some(Some(plan_id)));
        assert_eq!(house.use_key("key_1").await.unwrap(), Some(None), "it has left already");
        let entry = house.entry("key_1").await;
        assert_eq!((entry.state, entry.cause, entry.ended_at), (RESCUED, Some(1), Some(to_micros(plan_time()))));
        assert_eq!(house.lot("agy_1").await.counts, counted(1, 1, 0, 0));
        let events = house.events().await;
        assert_eq!(events.len(), 4);
        assert!(matches!(&events[3], EventPayload::EntryRescued { key_id, cause: RescueCause::Used, .. } if key_id == "key_1"));
        assert_eq!(house.audited().await, ["plan.published", "key.rescued"]);
    }

    async fn a_rescue_that_is_rolled_back_leaves_no_trace(db: TestDatabase) {
        let house = House::new(db).await;
        house.key("key_1", None).await;
        house.tick_at(plan_time()).await;
        let tx = begin_write(&house.db).await.unwrap();
        let actor = Actor::User("usr_1".into());
        assert!(sweep::rescue(&tx, "key_1", RescueCause::Revoked, plan_time(), &actor).await.unwrap().is_some());
        tx.rollback().await.unwrap();
        assert_eq!(house.entry_state("key_1").await, PLANNED);
        assert_eq!(house.events().await.len(), 3);
        assert_eq!(house.audited().await.len(), 1);
    }

    async fn uses_at_once_give_events_in_order_without_gaps(db: TestDatabase) {
        let house = House::new(db).await;
        for n in 0..40 {
            house.key_of(&format!("key_{n:02}"), &format!("agy_{}", n % 5), None, None).await;
        }
        house.tick_at(plan_time()).await;
        let uses = (0..40).map(|n| { let house = &house; async move { house.use_key(&format!("key_{n:02}")).await } });
        let watch = async {
            let mut head = 0;
            while head < 43 {
                let rows = events::Entity::find().filter(events::Column::Sequence.gt(head))
                    .order_by_asc(events::Column::Sequence).all(&house.db).await.unwrap();
                for row in rows {
                    assert_eq!(row.sequence, head + 1, "a reader behind a cursor sees no gap");
                    head = row.sequence;
                }
            }
        };
        let (results, ()) = tokio::join!(join_all(uses), watch);
        assert!(results.into_iter().all(|result| result.unwrap().unwrap().is_some()));
        assert_eq!(house.events().await.len(), 43);
        assert_eq!(house.plan().await.counts, counted(0, 40, 0, 0));
    }

    async fn entries_whose_keys_slipped_through_are_found(db: TestDatabase) {
        let house = House::new(db).await;
        for id in ["key_at", "key_revoked", "key_rotated", "key_used", "key_idle"] {
            house.key(id, None).await;
        }
        house.tick_at(plan_time()).await;
        // What committed while the plan was made, seen only now.
        house.set("key_used", api_keys::Column::LastUsedAt, to_micros(idle() + TICK)).await;
        house.set("key_at", api_keys::Column::LastUsedAt, to_micros(idle())).await;
        house.set("key_revoked", api_keys::Column::State, 2_i16).await;
        house.set("key_rotated", api_keys::Column::RevokeAt, to_micros(d())).await;
        assert_eq!(house.tick_at(plan_time() + TimeDelta::seconds(1)).await.entries_kept, 3);
        for (id, state, cause) in [
            ("key_used", RESCUED, Some(1)), ("key_revoked", RESCUED, Some(2)), ("key_rotated", RESCUED, Some(3)),
            ("key_at", PLANNED, None), ("key_idle", PLANNED, None),
        ] {
            let entry = house.entry(id).await;
            assert_eq!((entry.state, entry.cause), (state, cause), "{id}");
        }
        let plan = house.plan().await.plan;
        let again = house.store.rescue_ineligible(&house.lease().await, &plan, None, plan_time()).await.unwrap();
        assert_eq!(again.rescued, 0);
    }

    /// A plan that counted the slack keeps what was idle in time all the same: nobody has used it since.
    async fn a_use_before_the_cutoff_that_is_stored_late_is_no_rescue(db: TestDatabase) {
        let house = House::new(db).await;
        house.key("key_before", None).await;
        house.key("key_past", None).await;
        house.writer("rep_dead", idle()).await;
        house.tick_at(plan_time()).await;
        assert_eq!(house.plan().await.plan.idle_since, idle() - TimeDelta::hours(1));
        house.set("key_before", api_keys::Column::LastUsedAt, to_micros(idle())).await;
        house.set("key_past", api_keys::Column::LastUsedAt, to_micros(idle() + TICK)).await;
        assert_eq!(house.tick_at(plan_time() + TimeDelta::seconds(1)).await.entries_kept, 1);
        assert_eq!((house.entry_state("key_before").await, house.entry_state("key_past").await), (PLANNED, RESCUED));
    }

    async fn a_use_at_the_very_last_moment_meets_the_deletion(db: TestDatabase) {
        let house = House::with(db, small_batches(7)).await;
        for n in 0..60 {
            house.key(&format!("key_{n:02}"), None).await;
        }
        house.tick_at(plan_time()).await;
        house.deliver_through("agy_1", Stage::D1).await;
        house.clock.advance_to(d());
        let uses = (0..60).rev().map(|n| { let house = &house; async move {
            let id = format!("key_{n:02}");
            loop {
                // As the callers do: a use that met another transaction is stored again.
                match house.use_key(&id).await {
                    Err(StorageError::Conflict(_)) => {}
                    result => return (id, result.unwrap().is_some()),
                }
            }
        }});
        let (tick, uses) = tokio::join!(house.sweeper.tick(d()), join_all(uses));
        tick.unwrap();
        for (id, lives) in uses {
            assert_eq!(house.key_state(&id).await == 1, lives, "{id}");
            assert_eq!(house.entry_state(&id).await, if lives { RESCUED } else { DELETED }, "{id}");
        }
        house.events().await;
        house.tick_at(d() + TICK).await;
        assert_eq!(house.lot("agy_1").await.lot.state, LotState::Executed);
    }
}
