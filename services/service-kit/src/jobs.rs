//! Background work as reconcilers: one code path, run periodically and when signalled, each activation reported.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::clock::SharedClock;
use crate::telemetry::metrics::JOB_ACTIVATIONS;
use crate::telemetry::traces;

/// What one activation did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JobReport {
    /// Units of work done; 0 means that there was nothing to do.
    pub work: u64,
    /// What was done, for the log.
    pub detail: Value,
}

/// Work that brings the world nearer to what it should be, as often as it is asked; idempotent.
#[async_trait]
pub trait Reconciler: Send + Sync + 'static {
    /// The job's name, as in logs and metrics.
    fn name(&self) -> &'static str;
    /// The longest time between two activations.
    fn period(&self) -> Duration;
    /// Does what is due at `now`.
    async fn activate(&self, now: DateTime<Utc>) -> anyhow::Result<JobReport>;
}

type Reply = oneshot::Sender<anyhow::Result<JobReport>>;

/// A running job.
#[derive(Clone, Debug)]
pub struct JobHandle {
    name: &'static str,
    requests: mpsc::Sender<Option<Reply>>,
}

impl JobHandle {
    /// Asks for an activation soon. A signal that finds one waiting already adds nothing.
    pub fn signal(&self) {
        // A full queue means that activations are waiting, which will see what this signal is about.
        let _ = self.requests.try_send(None);
    }

    /// Activates the job now and waits for its report.
    ///
    /// # Errors
    /// The activation's own, or that the job has ended.
    pub async fn activate(&self) -> anyhow::Result<JobReport> {
        let (reply, answer) = oneshot::channel();
        let ended = || anyhow::anyhow!("the job {} has ended", self.name);
        self.requests.send(Some(reply)).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }
}

/// The jobs of one service.
#[derive(Clone, Debug, Default)]
pub struct JobRegistry {
    jobs: Arc<Mutex<Jobs>>,
    work: Arc<AtomicU64>,
    driven: bool,
    /// Those that are not driven all the same.
    except: &'static [&'static str],
}

#[derive(Debug, Default)]
struct Jobs {
    handles: BTreeMap<&'static str, JobHandle>,
    tasks: Vec<JoinHandle<()>>,
}

/// Activations that wait for a busy job; more would see the same state.
const QUEUE: usize = 8;

impl JobRegistry {
    /// A registry whose jobs do nothing by themselves, neither at their start nor when signalled nor when their period is over: only
    /// [`JobRegistry::activate`] and [`JobRegistry::settle`] activate them. For who decides over every step of a simulation.
    pub fn driven() -> Self {
        Self { driven: true, ..Self::default() }
    }

    /// The jobs of these names do what they are there for by themselves all the same.
    #[must_use]
    pub fn except(self, names: &'static [&'static str]) -> Self {
        Self { except: names, ..self }
    }

    /// Activates the job of this name now and waits for its report.
    ///
    /// # Errors
    /// The activation's own, that the job has ended, or that there is none of this name.
    pub async fn activate(&self, name: &str) -> anyhow::Result<JobReport> {
        let handle = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).handles.get(name).cloned();
        handle.ok_or_else(|| anyhow::anyhow!("there is no job {name}"))?.activate().await
    }

    /// The names of the jobs, in alphabetical order.
    pub fn names(&self) -> Vec<&'static str> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).handles.keys().copied().collect()
    }

    /// Starts a job: activated at once, then at least once a period of the clock, until `shutdown`.
    pub fn spawn(&self, job: Arc<dyn Reconciler>, clock: SharedClock, shutdown: CancellationToken) -> JobHandle {
        let (requests, inbox) = mpsc::channel(QUEUE);
        let handle = JobHandle { name: job.name(), requests };
        let work = self.work.clone();
        let task = if self.driven && !self.except.contains(&job.name()) {
            tokio::spawn(drive_when_asked(job, clock, shutdown, inbox, work))
        } else {
            tokio::spawn(drive(job, clock, shutdown, inbox, work))
        };
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.handles.insert(handle.name, handle.clone());
        jobs.tasks.push(task);
        handle
    }

    /// The units of work that all jobs have done so far, whoever activated them.
    pub fn work_done(&self) -> u64 {
        self.work.load(Ordering::SeqCst)
    }

    /// Activates every job, again and again, until a round passes in which no job did any work, not even one that the clock
    /// or a signal activated meanwhile.
    ///
    /// # Errors
    /// The first activation that fails.
    pub async fn settle(&self) -> anyhow::Result<()> {
        let handles: Vec<_> =
            self.jobs.lock().unwrap_or_else(PoisonError::into_inner).handles.values().cloned().collect();
        loop {
            let before = self.work_done();
            for handle in &handles {
                handle.activate().await?;
            }
            if self.work_done() == before {
                return Ok(());
            }
        }
    }

    /// Waits until every job has ended after `shutdown`.
    pub async fn join(&self) {
        let tasks = std::mem::take(&mut self.jobs.lock().unwrap_or_else(PoisonError::into_inner).tasks);
        for task in tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "a job ended by a panic");
            }
        }
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).handles.clear();
    }
}

async fn drive(
    job: Arc<dyn Reconciler>,
    clock: SharedClock,
    shutdown: CancellationToken,
    mut inbox: mpsc::Receiver<Option<Reply>>,
    work: Arc<AtomicU64>,
) {
    let mut reply = None;
    loop {
        // By the time lived: a clock that is set back must not keep a job waiting.
        let next = clock.sleep(job.period());
        activate(&*job, clock.now(), reply.take(), &work).await;
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            request = inbox.recv() => match request {
                Some(request) => reply = request,
                None => tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = clock.sleep(job.period()) => {}
                },
            },
            () = next => {}
        }
        if shutdown.is_cancelled() {
            return;
        }
    }
}

async fn drive_when_asked(
    job: Arc<dyn Reconciler>,
    clock: SharedClock,
    shutdown: CancellationToken,
    mut inbox: mpsc::Receiver<Option<Reply>>,
    work: Arc<AtomicU64>,
) {
    loop {
        let asked = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            request = inbox.recv() => request,
        };
        match asked {
            Some(Some(reply)) => activate(&*job, clock.now(), Some(reply), &work).await,
            // Not asked but signalled.
            Some(None) => {}
            None => return,
        }
    }
}

async fn activate(job: &dyn Reconciler, now: DateTime<Utc>, reply: Option<Reply>, work: &AtomicU64) {
    let result = traces::job(job.name(), job.activate(now)).await;
    report(job.name(), &result);
    // Before the answer, so that who hears of the work finds it counted.
    work.fetch_add(result.as_ref().map_or(0, |report| report.work), Ordering::SeqCst);
    if let Some(reply) = reply {
        // Who asked may have gone.
        let _: Result<(), _> = Reply::send(reply, result);
    }
}

fn report(name: &'static str, result: &anyhow::Result<JobReport>) {
    let outcome = match result {
        Ok(report) if report.work > 0 => {
            tracing::info!(job = name, work = report.work, detail = %report.detail, "job did its work");
            "work"
        }
        Ok(_) => "idle",
        Err(error) => {
            tracing::warn!(job = name, error = format!("{error:#}"), "job failed; it will be tried again");
            "error"
        }
    };
    metrics::counter!(JOB_ACTIVATIONS.name, "job" => name, "outcome" => outcome).increment(1);
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::clock::SimulatedClock;

    struct Countdown(AtomicU64);

    #[async_trait]
    impl Reconciler for Countdown {
        fn name(&self) -> &'static str {
            "countdown"
        }
        fn period(&self) -> Duration {
            Duration::from_secs(60)
        }
        async fn activate(&self, _: DateTime<Utc>) -> anyhow::Result<JobReport> {
            let did = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
            Ok(JobReport { work: did.into(), detail: Value::Null })
        }
    }

    #[tokio::test]
    async fn settling_runs_a_job_until_nothing_is_left() {
        let (registry, stop) = (JobRegistry::default(), CancellationToken::new());
        let clock = Arc::new(SimulatedClock::new(crate::time::from_micros(0)));
        let job = Arc::new(Countdown(AtomicU64::new(5)));
        registry.spawn(job.clone(), clock, stop.clone());
        registry.settle().await.expect("settles");
        assert_eq!(job.0.load(Ordering::SeqCst), 0);
        stop.cancel();
        registry.join().await;
    }

    #[tokio::test]
    async fn a_driven_job_does_nothing_unless_it_is_asked() {
        let (registry, stop) = (JobRegistry::driven(), CancellationToken::new());
        let clock = Arc::new(SimulatedClock::new(crate::time::from_micros(0)));
        let job = Arc::new(Countdown(AtomicU64::new(5)));
        let handle = registry.spawn(job.clone(), clock.clone(), stop.clone());
        handle.signal();
        clock.advance(TimeDelta::days(1));
        registry.activate("countdown").await.expect("it is there");
        assert_eq!((job.0.load(Ordering::SeqCst), registry.names()), (4, vec!["countdown"]));
        assert!(registry.activate("another").await.is_err());
        stop.cancel();
        registry.join().await;
    }

    #[tokio::test]
    async fn a_driven_registry_leaves_its_exceptions_to_themselves() {
        let (registry, stop) = (JobRegistry::driven().except(&["countdown"]), CancellationToken::new());
        let clock = Arc::new(SimulatedClock::new(crate::time::from_micros(0)));
        registry.spawn(Arc::new(Countdown(AtomicU64::new(5))), clock, stop.clone());
        while registry.work_done() == 0 {
            tokio::task::yield_now().await;
        }
        stop.cancel();
        registry.join().await;
    }
}
