//! key-service in this process, on a clock that the test moves: for the instants that a real process cannot wait for.

use std::path::Path;
use std::sync::Arc;

use chrono::{DateTime, Datelike, NaiveDate, TimeDelta, Utc};
use keysweep::clients::{Clients, made_for};
use keysweep_e2e::process::serving;
use keysweep_proto::key::v1 as key;
use service_kit::Deps;
use service_kit::clock::{Clock, SimulatedClock};
use service_kit::db::DatabaseConfig;
use service_kit::entropy::OsEntropy;
use service_kit::jobs::JobRegistry;
use service_kit::time::to_proto;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Enough that the plan lies ahead of whatever the real processes do meanwhile.
const AHEAD: TimeDelta = TimeDelta::days(20);

/// A day of the month for sweeps, and the first of them that is far enough ahead.
pub(crate) fn cadence(now: DateTime<Utc>) -> (DateTime<Utc>, u32) {
    let candidates = (0..2).flat_map(|year| {
        [1, 4, 7, 10].into_iter().flat_map(move |month| {
            [1, 15, 28].into_iter().filter_map(move |day| {
                let date = NaiveDate::from_ymd_opt(now.year() + year, month, day)?;
                Some((date.and_hms_opt(0, 0, 0)?.and_utc(), day))
            })
        })
    });
    candidates.filter(|(at, _)| *at >= now + AHEAD).min().expect("there is always a next sweep")
}

/// The secret of a key that was made elsewhere.
pub(crate) fn legacy_secret(reference: &str) -> String {
    format!("a-legacy-secret-of-{reference}")
}

/// A key of an agency that was made elsewhere, as it is imported.
pub(crate) fn legacy_row(
    agency: &str,
    reference: &str,
    last_use: Option<DateTime<Utc>>,
    created: DateTime<Utc>,
) -> key::ImportRow {
    let account = key::owner::Account::AgencyId(agency.to_owned());
    key::ImportRow {
        owner: Some(key::Owner { account: Some(account) }),
        credential: Some(key::import_row::Credential::Secret(legacy_secret(reference))),
        create_time: Some(to_proto(created)),
        last_use_time: last_use.map(to_proto),
        external_reference: reference.to_owned(),
        ..Default::default()
    }
}

/// The service.
pub(crate) struct Desk {
    clock: Arc<SimulatedClock>,
    jobs: JobRegistry,
    pub(crate) clients: Clients,
    shutdown: CancellationToken,
    served: JoinHandle<anyhow::Result<()>>,
}

impl Desk {
    /// Starts it at an instant.
    pub(crate) async fn open(database: &DatabaseConfig, keyring: &Path, day: u32, at: DateTime<Utc>) -> Self {
        let mut config = key_service::Config::built_in().expect("the built-in settings");
        config.database = database.clone();
        config.keyring.path = keyring.display().to_string();
        config.sweep.day = day;
        config.sweep.breaker_max_keys = 1_000_000;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let endpoint = format!("http://{address}");
        let clock = Arc::new(SimulatedClock::new(at));
        let jobs = JobRegistry::default();
        let deps = Deps { clock: clock.clone(), entropy: Arc::new(OsEntropy), jobs: jobs.clone() };
        let shutdown = CancellationToken::new();
        let served = tokio::spawn(key_service::run(config, deps, listener, shutdown.clone()));
        // Before that, there is no job to settle.
        serving(address.port()).await;
        let clients = Clients::new(&endpoint, &endpoint, &endpoint).expect("an endpoint");
        Self { clock, jobs, clients, shutdown, served }
    }

    /// Takes keys over.
    pub(crate) async fn import(&self, rows: Vec<key::ImportRow>) {
        let count = rows.len() as i64;
        let chunks: Vec<_> = rows.chunks(1_000).map(|rows| key::ImportApiKeysRequest { rows: rows.to_vec() }).collect();
        let answer = self.clients.keys.clone().import_api_keys(tokio_stream::iter(chunks)).await.expect("an import");
        assert_eq!(answer.get_ref().imported_count, count, "{answer:?}");
    }

    /// Lets time pass until an instant, and the jobs do what is due then.
    pub(crate) async fn advance(&self, at: DateTime<Utc>) {
        self.try_advance(at).await.expect("the jobs");
    }

    /// The same, where the jobs may fail.
    pub(crate) async fn try_advance(&self, at: DateTime<Utc>) -> anyhow::Result<()> {
        self.clock.advance_to(at);
        self.jobs.settle().await
    }

    /// Acknowledges all notices of an agency's lot on their marks, and lets the sweep come.
    pub(crate) async fn sweep(&self, at: DateTime<Utc>, agency_id: &str) {
        self.announce(at, agency_id).await;
        self.advance(at).await;
    }

    /// Acknowledges all notices of an agency's lot on their marks.
    pub(crate) async fn announce(&self, at: DateTime<Utc>, agency_id: &str) {
        let mut sweeps = self.clients.sweeps.clone();
        let plans = sweeps.list_sweep_plans(key::ListSweepPlansRequest::default()).await.expect("plans").into_inner();
        let plan = plans.sweep_plans.first().expect("a plan");
        for (stage, days) in [(key::NoticeStage::D15, 15), (key::NoticeStage::D7, 7), (key::NoticeStage::D1, 1)] {
            self.advance(at - TimeDelta::days(days)).await;
            let notice = key::StageNotice {
                plan_id: plan.plan_id.clone(),
                agency_id: agency_id.to_owned(),
                stage: stage.into(),
                deliver_time: Some(to_proto(self.clock.now())),
                in_app_count: 1,
                emails_accepted: 1,
                ..Default::default()
            };
            let send_time = Some(to_proto(self.clock.now()));
            let request = key::AcknowledgeNoticesRequest { notices: vec![notice], send_time };
            let request = made_for("service/notification-service", request).expect("an actor");
            let answer = sweeps.acknowledge_notices(request).await.expect("an answer").into_inner();
            let outcome = answer.results.first().expect("a result");
            assert_eq!(outcome.outcome(), key::NoticeOutcome::Recorded, "{outcome:?}");
        }
    }

    /// Stops it.
    pub(crate) async fn close(self) {
        self.shutdown.cancel();
        self.served.await.expect("it ends").expect("it ends well");
    }
}
