//! What must hold after each step, read from the database by plain statements.

use std::collections::{BTreeMap, HashMap};

use sea_orm::{ConnectionTrait, DatabaseConnection, QueryResult, Statement};

use super::model::{CUTOFF, D, DAY, Hold, LAST, LEADS, Lot, Model, Projection, SLACK};

pub(super) async fn rows(db: &DatabaseConnection, sql: &str) -> Vec<QueryResult> {
    db.query_all_raw(Statement::from_string(db.get_database_backend(), sql)).await.unwrap()
}

fn number(row: &QueryResult, column: &str) -> i64 {
    row.try_get("", column).unwrap()
}

fn maybe(row: &QueryResult, column: &str) -> Option<i64> {
    row.try_get("", column).unwrap()
}

fn text(row: &QueryResult, column: &str) -> String {
    row.try_get("", column).unwrap()
}

/// Compares the database with the model, step by step.
#[derive(Debug, Default)]
pub(super) struct Checker {
    projection: Projection,
    plan: Option<String>,
    pub(super) deleted: u64,
    pub(super) rescued: u64,
}

impl Checker {
    /// The plan, once it stands in the database.
    pub(super) fn plan_id(&self) -> Option<String> {
        self.plan.clone()
    }

    /// `by`: the processes whose sweepers have just been at work.
    pub(super) async fn check(&mut self, db: &DatabaseConnection, model: &mut Model, now: i64, by: &[usize]) {
        self.plans(db, model).await;
        self.keys(db, model, now, by).await;
        self.entries(db, model).await;
        self.events(db).await;
        self.lots(db, model).await;
    }

    async fn plans(&mut self, db: &DatabaseConnection, model: &mut Model) {
        let plans = rows(db, "SELECT plan_id, delete_at, published_at FROM sweep_plans").await;
        assert!(plans.len() <= 1, "two plans for one quarter");
        let Some(plan) = plans.first() else { return };
        self.plan = Some(text(plan, "plan_id"));
        assert_eq!(number(plan, "delete_at"), D);
        if maybe(plan, "published_at").is_none() || !model.lots.is_empty() {
            return;
        }
        let listed = rows(db, "SELECT agency_id, key_id FROM sweep_entries ORDER BY agency_id").await;
        let listed: BTreeMap<String, String> =
            listed.iter().map(|row| (text(row, "key_id"), text(row, "agency_id"))).collect();
        for key in &model.keys {
            let told = listed.get(&key.id);
            assert!(told.is_none_or(|agency| *agency == key.agency), "the wrong agency is told of {}", key.id);
            let due = key.endless() && key.last_use <= CUTOFF;
            assert!(due || told.is_none(), "{key:?} was listed");
            assert!(!due || told.is_some() || key.last_use > CUTOFF - SLACK, "{key:?} was not listed");
        }
        model.lots = listed.into_values().map(|agency| (agency, Lot::new())).collect();
    }

    async fn keys(&mut self, db: &DatabaseConnection, model: &mut Model, now: i64, by: &[usize]) {
        let stored = rows(
            db,
            "SELECT id, CAST(state AS BIGINT) AS state, deleted_at, \
             CAST(CASE WHEN secret_hash IS NULL AND sealed_secret IS NULL THEN 1 ELSE 0 END AS BIGINT) AS bare FROM api_keys",
        )
        .await;
        assert_eq!(stored.len(), model.keys.len(), "keys that nobody asked for, or lost ones");
        let stored: HashMap<String, QueryResult> = stored.into_iter().map(|row| (text(&row, "id"), row)).collect();
        let Model { keys, lots, cancelled, ahead, .. } = model;
        for key in keys.iter_mut() {
            let row = &stored[&key.id];
            let (state, bare) = (number(row, "state"), number(row, "bare") == 1);
            assert_eq!(bare, state != 1, "what is left of {key:?} in state {state}");
            if state != 3 {
                assert!(key.deleted.is_none(), "{key:?} came back");
                assert!(state == 1 || key.ends.is_some_and(|ends| ends <= now), "{key:?} ended unasked");
                if state == 2 {
                    // For good, also when the clock is set back.
                    key.ends = Some(i64::MIN);
                }
                continue;
            }
            let deleted_at = number(row, "deleted_at");
            if key.deleted.is_none() {
                assert_eq!(deleted_at, now, "deleted at another instant");
                assert!(!by.is_empty(), "{key:?} was deleted, and no sweeper was at work");
                assert!(key.endless(), "{key:?} had ended");
                assert!(key.last_use <= deleted_at - 90 * DAY, "{key:?} was used in the 90 days before {deleted_at}");
                let lot = lots.get(&key.agency).unwrap_or_else(|| panic!("{key:?} was never announced"));
                assert!(!*cancelled && lot.may_go(deleted_at), "{key:?} at {deleted_at} in {lot:?}");
                assert!(by.iter().any(|replica| lot.delete_at <= now - ahead[*replica]), "only by a clock set forward");
                key.deleted = Some(deleted_at);
                self.deleted += 1;
            }
            assert_eq!(key.deleted, Some(deleted_at));
        }
        let audited = rows(db, "SELECT COUNT(*) AS n FROM audit_events WHERE action = 'key.deleted'").await;
        assert_eq!(number(&audited[0], "n").unsigned_abs(), self.deleted, "each deletion stands in the audit once");
    }

    async fn entries(&mut self, db: &DatabaseConnection, model: &Model) {
        let keys = model.by_id();
        let entries = rows(db, "SELECT key_id, CAST(state AS BIGINT) AS state FROM sweep_entries").await;
        self.rescued = 0;
        for row in entries {
            let (key, state) = (keys[text(&row, "key_id").as_str()], number(&row, "state"));
            self.rescued += u64::from(state == 2);
            assert_eq!(state == 3, key.deleted.is_some(), "entry and key of {key:?}");
            let left = key.last_use > CUTOFF || (key.deleted.is_none() && key.ends.is_some());
            assert!(state != 1 || !left, "{key:?} is still planned");
            assert!(state != 2 || left, "{key:?} was rescued by nothing");
            assert!(state != 1 || !model.lots[&key.agency].closed, "{key:?} is planned in a closed lot");
        }
    }

    /// A subscriber that follows from the first event has at each moment what the database has.
    async fn events(&mut self, db: &DatabaseConnection) {
        let sql = format!(
            "SELECT sequence, payload FROM sweep_events WHERE sequence > {} ORDER BY sequence",
            self.projection.sequence
        );
        let new = rows(db, &sql).await;
        if new.is_empty() {
            return;
        }
        let agencies = rows(db, "SELECT DISTINCT agency_id FROM sweep_entries").await;
        let agencies: Vec<String> = agencies.iter().map(|row| text(row, "agency_id")).collect();
        for row in new {
            let payload = serde_json::from_str(&text(&row, "payload")).unwrap();
            self.projection.apply(number(&row, "sequence"), &payload, &agencies);
        }
    }

    async fn lots(&mut self, db: &DatabaseConnection, model: &mut Model) {
        let lots = rows(
            db,
            "SELECT agency_id, CAST(state AS BIGINT) AS state, CAST(hold_reason AS BIGINT) AS hold_reason, delete_at, last_delete_at, \
             state_reason FROM sweep_lots",
        )
        .await;
        assert_eq!(lots.len(), model.lots.len());
        for row in lots {
            let agency = text(&row, "agency_id");
            let lot = model.lots.get_mut(&agency).unwrap();
            let state = number(&row, "state");
            let name = ["open", "held", "executed", "deferred", "cancelled"][usize::try_from(state - 1).unwrap()];
            assert_eq!(self.projection.lots[&agency], (number(&row, "delete_at"), name), "the events of {agency}");
            assert_eq!(number(&row, "last_delete_at"), LAST);
            assert_eq!(number(&row, "delete_at"), lot.delete_at, "when {agency} is due: {lot:?}");
            if matches!(name, "executed" | "deferred" | "cancelled") {
                assert!(name == "executed" || !text(&row, "state_reason").is_empty(), "{agency} does not say why");
                lot.close();
                continue;
            }
            assert!(!lot.closed, "{agency} should be closed, but is {name}: {lot:?}");
            let hold = match maybe(&row, "hold_reason") {
                None => None,
                Some(1) => Some(Hold::Operator),
                Some(_) => Some(Hold::Nobody),
            };
            assert_eq!((hold, name == "held"), (lot.hold, lot.hold.is_some()), "the hold of {agency}");
        }
        let receipts =
            rows(db, "SELECT agency_id, CAST(stage AS BIGINT) AS stage, delivered_at FROM sweep_receipts").await;
        let known = model.lots.values().flat_map(|lot| lot.receipts).flatten().count();
        assert_eq!(receipts.len(), known, "receipts");
        for row in receipts {
            let stage = usize::try_from(number(&row, "stage") - 1).unwrap();
            assert_eq!(model.lots[&text(&row, "agency_id")].receipts[stage], Some(number(&row, "delivered_at")));
            assert!(stage < LEADS.len());
        }
    }

    /// What a sweeper that waited for nothing must have done.
    pub(super) fn after_work(model: &Model, now: i64) {
        for (agency, lot) in &model.lots {
            assert!(lot.closed || !lot.may_go(now), "{agency} was due at {} and is open at {now}", lot.delete_at);
            assert!(lot.closed || now <= LAST, "{agency} is open past its last date");
        }
    }

    /// However it went: every entry has ended, and says how.
    pub(super) async fn end(&self, db: &DatabaseConnection, model: &Model) {
        let planned = rows(db, "SELECT key_id FROM sweep_entries WHERE state = 1").await;
        assert!(planned.is_empty(), "entries without an end");
        assert!(model.lots.values().all(|lot| lot.closed));
        let open = rows(db, "SELECT plan_id FROM sweep_plans WHERE state IN (1, 2)").await;
        assert!(open.is_empty(), "a plan without an end");
        let mut rescued: Vec<_> = self.projection.rescued.clone();
        let mut stored: Vec<String> = rows(db, "SELECT key_id FROM sweep_entries WHERE state = 2")
            .await
            .iter()
            .map(|row| text(row, "key_id"))
            .collect();
        rescued.sort();
        stored.sort();
        assert_eq!(rescued, stored, "each rescue was told once");
    }
}
