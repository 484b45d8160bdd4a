//! Keys come into being by explicit generation alone: whatever is asked of location-service, a proxy before the real
//! key-service sees `GenerateApiKey` and nothing else, once for each generation.

#![expect(deprecated, reason = "the legacy user API is deprecated, and part of the mix all the same")]

#[path = "generation_mix.rs"]
mod mix;
mod recording_proxy;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use keysweep_proto::key::v1::key_service_client::KeyServiceClient;
use keysweep_proto::key::v1::{ListApiKeysRequest, owner};
use mix::{Expected, Lane};
use recording_proxy::{GENERATE, RecordingProxy, Seen};
use service_kit::Deps;
use service_kit::cli::Service;
use service_kit::clock::SystemClock;
use service_kit::entropy::OsEntropy;
use service_kit::jobs::JobRegistry;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

const CALLS: usize = 10_000;
/// Each works in agencies of its own, so that what one does next follows from the seed alone.
const LANES: usize = 8;
const SEED_VARIABLE: &str = "KEYSWEEP_TEST_SEED";

struct Running {
    address: SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    async fn start<S: Service + 'static>(folder: &Path, name: &str, key_service: Option<SocketAddr>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut settings = vec![
            (
                "KEYSWEEP_DATABASE__URL".to_owned(),
                format!("sqlite:{}", folder.join(format!("{name}.sqlite")).display()),
            ),
            ("KEYSWEEP_KEYRING__PATH".to_owned(), folder.join(format!("{name}.keyring")).display().to_string()),
            ("KEYSWEEP_SERVER__DRAIN_NOTICE_MS".to_owned(), "0".to_owned()),
        ];
        settings.extend(
            key_service.map(|address| ("KEYSWEEP_KEY_SERVICE__ENDPOINT".to_owned(), format!("http://{address}"))),
        );
        let config = service_kit::config::load_from::<S::Config>(S::DEFAULTS, None, settings.into_iter());
        let deps = Deps { clock: Arc::new(SystemClock), entropy: Arc::new(OsEntropy), jobs: JobRegistry::default() };
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(S::run(config.expect("valid settings"), deps, listener, shutdown.clone()));
        keysweep_e2e::process::serving(address.port()).await;
        Self { address, shutdown, task }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.expect("no panic").expect("a clean end");
    }
}

fn channel(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).expect("an endpoint").connect_lazy()
}

fn seed() -> u64 {
    std::env::var(SEED_VARIABLE).ok().map_or_else(
        || {
            let mut bytes = [0; 8];
            service_kit::entropy::Entropy::fill(&OsEntropy, &mut bytes);
            u64::from_le_bytes(bytes)
        },
        |text| text.parse().expect("the seed is a number"),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_calls_make_key_service_hear_of_generations_alone() {
    let seed = seed();
    println!("to replay: {SEED_VARIABLE}={seed}");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let key = Running::start::<key_service::KeyService>(folder.path(), "key", None).await;
    let proxy = RecordingProxy::before(key.address).await;
    let location =
        Running::start::<location_service::LocationService>(folder.path(), "location", Some(proxy.address)).await;

    let lanes = (0..LANES).map(|number| {
        let lane = Lane::new(number, seed, channel(location.address));
        tokio::spawn(lane.run(CALLS / LANES))
    });
    let mut expected = Expected::default();
    for lane in lanes.collect::<Vec<_>>() {
        expected.merge(lane.await.expect("no lane is answered otherwise than it should be"));
    }
    println!("{expected}");
    assert!(expected.calls >= CALLS, "{expected}");
    // A mix that lacks one of these would prove nothing.
    let kinds =
        [expected.explicit.len(), expected.unnamed, expected.creations.len(), expected.replays, expected.refused];
    assert!(kinds.into_iter().all(|count| count > 20), "{expected}");

    assert_seen(&proxy.seen(), &expected);
    // Through the proxy, which must notice.
    assert_eq!(keys(channel(proxy.address)).await, expected.keys());
    assert_eq!(proxy.seen().pop().map(|one| one.path).as_deref(), Some("/keysweep.key.v1.KeyService/ListApiKeys"));
    location.stop().await;
    key.stop().await;
}

fn assert_seen(seen: &[Seen], expected: &Expected) {
    let paths: BTreeSet<_> = seen.iter().map(|one| one.path.as_str()).collect();
    assert_eq!(paths, BTreeSet::from([GENERATE]));
    assert!(seen.iter().all(|one| one.actor.starts_with("user/")), "a generation for somebody who has not logged in");
    // One for each explicit call, repeated ones and those that key-service refuses included, and each opted-out creation.
    assert_eq!(seen.len(), expected.keys() + expected.replays + expected.passed_on, "{expected}");

    let (mut explicit, mut creations, mut unnamed) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for request in seen.iter().filter_map(|one| one.generation.as_ref()).filter(|one| one.scopes.is_empty()) {
        let (agency_id, location_id) = match request.owner.clone().and_then(|owner| owner.account) {
            Some(owner::Account::AgencyId(agency_id)) => (agency_id, None),
            Some(owner::Account::Location(at)) => (at.agency_id, Some(at.location_id)),
            None => panic!("a key of nobody: {request:?}"),
        };
        let id = request.request_id.clone();
        if let Some(location_id) = id.strip_prefix("opt-out/") {
            assert_eq!(Some(location_id), location_id_of(request).as_deref());
            assert!(creations.insert(location_id.to_owned()), "two generations for the creation of {location_id}");
        } else if id.starts_with("req_") {
            assert!(unnamed.insert((agency_id, id)), "two generations for one call");
        } else {
            explicit.insert((agency_id, location_id, id));
        }
    }
    assert_eq!(explicit, expected.explicit);
    assert_eq!(creations, expected.creations);
    assert_eq!(unnamed.len(), expected.unnamed);
}

fn location_id_of(request: &keysweep_proto::key::v1::GenerateApiKeyRequest) -> Option<String> {
    match request.owner.clone()?.account? {
        owner::Account::AgencyId(_) => None,
        owner::Account::Location(at) => Some(at.location_id),
    }
}

/// How many keys there are.
async fn keys(channel: Channel) -> usize {
    let mut client = KeyServiceClient::new(channel);
    let (mut count, mut page_token) = (0, String::new());
    loop {
        let request = ListApiKeysRequest { page_size: 1_000, page_token, ..Default::default() };
        let page = client.list_api_keys(request).await.expect("a page").into_inner();
        count += page.api_keys.len();
        if page.next_page_token.is_empty() {
            return count;
        }
        page_token = page.next_page_token;
    }
}
