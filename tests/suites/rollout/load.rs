//! Who calls meanwhile: gateways, the platform's backend and a subscriber, by the client that the services call each other with.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keysweep::clients::made_for;
use keysweep_e2e::wait;
use keysweep_proto::key::v1 as key;
use keysweep_proto::key::v1::key_service_client::KeyServiceClient;
use keysweep_proto::key::v1::sweep_service_client::SweepServiceClient;
use keysweep_proto::location::v2 as location;
use keysweep_proto::location::v2::location_service_client::LocationServiceClient;
use keysweep_proto::notification::v1 as notification;
use keysweep_proto::notification::v1::notification_service_client::NotificationServiceClient;
use service_kit::client::{Peer, retrying};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

use crate::town::{Account, Town};

/// What a caller waits for an answer at most.
const DEADLINE: Duration = Duration::from_secs(5);
/// Of gateways that verify, each one call after the other.
const GATEWAYS: u64 = 4;
/// All that call at once.
pub(crate) const CALLERS: u64 = GATEWAYS + 3;
/// So often each method is called anew before the next replica stops.
const BETWEEN: u64 = 20;

const VERIFY: &str = "keysweep.key.v1.KeyService/VerifyKey";
const GENERATE: &str = "keysweep.location.v2.LocationService/GenerateLocationApiKey";
const LIST: &str = "keysweep.location.v2.LocationService/ListLocations";
const BANNERS: &str = "keysweep.notification.v1.NotificationService/ListBanners";
const SUBSCRIBE: &str = "keysweep.key.v1.SweepService/SubscribeSweepPlans";

/// What became of the calls of a method.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Calls {
    pub(crate) answered: u64,
    /// Attempts beyond the first of each call.
    pub(crate) repeated: u64,
    longest: Duration,
}

/// What became of all calls. One that failed ends the test.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally(Arc<Mutex<BTreeMap<&'static str, Calls>>>);

impl Tally {
    pub(crate) fn calls(&self) -> MutexGuard<'_, BTreeMap<&'static str, Calls>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a call, as often as it takes.
    async fn call<T, F>(&self, method: &'static str, attempt: impl Fn(Duration) -> F) -> T
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let (started, attempts) = (Instant::now(), AtomicU64::new(0));
        let counted = |left| {
            attempts.fetch_add(1, Ordering::Relaxed);
            attempt(left)
        };
        let answer = retrying(method, DEADLINE, counted).await;
        let attempts = attempts.into_inner();
        let answer = answer.unwrap_or_else(|status| panic!("{method}, attempt {attempts}: {status:?}"));
        let mut calls = self.calls();
        let calls = calls.entry(method).or_default();
        calls.answered += 1;
        calls.repeated += attempts - 1;
        calls.longest = calls.longest.max(started.elapsed());
        answer.into_inner()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (method, Calls { answered, repeated, longest }) in &*self.calls() {
            writeln!(
                f,
                "{answered:>7} answered, {repeated:>3} repeated, none failed, longest {longest:>8.1?}  {method}"
            )?;
        }
        Ok(())
    }
}

/// The request, with what is left of the caller's time.
fn within<T>(left: Duration, mut request: Request<T>) -> Request<T> {
    request.set_timeout(left);
    request
}

async fn verify(tally: &Tally, gateway: &KeyServiceClient<Peer>, secret: &str) {
    let attempt = |left| {
        let mut gateway = gateway.clone();
        let request = key::VerifyKeyRequest { secret: secret.to_owned(), ..Default::default() };
        async move { gateway.verify_key(within(left, Request::new(request))).await }
    };
    let answer = tally.call(VERIFY, attempt).await;
    assert!(answer.valid, "{answer:?}");
}

/// Generates a key of the account's location, through location-service.
async fn generate(tally: &Tally, ui: &LocationServiceClient<Peer>, account: &Account, number: u64) -> String {
    let actor = format!("user/{}", account.users[0]);
    let attempt = |left| {
        let mut ui = ui.clone();
        let request = location::GenerateLocationApiKeyRequest {
            location_id: account.location_id.clone(),
            // A generation whose answer was lost is told again.
            request_id: format!("rollout-{}-{number}", account.location_id),
            ..Default::default()
        };
        let request = made_for(&actor, request).expect("an actor");
        async move { ui.generate_location_api_key(within(left, request)).await }
    };
    tally.call(GENERATE, attempt).await.secret
}

/// What the platform's backend reads.
async fn look(
    tally: &Tally,
    ui: &LocationServiceClient<Peer>,
    inbox: &NotificationServiceClient<Peer>,
    account: &Account,
) {
    let attempt = |left| {
        let mut ui = ui.clone();
        let request = location::ListLocationsRequest { agency_id: account.agency_id.clone(), ..Default::default() };
        async move { ui.list_locations(within(left, Request::new(request))).await }
    };
    assert_eq!(tally.call(LIST, attempt).await.locations.len(), 1);
    let attempt = |left| {
        let mut inbox = inbox.clone();
        let request = notification::ListBannersRequest { agency_id: account.agency_id.clone(), ..Default::default() };
        async move { inbox.list_banners(within(left, Request::new(request))).await }
    };
    tally.call(BANNERS, attempt).await;
}

/// Hears every event once, in order, over as many streams as it takes; a stream that ends is resumed.
async fn follow(tally: &Tally, sweeps: &SweepServiceClient<Peer>) {
    let mut after = 0;
    loop {
        let attempt = |_| {
            let mut sweeps = sweeps.clone();
            let request = key::SubscribeSweepPlansRequest {
                subscriber: "rollout".to_owned(),
                after_sequence: after,
                ..Default::default()
            };
            async move { sweeps.subscribe_sweep_plans(request).await }
        };
        let mut stream = tally.call(SUBSCRIBE, attempt).await;
        loop {
            match stream.message().await {
                Ok(Some(message)) => {
                    if let Some(event) = message.event {
                        assert_eq!(event.sequence, after + 1);
                        after = event.sequence;
                    }
                }
                Ok(None) => panic!("a stream ends with a status"),
                Err(status) => {
                    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                    break;
                }
            }
        }
    }
}

/// The callers.
pub(crate) struct Load {
    tally: Tally,
    stop: CancellationToken,
    callers: JoinSet<()>,
}

impl Load {
    /// Lets them begin; `round` tells their keys from those of earlier ones.
    pub(crate) fn start(town: &Town, account: &Account, tally: &Tally, round: u64) -> Self {
        let peer = |service: usize, caller: &str| {
            let (name, port) = town.name(service);
            name.peer(caller, port)
        };
        let gateway = KeyServiceClient::new(peer(0, "gateway"));
        let ui = LocationServiceClient::new(peer(1, "ui"));
        let inbox = NotificationServiceClient::new(peer(2, "ui"));
        let sweeps = SweepServiceClient::new(peer(0, "notification-service"));
        let mut load = Self { tally: tally.clone(), stop: CancellationToken::new(), callers: JoinSet::new() };
        for number in 0..=GATEWAYS {
            let (tally, gateway, ui, account) = (tally.clone(), gateway.clone(), ui.clone(), account.clone());
            load.spawn(async move {
                let mut numbers = (round * 1_000_000 + number * 100_000)..;
                let mut next = async || generate(&tally, &ui, &account, numbers.next().expect("a number")).await;
                let mut secret = next().await;
                loop {
                    verify(&tally, &gateway, &secret).await;
                    // The others verify one key again and again, which is answered from memory.
                    if number == 0 {
                        secret = next().await;
                    }
                }
            });
        }
        let (told, account) = (tally.clone(), account.clone());
        load.spawn(async move {
            loop {
                look(&told, &ui, &inbox, &account).await;
            }
        });
        let told = tally.clone();
        load.spawn(async move { follow(&told, &sweeps).await });
        load
    }

    fn spawn(&mut self, caller: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.callers.spawn(async move {
            // A call that is under way at the end is given up.
            let _: Option<()> = stop.run_until_cancelled(caller).await;
        });
    }

    /// Waits until every method was called some times more.
    pub(crate) async fn goes_on(&mut self) {
        let counts = |tally: &Tally| {
            [VERIFY, GENERATE, LIST, BANNERS].map(|method| tally.calls().get(method).map_or(0, |calls| calls.answered))
        };
        let before = counts(&self.tally);
        let more = wait::until("calls to go on", async || {
            counts(&self.tally).iter().zip(before).all(|(now, before)| *now >= before + BETWEEN).then_some(())
        });
        tokio::select! {
            () = more => {}
            ended = self.callers.join_next() => panic!("a caller ended: {ended:?}"),
        }
    }

    /// Lets them end.
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.callers.join_next().await {
            ended.expect("no call failed");
        }
    }
}
