//! One quarter of one size, step by step.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use keysweep_proto::key::v1::SubscribeSweepPlansRequest;
use keysweep_proto::key::v1::sweep_event::Payload;
use keysweep_proto::key::v1::sweep_service_client::SweepServiceClient;
use service_kit::testing::Kind;
use tokio::runtime::Handle;
use tokio::time::{interval, timeout};
use tonic::Request;

use crate::beside::{self, Calls, Load};
use crate::bounds;
use crate::child::{Process, Role};
use crate::seed::{Database, Databases, Size};

/// Microseconds of a day.
pub(crate) const DAY: i64 = 86_400_000_000;
/// 2027-01-01T00:00:00Z, the deletion instant.
pub(crate) const DELETE_AT: i64 = 1_798_761_600_000_000;
/// When its plan is due.
pub(crate) const PLAN_AT: i64 = DELETE_AT - 15 * DAY - DAY / 4;

const MINUTE: i64 = 60_000_000;

/// A step takes no longer than this, however slow the machine.
const PATIENCE: Duration = Duration::from_secs(1_800);

/// Between two looks at whether a step is over.
const LOOK: Duration = Duration::from_millis(5);

/// What a step came to, beside the database's own bound.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) seconds: f64,
    /// Rows, lots or keys.
    pub(crate) count: u64,
    pub(crate) of: &'static str,
    /// Seconds that the bound takes for as many; none: there is no bound.
    pub(crate) bound: Option<f64>,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) kind: Kind,
    pub(crate) size: Size,
    pub(crate) steps: Vec<Step>,
    /// The longest transaction of the deletion, milliseconds.
    pub(crate) longest_batch_ms: u64,
    /// Each process's memory when idle and at its most, MiB.
    pub(crate) memory: Vec<(&'static str, f64, f64)>,
    /// Verification beside each step, if there was any; the first is that beside none.
    pub(crate) beside: Vec<(&'static str, Calls)>,
}

impl Outcome {
    /// Seconds of a step.
    pub(crate) fn seconds(&self, name: &str) -> f64 {
        self.steps.iter().find(|step| step.name == name).map_or(f64::NAN, |step| step.seconds)
    }
}

/// Ended in this order: who calls others goes first.
struct Fleet {
    notification: Process,
    location: Process,
    key: Process,
    _folder: tempfile::TempDir,
}

impl Fleet {
    fn start(databases: &Databases) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let keyring = |name: &str| -> anyhow::Result<String> {
            let path = folder.path().join(name);
            let ring = service_kit::keyring::KeyRing::generate(&service_kit::entropy::OsEntropy);
            std::fs::write(&path, ring.as_bytes())?;
            Ok(path.display().to_string())
        };
        let begin = PLAN_AT - 60 * MINUTE;
        let url = |database: &Database| ("KEYSWEEP_DATABASE__URL", database.url.clone());
        let key =
            Process::start(Role::Key, begin, &[url(&databases.key), ("KEYSWEEP_KEYRING__PATH", keyring("key")?)])?;
        let of_key = ("KEYSWEEP_KEY_SERVICE__ENDPOINT", format!("http://127.0.0.1:{}", key.port));
        let location = Process::start(
            Role::Location,
            begin,
            &[url(&databases.location), ("KEYSWEEP_KEYRING__PATH", keyring("location")?), of_key.clone()],
        )?;
        let of_location = ("KEYSWEEP_LOCATION_SERVICE__ENDPOINT", format!("http://127.0.0.1:{}", location.port));
        let mail = ("KEYSWEEP_MAILDIR__PATH", folder.path().join("mail").display().to_string());
        let notification =
            Process::start(Role::Notification, begin, &[url(&databases.notification), of_key, of_location, mail])?;
        Ok(Self { key, location, notification, _folder: folder })
    }

    /// Moves all clocks forward, to the same instant.
    fn all_at(&mut self, at: i64) -> anyhow::Result<()> {
        [&mut self.location, &mut self.notification, &mut self.key].into_iter().try_for_each(|process| process.at(at))
    }

    fn each(&self) -> [(&'static str, &Process); 3] {
        [("key-service", &self.key), ("location-service", &self.location), ("notification-service", &self.notification)]
    }
}

/// Waits until a query answers at least `least`.
async fn reached(database: &Database, sql: &str, least: i64) -> anyhow::Result<()> {
    let mut looks = interval(LOOK);
    let reaching = async {
        while database.number(sql).await? < least {
            looks.tick().await;
        }
        Ok(())
    };
    timeout(PATIENCE, reaching).await.with_context(|| format!("{sql} does not reach {least}"))?
}

/// Runs the quarter: each step beside its bound or, if `verified` says how many verifications are measured beside nothing, beside
/// verification.
pub(crate) async fn run(kind: Kind, size: Size, verified: Option<usize>) -> anyhow::Result<Outcome> {
    let databases = Databases::new(kind, size).await?;
    let mut fleet = Fleet::start(&databases)?;
    // Served only once it has written that it records uses; by then it is idle.
    reached(&databases.key, "SELECT COUNT(*) FROM usage_writers", 1).await?;
    reached(&databases.key, "SELECT COUNT(*) FROM sweep_subscribers", 1).await?;
    let idle = fleet.each().map(|(_, process)| process.resident());
    let mut verification = Beside::new(&fleet, verified).await?;
    let mut steps = plan_and_project(&databases, &mut fleet, &mut verification).await?.to_vec();
    steps.push(publish(&fleet, &databases).await?);
    steps.push(notify(&databases, &mut fleet, &mut verification).await?);
    let (deleted, longest_batch_ms) = delete(&databases, &mut fleet, &mut verification).await?;
    steps.extend(deleted);
    let mut memory = Vec::new();
    for ((name, process), idle) in fleet.each().into_iter().zip(idle) {
        memory.push((name, idle?, process.peak()?));
    }
    Ok(Outcome { kind, size, steps, longest_batch_ms, memory, beside: verification.noted })
}

/// Verification beside the steps, if it is wanted.
struct Beside {
    load: Option<Load>,
    noted: Vec<(&'static str, Calls)>,
}

impl Beside {
    async fn new(fleet: &Fleet, alone: Option<usize>) -> anyhow::Result<Self> {
        let mut beside = Self { load: None, noted: Vec::new() };
        if let Some(alone) = alone {
            beside.load = Some(Load::start(fleet.key.port).await?);
            beside.begin().await?;
            if let Some(load) = &beside.load {
                load.answered(alone).await;
            }
            beside.end("nothing")?;
        }
        Ok(beside)
    }

    /// A step begins. The clock was moved for it by days, and the first use of each key in a while is stored before it is answered:
    /// that is over first.
    async fn begin(&self) -> anyhow::Result<()> {
        if let Some(load) = &self.load {
            load.take()?;
            // Each caller has come to each key.
            load.answered(2 * beside::KEYS).await;
            load.take()?;
        }
        Ok(())
    }

    /// The step is over.
    fn end(&mut self, step: &'static str) -> anyhow::Result<()> {
        if let Some(load) = &self.load {
            self.noted.push((step, load.take()?));
        }
        Ok(())
    }

    /// Whether steps have the machine to themselves, so that a bound beside them says something.
    fn is_none(&self) -> bool {
        self.load.is_none()
    }
}

/// The plan, and its projection: from its commit, after which the sweeper's activation goes on, until all of it is there.
async fn plan_and_project(
    databases: &Databases,
    fleet: &mut Fleet,
    verification: &mut Beside,
) -> anyhow::Result<[Step; 2]> {
    let bound = if verification.is_none() { Some(bounds::plan(&databases.key).await?) } else { None };
    // As it has run since the process was started.
    fleet.key.job("figures")?;
    fleet.all_at(PLAN_AT + MINUTE)?;
    verification.begin().await?;
    let begun = Instant::now();
    let projecting = async {
        reached(&databases.key, "SELECT COUNT(*) FROM sweep_plans", 1).await?;
        verification.end("plan")?;
        reached(&databases.notification, "SELECT COUNT(*) FROM plans WHERE sealed_sequence IS NOT NULL", 1).await?;
        let projected = Instant::now();
        verification.end("stream and project")?;
        anyhow::Ok(projected)
    };
    let (made, projected) = std::thread::scope(|scope| {
        let made = scope.spawn(|| fleet.key.job("sweeper"));
        let projected = tokio::task::block_in_place(|| Handle::current().block_on(projecting));
        (made.join(), projected)
    });
    let made = made.map_err(|_| anyhow::anyhow!("the thread that made the plan panicked"))??;
    ensure!(made.detail["plans_made"] == 1, "no plan was made: {}", made.detail);
    let count = databases.key.number("SELECT COUNT(*) FROM sweep_entries WHERE state = 1").await?.unsigned_abs();
    let seconds = made.detail["plan_ms"].as_f64().unwrap_or(f64::NAN) / 1e3;
    let plan = Step { name: "plan", seconds, count, of: "keys listed", bound };

    let seconds = (projected? - begun).as_secs_f64() - seconds;
    let count = databases.notification.number("SELECT COUNT(*) FROM entries").await?.unsigned_abs();
    let bound = if verification.is_none() { Some(bounds::project(&databases.notification).await?) } else { None };
    Ok([plan, Step { name: "stream and project", seconds, count, of: "entries", bound }])
}

/// The stream alone, read by a client that does nothing with it.
async fn publish(fleet: &Fleet, databases: &Databases) -> anyhow::Result<Step> {
    let head = databases.key.number("SELECT sequence FROM sweep_head").await?;
    let client = SweepServiceClient::connect(format!("http://127.0.0.1:{}", fleet.key.port)).await?;
    let mut client = client.max_decoding_message_size(16 << 20);
    let asked = SubscribeSweepPlansRequest { subscriber: "scale".to_owned(), ..Default::default() };
    let mut request = Request::new(asked);
    request.metadata_mut().insert("x-keysweep-actor", "service/notification-service".parse()?);
    let begun = Instant::now();
    let mut stream = client.subscribe_sweep_plans(request).await?.into_inner();
    let mut count = 0;
    while let Some(message) = stream.message().await? {
        let Some(event) = message.event else { continue };
        if let Some(Payload::PlanEntries(chunk)) = event.payload {
            count += chunk.entries.len() as u64;
        }
        if event.sequence >= head {
            break;
        }
    }
    Ok(Step { name: "stream alone", seconds: begun.elapsed().as_secs_f64(), count, of: "entries", bound: None })
}

/// The first notices, into inboxes and the queue of emails.
async fn notify(databases: &Databases, fleet: &mut Fleet, verification: &mut Beside) -> anyhow::Result<Step> {
    fleet.all_at(PLAN_AT + 2 * MINUTE)?;
    verification.begin().await?;
    let told = fleet.notification.job("notification.dispatch")?;
    verification.end("dispatch of D15")?;
    let count = databases.notification.number("SELECT COUNT(*) FROM stages WHERE state = 2").await?.unsigned_abs();
    let lots = databases.notification.number("SELECT COUNT(*) FROM lots").await?.unsigned_abs();
    ensure!(count == lots, "{count} of {lots} lots were told: {}", told.detail);
    Ok(Step { name: "dispatch of D15", seconds: told.seconds, count, of: "lots", bound: None })
}

/// All notices are taken for delivered in time; the deletion follows.
async fn delete(
    databases: &Databases,
    fleet: &mut Fleet,
    verification: &mut Beside,
) -> anyhow::Result<(Vec<Step>, u64)> {
    let bounds = if verification.is_none() { Some(bounds::delete(&databases.key).await?) } else { None };
    for (stage, days) in [(1, 15), (2, 7), (3, 1)] {
        let at = DELETE_AT - days * DAY;
        let sql = format!(
            "INSERT INTO sweep_receipts (plan_id, agency_id, stage, delivered_at, acknowledged_at, in_app_count, emails_accepted) \
             SELECT plan_id, agency_id, {stage}, {at}, {at}, 1, 1 FROM sweep_lots"
        );
        databases.key.execute(&sql).await?;
    }
    if databases.key.kind == Kind::Postgres {
        // As autovacuum does within a minute.
        databases.key.execute("VACUUM ANALYZE sweep_receipts").await?;
    }
    let due = databases.key.number("SELECT COUNT(*) FROM sweep_entries WHERE state = 1").await?.unsigned_abs();
    fleet.all_at(DELETE_AT + MINUTE)?;
    verification.begin().await?;
    let (mut seconds, mut longest) = (0.0, 0);
    loop {
        let swept = fleet.key.job("sweeper")?;
        seconds += swept.seconds;
        longest = longest.max(swept.detail["longest_batch_ms"].as_u64().unwrap_or_default());
        if swept.detail["plans_completed"] == 1 {
            break;
        }
        // A long deletion takes several activations.
        ensure!(swept.detail["keys_deleted"] != 0, "the deletion stands still: {}", swept.detail);
    }
    verification.end("deletion")?;
    let count = databases.key.number("SELECT COUNT(*) FROM api_keys WHERE state = 3").await?.unsigned_abs();
    ensure!(count == due, "{count} of {due} keys were deleted");
    let step = |name, bound: Option<f64>| {
        let bound = bound.map(|seconds| seconds * count as f64);
        Step { name, seconds, count, of: "keys deleted", bound }
    };
    let mut steps = vec![step("deletion", bounds.as_ref().map(|of| of.dense))];
    if let Some(of) = bounds {
        steps.push(step("the same, DELETE by lot", Some(of.by_lot)));
        steps.push(step("the same, its writes alone", Some(of.writes)));
    }
    Ok((steps, longest))
}
