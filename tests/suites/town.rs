//! The three services as real processes on one PostgreSQL, in another time by libfaketime, with agencies, people and keys.
//!
//! While a process lives its clock only runs; time leaps while all are dead, as after an absence.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use keysweep::clients::Clients;
use keysweep_e2e::commits::CommitProxy;
use keysweep_e2e::process::{Process, free_port, run, serving, serving_on};
use keysweep_e2e::replica::KeyFleet;
use keysweep_e2e::shared_name::SharedName;
use keysweep_e2e::smtp::Aiosmtpd;
use keysweep_proto::key::v1 as key;
use keysweep_proto::location::v2 as location;
use keysweep_proto::notification::v1 as notification;
use sea_orm::{ConnectionTrait, DatabaseConnection};
use service_kit::clock::{Clock, SystemClock};
use service_kit::db;
use service_kit::testing::{Kind, TestDatabase};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::desk::{legacy_row, legacy_secret};

pub(crate) const SERVICES: [&str; 3] = ["key-service", "location-service", "notification-service"];
pub(crate) const AGENCIES: usize = 4;
/// Of each agency's location, besides one that is used in time.
pub(crate) const IDLE_KEYS: usize = 3;

/// So much time leaps over where it takes long, and so often: what a dead one had taken on is free only later.
const LEAP: TimeDelta = TimeDelta::minutes(15);
const LEAPS: u32 = 16;
/// So long before its mark the notices of a stage begin.
const EARLY: TimeDelta = TimeDelta::hours(5);
const POLL: Duration = Duration::from_millis(100);

/// Where the build script found the library.
const FAKETIME: Option<&str> = option_env!("KEYSWEEP_FAKETIME");

pub(crate) fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// A replica's number where it stands for an address.
fn place(replica: usize) -> u8 {
    u8::try_from(replica).expect("few")
}

/// An agency with an admin, and a location with one.
#[derive(Clone)]
pub(crate) struct Account {
    pub(crate) agency_id: String,
    pub(crate) location_id: String,
    pub(crate) users: [String; 2],
}

/// Everything that outlives the processes, and so many of them of each service.
pub(crate) struct Town {
    pub(crate) folder: TempDir,
    fleet: KeyFleet,
    pub(crate) databases: [TestDatabase; 3],
    /// Where each service finds its database.
    pub(crate) urls: [String; 3],
    /// Settings of all services besides their own.
    pub(crate) settings: Vec<(&'static str, String)>,
    /// Settings of key-service besides its own.
    pub(crate) sweep: Vec<(&'static str, String)>,
    /// Under which the replicas find each other, with certificates. None: each calls the one of its number, in plaintext.
    name: Option<SharedName>,
    key_db: DatabaseConnection,
    pub(crate) mail: Aiosmtpd,
    /// The folder of each replica's binaries, where they are not those of these sources.
    pub(crate) versions: Vec<Option<PathBuf>>,
    /// Whether each replica calls the one after it, and not the one of its number.
    pub(crate) crossed: bool,
    /// Of each replica, by service.
    ports: Vec<[u16; 3]>,
    pub(crate) running: Vec<[Option<Process>; 3]>,
    offset: TimeDelta,
    /// Who is told the process id of each service's first process.
    pub(crate) watchers: [Option<CommitProxy>; 3],
}

impl Town {
    /// So many replicas, each of which calls those of its number, in plaintext.
    pub(crate) async fn new(replicas: usize, day: u32) -> Self {
        Self::with(None, replicas, day).await
    }

    /// Replicas that share a name, and know each other by certificates.
    pub(crate) async fn behind_one_name(replicas: u8, day: u32) -> Self {
        let mut town = Self::with(Some(SharedName::new(replicas)), replicas.into(), day).await;
        let first = town.ports[0];
        town.ports.fill(first);
        town
    }

    async fn with(name: Option<SharedName>, replicas: usize, day: u32) -> Self {
        let databases = std::array::from_fn(|_| TestDatabase::new(Kind::Postgres));
        let key_db = db::connect(&databases[0].config()).await.expect("the database");
        // The database's clock runs with those of the processes.
        let key_database = databases[0].url.split(['/', '?']).nth(3).expect("a name").to_owned();
        for sql in [
            "CREATE TABLE lead (seconds BIGINT NOT NULL)",
            "INSERT INTO lead VALUES (0)",
            "CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS \
             'SELECT pg_catalog.clock_timestamp() + make_interval(secs => (SELECT seconds FROM public.lead))'",
            &format!("ALTER DATABASE {key_database} SET search_path = public, pg_catalog"),
        ] {
            key_db.execute_unprepared(sql).await.expect("a clock");
        }
        Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
            fleet: KeyFleet::new(),
            urls: std::array::from_fn(|service| databases[service].url.clone()),
            databases,
            settings: Vec::new(),
            sweep: vec![("KEYSWEEP_SWEEP__DAY", day.to_string()), ("KEYSWEEP_SWEEP__LEASE_MS", "3000".to_owned())],
            name,
            key_db,
            mail: Aiosmtpd::start().await,
            versions: vec![None; replicas],
            crossed: false,
            ports: (0..replicas).map(|_| std::array::from_fn(|_| free_port())).collect(),
            running: (0..replicas).map(|_| [const { None }; 3]).collect(),
            offset: TimeDelta::zero(),
            watchers: [const { None }; 3],
        }
    }

    pub(crate) fn now(&self) -> DateTime<Utc> {
        SystemClock.now() + self.offset
    }

    /// Where a service is for the others of this number.
    fn endpoint(&self, service: usize, replica: usize) -> String {
        let port = self.ports[replica][service];
        if self.name.is_some() { SharedName::endpoint(port) } else { format!("http://127.0.0.1:{port}") }
    }

    /// The name that the replicas share, and the port of a service.
    pub(crate) fn name(&self, service: usize) -> (&SharedName, u16) {
        (self.name.as_ref().expect("they share one"), self.ports[0][service])
    }

    /// Clients of one replica of each service, with the certificate of `caller` where there are any.
    fn clients_of(&self, caller: &str, replica: usize) -> Clients {
        match &self.name {
            None => {
                let [key, location, notification] = [0, 1, 2].map(|service| self.endpoint(service, replica));
                Clients::new(&key, &location, &notification).expect("endpoints")
            }
            Some(name) => {
                let place = place(replica);
                let [key, location, notification] = self.ports[replica].map(|port| name.channel(caller, place, port));
                Clients::over(key, location, notification)
            }
        }
    }

    /// Clients of one replica of each service, as the platform has them: its gateway verifies, its backend does the rest; and an
    /// operator looks at plans.
    pub(crate) fn clients(&self, replica: usize) -> Clients {
        let (keys, sweeps) = (self.clients_of("gateway", replica).keys, self.operator(replica).sweeps);
        Clients { keys, sweeps, ..self.clients_of("ui", replica) }
    }

    /// Clients of one replica of each service, as an operator has them.
    pub(crate) fn operator(&self, replica: usize) -> Clients {
        self.clients_of("operator", replica)
    }

    /// The binary of a service that a replica runs.
    fn binary(&self, service: usize, replica: usize) -> String {
        let version = self.versions[replica].as_ref();
        version.map_or(SERVICES[service].to_owned(), |folder| folder.join(SERVICES[service]).display().to_string())
    }

    /// The environment of a process.
    fn settings(&self, service: usize, replica: usize) -> Vec<(&'static str, String)> {
        let address = self.name.as_ref().map_or(Ipv4Addr::LOCALHOST, |_| SharedName::address(place(replica)));
        let mut settings = vec![
            ("LD_PRELOAD", FAKETIME.expect("libfaketime").to_owned()),
            ("FAKETIME", format!("+{}", self.offset.num_seconds())),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("KEYSWEEP_SERVER__LISTEN", format!("{address}:{}", self.ports[replica][service])),
            ("KEYSWEEP_DATABASE__URL", self.urls[service].clone()),
            ("KEYSWEEP_METRICS__LISTEN", String::new()),
        ];
        settings.extend(self.settings.clone());
        if service < 2 {
            settings.push(("KEYSWEEP_KEYRING__PATH", self.fleet.keyring().display().to_string()));
        }
        let called = (replica + usize::from(self.crossed)) % self.running.len();
        if service > 0 {
            settings.push(("KEYSWEEP_KEY_SERVICE__ENDPOINT", self.endpoint(0, called)));
        }
        match service {
            0 => settings.extend(self.sweep.clone()),
            2 => settings.extend([
                ("KEYSWEEP_LOCATION_SERVICE__ENDPOINT", self.endpoint(1, called)),
                ("KEYSWEEP_SMTP__HOST", "127.0.0.1".to_owned()),
                ("KEYSWEEP_SMTP__PORT", self.mail.port.to_string()),
                ("KEYSWEEP_SMTP__TLS", "none".to_owned()),
            ]),
            _ => {}
        }
        if let Some(shared) = &self.name {
            settings.extend(shared.settings(SERVICES[service]));
        }
        settings
    }

    /// Migrates the databases of all services to the version of a replica.
    pub(crate) async fn migrate(&self, replica: usize) {
        for service in 0..SERVICES.len() {
            let done = run(&self.binary(service, replica), &["migrate"], &self.settings(service, replica)).await;
            assert!(done.status.success(), "{done:?}");
        }
    }

    /// Starts a process, without waiting until it serves.
    pub(crate) fn launch(&mut self, service: usize, replica: usize) {
        let (binary, settings) = (self.binary(service, replica), self.settings(service, replica));
        let log = self.folder.path().join(format!("{}-{replica}.log", SERVICES[service]));
        let process = match &self.name {
            None => Process::start(&binary, &["serve"], &settings, &log),
            Some(shared) => shared.start(&binary, &["serve"], &settings, &log),
        };
        if let Some(watcher) = &self.watchers[service] {
            watcher.watch(process.id());
        }
        self.running[replica][service] = Some(process);
    }

    /// Starts a process, again if it dies meanwhile, and waits until it serves.
    pub(crate) async fn start(&mut self, service: usize, replica: usize) {
        let port = self.ports[replica][service];
        loop {
            self.launch(service, replica);
            let channel = self.name.as_ref().map(|name| name.channel("operator", place(replica), port));
            let process = self.running[replica][service].as_mut().expect("it was started");
            let serves = async {
                match channel {
                    None => serving(port).await,
                    Some(channel) => serving_on(channel).await,
                }
            };
            tokio::select! {
                () = serves => return,
                () = process.ended() => {}
            }
        }
    }

    /// Starts those again that have died by themselves; answers whether any had.
    async fn revive(&mut self) -> bool {
        let mut revived = false;
        for replica in 0..self.running.len() {
            for service in 0..SERVICES.len() {
                if self.running[replica][service].as_mut().is_some_and(Process::has_ended) {
                    self.start(service, replica).await;
                    revived = true;
                }
            }
        }
        revived
    }

    /// Waits until it is so; who dies meanwhile is started again, and time leaps where it takes long.
    pub(crate) async fn until(&mut self, what: &str, stretch: Duration, done: impl AsyncFn(&Clients) -> bool) {
        for _ in 0..LEAPS {
            let mut begun = Instant::now();
            while begun.elapsed() < stretch {
                if self.revive().await {
                    begun = Instant::now();
                }
                if done(&self.clients(0)).await {
                    return;
                }
                tokio::time::sleep(POLL).await;
            }
            let at = self.now() + LEAP;
            self.leap_to(at).await;
        }
        let logs = self.folder.path().display();
        panic!("waited in vain for {what}; the logs were in {logs}");
    }

    pub(crate) async fn start_all(&mut self) {
        for replica in 0..self.running.len() {
            for service in 0..SERVICES.len() {
                self.start(service, replica).await;
            }
        }
    }

    pub(crate) async fn kill_all(&mut self) {
        for process in self.running.iter_mut().flatten() {
            if let Some(mut process) = process.take() {
                process.kill().await;
            }
        }
    }

    /// Lets time leap to an instant while nobody lives.
    pub(crate) async fn leap_to(&mut self, at: DateTime<Utc>) {
        self.kill_all().await;
        self.offset += at - self.now();
        // Whole seconds, as the processes are told.
        self.offset = TimeDelta::seconds(self.offset.num_seconds());
        let sql = format!("UPDATE lead SET seconds = {}", self.offset.num_seconds());
        self.key_db.execute_unprepared(&sql).await.expect("the clock");
        self.start_all().await;
    }

    pub(crate) async fn account(&self, clients: &Clients, n: usize) -> Account {
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

    /// Agencies with their people and keys, which were made long ago.
    pub(crate) async fn populate(&self, created: DateTime<Utc>) -> Vec<Account> {
        let (clients, operator, mut accounts) = (self.clients(0), self.operator(0), Vec::new());
        for n in 0..AGENCIES {
            let account = self.account(&clients, n).await;
            let request = key::ImportApiKeysRequest { rows: rows(&account, n, created) };
            let done = operator.keys.clone().import_api_keys(tokio_stream::iter([request])).await.expect("an import");
            assert_eq!(done.get_ref().imported_count, IDLE_KEYS as i64 + 1, "{done:?}");
            accounts.push(account);
        }
        accounts
    }

    /// Somebody uses the one key of each agency that is to live, after it was planned.
    async fn rescue(&mut self, stretch: Duration) {
        for n in 0..AGENCIES {
            let request = key::VerifyKeyRequest { secret: legacy_secret(&format!("used-{n}")), ..Default::default() };
            let replica = n % self.ports.len();
            let keys = self.clients(replica).keys;
            self.until("a key to be used", stretch, async |_| {
                keys.clone().verify_key(request.clone()).await.is_ok_and(|answer| answer.get_ref().valid)
            })
            .await;
        }
    }

    /// Lets every notice go out; at the beginning of each stage something `happens`.
    pub(crate) async fn announce(
        &mut self,
        sweep_at: DateTime<Utc>,
        stretch: Duration,
        mut happens: impl AsyncFnMut(&mut Self, key::NoticeStage),
    ) {
        for (stage, days) in [(key::NoticeStage::D15, 15), (key::NoticeStage::D7, 7), (key::NoticeStage::D1, 1)] {
            self.leap_to(sweep_at - TimeDelta::days(days) - EARLY).await;
            happens(self, stage).await;
            self.until("the notices of a stage", stretch, async |clients| told(clients, stage).await).await;
            if stage == key::NoticeStage::D15 {
                self.rescue(stretch).await;
            }
        }
    }

    /// Everything was done once, as a replica tells it; answers how many emails arrived, and how many of them again.
    pub(crate) async fn check(&self, replica: usize, accounts: &[Account]) -> (usize, usize) {
        let clients = self.clients(replica);
        for (n, account) in accounts.iter().enumerate() {
            check_account(&clients, n, account).await;
        }
        check_mail(self, &self.operator(replica)).await
    }

    /// Waits until every lot has ended and notification-service knows.
    pub(crate) async fn finish(&mut self, stretch: Duration) {
        let operator = self.operator(0);
        self.until("the end to be told", stretch, async |clients| {
            let Some(plan) = plan(clients).await.filter(|plan| plan.state() == key::PlanState::Completed) else {
                return false;
            };
            let request = notification::GetSubscriptionRequest {};
            let answer = operator.notifications.clone().get_subscription(request).await;
            answer.is_ok_and(|answer| answer.get_ref().applied_sequence >= plan.last_sequence)
        })
        .await;
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

pub(crate) async fn plan(clients: &Clients) -> Option<key::SweepPlan> {
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
pub(crate) async fn banners(clients: &Clients, account: &Account) -> Option<Vec<key::owner::Account>> {
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
async fn check_mail(town: &Town, clients: &Clients) -> (usize, usize) {
    let request = notification::ListDeliveriesRequest { page_size: 1_000, ..Default::default() };
    let deliveries = clients.notifications.clone().list_deliveries(request).await.expect("deliveries").into_inner();
    let mut copies = BTreeMap::<String, usize>::new();
    for message in town.mail.messages() {
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
async fn check_account(clients: &Clients, n: usize, account: &Account) {
    let idle = (0..IDLE_KEYS).map(|k| (format!("idle-{n}-{k}"), key::VerifyCode::DeletedBySweep));
    for (name, expected) in idle.chain([(format!("used-{n}"), key::VerifyCode::Valid)]) {
        let request = key::VerifyKeyRequest { secret: legacy_secret(&name), ..Default::default() };
        let answer = clients.keys.clone().verify_key(request).await.expect("an answer");
        assert_eq!(answer.get_ref().code(), expected, "{name}");
    }
    for user in &account.users {
        let counted = inbox(clients, user).await;
        assert!(counted.values().all(|times| *times == 1), "{user} was told twice: {counted:?}");
        let notices = counted.keys().filter(|(kind, _)| kind == "NOTIFICATION_KIND_DELETION_NOTICE").count();
        assert_eq!(notices, 3, "{user}: {counted:?}");
    }
    let gone = banners(clients, account).await.expect("banners");
    assert!(gone.is_empty(), "{gone:?}");
}
