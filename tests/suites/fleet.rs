//! Three replicas of each service, as real processes on one PostgreSQL, killed at random through a whole quarter.
//!
//! The processes live in another time by libfaketime. While one of them lives its clock only runs; time leaps while all are
//! dead, as after an absence. `KEYSWEEP_FLEET_KILLS=50 cargo test -p keysweep-e2e --test fleet -- --nocapture` kills as often in each
//! stage; `KEYSWEEP_FLEET_SEED` repeats the choice of victims and the waits.

#[expect(dead_code, reason = "each suite uses a part of it")]
mod desk;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use desk::{cadence, legacy_row, legacy_secret};
use keysweep::clients::Clients;
use keysweep_e2e::process::{Process, free_port, serving};
use keysweep_e2e::replica::KeyFleet;
use keysweep_e2e::smtp::Aiosmtpd;
use keysweep_proto::key::v1 as key;
use keysweep_proto::location::v2 as location;
use keysweep_proto::notification::v1 as notification;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sea_orm::{ConnectionTrait, DatabaseConnection};
use service_kit::clock::{Clock, SystemClock};
use service_kit::db;
use service_kit::entropy::{Entropy, OsEntropy};
use service_kit::testing::{Kind, TestDatabase};
use tempfile::TempDir;
use tokio::time::Instant;

const SERVICES: [&str; 3] = ["key-service", "location-service", "notification-service"];
const REPLICAS: usize = 3;
const AGENCIES: usize = 4;
/// Of each agency's location, besides one that is used in time.
const IDLE_KEYS: usize = 3;
/// So long the replicas may work on a stage before time leaps on: what a dead one had taken on is free only later.
const STRETCH: Duration = Duration::from_secs(20);
const LEAP: TimeDelta = TimeDelta::minutes(15);

/// Where the build script found the library.
const FAKETIME: Option<&str> = option_env!("KEYSWEEP_FAKETIME");

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// An agency with an admin, and a location with one.
struct Account {
    agency_id: String,
    location_id: String,
    users: [String; 2],
}

/// Everything that outlives the processes.
struct World {
    folder: TempDir,
    fleet: KeyFleet,
    databases: [TestDatabase; 3],
    key_db: DatabaseConnection,
    mail: Aiosmtpd,
    ports: [[u16; REPLICAS]; 3],
    running: [[Option<Process>; REPLICAS]; 3],
    preload: PathBuf,
    day: u32,
    offset: TimeDelta,
    random: StdRng,
    kills: usize,
}

impl World {
    async fn new(preload: PathBuf, day: u32, seed: u64) -> Self {
        let databases = std::array::from_fn(|_| TestDatabase::new(Kind::Postgres));
        let key_db = db::connect(&databases[0].config()).await.expect("the database");
        // The database's clock runs with those of the processes.
        let name = databases[0].url.split(['/', '?']).nth(3).expect("a name").to_owned();
        for sql in [
            "CREATE TABLE lead (seconds BIGINT NOT NULL)",
            "INSERT INTO lead VALUES (0)",
            "CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS \
             'SELECT pg_catalog.clock_timestamp() + make_interval(secs => (SELECT seconds FROM public.lead))'",
            &format!("ALTER DATABASE {name} SET search_path = public, pg_catalog"),
        ] {
            key_db.execute_unprepared(sql).await.expect("a clock");
        }
        Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
            fleet: KeyFleet::new(),
            databases,
            key_db,
            mail: Aiosmtpd::start().await,
            ports: std::array::from_fn(|_| std::array::from_fn(|_| free_port())),
            running: Default::default(),
            preload,
            day,
            offset: TimeDelta::zero(),
            random: StdRng::seed_from_u64(seed),
            kills: 0,
        }
    }

    fn now(&self) -> DateTime<Utc> {
        SystemClock.now() + self.offset
    }

    fn endpoint(&self, service: usize, replica: usize) -> String {
        format!("http://127.0.0.1:{}", self.ports[service][replica])
    }

    /// Clients of one replica of each service.
    fn clients(&self, replica: usize) -> Clients {
        let [key, location, notification] = [0, 1, 2].map(|service| self.endpoint(service, replica));
        Clients::new(&key, &location, &notification).expect("endpoints")
    }

    async fn start(&mut self, service: usize, replica: usize) {
        let name = SERVICES[service];
        let mut settings = vec![
            ("LD_PRELOAD", self.preload.display().to_string()),
            ("FAKETIME", format!("+{}", self.offset.num_seconds())),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("KEYSWEEP_SERVER__LISTEN", format!("127.0.0.1:{}", self.ports[service][replica])),
            ("KEYSWEEP_DATABASE__URL", self.databases[service].url.clone()),
            ("KEYSWEEP_METRICS__LISTEN", String::new()),
        ];
        if service < 2 {
            settings.push(("KEYSWEEP_KEYRING__PATH", self.fleet.keyring().display().to_string()));
        }
        if service > 0 {
            settings.push(("KEYSWEEP_KEY_SERVICE__ENDPOINT", self.endpoint(0, replica)));
        }
        match service {
            0 => settings.extend([
                ("KEYSWEEP_SWEEP__DAY", self.day.to_string()),
                ("KEYSWEEP_SWEEP__LEASE_MS", "3000".to_owned()),
            ]),
            2 => settings.extend([
                ("KEYSWEEP_LOCATION_SERVICE__ENDPOINT", self.endpoint(1, replica)),
                ("KEYSWEEP_SMTP__HOST", "127.0.0.1".to_owned()),
                ("KEYSWEEP_SMTP__PORT", self.mail.port.to_string()),
                ("KEYSWEEP_SMTP__TLS", "none".to_owned()),
            ]),
            _ => {}
        }
        let log = self.folder.path().join(format!("{name}-{replica}.log"));
        self.running[service][replica] = Some(Process::start(name, &["serve"], &settings, &log));
        serving(self.ports[service][replica]).await;
    }

    async fn start_all(&mut self) {
        for service in 0..SERVICES.len() {
            for replica in 0..REPLICAS {
                self.start(service, replica).await;
            }
        }
    }

    async fn kill_all(&mut self) {
        for process in self.running.iter_mut().flatten() {
            if let Some(mut process) = process.take() {
                process.kill().await;
            }
        }
    }

    /// Lets time leap to an instant while nobody lives.
    async fn leap_to(&mut self, at: DateTime<Utc>) {
        self.kill_all().await;
        self.offset += at - self.now();
        // Whole seconds, as the processes are told.
        self.offset = TimeDelta::seconds(self.offset.num_seconds());
        let sql = format!("UPDATE lead SET seconds = {}", self.offset.num_seconds());
        self.key_db.execute_unprepared(&sql).await.expect("the clock");
        self.start_all().await;
    }

    /// Kills replicas at random, so many times, and starts each again.
    async fn havoc(&mut self, kills: usize) {
        for _ in 0..kills {
            let (service, replica) = (self.random.random_range(0..3), self.random.random_range(0..REPLICAS));
            // The load of this test is what the replicas do by themselves: it goes on for a moment.
            tokio::time::sleep(Duration::from_millis(self.random.random_range(0..300))).await;
            if let Some(mut process) = self.running[service][replica].take() {
                process.kill().await;
            }
            self.start(service, replica).await;
            self.kills += 1;
        }
    }

    /// Waits until it is so; time leaps where it takes long.
    async fn until(&mut self, what: &str, done: impl AsyncFn(&Clients) -> bool) {
        for _ in 0..6 {
            let begun = Instant::now();
            while begun.elapsed() < STRETCH {
                if done(&self.clients(0)).await {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            let at = self.now() + LEAP;
            self.leap_to(at).await;
        }
        let logs = self.folder.path().display();
        panic!("waited in vain for {what}; the logs were in {logs}");
    }

    async fn account(&self, clients: &Clients, n: usize) -> Account {
        let place = ("US".to_owned(), "America/New_York".to_owned());
        let agency = location::Agency {
            name: format!("Agency {n}"),
            email: format!("office@a{n}.example"),
            country: place.0.clone(),
            time_zone: place.1.clone(),
            ..Default::default()
        };
        let request = location::CreateAgencyRequest { agency: Some(agency), ..Default::default() };
        let agency_id =
            clients.agencies.clone().create_agency(request).await.expect("an agency").into_inner().agency_id;
        let one =
            location::Location { name: "Uptown".into(), country: place.0, time_zone: place.1, ..Default::default() };
        let request =
            location::CreateLocationRequest { agency_id: agency_id.clone(), location: Some(one), ..Default::default() };
        let made = clients.locations.clone().create_location(request).await.expect("a location").into_inner();
        let location_id = made.location_id;
        let mut users = Vec::new();
        for (kind, name, ids) in [
            (location::RoleType::Agency, "agency", Vec::new()),
            (location::RoleType::Location, "location", vec![location_id.clone()]),
        ] {
            let role = location::Role { r#type: kind.into(), level: location::RoleLevel::Admin.into() };
            let user = location::User {
                first_name: "Ada".into(),
                last_name: "Byron".into(),
                email: format!("{name}@a{n}.example"),
                role: Some(role),
                location_ids: ids,
                ..Default::default()
            };
            let request =
                location::CreateUserRequest { agency_id: agency_id.clone(), user: Some(user), ..Default::default() };
            users.push(clients.users.clone().create_user(request).await.expect("a user").into_inner().user_id);
        }
        Account { agency_id, location_id, users: users.try_into().expect("two") }
    }
}

/// The keys of an account: the idle ones, and one that will be used.
fn rows(account: &Account, n: usize, created: DateTime<Utc>) -> Vec<key::ImportRow> {
    let names = (0..IDLE_KEYS).map(|k| format!("idle-{n}-{k}")).chain([format!("used-{n}")]);
    let place = key::LocationRef { agency_id: account.agency_id.clone(), location_id: account.location_id.clone() };
    let owner = Some(key::Owner { account: Some(key::owner::Account::Location(place)) });
    names
        .map(|name| key::ImportRow { owner: owner.clone(), ..legacy_row(&account.agency_id, &name, None, created) })
        .collect()
}

async fn plan(clients: &Clients) -> Option<key::SweepPlan> {
    let request = key::ListSweepPlansRequest::default();
    clients.sweeps.clone().list_sweep_plans(request).await.ok()?.into_inner().sweep_plans.into_iter().next()
}

/// Whether every lot has the receipt of a stage.
async fn told(clients: &Clients, stage: key::NoticeStage) -> bool {
    let Some(plan) = plan(clients).await else { return false };
    let request = key::ListLotsRequest { plan_id: plan.plan_id, ..Default::default() };
    let Ok(answer) = clients.sweeps.clone().list_lots(request).await else { return false };
    let lots = answer.into_inner().lots;
    lots.len() == AGENCIES && lots.iter().all(|lot| lot.receipts.iter().any(|receipt| receipt.stage() == stage))
}

/// The account of each banner that stands.
async fn banners(clients: &Clients, account: &Account) -> Option<Vec<key::owner::Account>> {
    let request = notification::ListBannersRequest {
        agency_id: account.agency_id.clone(),
        location_ids: vec![account.location_id.clone()],
    };
    let banners = clients.notifications.clone().list_banners(request).await.ok()?.into_inner().banners;
    Some(banners.into_iter().filter_map(|banner| banner.account?.account).collect())
}

/// How often a user was told each thing.
async fn inbox(clients: &Clients, user_id: &str) -> BTreeMap<(String, String), usize> {
    let request =
        notification::ListNotificationsRequest { user_id: user_id.to_owned(), page_size: 100, ..Default::default() };
    let answer = clients.notifications.clone().list_notifications(request).await.expect("an inbox").into_inner();
    let mut counted = BTreeMap::new();
    for one in answer.notifications {
        *counted.entry((one.kind().as_str_name().to_owned(), one.stage().as_str_name().to_owned())).or_default() += 1;
    }
    counted
}

fn header<'a>(message: &'a str, name: &str) -> &'a str {
    message.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim()
}

/// Every email there should be, and none more often than an attempt was in doubt.
async fn check_mail(world: &World, clients: &Clients) -> (usize, usize) {
    let request = notification::ListDeliveriesRequest { page_size: 1_000, ..Default::default() };
    let deliveries = clients.notifications.clone().list_deliveries(request).await.expect("deliveries").into_inner();
    let mut copies = BTreeMap::<String, usize>::new();
    for message in world.mail.messages() {
        *copies.entry(header(&message, "Message-ID:").to_owned()).or_default() += 1;
    }
    assert_eq!((copies.len(), deliveries.deliveries.len()), (AGENCIES, AGENCIES), "{copies:?}");
    for one in &deliveries.deliveries {
        let arrived = copies.get(&one.message_id).copied().unwrap_or(0);
        let most = 1 + usize::try_from(one.in_doubt_count).expect("a count");
        assert!((1..=most).contains(&arrived), "{arrived} copies of {one:?}");
    }
    let total: usize = copies.values().sum();
    (total, total - copies.len())
}

/// Its idle keys are deleted, the used one lives, and its people were told everything once.
async fn check_account(clients: &Clients, n: usize, account: &Account, seed: u64) {
    let idle = (0..IDLE_KEYS).map(|k| (format!("idle-{n}-{k}"), key::VerifyCode::DeletedBySweep));
    for (name, expected) in idle.chain([(format!("used-{n}"), key::VerifyCode::Valid)]) {
        let request = key::VerifyKeyRequest { secret: legacy_secret(&name), ..Default::default() };
        let answer = clients.keys.clone().verify_key(request).await.expect("an answer");
        assert_eq!(answer.get_ref().code(), expected, "{name}, seed {seed}");
    }
    for user in &account.users {
        let counted = inbox(clients, user).await;
        assert!(counted.values().all(|times| *times == 1), "{user} was told twice, seed {seed}: {counted:?}");
        let notices = counted.keys().filter(|(kind, _)| kind == "NOTIFICATION_KIND_DELETION_NOTICE").count();
        assert_eq!(notices, 3, "{user}, seed {seed}: {counted:?}");
    }
    let gone = banners(clients, account).await.expect("banners");
    assert!(gone.is_empty(), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    any(keysweep_no_postgres, keysweep_no_aiosmtpd, keysweep_no_faketime),
    ignore = "left out: PostgreSQL's server, aiosmtpd or libfaketime is not installed"
)]
async fn a_quarter_with_kills_does_everything_once() {
    let kills = number("KEYSWEEP_FLEET_KILLS").unwrap_or(4) as usize;
    let mut drawn = [0; 8];
    OsEntropy.fill(&mut drawn);
    let seed = number("KEYSWEEP_FLEET_SEED").unwrap_or(u64::from_le_bytes(drawn));
    println!("{kills} kills a stage, KEYSWEEP_FLEET_SEED={seed}");
    let (began, clock) = (SystemClock.now(), Instant::now());
    let (sweep_at, day) = cadence(began);
    let mut world = World::new(FAKETIME.expect("libfaketime").into(), day, seed).await;
    world.start_all().await;
    let clients = world.clients(0);
    let mut accounts = Vec::new();
    for n in 0..AGENCIES {
        let account = world.account(&clients, n).await;
        let request = key::ImportApiKeysRequest { rows: rows(&account, n, began - TimeDelta::days(700)) };
        let done = clients.keys.clone().import_api_keys(tokio_stream::iter([request])).await.expect("an import");
        assert_eq!(done.get_ref().imported_count, IDLE_KEYS as i64 + 1, "{done:?}");
        accounts.push(account);
    }

    let early = TimeDelta::hours(5);
    for (stage, days) in [(key::NoticeStage::D15, 15), (key::NoticeStage::D7, 7), (key::NoticeStage::D1, 1)] {
        world.leap_to(sweep_at - TimeDelta::days(days) - early).await;
        world.havoc(kills).await;
        world.until("the notices of a stage", async |clients| told(clients, stage).await).await;
        if stage == key::NoticeStage::D15 {
            for n in 0..AGENCIES {
                let request =
                    key::VerifyKeyRequest { secret: legacy_secret(&format!("used-{n}")), ..Default::default() };
                let used = world.clients(n % REPLICAS).keys.clone().verify_key(request).await.expect("an answer");
                assert!(!used.get_ref().plan_id.is_empty(), "{used:?}");
            }
        }
    }
    world.leap_to(sweep_at - TimeDelta::hours(12)).await;
    world.havoc(kills).await;
    for account in &accounts {
        let expected = async |clients: &Clients| banners(clients, account).await.is_some_and(|shown| shown.len() == 2);
        world.until("the banners", expected).await;
        let shown = banners(&world.clients(1), account).await.expect("banners");
        assert_ne!(shown[0], shown[1], "one for the agency, one for its location");
    }
    world.leap_to(sweep_at + TimeDelta::minutes(1)).await;
    world.havoc(kills).await;
    let completed =
        async |clients: &Clients| plan(clients).await.is_some_and(|plan| plan.state() == key::PlanState::Completed);
    world.until("the deletion", completed).await;
    // What the outcome brings the inboxes comes a moment later.
    world
        .until("the end to be told", async |clients| {
            let Some(plan) = plan(clients).await else { return false };
            let request = notification::GetSubscriptionRequest {};
            let answer = clients.notifications.clone().get_subscription(request).await;
            answer.is_ok_and(|answer| answer.get_ref().applied_sequence >= plan.last_sequence)
        })
        .await;

    let clients = world.clients(2);
    for (n, account) in accounts.iter().enumerate() {
        check_account(&clients, n, account, seed).await;
    }
    let (mails, doubled) = check_mail(&world, &clients).await;
    world.kill_all().await;
    println!(
        "{} kills and {} leaps of all nine; {AGENCIES} lots told, {} keys deleted, {AGENCIES} kept; {mails} emails, {doubled} of them \
         doubled where in doubt; {:.0} s",
        world.kills,
        5,
        AGENCIES * IDLE_KEYS,
        clock.elapsed().as_secs_f64()
    );
}
