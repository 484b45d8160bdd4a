use sea_orm::{ConnectionTrait, DbBackend, EntityTrait, PaginatorTrait, Statement};
use service_kit::both_databases;
use service_kit::db::DatabaseConfig;
use service_kit::page::Page;
use service_kit::testing::Kind;

use super::*;
use crate::app::sweep::{Difference, PlanComparison, PlanFilter, PreviewFilter, SweepFeed, SweepJobs};
use crate::domain::sweep::{KeyRange, PlanState, UsageWriter};
use crate::storage::sweep::entities::plans;

async fn listed(house: &House) -> Vec<String> {
    let rows = entries::Entity::find().order_by_asc(entries::Column::KeyId).all(&house.db).await.unwrap();
    rows.into_iter().map(|row| row.key_id).collect()
}

both_databases! {
    async fn a_plan_lists_exactly_what_is_idle(db: TestDatabase) {
        let house = House::new(db).await;
        house.key("key_at", Some(idle())).await;
        house.key("key_past", Some(idle() + TICK)).await;
        house.key("key_before", Some(idle() - TICK)).await;
        let long_ago = idle() - TimeDelta::days(500);
        house.insert(vec![
            key_row("key_never_at", "agy_1", None, idle(), None),
            key_row("key_never_past", "agy_1", None, idle() + TICK, None),
            key_row("key_odd", "agy_1", None, idle() + TICK, Some(long_ago)),
        ]).await;
        for id in ["key_revoked", "key_deleted", "key_rotated", "key_expired"] {
            house.key(id, None).await;
        }
        house.set("key_revoked", api_keys::Column::State, 2_i16).await;
        house.set("key_deleted", api_keys::Column::State, 3_i16).await;
        house.set("key_rotated", api_keys::Column::RevokeAt, to_micros(d())).await;
        house.set("key_expired", api_keys::Column::ExpiresAt, to_micros(long_ago)).await;

        assert_eq!(house.tick_at(plan_time() - TICK).await.work(), 0, "a microsecond early");
        assert_eq!(house.tick_at(plan_time()).await.plans_made, 1);
        assert_eq!(listed(&house).await, ["key_at", "key_before", "key_expired", "key_never_at"]);
        let view = house.plan().await;
        assert_eq!((view.plan.entry_count, view.plan.lot_count, view.plan.active_key_count), (4, 1, 8));
        assert_eq!(view.counts, counted(4, 0, 0, 0));
        assert_eq!(view.last_sequence, 3);
        assert_eq!(house.event_names().await, ["plan_published", "plan_entries", "plan_sealed"]);
        assert_eq!(house.audited().await, ["plan.published"]);
        assert_eq!(house.tick_at(plan_time() + TICK).await.work(), 0, "one plan for each sweep");
    }

    async fn a_late_plan_is_made_until_a_day_before_its_sweep(db: TestDatabase) {
        let house = House::new(db).await;
        house.key("key_1", None).await;
        assert_eq!(house.tick_at(d() - TimeDelta::days(1) + TICK).await.work(), 0);
        house.sweeper.resign().await.unwrap();
        let sweeper = house.another_sweeper();
        assert_eq!(sweeper.tick(d() - TimeDelta::days(1)).await.unwrap().plans_made, 1);
    }

    async fn chunks_cover_every_entry_once_in_order(db: TestDatabase) {
        let breaker = Breaker { max_percent: 100, max_keys: 1_000 };
        let house = House::with(db, SweepPolicy { breaker, ..SweepPolicy::default() }).await;
        let old = idle() - TimeDelta::days(1);
        let row = |n: usize| key_row(&format!("key_{n:05}"), &format!("agy_{:03}", n % 7), None, old, None);
        house.insert((0..2_001).map(row).collect()).await;
        house.tick_at(plan_time()).await;
        let plan_id = house.plan().await.plan.plan_id;
        let mut seen = Vec::new();
        let mut sizes = Vec::new();
        for event in house.events().await {
            if let EventPayload::PlanEntries(range) = event {
                let (delete_at, chunk) = house.store.chunk(&plan_id, &range).await.unwrap();
                assert_eq!(delete_at, d());
                sizes.push(chunk.len());
                seen.extend(chunk.into_iter().map(|entry| (entry.agency_id, entry.key_id)));
            }
        }
        assert_eq!(sizes, [1_000, 1_000, 1]);
        assert!(seen.windows(2).all(|pair| pair[0] < pair[1]), "in order, without repeats");
        assert_eq!(seen.len(), 2_001);
        assert_eq!(house.plan().await.plan.lot_count, 7);
    }

    async fn a_chunk_shows_its_entries_as_they_were_planned(db: TestDatabase) {
        let house = House::new(db).await;
        house.key("key_1", None).await;
        house.tick_at(plan_time()).await;
        assert!(house.use_key("key_1").await.unwrap().unwrap().is_some());
        let EventPayload::PlanEntries(range) = house.events().await.remove(1) else { panic!("a chunk") };
        let (_, chunk) = house.store.chunk(&house.plan().await.plan.plan_id, &range).await.unwrap();
        assert_eq!(chunk.iter().map(|entry| (entry.state, entry.cause)).collect::<Vec<_>>(), [(EntryState::Planned, None)]);
    }

    async fn a_plan_without_entries_is_published_and_completed(db: TestDatabase) {
        let house = House::new(db).await;
        house.tick_at(plan_time()).await;
        assert_eq!(house.event_names().await, ["plan_published", "plan_sealed"]);
        assert_eq!(house.tick_at(d() - TICK).await.work(), 0);
        assert_eq!(house.tick_at(d()).await.plans_completed, 1);
        assert_eq!(house.plan().await.plan.state, PlanState::Completed);
    }

    async fn two_sweepers_plan_and_delete_once(db: TestDatabase) {
        let house = House::with(db, small_batches(3)).await;
        for n in 0..20 {
            house.key_of(&format!("key_{n:02}"), &format!("agy_{}", n % 2), None, None).await;
        }
        let other = house.another_sweeper();
        let (one, two) = tokio::join!(house.sweeper.tick(plan_time()), other.tick(plan_time()));
        assert_eq!(one.unwrap().plans_made + two.unwrap().plans_made, 1);
        assert_eq!(house.entry_count().await, 20);
        for stage in Stage::ALL {
            for agency in ["agy_0", "agy_1"] {
                assert_eq!(house.deliver(agency, stage, d() - stage.lead()).await.reply, NoticeReply::Recorded);
            }
        }
        house.clock.advance_to(d());
        let (one, two) = tokio::join!(house.sweeper.tick(d()), other.tick(d()));
        let (one, two) = (one.unwrap(), two.unwrap());
        assert_eq!(one.keys_deleted + two.keys_deleted, 20);
        assert_eq!(one.lots_executed + two.lots_executed, 2);
        house.tick_at(d() + TICK).await;
        assert_eq!(house.plan().await.counts, counted(0, 0, 20, 0));
        assert_eq!(house.plan().await.plan.state, PlanState::Completed);
        let names = house.event_names().await;
        assert_eq!(names.iter().filter(|name| *name == "lot_executed").count(), 2);
        assert_eq!(names.iter().filter(|name| *name == "plan_completed").count(), 1);
        let audited = house.audited().await;
        assert_eq!(audited.iter().filter(|action| *action == "key.deleted").count(), 20);
    }

    async fn the_breaker_stops_a_plan_until_it_is_confirmed(db: TestDatabase) {
        let house = House::with(db, tight_breaker()).await;
        for n in 0..3 {
            house.key(&format!("key_{n}"), None).await;
        }
        house.tick_at(plan_time()).await;
        let view = house.plan().await;
        assert_eq!(view.plan.state, PlanState::AwaitingConfirmation);
        assert_eq!((view.plan.entry_count, view.plan.lot_count, view.plan.active_key_count), (3, 1, 3));
        assert!(!view.plan.state_reason.is_empty());
        assert_eq!(house.entry_count().await, 0);
        assert!(house.events().await.is_empty());
        assert_eq!(house.tick_at(plan_time() + TimeDelta::hours(1)).await.work(), 0);

        let plan_id = view.plan.plan_id;
        house.service.confirm_plan(&plan_id, operator("it is right")).await.unwrap();
        house.service.confirm_plan(&plan_id, operator("it is right, again")).await.unwrap();
        house.key("key_used_meanwhile", Some(plan_time())).await;
        assert_eq!(house.tick_at(plan_time() + TimeDelta::hours(2)).await.plans_published, 1);
        assert_eq!(house.plan().await.plan.state, PlanState::Open);
        assert_eq!(house.event_names().await, ["plan_published", "plan_entries", "plan_sealed"]);
        assert_eq!(house.audited().await, ["plan.stopped", "plan.confirmed", "plan.published"]);
    }

    async fn an_unconfirmed_plan_ends_with_its_window(db: TestDatabase) {
        let house = House::with(db, tight_breaker()).await;
        for n in 0..3 {
            house.key(&format!("key_{n}"), None).await;
        }
        house.tick_at(plan_time()).await;
        let closes = d() - TimeDelta::days(1);
        assert_eq!(house.tick_at(closes).await.work(), 0);
        assert_eq!(house.tick_at(closes + TICK).await.plans_cancelled, 1);
        let view = house.plan().await;
        assert_eq!(view.plan.state, PlanState::Cancelled);
        assert!(!view.plan.state_reason.is_empty());
        assert!(house.events().await.is_empty());
        let refused = house.service.confirm_plan(&view.plan.plan_id, operator("late")).await;
        assert!(matches!(refused, Err(crate::app::sweep::SweepError::PlanState { state: PlanState::Cancelled, .. })));
    }

    async fn a_key_in_an_open_plan_stands_in_no_other(db: TestDatabase) {
        let house = House::new(db).await;
        house.key("key_held", None).await;
        house.tick_at(plan_time()).await;
        // The lot is never told and stays; a second plan is made by hand for another instant.
        let draft = crate::app::sweep::PlanDraft {
            plan_id: "plan_other".into(),
            delete_at: d() + TimeDelta::days(90),
            idle_since: d(),
            last_delete_at: d() + TimeDelta::days(104),
            stage_window: TimeDelta::hours(6),
            breaker: Breaker::default(),
            active_key_count: 1,
        };
        let made = house.store.make_plan(&house.lease().await, &draft, plan_time()).await.unwrap().unwrap();
        assert_eq!(made.entry_count, 0);
        assert_eq!(house.entry_count().await, 1);
        assert!(house.store.make_plan(&house.lease().await, &draft, plan_time()).await.is_ok_and(|again| again.is_none()));
        assert_eq!(plans::Entity::find().count(&house.db).await.unwrap(), 2);
    }

    async fn usage_in_doubt_counts_against_the_sweep(db: TestDatabase) {
        let house = House::new(db).await;
        let hour = TimeDelta::hours(1);
        house.key("key_near", Some(idle() - hour + TICK)).await;
        house.key("key_far", Some(idle() - hour)).await;
        house.writer("rep_dead", idle()).await;
        house.tick_at(plan_time()).await;
        assert_eq!(listed(&house).await, ["key_far"]);
        assert_eq!(house.plan().await.plan.idle_since, idle() - hour);
    }

    async fn planning_waits_for_unflushed_usage(db: TestDatabase) {
        let house = House::new(db).await;
        house.key("key_1", None).await;
        house.writer("rep_me", idle()).await;
        let tick = house.tick_at(plan_time()).await;
        assert_eq!((tick.work(), tick.waits), (0, vec!["usage not flushed by replica rep_me".to_owned()]));
        let writers: Vec<UsageWriter> = house.store.usage_writers().await.unwrap();
        assert_eq!(writers.len(), 1);
        usage_writers::Entity::update_many()
            .col_expr(usage_writers::Column::FlushedThroughAt, Expr::value(to_micros(plan_time())))
            .exec(&house.db).await.unwrap();
        assert_eq!(house.tick_at(plan_time() + TICK).await.plans_made, 1);
    }

    async fn a_preview_changes_nothing_and_says_what_the_plan_will(db: TestDatabase) {
        let house = House::with(db, tight_breaker()).await;
        house.key_of("key_1", "agy_1", None, None).await;
        house.key_of("key_2", "agy_2", Some("loc_1"), Some(idle())).await;
        house.key_of("key_3", "agy_2", Some("loc_1"), Some(idle())).await;
        house.key_of("key_4", "agy_2", Some("loc_2"), Some(idle())).await;
        house.key_of("key_5", "agy_2", None, Some(idle() + TICK)).await;
        let first = Page { size: 3, cursor: None };
        let (totals, (page, next)) = house.service.preview(house.service.next_sweep(), None, &first).await.unwrap();
        let (totals, above) = totals.unwrap();
        assert_eq!((totals.listed, totals.active, above), (4, 5, true));
        let agencies: Vec<_> = totals.agencies.iter().map(|a| (a.agency_id.as_str(), a.agency_keys, a.location_keys, a.locations)).collect();
        assert_eq!(agencies, [("agy_2", 0, 3, 2), ("agy_1", 1, 0, 0)]);
        assert_eq!(page.iter().map(|entry| entry.key_id.as_str()).collect::<Vec<_>>(), ["key_1", "key_2", "key_3"]);
        let second = Page { size: 3, cursor: next };
        let (totals, (page, next)) = house.service.preview(d(), None, &second).await.unwrap();
        assert!(totals.is_none() && next.is_none());
        assert_eq!(page.iter().map(|entry| entry.key_id.as_str()).collect::<Vec<_>>(), ["key_4"]);

        let filter = PreviewFilter { idle_since: idle(), agency_id: Some("agy_1".into()) };
        let narrowed = house.store.preview(&filter, 10).await.unwrap();
        assert_eq!((narrowed.listed, narrowed.listed_anywhere, narrowed.agencies.len()), (1, 4, 1));

        assert_eq!(house.entry_count().await, 0);
        assert!(house.events().await.is_empty() && house.audited().await.is_empty());
        let plans = house.store.plans(PlanFilter::default(), &first).await.unwrap();
        assert!(plans.is_empty());
    }

    async fn a_preview_says_what_differs_from_the_last_plan(db: TestDatabase) {
        let house = House::new(db).await;
        for (id, agency) in [("key_1", "agy_1"), ("key_2", "agy_1"), ("key_3", "agy_2"), ("key_4", "agy_3")] {
            house.key_of(id, agency, None, None).await;
        }
        let beside = async |agency_id: Option<&str>| {
            let filter = PreviewFilter { idle_since: idle(), agency_id: agency_id.map(ToOwned::to_owned) };
            house.store.preview(&filter, 10).await.unwrap().last_plan
        };
        assert_eq!(beside(None).await, None, "no plan yet");
        house.tick_at(plan_time()).await;
        let plan_id = house.plan().await.plan.plan_id;
        let differs = |keys: [i64; 3], agencies: [i64; 3]| {
            let [keys, agencies] = [keys, agencies].map(|[new, gone, same]| Difference { new, gone, same });
            Some(PlanComparison { plan_id: plan_id.clone(), keys, agencies })
        };
        assert_eq!(beside(None).await, differs([0, 0, 4], [0, 0, 3]));
        // Used, moved to another agency, and made since.
        house.use_key("key_1").await.unwrap();
        house.use_key("key_3").await.unwrap();
        house.set("key_4", api_keys::Column::AgencyId, "agy_4").await;
        house.key_of("key_5", "agy_1", None, None).await;
        house.key_of("key_6", "agy_5", None, None).await;
        assert_eq!(beside(None).await, differs([3, 3, 1], [2, 2, 1]));
        assert_eq!(beside(Some("agy_1")).await, differs([1, 1, 1], [0, 0, 1]));
        assert_eq!(beside(Some("agy_2")).await, differs([0, 1, 0], [0, 1, 0]));
        assert_eq!(beside(Some("agy_5")).await, differs([1, 0, 0], [1, 0, 0]));
        assert_eq!(beside(Some("agy_none")).await, differs([0, 0, 0], [0, 0, 0]));
    }

    async fn lists_are_paged_without_loss(db: TestDatabase) {
        let house = House::new(db).await;
        for n in 0..5 {
            house.key_of(&format!("key_{n}"), &format!("agy_{n}"), None, None).await;
        }
        house.tick_at(plan_time()).await;
        let plan_id = house.plan().await.plan.plan_id;
        let (mut keys, mut agencies) = (Vec::new(), Vec::new());
        let filter = crate::app::sweep::EntryFilter { plan_id: plan_id.clone(), agency_id: None, state: Some(EntryState::Planned) };
        let mut page = Page { size: 2, cursor: None };
        loop {
            let (_, (entries, next)) = house.service.entries(&filter, &page).await.unwrap();
            keys.extend(entries.into_iter().map(|entry| entry.key_id));
            page.cursor = next;
            if page.cursor.is_none() { break }
        }
        let filter = crate::app::sweep::LotFilter { plan_id, state: Some(LotState::Open) };
        loop {
            let (lots, next) = house.service.lots(&filter, &page).await.unwrap();
            assert!(lots.iter().all(|view| view.counts == counted(1, 0, 0, 0)));
            agencies.extend(lots.into_iter().map(|view| view.lot.agency_id));
            page.cursor = next;
            if page.cursor.is_none() { break }
        }
        assert_eq!(keys, ["key_0", "key_1", "key_2", "key_3", "key_4"]);
        assert_eq!(agencies, ["agy_0", "agy_1", "agy_2", "agy_3", "agy_4"]);
    }
}

/// Also where PostgreSQL thinks it cheaper to read the whole plan, as it does of a statement prepared for any chunk of a large one.
#[tokio::test]
#[cfg_attr(keysweep_no_postgres, ignore = "left out: no PostgreSQL server is installed")]
async fn a_chunk_of_a_large_plan_is_read_by_its_index() {
    let database = TestDatabase::new(Kind::Postgres);
    // What one connection has read is in the statistics once it says so.
    let one = connect(&DatabaseConfig { max_connections: 1, ..database.config() }).await.unwrap();
    let house = House::new(database).await;
    house.key("key_1", None).await;
    house.tick_at(plan_time()).await;
    let plan_id = house.plan().await.plan.plan_id;
    let many = format!(
        "INSERT INTO sweep_entries (plan_id, agency_id, key_id, display_name, display_prefix, created_at, state) \
         SELECT '{plan_id}', 'agy_1', 'key_many_' || lpad(n::text, 9, '0'), '', '', 0, 1 FROM generate_series(1, 1000) AS n"
    );
    one.execute_unprepared(&format!("{many}; ANALYZE sweep_entries")).await.unwrap();
    one.execute_unprepared("SET random_page_cost = 1000000").await.unwrap();
    let read = async || {
        one.execute_unprepared("SELECT pg_stat_force_next_flush()").await.unwrap();
        let sql = "SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'sweep_entries'";
        let row = one.query_one_raw(Statement::from_string(DbBackend::Postgres, sql)).await.unwrap().unwrap();
        row.try_get::<i64>("", "seq_tup_read").unwrap()
    };
    let (store, before) = (SqlSweepStore::new(one.clone()), read().await);
    let key = |number: u32| ("agy_1".to_owned(), format!("key_many_{number:09}"));
    let (_, entries) = store.chunk(&plan_id, &KeyRange { first: key(200), last: key(209) }).await.unwrap();
    assert_eq!(entries.len(), 10);
    assert_eq!(read().await - before, 0, "entries were read besides");
}
