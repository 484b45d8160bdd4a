//! Puts the parts together.

use std::sync::Arc;

use anyhow::Context;
use keysweep_proto::notification::v1::notification_service_server::NotificationServiceServer;
use service_kit::auth::{Surface, Trust};
use service_kit::client::Peer;
use service_kit::clock::{Clock, FollowingClock};
use service_kit::ids::IdGenerator;
use service_kit::jobs::JobHandle;
use service_kit::server::GrpcServer;
use service_kit::telemetry::Metric;
use service_kit::{Deps, cli, db};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::app::acknowledge::Acknowledge;
use crate::app::deliver::Deliver;
use crate::app::dispatch::Dispatch;
use crate::app::ports::MailTransport;
use crate::app::signals::Signals;
use crate::app::subscribe::{SharedStatus, Subscriber};
use crate::clients::{People, Plans};
use crate::config::{self, Config};
use crate::email::{Maildir, SmtpTransport, Writer};
use crate::grpc::{NotificationApi, SURFACE};
use crate::jobs::{AcknowledgeJob, DeliverJob, DispatchJob, FiguresJob, ForgetJob, Next, Timed};
use crate::metrics::METRICS;
use crate::storage::{Migrator, Store};

/// What one request may weigh. No valid one comes near it.
const MAX_REQUEST_BYTES: usize = 256 * 1024;

/// Serves until `shutdown`, then drains. The peers and the mail server need not be there.
///
/// # Errors
/// When the certificates, the database or the listener cannot be used.
pub async fn run(config: Config, deps: Deps, listener: TcpListener, shutdown: CancellationToken) -> anyhow::Result<()> {
    let trust = Trust::open(&config.auth, &SURFACE, &deps.clock)?;
    let database = db::connect(&config.database).await?;
    db::prepare::<Migrator>(&database, &config.database, &deps.clock, &shutdown).await?;
    let store = Store::new(database.clone(), IdGenerator::new(deps.entropy.clone()), config.mail.domain())
        .with_limits(config.mail.limits());
    let parts = Parts {
        config: &config,
        deps: &deps,
        trust: &trust,
        clock: Arc::new(FollowingClock::new(deps.clock.clone())),
        store: Arc::new(store),
        signals: Arc::default(),
        status: SharedStatus::default(),
    };
    let server = GrpcServer::new(&config.server, &SURFACE, &trust, shutdown.clone());
    // Background work ends with the server, also where it ends by a fault.
    let end = shutdown.child_token();
    let plans = Plans::new(
        Peer::new(&config.key_service, &trust).context("key_service.endpoint")?,
        config.key_service.request_timeout(),
    );
    trust.keep_current(&deps, end.clone());
    let woken = parts.spawn_jobs(&plans, database.clone(), &end)?;
    let subscriber = parts.spawn_subscriber(plans, &end);
    let api = NotificationServiceServer::new(parts.api(server.streams())).max_decoding_message_size(MAX_REQUEST_BYTES);
    let served = server.add_service(api).serve(listener).await;
    end.cancel();
    for task in [woken, subscriber] {
        task.await.context("a background task ended by a panic")?;
    }
    deps.jobs.join().await;
    let closed = database.close().await.context("the database does not close");
    served.and(closed)
}

struct Parts<'a> {
    config: &'a Config,
    deps: &'a Deps,
    trust: &'a Trust,
    /// The time of the sweep, once key-service has told it.
    clock: Arc<FollowingClock>,
    store: Arc<Store>,
    signals: Arc<Signals>,
    status: SharedStatus,
}

impl Parts<'_> {
    fn api(&self, streams: CancellationToken) -> NotificationApi {
        NotificationApi {
            inbox: self.store.clone(),
            banners: self.store.clone(),
            deliveries: self.store.clone(),
            receipts: self.store.clone(),
            projection: self.store.clone(),
            status: self.status.clone(),
            signals: self.signals.clone(),
            clock: self.clock.clone(),
            streams,
        }
    }

    /// This process, as the owner of leases: another one each time, so that none takes over what its predecessor left.
    fn owner(&self) -> String {
        IdGenerator::new(self.deps.entropy.clone()).next("worker_", self.clock.now())
    }

    fn spawn_jobs(
        &self,
        plans: &Plans,
        database: sea_orm::DatabaseConnection,
        end: &CancellationToken,
    ) -> anyhow::Result<JoinHandle<()>> {
        let Config { location_service, mail, .. } = self.config;
        let sender = mail.sender().context("mail.from")?;
        let people = People::new(
            Peer::new(location_service, self.trust).context("location_service.endpoint")?,
            location_service.request_timeout(),
        );
        let dispatch = Dispatch {
            store: self.store.clone(),
            projection: self.store.clone(),
            status: self.status.clone(),
            recipients: Arc::new(people),
            signals: self.signals.clone(),
            owner: self.owner(),
            shutdown: end.clone(),
        };
        let deliver = Deliver {
            store: self.store.clone(),
            writer: Arc::new(Writer::new(sender.clone())?),
            transport: self.transport(&sender)?,
            connections: Semaphore::new(mail.connections as usize),
            long_letter: Semaphore::new(1),
            clock: self.clock.clone(),
            entropy: self.deps.entropy.clone(),
            owner: self.owner(),
            shutdown: end.clone(),
        };
        let acknowledge = Acknowledge {
            store: self.store.clone(),
            sink: Arc::new(plans.clone()),
            clock: self.clock.clone(),
            shutdown: end.clone(),
        };
        let (next_deliver, next_acknowledge) = (Next::default(), Next::default());
        let spawn = |job| self.deps.jobs.spawn(job, self.clock.clone(), end.clone());
        let timed = |job| spawn(Arc::new(Timed { job, clock: self.clock.clone() }));
        next_acknowledge.set(timed(Box::new(AcknowledgeJob { acknowledge })));
        let deliver = DeliverJob { deliver: Arc::new(deliver), acknowledge: next_acknowledge.clone() };
        next_deliver.set(timed(Box::new(deliver)));
        let dispatch = DispatchJob { dispatch, deliver: next_deliver, acknowledge: next_acknowledge };
        let dispatch = timed(Box::new(dispatch));
        spawn(Arc::new(ForgetJob { db: database }));
        let (store, projection, status) = (self.store.clone(), self.store.clone(), self.status.clone());
        spawn(Arc::new(FiguresJob { store, projection, status }));
        Ok(tokio::spawn(wake(dispatch, self.signals.clone(), end.clone())))
    }

    fn transport(&self, sender: &lettre::message::Mailbox) -> anyhow::Result<Arc<dyn MailTransport>> {
        Ok(match self.config.smtp.options(sender) {
            Some(options) => Arc::new(SmtpTransport::new(options).context("smtp")?),
            None => {
                tracing::info!(path = %self.config.maildir.path.display(), "no mail server is configured: mail goes into a folder");
                Arc::new(Maildir::new(self.config.maildir.path.clone()))
            }
        })
    }

    fn spawn_subscriber(&self, plans: Plans, end: &CancellationToken) -> JoinHandle<()> {
        let subscriber = Subscriber {
            source: Arc::new(plans),
            store: self.store.clone(),
            signals: self.signals.clone(),
            status: self.status.clone(),
            clock: self.clock.clone(),
        };
        let end = end.clone();
        tokio::spawn(async move { subscriber.run(end).await })
    }
}

/// Dispatches as soon as the projection changes.
async fn wake(dispatch: JobHandle, signals: Arc<Signals>, end: CancellationToken) {
    let mut changes = signals.projection();
    loop {
        tokio::select! {
            () = end.cancelled() => return,
            _ = changes.changed() => dispatch.signal(),
        }
    }
}

/// The service, for the commands of its binary.
#[derive(Debug)]
pub struct NotificationService;

impl cli::Service for NotificationService {
    const NAME: &'static str = "notification-service";
    const DEFAULTS: &'static str = config::DEFAULTS;
    type Config = Config;
    type Migrator = Migrator;
    const METRICS: &'static [Metric] = METRICS;
    const SURFACE: &'static Surface = &SURFACE;

    async fn run(config: Config, deps: Deps, listener: TcpListener, shutdown: CancellationToken) -> anyhow::Result<()> {
        run(config, deps, listener, shutdown).await
    }
}
