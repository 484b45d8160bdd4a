//! A running service with its peers, for tests of the whole way.

#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test binary uses its part")]

pub mod peer;
pub mod seed;
pub mod smtp;

use std::net::SocketAddr;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use keysweep_proto::notification::v1::notification_service_client::NotificationServiceClient;
use keysweep_proto::notification::v1::*;
use notification_service::Config;
use notification_service::config::DEFAULTS;
use service_kit::Deps;
use service_kit::clock::{Clock, FollowingClock, SimulatedClock};
use service_kit::testing::{TestDatabase, wait};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use peer::Peer;
use smtp::Smtp;

pub fn at(text: &str) -> DateTime<Utc> {
    text.parse().expect("an instant")
}

/// The deletion instant of the tests' plans.
pub fn deletion() -> DateTime<Utc> {
    at("2026-01-01T00:00:00Z")
}

/// When a stage of an untouched lot becomes due.
pub fn due(days: i64) -> DateTime<Utc> {
    deletion() - TimeDelta::days(days) - TimeDelta::hours(6)
}

pub struct World {
    pub clock: Arc<SimulatedClock>,
    pub peer: Peer,
    pub smtp: Smtp,
    pub api: NotificationServiceClient<Channel>,
    pub deps: Deps,
    pub config: Config,
    peer_end: CancellationToken,
    shutdown: CancellationToken,
    task: Option<JoinHandle<anyhow::Result<()>>>,
}

impl World {
    /// The service with both peers and a mail server, a minute before the first notices are due.
    pub async fn start(db: &TestDatabase) -> Self {
        Self::start_with(db, |_| {}).await
    }

    pub async fn start_with(db: &TestDatabase, change: impl FnOnce(&mut Config)) -> Self {
        let clock = Arc::new(SimulatedClock::new(due(15) - TimeDelta::minutes(1)));
        // The peers' clock stands right, whatever the service's is set to.
        let truth = FollowingClock::new(clock.clone());
        truth.answered(clock.lived(), clock.now());
        let truth = Arc::new(truth);
        let (peer, smtp, peer_end) = (Peer::new(truth), Smtp::start().await, CancellationToken::new());
        let address = peer.serve(None, peer_end.clone()).await;
        let mut config = config(db, address, &smtp);
        change(&mut config);
        let unconnected = tonic::transport::Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
        let mut world = Self {
            deps: service_kit::testing::deps(clock.clone(), 1),
            api: NotificationServiceClient::new(unconnected),
            shutdown: CancellationToken::new(),
            task: None,
            clock,
            peer,
            smtp,
            config,
            peer_end,
        };
        world.run().await;
        world
    }

    /// Another replica of the same service: same database, peers, mail server and clock.
    pub async fn replica(&self, seed: u64) -> Self {
        let mut other = Self {
            deps: service_kit::testing::deps(self.clock.clone(), seed),
            api: self.api.clone(),
            shutdown: CancellationToken::new(),
            task: None,
            clock: self.clock.clone(),
            peer: self.peer.clone(),
            smtp: self.smtp.clone(),
            config: self.config.clone(),
            peer_end: self.peer_end.clone(),
        };
        other.run().await;
        other
    }

    async fn run(&mut self) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        self.shutdown = CancellationToken::new();
        self.task = Some(tokio::spawn(notification_service::run(
            self.config.clone(),
            self.deps.clone(),
            listener,
            self.shutdown.clone(),
        )));
        let channel =
            tonic::transport::Endpoint::from_shared(format!("http://{address}")).expect("an endpoint").connect_lazy();
        self.api = NotificationServiceClient::new(channel);
        let knows = |known: &Subscription| known.sweep_time.is_some() || !known.last_error.is_empty();
        wait::until("the service to start", async || self.subscription().await.filter(knows)).await;
    }

    pub async fn stop(&mut self) {
        self.shutdown.cancel();
        if let Some(task) = self.task.take() {
            task.await.expect("no panic").expect("no error");
        }
    }

    pub async fn restart(&mut self) {
        self.stop().await;
        self.run().await;
    }

    /// The subscription once it is as expected.
    pub async fn until(&self, expected: impl Fn(&Subscription) -> bool) -> Subscription {
        wait::until("the subscription", async || self.subscription().await.filter(&expected)).await
    }

    pub fn stop_peers(&mut self) {
        self.peer_end.cancel();
    }

    /// Where they were, with what they said.
    pub async fn start_peers(&mut self) {
        self.peer_end = CancellationToken::new();
        let address = self.config.key_service.endpoint.trim_start_matches("http://").parse().expect("an address");
        self.peer.serve(Some(address), self.peer_end.clone()).await;
    }

    pub async fn subscription(&self) -> Option<Subscription> {
        Some(self.api.clone().get_subscription(GetSubscriptionRequest {}).await.ok()?.into_inner())
    }

    /// Until every event is applied and no job finds work.
    pub async fn settle(&self) {
        wait::until("every event to be applied", async || {
            let known = self.subscription().await.expect("the service");
            self.deps.jobs.settle().await.expect("jobs");
            let timed = known.sweep_time.is_some() || self.peer_end.is_cancelled();
            (timed && known.applied_sequence == self.peer.head()).then_some(())
        })
        .await;
    }

    pub async fn advance_to(&self, at: DateTime<Utc>) {
        self.clock.advance_to(at);
        self.settle().await;
    }

    pub async fn advance(&self, by: TimeDelta) {
        self.advance_to(self.clock.now() + by).await;
    }

    pub async fn inbox(&self, user: &str) -> Vec<Notification> {
        let asked = ListNotificationsRequest { user_id: user.into(), page_size: 100, ..Default::default() };
        self.api.clone().list_notifications(asked).await.expect("an inbox").into_inner().notifications
    }

    /// What a user was told, oldest first: kind or stage, and the number of keys.
    pub async fn told(&self, user: &str) -> Vec<(String, i64)> {
        let mut inbox = self.inbox(user).await;
        inbox.reverse();
        inbox
            .into_iter()
            .map(|one| {
                let kind = match one.kind() {
                    NotificationKind::DeletionNotice => one.stage().as_str_name().replace("NOTICE_STAGE_", ""),
                    kind => kind.as_str_name().replace("NOTIFICATION_KIND_", ""),
                };
                (kind, one.key_count)
            })
            .collect()
    }

    pub async fn deliveries(&self) -> Vec<Delivery> {
        let asked = ListDeliveriesRequest { page_size: 1_000, ..Default::default() };
        self.api.clone().list_deliveries(asked).await.expect("deliveries").into_inner().deliveries
    }

    pub async fn banners(&self, agency: &str, locations: &[&str]) -> Vec<Banner> {
        let asked = ListBannersRequest {
            agency_id: agency.into(),
            location_ids: locations.iter().map(|&l| l.to_owned()).collect(),
        };
        self.api.clone().list_banners(asked).await.expect("banners").into_inner().banners
    }
}

pub fn told(expected: &[(&str, i64)]) -> Vec<(String, i64)> {
    expected.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect()
}

fn config(db: &TestDatabase, peer: SocketAddr, smtp: &Smtp) -> Config {
    let mut config: Config = service_kit::config::load(DEFAULTS, None).expect("the defaults are valid");
    config.database = db.config();
    config.key_service.endpoint = format!("http://{peer}");
    config.location_service.endpoint = format!("http://{peer}");
    config.mail.from = "keysweep <keysweep@keysweep.example>".into();
    config.mail.max_per_second = 0;
    config.smtp.host = smtp.address.ip().to_string();
    config.smtp.port = smtp.address.port();
    config.smtp.tls = "none".into();
    config
}
