//! What is looked at while an attack goes on, and after it: legitimate calls, the process, its memory, its connections.

use std::future::Future;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{Either, select};
use keysweep::clients::{Clients, made_for};
use keysweep_e2e::replica::ADMIN;
use keysweep_e2e::wait;
use keysweep_proto::key::v1 as key;
use tokio::time::{Instant, interval};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::site::Site;

/// Legitimate verifications that are answered during each attack at least: a short one is repeated until then.
const LEAST_SERVED: u64 = 10;
/// Verifications for each key that is revealed and each list of keys.
const VERIFICATIONS: usize = 5;
/// Memory is looked at so often.
const LOOK: Duration = Duration::from_millis(10);
/// What an attack may cost while it goes on, in bytes. The most calls in progress times the largest request is 125 MiB.
const MOST_DURING: u64 = 160 << 20;
/// What may be left of it: the allocator keeps some for later.
const MOST_AFTER: u64 = 64 << 20;

/// What callers are promised while an attack goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Promise {
    /// Every call is answered.
    All,
    /// Verifications are; others may be told that there are too many.
    Verifications,
}

/// A row of the table.
#[derive(Debug)]
pub(crate) struct Row {
    attack: &'static str,
    effect: String,
    served: Served,
    /// Before, at the peak, and after, in bytes.
    memory: [u64; 3],
}

/// Legitimate calls.
#[derive(Clone, Copy, Debug, Default)]
struct Served {
    verifications: u64,
    others: u64,
    shed: u64,
    slowest: Duration,
}

impl Row {
    /// The head of the table.
    pub(crate) const HEAD: &'static str = "| attack | what it came to | verifications, other calls meanwhile | slowest | MiB before, at its peak, after |\n\
        | --- | --- | --- | --- | --- |\n";

    /// As a row of a table.
    pub(crate) fn line(&self) -> String {
        let Served { verifications, others, shed, slowest } = self.served;
        let shed = if shed > 0 { format!(" ({shed} told OVERLOADED)") } else { String::new() };
        let memory = self.memory.map(|bytes| (bytes >> 20).to_string()).join(", ");
        format!(
            "| {} | {} | {verifications}, {others}{shed} | {} ms | {memory} |\n",
            self.attack,
            self.effect,
            slowest.as_millis()
        )
    }
}

/// Lets an attack happen, and sees that nobody else is harmed by it.
pub(crate) async fn endure<F: Future<Output = String>>(
    site: &Site,
    attack: &'static str,
    promise: Promise,
    act: impl Fn() -> F,
) -> Row {
    let (id, sockets, before) = (site.process.id(), site.process.open_sockets(), site.process.resident_bytes());
    let end = CancellationToken::new();
    let (verified, legitimate) = tokio::sync::watch::channel(Served::default());
    let [gateway, ui] = ["gateway", "ui"].map(|caller| site.clients(caller));
    let caller = Caller { gateway, ui, key_id: site.key_id.clone(), secret: site.secret.clone(), promise };
    let calling = tokio::spawn(caller.call(end.clone(), verified));
    let attacking = async {
        // They are connected before it begins.
        let connected = legitimate.clone().wait_for(|served| served.others > 0).await.is_ok();
        assert!(connected, "{attack}: a legitimate call");
        loop {
            let effect = act().await;
            if legitimate.borrow().verifications >= LEAST_SERVED || calling.is_finished() {
                return effect;
            }
        }
    };
    let (effect, peak) = highest(attacking, || site.process.resident_bytes()).await;
    end.cancel();
    calling.await.unwrap_or_else(|error| panic!("{attack}: a legitimate call: {error}"));
    let served = *legitimate.borrow();

    wait::until(&format!("{attack}: the service to serve a new connection"), async || {
        site.is_serving().await.then_some(())
    })
    .await;
    wait::until(&format!("{attack}: every connection to be gone"), async || {
        (site.process.open_sockets() <= sockets).then_some(())
    })
    .await;
    // The allocator gives memory back as it goes on being used.
    let after = wait::until(&format!("{attack}: its memory to be given back"), async || {
        let after = site.process.resident_bytes();
        (site.is_serving().await && after <= before + MOST_AFTER).then_some(after)
    })
    .await;
    assert_eq!(site.process.id(), id, "{attack}");
    let log = site.process.output();
    assert!(!log.contains("panicked"), "{attack}: {log}");
    assert!(peak <= before + MOST_DURING, "{attack}: {peak} bytes at its peak, {before} before");
    Row { attack, effect, served, memory: [before, peak, after] }
}

/// What comes of it, and the highest figure meanwhile.
async fn highest<T>(work: impl Future<Output = T>, figure: impl Fn() -> u64) -> (T, u64) {
    let mut work = Box::pin(work.fuse());
    let (mut highest, mut looks) = (figure(), interval(LOOK));
    loop {
        match select(&mut work, Box::pin(looks.tick())).await {
            Either::Left((done, _)) => return (done, highest.max(figure())),
            Either::Right(_) => highest = highest.max(figure()),
        }
    }
}

/// Who calls while others attack.
struct Caller {
    gateway: Clients,
    ui: Clients,
    key_id: String,
    secret: String,
    promise: Promise,
}

impl Caller {
    /// Calls without end, and sees that each answer is right.
    async fn call(self, end: CancellationToken, told: tokio::sync::watch::Sender<Served>) {
        let count = |one: &dyn Fn(&mut Served)| told.send_modify(|served| one(served));
        while !end.is_cancelled() {
            for _ in 0..VERIFICATIONS {
                let begun = Instant::now();
                self.verify().await;
                count(&|served| {
                    served.verifications += 1;
                    served.slowest = served.slowest.max(begun.elapsed());
                });
            }
            for answer in [self.reveal().await, self.list().await] {
                match answer {
                    Ok(()) => count(&|served| served.others += 1),
                    Err(status) if self.promise == Promise::Verifications => {
                        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                        let details = status.get_error_details();
                        assert_eq!(details.error_info().map(|info| info.reason.as_str()), Some("OVERLOADED"));
                        count(&|served| served.shed += 1);
                    }
                    Err(status) => panic!("{status:?}"),
                }
            }
        }
    }

    async fn verify(&self) {
        let request = key::VerifyKeyRequest { secret: self.secret.clone(), ..Default::default() };
        let answer = self.gateway.keys.clone().verify_key(request).await.expect("an answer").into_inner();
        assert!(answer.valid && answer.key_id == self.key_id, "{answer:?}");
    }

    async fn reveal(&self) -> Result<(), Status> {
        let request = made_for(ADMIN, key::RevealKeyRequest { key_id: self.key_id.clone() }).expect("an actor");
        let shown = self.ui.keys.clone().reveal_key(request).await?.into_inner();
        assert!(shown.secret == self.secret, "another secret was shown");
        Ok(())
    }

    async fn list(&self) -> Result<(), Status> {
        let request = key::ListApiKeysRequest { agency_id: "agy_1".to_owned(), ..Default::default() };
        let page = self.ui.keys.clone().list_api_keys(made_for(ADMIN, request).expect("an actor")).await?.into_inner();
        assert!(page.api_keys.len() == 1 && page.api_keys[0].key_id == self.key_id, "{page:?}");
        Ok(())
    }
}
