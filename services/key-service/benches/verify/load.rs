//! A closed loop: so many calls in flight, each followed by the next. A call counts when it was answered as it should be.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use keysweep_proto::key::v1::key_service_client::KeyServiceClient;
use keysweep_proto::key::v1::{VerifyCode, VerifyKeyRequest, VerifyKeyResponse};
use tonic::transport::{Channel, Endpoint};

use crate::child::Measured;
use crate::seed;

/// Odd, so that its multiples visit every number once before any twice.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Which secret comes next.
#[derive(Debug)]
pub(crate) enum Draw {
    /// Of any key below this number.
    Random(u64),
    /// Of the next of so many keys, each key once.
    Once(Walk),
    /// Of no key, one of so few that their absence can be remembered.
    KnownUnknown(u64),
    /// Of no key, never the same.
    FreshUnknown,
    /// Of no key, and its checksum says so.
    Malformed(u64),
}

/// Numbers below `end`, in an order that jumps about, each once.
#[derive(Debug, Clone)]
pub(crate) struct Walk {
    next: Arc<AtomicU64>,
    end: u64,
    mask: u64,
}

impl Walk {
    pub(crate) fn new(end: u64) -> Self {
        Self { next: Arc::default(), end, mask: end.next_power_of_two() - 1 }
    }

    /// The next number; `None`: all were visited.
    pub(crate) fn next(&self) -> Option<u64> {
        loop {
            let place = self.next.fetch_add(1, Ordering::Relaxed);
            if place > self.mask {
                return None;
            }
            let number = place.wrapping_mul(STEP) & self.mask;
            if number < self.end {
                return Some(number);
            }
        }
    }
}

/// Random enough for a load, and the same in every run.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_mul(STEP);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

static CALLS: AtomicU64 = AtomicU64::new(0);

impl Draw {
    /// A request; `None`: there is nothing left to ask for.
    pub(crate) fn request(&self) -> Option<VerifyKeyRequest> {
        let random = mix(CALLS.fetch_add(1, Ordering::Relaxed));
        let secret = match self {
            Self::Random(keys) => seed::secret(random % keys).expose().to_owned(),
            Self::Once(walk) => seed::secret(walk.next()?).expose().to_owned(),
            Self::KnownUnknown(count) => seed::unknown_secret(random % count).expose().to_owned(),
            Self::FreshUnknown => seed::unknown_secret(random >> 24).expose().to_owned(),
            Self::Malformed(keys) => seed::malformed_secret(random % keys),
        };
        // As a gateway sends it; of so many sources that none looks like one that guesses.
        let source_ip = format!("10.1.{}.{}", (random >> 8) & 255, random & 255);
        Some(VerifyKeyRequest { secret, required_scopes: Vec::new(), source_ip })
    }

    /// What key-service must answer.
    pub(crate) fn expected(&self) -> VerifyCode {
        match self {
            Self::Random(_) | Self::Once(_) => VerifyCode::Valid,
            Self::KnownUnknown(_) | Self::FreshUnknown => VerifyCode::NotFound,
            Self::Malformed(_) => VerifyCode::Malformed,
        }
    }
}

/// Connections to one server.
#[derive(Clone, Debug)]
pub(crate) struct Clients(Vec<KeyServiceClient<Channel>>);

impl Clients {
    /// Connects, and waits until the server takes connections.
    pub(crate) async fn connect(port: u16, connections: usize) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}"))?.tcp_nodelay(true);
        let patience = Instant::now() + Duration::from_secs(60);
        let mut clients = Vec::new();
        while clients.len() < connections {
            match endpoint.connect().await {
                Ok(channel) => clients.push(KeyServiceClient::new(channel)),
                Err(error) if Instant::now() > patience => return Err(error).context("the server does not answer"),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        Ok(Self(clients))
    }

    /// The connection of a caller.
    pub(crate) fn of(&self, caller: usize) -> KeyServiceClient<Channel> {
        self.0[caller % self.0.len()].clone()
    }
}

/// One call; an answer other than expected is an error.
pub(crate) async fn call(
    client: &mut KeyServiceClient<Channel>,
    request: VerifyKeyRequest,
    expected: VerifyCode,
) -> Result<VerifyKeyResponse, String> {
    match client.verify_key(request).await {
        Ok(answer) if answer.get_ref().code == i32::from(expected) => Ok(answer.into_inner()),
        Ok(answer) => Err(format!("answered {:?}", answer.get_ref().code())),
        Err(status) => Err(format!("{:?}: {}", status.code(), status.message())),
    }
}

/// What a slice came to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Slice {
    pub(crate) calls: u64,
    pub(crate) errors: u64,
    pub(crate) first_error: Option<String>,
    pub(crate) calls_per_s: f64,
    /// Microseconds.
    pub(crate) p50: f64,
    /// Microseconds.
    pub(crate) p99: f64,
    /// Microseconds of the server's processor time a call.
    pub(crate) cpu: f64,
}

#[derive(Default)]
struct Tally {
    nanos: Vec<u32>,
    errors: u64,
    first_error: Option<String>,
}

/// `in_flight` callers for `lead` and then for `slice`, of which the second alone counts.
pub(crate) async fn closed_loop(
    clients: &Clients,
    in_flight: usize,
    (draw, expected): (&Arc<Draw>, VerifyCode),
    (lead, slice): (Duration, Duration),
    measured: &Measured,
) -> anyhow::Result<Slice> {
    let begin = Instant::now() + lead;
    let end = begin + slice;
    let callers: Vec<_> = (0..in_flight)
        .map(|caller| tokio::spawn(one_caller(clients.of(caller), draw.clone(), expected, begin, end)))
        .collect();
    tokio::time::sleep_until(begin.into()).await;
    let (cpu_before, at_before) = (measured.cpu()?, Instant::now());
    tokio::time::sleep_until(end.into()).await;
    let (cpu_after, at_after) = (measured.cpu()?, Instant::now());
    let mut all = Tally::default();
    for caller in callers {
        let one = caller.await?;
        all.nanos.extend(one.nanos);
        all.errors += one.errors;
        all.first_error = all.first_error.or(one.first_error);
    }
    all.nanos.sort_unstable();
    let calls = all.nanos.len() as u64;
    let rank = |share: f64| {
        let place = ((all.nanos.len() as f64 * share) as usize).min(all.nanos.len().saturating_sub(1));
        all.nanos.get(place).map_or(f64::NAN, |nanos| f64::from(*nanos) / 1e3)
    };
    let per_s = calls as f64 / slice.as_secs_f64();
    let cpu_share = (cpu_after - cpu_before).as_secs_f64() / (at_after - at_before).as_secs_f64();
    Ok(Slice {
        calls,
        errors: all.errors,
        first_error: all.first_error,
        calls_per_s: per_s,
        p50: rank(0.5),
        p99: rank(0.99),
        cpu: cpu_share / per_s * 1e6,
    })
}

async fn one_caller(
    mut client: KeyServiceClient<Channel>,
    draw: Arc<Draw>,
    expected: VerifyCode,
    begin: Instant,
    end: Instant,
) -> Tally {
    let mut tally = Tally::default();
    loop {
        let asked = Instant::now();
        if asked >= end {
            return tally;
        }
        let Some(request) = draw.request() else {
            tally.errors += 1;
            tally.first_error = Some("the keys ran out: seed more".to_owned());
            return tally;
        };
        let sent = Instant::now();
        let answer = call(&mut client, request, expected).await;
        let done = Instant::now();
        match answer {
            Ok(_) if (begin..end).contains(&done) => {
                tally.nanos.push(u32::try_from((done - sent).as_nanos()).unwrap_or(u32::MAX));
            }
            Ok(_) => {}
            Err(error) => {
                tally.errors += 1;
                tally.first_error.get_or_insert(error);
            }
        }
    }
}
