//! The three services, running in this process.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use key_service::KeyService;
use location_service::LocationService;
use notification_service::NotificationService;
use service_kit::Deps;
use service_kit::cli::Service;
use service_kit::clock::SharedClock;
use service_kit::config::load_from;
use service_kit::entropy::{OsEntropy, SeededEntropy, SharedEntropy};
use service_kit::jobs::JobRegistry;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::clients::Clients;

/// Which of the three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// key-service.
    Key,
    /// location-service.
    Location,
    /// notification-service.
    Notification,
}

impl Which {
    /// All three, in the order in which they start.
    pub const ALL: [Self; 3] = [Self::Key, Self::Location, Self::Notification];

    /// The service's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Key => "key-service",
            Self::Location => "location-service",
            Self::Notification => "notification-service",
        }
    }
}

/// Where emails go.
#[derive(Clone, Debug)]
pub enum Mail {
    /// Into files of this folder.
    Maildir(PathBuf),
    /// To this SMTP server, without encryption: it is on this machine.
    Smtp {
        /// Its host.
        host: String,
        /// Its port.
        port: u16,
    },
}

/// What the suite needs to know.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The database URL of each service, in the order of [`Which::ALL`].
    pub databases: [String; 3],
    /// Folder with a `<service>.keyring` for each service that needs one. `None`: each lies beside its SQLite file.
    pub keyrings: Option<PathBuf>,
    /// The port of each service; 0 takes a free one.
    pub ports: [u16; 3],
    /// Where emails go.
    pub mail: Mail,
    /// How many emails a second at most, over all replicas. `None`: the service's own default.
    pub mails_per_second: Option<u32>,
    /// The time that all three live in.
    pub clock: SharedClock,
    /// Makes ids and secrets repeatable. `None`: the operating system's randomness.
    pub seed: Option<u64>,
}

struct Running {
    jobs: JobRegistry,
    shutdown: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

/// The three services, running in this process.
pub struct Suite {
    plan: Plan,
    addresses: [SocketAddr; 3],
    running: [Option<Running>; 3],
}

/// No service takes longer to come up or to drain.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);

impl Suite {
    /// Starts all three and waits until they serve.
    ///
    /// # Errors
    /// When a port is taken, a configuration is wrong or a service fails to start.
    pub async fn start(mut plan: Plan) -> anyhow::Result<Self> {
        let mut listeners = Vec::new();
        let mut addresses = [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); 3];
        for which in Which::ALL {
            let listener = bind(which, plan.ports[which as usize]).await?;
            addresses[which as usize] = listener.local_addr()?;
            // A service that is started again must be found where it was.
            plan.ports[which as usize] = addresses[which as usize].port();
            listeners.push(listener);
        }
        let mut suite = Self { plan, addresses, running: [None, None, None] };
        for (which, listener) in Which::ALL.into_iter().zip(listeners) {
            suite.launch(which, listener).await?;
        }
        Ok(suite)
    }

    /// Starts one that was stopped.
    ///
    /// # Errors
    /// As [`Suite::start`].
    pub async fn start_one(&mut self, which: Which) -> anyhow::Result<()> {
        let listener = bind(which, self.plan.ports[which as usize]).await?;
        self.launch(which, listener).await
    }

    /// Drains and stops one.
    ///
    /// # Errors
    /// When it does not end in time or ended with an error.
    pub async fn stop_one(&mut self, which: Which) -> anyhow::Result<()> {
        let Some(running) = self.running[which as usize].take() else { return Ok(()) };
        running.shutdown.cancel();
        let ended = tokio::time::timeout(PATIENCE, running.task).await;
        ended
            .with_context(|| format!("{} did not stop", which.name()))?
            .context("it panicked")?
            .with_context(|| format!("{} failed", which.name()))
    }

    /// Drains and stops all three.
    ///
    /// # Errors
    /// The first that fails; the others are stopped all the same.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let mut result = Ok(());
        for which in Which::ALL.into_iter().rev() {
            let stopped = self.stop_one(which).await;
            result = result.and(stopped);
        }
        result
    }

    /// Whether it is running.
    pub fn is_running(&self, which: Which) -> bool {
        self.running[which as usize].is_some()
    }

    /// Waits until one of the services ends by itself, which none should.
    pub async fn ended_early(&mut self) -> anyhow::Error {
        let tasks = self
            .running
            .iter_mut()
            .zip(Which::ALL)
            .filter_map(|(running, which)| Some((&mut running.as_mut()?.task, which)));
        let ends = tasks.map(|(task, which)| Box::pin(async move { (task.await, which) })).collect::<Vec<_>>();
        let ((result, which), _, _) = futures::future::select_all(ends).await;
        match result {
            Ok(Err(error)) => error.context(format!("{} failed", which.name())),
            Ok(Ok(())) => anyhow::anyhow!("{} ended by itself", which.name()),
            Err(error) => anyhow::anyhow!("{} panicked: {error}", which.name()),
        }
    }

    /// Runs the jobs of a service, if it is running, until none finds work.
    ///
    /// # Errors
    /// The first job that fails.
    pub async fn settle(&self, which: Which) -> anyhow::Result<()> {
        match &self.running[which as usize] {
            Some(running) => running.jobs.settle().await.with_context(|| format!("a job of {}", which.name())),
            None => Ok(()),
        }
    }

    /// The units of work that the jobs of all running services have done so far.
    pub fn work_done(&self) -> u64 {
        self.running.iter().flatten().map(|running| running.jobs.work_done()).sum()
    }

    /// The endpoint of a service, such as `http://127.0.0.1:50051`.
    pub fn endpoint(&self, which: Which) -> String {
        format!("http://{}", self.addresses[which as usize])
    }

    /// Clients of all three.
    ///
    /// # Errors
    /// Never, in effect: the endpoints are our own.
    pub fn clients(&self) -> anyhow::Result<Clients> {
        Clients::new(&self.endpoint(Which::Key), &self.endpoint(Which::Location), &self.endpoint(Which::Notification))
    }

    async fn launch(&mut self, which: Which, listener: TcpListener) -> anyhow::Result<()> {
        let settings = self.settings(which);
        let entropy: SharedEntropy = match self.plan.seed {
            Some(seed) => Arc::new(SeededEntropy::new(seed ^ ((which as u64 + 1) << 56))),
            None => Arc::new(OsEntropy),
        };
        let deps = Deps { clock: self.plan.clock.clone(), entropy, jobs: JobRegistry::default() };
        let running = match which {
            Which::Key => spawn::<KeyService>(settings, deps, listener),
            Which::Location => spawn::<LocationService>(settings, deps, listener),
            Which::Notification => spawn::<NotificationService>(settings, deps, listener),
        };
        let mut running = running.with_context(|| format!("the configuration of {}", which.name()))?;
        let serving = serving(self.endpoint(which));
        tokio::select! {
            serving = tokio::time::timeout(PATIENCE, serving) => serving.with_context(|| format!("{} does not serve", which.name()))??,
            ended = &mut running.task => match ended {
                Ok(Err(error)) => return Err(error.context(format!("{} did not start", which.name()))),
                _ => bail!("{} did not start", which.name()),
            },
        }
        self.running[which as usize] = Some(running);
        Ok(())
    }

    /// What differs from the built-in defaults, in the form of environment variables.
    fn settings(&self, which: Which) -> Vec<(String, String)> {
        let mut settings = vec![
            ("KEYSWEEP_SERVER__LISTEN".to_owned(), self.addresses[which as usize].to_string()),
            ("KEYSWEEP_SERVER__DRAIN_NOTICE_MS".to_owned(), "0".to_owned()),
            ("KEYSWEEP_DATABASE__URL".to_owned(), self.plan.databases[which as usize].clone()),
        ];
        if let Some(folder) = self.plan.keyrings.as_ref().filter(|_| which != Which::Notification) {
            let path = folder.join(format!("{}.keyring", which.name()));
            settings.push(("KEYSWEEP_KEYRING__PATH".to_owned(), path.display().to_string()));
        }
        let mut set = |name: &str, value: String| settings.push((format!("KEYSWEEP_{name}"), value));
        match which {
            Which::Key => {}
            Which::Location => set("KEY_SERVICE__ENDPOINT", self.endpoint(Which::Key)),
            Which::Notification => {
                set("KEY_SERVICE__ENDPOINT", self.endpoint(Which::Key));
                set("LOCATION_SERVICE__ENDPOINT", self.endpoint(Which::Location));
                if let Some(most) = self.plan.mails_per_second {
                    set("MAIL__MAX_PER_SECOND", most.to_string());
                }
                match &self.plan.mail {
                    Mail::Maildir(folder) => set("MAILDIR__PATH", folder.display().to_string()),
                    Mail::Smtp { host, port } => {
                        set("SMTP__HOST", host.clone());
                        set("SMTP__PORT", port.to_string());
                        set("SMTP__TLS", "none".to_owned());
                    }
                }
            }
        }
        settings
    }
}

fn spawn<S: Service + 'static>(
    settings: Vec<(String, String)>,
    deps: Deps,
    listener: TcpListener,
) -> anyhow::Result<Running> {
    let config = load_from::<S::Config>(S::DEFAULTS, None, settings.into_iter())?;
    let (jobs, shutdown) = (deps.jobs.clone(), CancellationToken::new());
    let task = tokio::spawn(S::run(config, deps, listener, shutdown.clone()));
    Ok(Running { jobs, shutdown, task })
}

async fn bind(which: Which, port: u16) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpListener::bind(address)
        .await
        .with_context(|| format!("{} cannot listen on {address}: is it running already?", which.name()))
}

/// Waits until the server at `endpoint` says that it serves.
async fn serving(endpoint: String) -> anyhow::Result<()> {
    let channel = tonic::transport::Endpoint::from_shared(endpoint)?.connect_lazy();
    let mut health = HealthClient::new(channel);
    loop {
        let check = health.check(HealthCheckRequest { service: String::new() }).await;
        if check.is_ok_and(|answer| answer.get_ref().status() == ServingStatus::Serving) {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
}
