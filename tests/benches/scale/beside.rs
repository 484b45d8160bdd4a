//! Verification beside a sweep: a closed loop of calls that goes on through the quarter.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use keysweep::clients::made_for;
use keysweep_proto::key::v1::key_service_client::KeyServiceClient;
use keysweep_proto::key::v1::{GenerateApiKeyRequest, Owner, VerifyKeyRequest, owner};
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

/// Keys that are verified.
pub(crate) const KEYS: usize = 256;
/// Calls in flight, each on a connection of its own: not so many that they wait for each other when nothing else runs.
const IN_FLIGHT: usize = 8;

/// Between two looks at how many were answered.
const LOOK: Duration = Duration::from_millis(5);

/// What a time came to.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    pub(crate) per_s: f64,
    /// Microseconds.
    pub(crate) p50: f64,
    /// Microseconds.
    pub(crate) p99: f64,
}

struct Tally {
    since: Instant,
    nanos: Vec<u32>,
    error: Option<String>,
}

/// Callers in a thread of their own, until this is dropped.
pub(crate) struct Load {
    tally: Arc<Mutex<Tally>>,
    stop: CancellationToken,
}

impl Load {
    /// Makes keys and verifies them from now on.
    pub(crate) async fn start(port: u16) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}"))?.tcp_nodelay(true);
        let mut keys = KeyServiceClient::new(endpoint.connect().await?);
        let mut secrets = Vec::with_capacity(KEYS);
        for _ in 0..KEYS {
            let owner = Owner { account: Some(owner::Account::AgencyId(format!("agy_{:032x}", 1))) };
            let request = made_for("user/usr_1", GenerateApiKeyRequest { owner: Some(owner), ..Default::default() })?;
            secrets.push(keys.generate_api_key(request).await?.into_inner().secret);
        }
        let tally = Arc::new(Mutex::new(Tally { since: Instant::now(), nanos: Vec::new(), error: None }));
        let (load, secrets) = (Self { tally, stop: CancellationToken::new() }, Arc::new(secrets));
        let (tally, stop) = (load.tally.clone(), load.stop.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::spawn(move || {
            runtime.block_on(async {
                let callers = (0..IN_FLIGHT).map(|caller| {
                    let client = KeyServiceClient::new(endpoint.connect_lazy());
                    one_caller(client, caller, secrets.clone(), tally.clone())
                });
                _ = stop.run_until_cancelled(futures::future::join_all(callers)).await;
            });
        });
        Ok(load)
    }

    /// Waits until so many have been answered since [`Self::take`], or one was not.
    pub(crate) async fn answered(&self, calls: usize) {
        let mut looks = interval(LOOK);
        let over = || {
            let tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
            tally.nanos.len() >= calls || tally.error.is_some()
        };
        while !over() {
            looks.tick().await;
        }
    }

    /// What came since this was last asked.
    pub(crate) fn take(&self) -> anyhow::Result<Calls> {
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = std::mem::replace(&mut tally.since, Instant::now()).elapsed().as_secs_f64();
        let mut nanos = std::mem::take(&mut tally.nanos);
        let error = tally.error.take();
        drop(tally);
        anyhow::ensure!(error.is_none(), "a verification beside the sweep: {error:?}");
        nanos.sort_unstable();
        // In a step that was over before any answer there is no time to tell.
        let rank = |share: f64| {
            let place = ((nanos.len() as f64 * share) as usize).min(nanos.len().saturating_sub(1));
            nanos.get(place).map_or(f64::NAN, |nanos| f64::from(*nanos) / 1e3)
        };
        Ok(Calls { per_s: nanos.len() as f64 / seconds, p50: rank(0.5), p99: rank(0.99) })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn one_caller(
    mut keys: KeyServiceClient<Channel>,
    caller: usize,
    secrets: Arc<Vec<String>>,
    tally: Arc<Mutex<Tally>>,
) {
    for turn in 0_usize.. {
        let place = turn * IN_FLIGHT + caller;
        let Some(secret) = secrets.get(place % secrets.len()).cloned() else { return };
        // Of so many sources that none looks like one that guesses.
        let source_ip = format!("10.1.{}.{}", (place >> 8) & 255, place & 255);
        let sent = Instant::now();
        let answer = keys.verify_key(VerifyKeyRequest { secret, source_ip, ..Default::default() }).await;
        let took = u32::try_from(sent.elapsed().as_nanos()).unwrap_or(u32::MAX);
        let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Ok(answer) if answer.get_ref().valid => tally.nanos.push(took),
            Ok(answer) => _ = tally.error.get_or_insert_with(|| format!("answered {:?}", answer.get_ref().code())),
            Err(status) => _ = tally.error.get_or_insert_with(|| status.to_string()),
        }
    }
}
