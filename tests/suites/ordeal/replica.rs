//! One process of a service, as a thread that can die at any commit: its own runtime, clock, jobs and memory.
//!
//! Time inside of it stands still until the simulation moves it: timers, deadlines and back-offs included. A crash drops the
//! runtime with everything in it, wherever that was waiting; a crash at a commit does so while SQLite waits for leave to commit, which
//! it then gets or does not.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use keysweep::clients::Clients;
use keysweep::suite::Which;
use keysweep_e2e::wait;
use keysweep_proto::notification::v1::GetSubscriptionRequest;
use service_kit::Deps;
use service_kit::cli::Service;
use service_kit::clock::SimulatedClock;
use service_kit::config::load_from;
use service_kit::jobs::JobRegistry;
use service_kit::testing::commits::{CommitJudge, judge_commits};
use service_kit::testing::deps;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// Whether a commit at which the process dies takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The process dies before it.
    None,
    /// The process dies after it, without having heard.
    Whole,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Running,
    /// Stands at the commit at which it dies.
    Dying,
    Gone,
}

/// Kills its process at a commit.
#[derive(Debug)]
pub(crate) struct Fuse {
    state: Mutex<(Life, Option<(u32, Effect)>)>,
    changed: Condvar,
    blown: Notify,
}

impl Fuse {
    fn new() -> Self {
        Self { state: Mutex::new((Life::Running, None)), changed: Condvar::new(), blown: Notify::new() }
    }

    /// The process dies at the commit that follows `after` others.
    pub(crate) fn light(&self, after: u32, effect: Effect) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1 = Some((after, effect));
    }

    /// It lives on.
    pub(crate) fn put_out(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1 = None;
    }

    fn is_whole(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0 == Life::Running
    }

    fn set_gone(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0 = Life::Gone;
        self.changed.notify_all();
    }
}

impl CommitJudge for Fuse {
    fn allows(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0 != Life::Running {
            return false;
        }
        match &mut state.1 {
            None => true,
            Some((0, effect)) => {
                let effect = *effect;
                state.0 = Life::Dying;
                self.blown.notify_one();
                while state.0 != Life::Gone {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                effect == Effect::Whole
            }
            Some((left, _)) => {
                *left -= 1;
                true
            }
        }
    }
}

enum Order {
    /// Lets this much time pass for timers.
    Pass(Duration, oneshot::Sender<()>),
    Crash,
}

/// What a process is started with.
pub(crate) struct Birth {
    pub(crate) which: Which,
    pub(crate) settings: Vec<(String, String)>,
    pub(crate) listener: TcpListener,
    pub(crate) clock: Arc<SimulatedClock>,
    pub(crate) seed: u64,
}

/// A process.
pub(crate) struct Replica {
    pub(crate) which: Which,
    pub(crate) clock: Arc<SimulatedClock>,
    pub(crate) jobs: JobRegistry,
    pub(crate) fuse: Arc<Fuse>,
    pub(crate) clients: Clients,
    address: SocketAddr,
    orders: mpsc::UnboundedSender<Order>,
    shutdown: CancellationToken,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

/// In real time: nothing here takes longer on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

impl Replica {
    /// Starts it; it may be dead before it serves.
    pub(crate) fn start(birth: Birth) -> anyhow::Result<Self> {
        let Birth { which, settings, listener, clock, seed } = birth;
        let address = listener.local_addr()?;
        let jobs = JobRegistry::driven();
        let deps = Deps { jobs: jobs.clone(), ..deps(clock.clone(), seed) };
        let (fuse, shutdown) = (Arc::new(Fuse::new()), CancellationToken::new());
        let (orders, inbox) = mpsc::unbounded_channel();
        let process = Process { deps, fuse: fuse.clone(), shutdown: shutdown.clone(), inbox, listener, settings };
        let body = move || match which {
            Which::Key => process.live::<key_service::KeyService>(),
            Which::Location => process.live::<location_service::LocationService>(),
            Which::Notification => process.live::<notification_service::NotificationService>(),
        };
        let thread = std::thread::Builder::new().name(which.name().to_owned()).stack_size(16 << 20).spawn(body)?;
        let endpoint = format!("http://{address}");
        let clients = Clients::new(&endpoint, &endpoint, &endpoint)?;
        Ok(Self { which, clock, jobs, fuse, clients, address, orders, shutdown, thread: Some(thread) })
    }

    /// Whether it lives.
    pub(crate) fn is_alive(&self) -> bool {
        self.fuse.is_whole() && self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Waits until it serves; false: it died before.
    pub(crate) async fn serves(&self) -> anyhow::Result<bool> {
        let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", self.address))?.connect_lazy();
        let mut health = HealthClient::new(channel);
        Ok(wait::until("a process to serve or to die", async || {
            let request = HealthCheckRequest { service: String::new() };
            if !self.is_alive() {
                return Some(false);
            }
            health.check(request).await.is_ok().then_some(true)
        })
        .await)
    }

    /// Whether it, a notification-service, has heard the time of the sweep since it was started.
    pub(crate) async fn knows_the_time(&self) -> anyhow::Result<bool> {
        let answer = self.clients.notifications.clone().get_subscription(GetSubscriptionRequest {}).await?;
        Ok(answer.get_ref().sweep_time.is_some())
    }

    /// Lets time pass for its timers.
    pub(crate) async fn pass(&self, by: Duration) {
        let (done, heard) = oneshot::channel();
        if self.orders.send(Order::Pass(by, done)).is_ok() {
            // A process that dies meanwhile does not answer.
            let _: Result<(), _> = heard.await;
        }
    }

    /// Kills it where it stands.
    pub(crate) async fn crash(mut self) -> anyhow::Result<()> {
        // A process that has died already hears nothing.
        let _: Result<(), _> = self.orders.send(Order::Crash);
        self.join().await
    }

    /// Drains and stops it.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        self.shutdown.cancel();
        self.join().await
    }

    /// Waits until it has ended: by itself, crashed, or stopped.
    async fn join(&mut self) -> anyhow::Result<()> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        wait::until("a process to end", async || {
            if self.shutdown.is_cancelled() {
                // Draining waits on timers, too.
                self.pass(Duration::from_millis(100)).await;
            }
            thread.is_finished().then_some(())
        })
        .await;
        thread.join().map_err(|_| anyhow::anyhow!("{} panicked", self.which.name()))?
    }
}

/// What lives in the thread.
struct Process {
    deps: Deps,
    fuse: Arc<Fuse>,
    shutdown: CancellationToken,
    inbox: mpsc::UnboundedReceiver<Order>,
    listener: TcpListener,
    settings: Vec<(String, String)>,
}

impl Process {
    /// Lives until it is stopped, crashed, or its fuse has blown.
    fn live<S: Service + 'static>(self) -> anyhow::Result<()>
    where
        S::Config: 'static,
    {
        let Self { deps, fuse, shutdown, mut inbox, listener, settings } = self;
        let judge: Arc<dyn CommitJudge> = fuse.clone();
        judge_commits(judge.clone());
        let config = load_from::<S::Config>(S::DEFAULTS, None, settings.into_iter())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build()?;
        // As long as something blocks, paused time does not move by itself where the runtime has nothing to do.
        let (running, ended) = std::sync::mpsc::channel::<()>();
        runtime.spawn_blocking(move || ended.recv());
        let result = runtime.block_on(async {
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let mut task = tokio::spawn(S::run(config, deps, listener, shutdown));
            loop {
                tokio::select! {
                    biased;
                    () = fuse.blown.notified() => return anyhow::Ok(()),
                    order = inbox.recv() => match order {
                        Some(Order::Pass(by, done)) => {
                            tokio::time::advance(by).await;
                            // Who asked may have gone.
                            let _: Result<(), _> = done.send(());
                        }
                        Some(Order::Crash) | None => return Ok(()),
                    },
                    ended = &mut task => return ended.context("it panicked")?,
                }
            }
        });
        runtime.shutdown_background();
        drop(running);
        fuse.set_gone();
        // SQLite's threads end by themselves; what they were told before they still do.
        let deadline = Instant::now() + PATIENCE;
        while Arc::strong_count(&judge) > EXPECTED_OWNERS {
            if Instant::now() > deadline {
                bail!("a connection outlived its process: {}", Arc::strong_count(&judge));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        result
    }
}

/// Of a fuse whose process has no connection any more: the thread's judge, this function's two, and the harness's.
const EXPECTED_OWNERS: usize = 4;
