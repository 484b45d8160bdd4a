//! The invariants, judged after each step by notes of the simulation's own and by what stands in the databases.
//!
//! It shares no code with the services: tables are read as they are, times are the true ones of the simulation.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;
use std::path::Path;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ConnectionTrait, DatabaseConnection, QueryResult, Statement, TryGetable};
use service_kit::time::from_micros;

use crate::world::World;
use keysweep_e2e::post::{NOBODY, Post, Taken};

const IDLE: TimeDelta = TimeDelta::days(90);
const STAGES: [(i16, TimeDelta); 3] = [(1, TimeDelta::days(15)), (2, TimeDelta::days(7)), (3, TimeDelta::days(1))];

/// A lot: plan and agency.
pub(crate) type LotId = (String, String);

/// A lot as key-service has it.
#[derive(Clone, Debug)]
pub(crate) struct Lot {
    pub(crate) state: i16,
    pub(crate) delete_at: DateTime<Utc>,
    pub(crate) last_delete_at: DateTime<Utc>,
    pub(crate) reason: String,
}

impl Lot {
    pub(crate) fn is_closed(&self) -> bool {
        self.state > 2
    }
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) quarters: u64,
    pub(crate) steps: u64,
    pub(crate) crashes: u64,
    pub(crate) crashes_at_commits: u64,
    pub(crate) absences: u64,
    pub(crate) partitions: u64,
    pub(crate) jumps: u64,
    pub(crate) uses: u64,
    pub(crate) rescues: u64,
    pub(crate) deletions: u64,
    pub(crate) notices: u64,
    pub(crate) mails: u64,
    pub(crate) doubled: u64,
    pub(crate) executed: u64,
    pub(crate) put_off: u64,
}

/// The notes.
pub(crate) struct Ledger {
    key: DatabaseConnection,
    notification: DatabaseConnection,
    pub(crate) lots: BTreeMap<LotId, Lot>,
    /// Lots that an operator was told are held.
    pub(crate) held: BTreeSet<LotId>,
    /// When a notice of a stage was first seen in somebody's inbox.
    told: HashMap<(LotId, i16, String), DateTime<Utc>>,
    taken: HashMap<String, Vec<Taken>>,
    receipts: BTreeSet<(LotId, i16)>,
    mails_seen: usize,
    notices_seen: i64,
    pub(crate) totals: Totals,
    pub(crate) violations: Vec<String>,
}

/// A column of a row.
fn get<T: TryGetable>(row: &QueryResult, column: &str) -> anyhow::Result<T> {
    Ok(row.try_get("", column)?)
}

async fn rows(db: &DatabaseConnection, sql: impl Into<String>) -> anyhow::Result<Vec<QueryResult>> {
    Ok(db.query_all_raw(Statement::from_string(db.get_database_backend(), sql)).await?)
}

fn instant(row: &QueryResult, column: &str) -> anyhow::Result<DateTime<Utc>> {
    Ok(from_micros(get(row, column)?))
}

impl Ledger {
    pub(crate) fn open(key: DatabaseConnection, notification: DatabaseConnection) -> Self {
        Self {
            key,
            notification,
            lots: BTreeMap::new(),
            held: BTreeSet::new(),
            told: HashMap::new(),
            taken: HashMap::new(),
            receipts: BTreeSet::new(),
            mails_seen: 0,
            notices_seen: 0,
            totals: Totals::default(),
            violations: Vec::new(),
        }
    }

    pub(crate) fn violated(&mut self, text: String) {
        self.violations.push(text);
    }

    /// Compares everything that is new with what was promised.
    pub(crate) async fn look(&mut self, world: &mut World, post: &Post, now: DateTime<Utc>) -> anyhow::Result<()> {
        self.look_at_mail(post).await?;
        self.look_at_inboxes(world, now).await?;
        self.look_at_lots(now).await?;
        self.look_at_receipts(world).await?;
        self.look_at_keys(world, now).await
    }

    /// I5: every message taken was on record before, and a second copy came only after a disturbance or an unheard answer.
    async fn look_at_mail(&mut self, post: &Post) -> anyhow::Result<()> {
        let (new, disturbances) = post.taken_after(self.mails_seen);
        self.mails_seen += new.len();
        for one in new {
            self.totals.mails += 1;
            let sql = format!("SELECT recipient FROM deliveries WHERE message_id = '{}'", one.message_id);
            let known = rows(&self.notification, sql).await?;
            let recipients: Vec<String> = known.iter().map(|row| get(row, "recipient")).collect::<Result<_, _>>()?;
            if recipients != [one.recipient.clone()] {
                self.violated(format!("I5: {one:?} was sent, on record are {recipients:?}"));
            }
            let copies = self.taken.entry(one.message_id.clone()).or_default();
            if let Some(last) = copies.last() {
                self.totals.doubled += 1;
                if last.told && last.disturbances == disturbances {
                    let text = format!("I5: sent twice without a cause: {last:?}, {one:?}");
                    self.violations.push(text);
                }
            }
            copies.push(one);
        }
        Ok(())
    }

    /// I4: nobody is told twice, and nobody who is no admin.
    async fn look_at_inboxes(&mut self, world: &World, now: DateTime<Utc>) -> anyhow::Result<()> {
        let sql = format!(
            "SELECT sequence, plan_id, agency_id, user_id, scope_stage FROM notifications \
             WHERE kind = 1 AND sequence > {} ORDER BY sequence",
            self.notices_seen
        );
        for row in rows(&self.notification, sql).await? {
            self.notices_seen = get(&row, "sequence")?;
            self.totals.notices += 1;
            let lot: LotId = (get(&row, "plan_id")?, get(&row, "agency_id")?);
            let (stage, user): (i16, String) = (get(&row, "scope_stage")?, get(&row, "user_id")?);
            let Some(agency) = world.agencies.iter().find(|agency| agency.id == lot.1) else {
                self.violated(format!("I4: a notice of an unknown agency {lot:?}"));
                continue;
            };
            let admin = agency.admins.iter().any(|(id, _)| *id == user)
                || agency.locations.iter().any(|location| location.admins.contains(&user));
            if !admin {
                self.violated(format!("I4: {user}, who is no admin, was told of {lot:?}"));
            }
            if self.told.insert((lot.clone(), stage, user.clone()), now).is_some() {
                self.violated(format!("I4: {user} was told twice of stage {stage} of {lot:?}"));
            }
        }
        Ok(())
    }

    /// I3: no lot moves earlier.
    async fn look_at_lots(&mut self, now: DateTime<Utc>) -> anyhow::Result<()> {
        let sql = "SELECT plan_id, agency_id, state, delete_at, last_delete_at, state_reason FROM sweep_lots";
        for row in rows(&self.key, sql).await? {
            let id: LotId = (get(&row, "plan_id")?, get(&row, "agency_id")?);
            let lot = Lot {
                state: get(&row, "state")?,
                delete_at: instant(&row, "delete_at")?,
                last_delete_at: instant(&row, "last_delete_at")?,
                reason: get(&row, "state_reason")?,
            };
            let known = self.lots.insert(id.clone(), lot.clone());
            if let Some(known) = known {
                if lot.delete_at < known.delete_at {
                    self.violated(format!("I3: {id:?} moved from {} to {}", known.delete_at, lot.delete_at));
                }
                if known.is_closed() && known.state != lot.state {
                    self.violated(format!("{id:?} was closed and is not: {known:?}, {lot:?} at {now}"));
                }
            }
        }
        Ok(())
    }

    /// I6: a receipt stands only for notices that are in inboxes and for emails that the server has.
    async fn look_at_receipts(&mut self, world: &World) -> anyhow::Result<()> {
        let sql = "SELECT plan_id, agency_id, stage, in_app_count, emails_accepted FROM sweep_receipts";
        for row in rows(&self.key, sql).await? {
            let id: LotId = (get(&row, "plan_id")?, get(&row, "agency_id")?);
            let stage: i16 = get(&row, "stage")?;
            if !self.receipts.insert((id.clone(), stage)) {
                continue;
            }
            let told = self.told.keys().filter(|(lot, of, _)| *lot == id && *of == stage).count();
            let in_app: i64 = get(&row, "in_app_count")?;
            if told as i64 != in_app {
                self.violated(format!("I6: {id:?} stage {stage}: {in_app} acknowledged, {told} in inboxes"));
            }
            let Some(agency) = world.agencies.iter().find(|agency| agency.id == id.1) else { continue };
            for (user, _) in &agency.admins {
                if !self.told.contains_key(&(id.clone(), stage, user.clone())) {
                    self.violated(format!("I6: {id:?} stage {stage} is acknowledged, {user} was not told"));
                }
            }
            if stage == 1 {
                let accepted: i64 = get(&row, "emails_accepted")?;
                self.look_at_deliveries(&id, accepted).await?;
            }
        }
        Ok(())
    }

    async fn look_at_deliveries(&mut self, id: &LotId, accepted: i64) -> anyhow::Result<()> {
        let sql =
            format!("SELECT message_id, state FROM deliveries WHERE plan_id = '{}' AND agency_id = '{}'", id.0, id.1);
        let mut sent = 0;
        for row in rows(&self.notification, sql).await? {
            let (message, state): (String, i16) = (get(&row, "message_id")?, get(&row, "state")?);
            let taken = self.taken.get(&message).is_some_and(|copies| copies.iter().any(|copy| copy.told));
            sent += i64::from(taken);
            if state == 3 && !taken {
                self.violated(format!("I6: {message} counts as accepted, and was not"));
            }
            if state < 3 {
                self.violated(format!("I6: {id:?} is acknowledged, {message} still waits"));
            }
        }
        if sent < accepted || accepted == 0 {
            self.violated(format!("I6: {id:?}: {accepted} emails acknowledged, {sent} accepted"));
        }
        Ok(())
    }

    /// I1 and I2, for each key that has gone since the last look.
    async fn look_at_keys(&mut self, world: &mut World, now: DateTime<Utc>) -> anyhow::Result<()> {
        let gone = rows(&self.key, "SELECT id FROM api_keys WHERE state = 3").await?;
        if gone.len() == world.keys.iter().filter(|key| key.deleted_at.is_some()).count() {
            return Ok(());
        }
        for row in gone {
            let id: String = get(&row, "id")?;
            let Some(place) = world.keys.iter().position(|key| key.id == id) else {
                self.violated(format!("I1: {id} was deleted, and nobody asked for it to be made"));
                continue;
            };
            if world.keys[place].deleted_at.is_none() {
                world.keys[place].deleted_at = Some(now);
                self.totals.deletions += 1;
                self.judge_deletion(world, place, now).await?;
            }
        }
        Ok(())
    }

    async fn judge_deletion(&mut self, world: &World, place: usize, now: DateTime<Utc>) -> anyhow::Result<()> {
        let key = &world.keys[place];
        let agency = &world.agencies[key.agency];
        let mut faults = String::new();
        if now - key.last_use < IDLE {
            write!(faults, " last used {};", key.last_use)?;
        }
        let sql = format!("SELECT plan_id FROM sweep_entries WHERE key_id = '{}' AND state IN (1, 3)", key.id);
        let plans = rows(&self.key, sql).await?;
        let [plan] = plans.as_slice() else {
            self.violated(format!("I1: {} was deleted, in {} plans", key.id, plans.len()));
            return Ok(());
        };
        let id: LotId = (get(plan, "plan_id")?, agency.id.clone());
        let Some(lot) = self.lots.get(&id).cloned() else {
            self.violated(format!("I1: {} was deleted without a lot", key.id));
            return Ok(());
        };
        if now < lot.delete_at || now > lot.last_delete_at {
            write!(faults, " deleted at {now}, between {} and {};", lot.delete_at, lot.last_delete_at)?;
        }
        if self.held.contains(&id) {
            write!(faults, " held;")?;
        }
        let local = key.location.map(|location| agency.locations[location].admins.as_slice()).unwrap_or_default();
        for (stage, lead) in STAGES {
            if !self.receipts.contains(&(id.clone(), stage)) {
                write!(faults, " no receipt {stage};")?;
            }
            for user in agency.admins.iter().map(|(user, _)| user).chain(local) {
                let told = self.told.get(&(id.clone(), stage, user.clone())).copied();
                if told.is_none_or(|at| at > lot.delete_at - lead) {
                    write!(faults, " {user} told of stage {stage} at {told:?};")?;
                }
            }
        }
        let latest = lot.delete_at - STAGES[0].1;
        let mut reached = false;
        for (_, address) in agency.admins.iter().filter(|(_, address)| !address.contains(NOBODY)) {
            reached |= self.mailed(&id, address, latest).await?;
        }
        if !reached {
            write!(faults, " no email in time;")?;
        }
        if !faults.is_empty() {
            self.violated(format!("I1: {} of {id:?}, {lot:?}:{faults} deleted at {now}", key.id));
        }
        Ok(())
    }

    /// Whether the server took the lot's email to this address by then.
    async fn mailed(&self, id: &LotId, address: &str, latest: DateTime<Utc>) -> anyhow::Result<bool> {
        let sql = format!(
            "SELECT message_id FROM deliveries WHERE plan_id = '{}' AND agency_id = '{}' AND recipient = '{address}'",
            id.0, id.1
        );
        for row in rows(&self.notification, sql).await? {
            let message: String = get(&row, "message_id")?;
            if self.taken.get(&message).is_some_and(|copies| copies.iter().any(|copy| copy.at <= latest)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// I12, I8: whatever was planned has ended or says why not, and notification-service knows.
    pub(crate) async fn close(&mut self, world: &World, now: DateTime<Utc>) -> anyhow::Result<()> {
        let over: Vec<_> = self.lots.iter().filter(|(_, lot)| lot.last_delete_at < now).collect();
        let mut faults = Vec::new();
        for (id, lot) in over {
            if !lot.is_closed() || (lot.state > 3 && lot.reason.is_empty()) {
                faults.push(format!("I12: {id:?} is neither done nor says why not: {lot:?}"));
            }
            let unreachable = world.agencies.iter().any(|agency| agency.id == id.1 && agency.is_unreachable());
            if unreachable && lot.state == 3 && self.receipts.contains(&(id.clone(), 1)) {
                faults.push(format!("I1: {id:?} was executed, and nobody could be told"));
            }
        }
        let open = "SELECT e.key_id FROM sweep_entries e JOIN sweep_lots l ON l.plan_id = e.plan_id \
                    AND l.agency_id = e.agency_id WHERE e.state = 1 AND l.state > 2";
        for row in rows(&self.key, open).await? {
            let key: String = get(&row, "key_id")?;
            faults.push(format!("I12: {key} is planned in a lot that is closed"));
        }
        let ours = "SELECT plan_id, agency_id, state, delete_at, entry_count FROM sweep_lots ORDER BY 1, 2";
        let theirs = "SELECT plan_id, agency_id, state, delete_at, entry_count FROM lots ORDER BY 1, 2";
        let (ours, theirs) = (lot_lines(&self.key, ours).await?, lot_lines(&self.notification, theirs).await?);
        if ours != theirs {
            faults.push(format!("I8: lots differ: {ours:#?}\n{theirs:#?}"));
        }
        self.violations.extend(faults);
        Ok(())
    }

    /// I7: the projection of another database that heard everything from the first event.
    pub(crate) async fn compare_with(&mut self, replayed: &DatabaseConnection) -> anyhow::Result<()> {
        for sql in [
            "SELECT plan_id AS line, state AS a, delete_at AS b, entry_count AS c, lot_count AS d FROM plans ORDER BY 1",
            "SELECT plan_id || agency_id AS line, state AS a, delete_at AS b, entry_count AS c, live_count AS d FROM lots ORDER BY 1",
            "SELECT plan_id || key_id AS line, COALESCE(left_cause, 0) AS a, COALESCE(left_sequence, 0) AS b, \
             COALESCE(left_at, 0) AS c, idle_days AS d FROM entries ORDER BY 1",
        ] {
            let (mine, replay) = (lines(&self.notification, sql).await?, lines(replayed, sql).await?);
            if mine != replay {
                self.violated(format!("I7: {sql}: {mine:#?}\nreplayed: {replay:#?}"));
            }
        }
        Ok(())
    }

    /// The last event, and the last one applied by notification-service.
    pub(crate) async fn heads(&self) -> anyhow::Result<(i64, i64)> {
        let head = rows(&self.key, "SELECT sequence FROM sweep_head").await?;
        let applied = rows(&self.notification, "SELECT applied_sequence FROM heads").await?;
        let first = |rows: &[QueryResult], column| rows.first().map_or(Ok(0), |row| get(row, column));
        Ok((first(&head, "sequence")?, first(&applied, "applied_sequence")?))
    }

    /// The plans that wait for an operator.
    pub(crate) async fn unconfirmed(&self) -> anyhow::Result<Vec<String>> {
        let sql = "SELECT plan_id FROM sweep_plans WHERE state = 1 AND confirmed_at IS NULL";
        rows(&self.key, sql).await?.iter().map(|row| get(row, "plan_id")).collect()
    }

    /// How many keys there are, whatever their state.
    pub(crate) async fn key_count(&self) -> anyhow::Result<i64> {
        let counted = rows(&self.key, "SELECT COUNT(*) AS n FROM api_keys").await?;
        counted.first().map_or(Ok(0), |row| get(row, "n"))
    }
}

async fn lot_lines(db: &DatabaseConnection, sql: &str) -> anyhow::Result<Vec<String>> {
    let line = |row: &QueryResult| -> anyhow::Result<String> {
        let (plan, agency): (String, String) = (get(row, "plan_id")?, get(row, "agency_id")?);
        let (state, at, count): (i16, i64, i64) =
            (get(row, "state")?, get(row, "delete_at")?, get(row, "entry_count")?);
        Ok(format!("{plan} {agency} {state} {at} {count}"))
    };
    rows(db, sql).await?.iter().map(line).collect()
}

async fn lines(db: &DatabaseConnection, sql: &str) -> anyhow::Result<Vec<String>> {
    let line = |row: &QueryResult| -> anyhow::Result<String> {
        let (line, a): (String, i64) = (get(row, "line")?, get(row, "a")?);
        let (b, c, d): (i64, i64, i64) = (get(row, "b")?, get(row, "c")?, get(row, "d")?);
        Ok(format!("{line} {a} {b} {c} {d}"))
    };
    rows(db, sql).await?.iter().map(line).collect()
}

/// I10: the files of a folder that hold one of these secrets.
pub(crate) fn files_with(folder: &Path, secrets: &[&str]) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_file() {
            let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
            if secrets.iter().any(|secret| text.contains(secret)) {
                found.push(path.display().to_string());
            }
        }
    }
    Ok(found)
}
