//! Where a life is lived: several processes of each service, the network between them, and the faults of both.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::panic::Location;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use chrono::{DateTime, TimeDelta, Utc};
use keysweep::suite::Which;
use service_kit::clock::{Clock, SimulatedClock};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::ledger::Ledger;
use crate::link::{Link, Weather};
use crate::replica::{Birth, Replica};
use keysweep_e2e::post::Post;

/// The place of one process, whether it lives or not.
pub(crate) struct Slot {
    pub(crate) which: Which,
    pub(crate) replica: Option<Replica>,
    /// How far its clock is ahead of the true time.
    pub(crate) skew: TimeDelta,
    pub(crate) away_until: DateTime<Utc>,
    pub(crate) links: Vec<(Which, Link)>,
    address: SocketAddr,
}

/// All processes.
pub(crate) struct Site {
    pub(crate) truth: Arc<SimulatedClock>,
    pub(crate) slots: Vec<Slot>,
    pub(crate) post: Post,
    pub(crate) folder: TempDir,
    breaker_max_keys: u32,
    seed: u64,
    births: u64,
}

/// Where nobody listens.
const NOWHERE: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9));

/// A step that has not ended after this, in real time, is taken to wait for a timer.
const PATIENCE: Duration = Duration::from_millis(60);
const POLL: Duration = Duration::from_millis(15);
const MOMENT: Duration = Duration::from_millis(2);
/// How much time then passes for every timer, again and again.
const PASS: Duration = Duration::from_millis(1_000);
/// More than an hour: no timer of a call is as long.
const MOST_PASSES: u32 = 4_000;

impl Site {
    /// Places for this many processes of each service; none lives yet.
    pub(crate) async fn build(
        counts: [usize; 3],
        truth: Arc<SimulatedClock>,
        seed: u64,
        breaker_max_keys: u32,
    ) -> anyhow::Result<Self> {
        // In memory where there is such a folder: what a disk may lose is not what is tried here.
        let parent = PathBuf::from("/dev/shm");
        let parent = if parent.is_dir() { parent } else { std::env::temp_dir() };
        let folder = tempfile::Builder::new().prefix("keysweep-ordeal-").tempdir_in(parent)?;
        let post = Post::open(truth.clone(), seed).await?;
        let mut slots = Vec::new();
        for (which, count) in Which::ALL.into_iter().zip(counts) {
            for _ in 0..count {
                let (links, away_until) = (Vec::new(), truth.now());
                slots.push(Slot { which, replica: None, skew: TimeDelta::zero(), away_until, links, address: NOWHERE });
            }
        }
        for slot in &mut slots {
            match slot.which {
                Which::Key => {}
                Which::Location => slot.links.push((Which::Key, Link::to(NOWHERE).await?)),
                Which::Notification => {
                    slot.links.push((Which::Key, Link::to(NOWHERE).await?));
                    slot.links.push((Which::Location, Link::to(NOWHERE).await?));
                }
            }
        }
        Ok(Self { truth, slots, post, folder, breaker_max_keys, seed, births: 0 })
    }

    pub(crate) fn database(&self, which: Which) -> String {
        format!("sqlite:{}", self.folder.path().join(format!("{}.sqlite", which.name())).display())
    }

    /// Starts the process of a slot; false: it died before it served.
    pub(crate) async fn start(&mut self, place: usize) -> anyhow::Result<bool> {
        self.births += 1;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        self.slots[place].address = listener.local_addr()?;
        let slot = &self.slots[place];
        let database = self.database(slot.which);
        let birth = Birth {
            which: slot.which,
            settings: self.settings(slot, &database),
            listener,
            clock: Arc::new(SimulatedClock::new(self.truth.now())),
            seed: self.seed.wrapping_mul(1_000_003).wrapping_add(self.births),
        };
        let replica = Replica::start(birth)?;
        let serves = replica.serves().await?;
        let slot = &mut self.slots[place];
        slot.skew = TimeDelta::zero();
        if serves {
            slot.replica = Some(replica);
        } else {
            replica.crash().await.with_context(|| format!("{} did not start", slot.which.name()))?;
        }
        Ok(serves)
    }

    /// Another notification-service on a database of its own, which hears everything from the first event, and where that lies.
    pub(crate) async fn start_auditor(&self) -> anyhow::Result<(Slot, String)> {
        let Some(slot) = self.slots.iter().find(|slot| slot.which == Which::Notification) else { bail!("none") };
        let database = format!("sqlite:{}", self.folder.path().join("replayed.sqlite").display());
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let settings = self.settings(slot, &database);
        let clock = Arc::new(SimulatedClock::new(self.truth.now()));
        let replica = Replica::start(Birth { which: slot.which, settings, listener, clock, seed: self.seed })?;
        replica.serves().await?;
        let (skew, away_until, links) = (TimeDelta::zero(), self.truth.now(), Vec::new());
        let auditor = Slot { which: slot.which, replica: Some(replica), skew, away_until, links, address: NOWHERE };
        Ok((auditor, database))
    }

    fn settings(&self, slot: &Slot, database: &str) -> Vec<(String, String)> {
        let mut settings = vec![
            ("KEYSWEEP_SERVER__LISTEN".to_owned(), slot.address.to_string()),
            ("KEYSWEEP_DATABASE__URL".to_owned(), database.to_owned()),
            ("KEYSWEEP_DATABASE__MAX_CONNECTIONS".to_owned(), "4".to_owned()),
        ];
        let mut set = |name: &str, value: String| settings.push((format!("KEYSWEEP_{name}"), value));
        for (to, link) in &slot.links {
            let section = if *to == Which::Key { "KEY_SERVICE" } else { "LOCATION_SERVICE" };
            set(&format!("{section}__ENDPOINT"), format!("http://{}", link.address));
            set(&format!("{section}__REQUEST_TIMEOUT_MS"), "5000".to_owned());
        }
        match slot.which {
            Which::Key => {
                set("SWEEP__BREAKER_MAX_KEYS", self.breaker_max_keys.to_string());
                set("SWEEP__BREAKER_MAX_PERCENT", "1".to_owned());
                // Several batches a lot, so that a process may die between them.
                set("SWEEP__DELETE_BATCH", "2".to_owned());
            }
            Which::Location => {}
            Which::Notification => {
                set("MAIL__MAX_PER_SECOND", "0".to_owned());
                set("SMTP__HOST", self.post.address.ip().to_string());
                set("SMTP__PORT", self.post.address.port().to_string());
                set("SMTP__TLS", "none".to_owned());
                set("SMTP__TIMEOUT_MS", "5000".to_owned());
            }
        }
        settings
    }

    /// The places of the living processes of a service.
    pub(crate) fn alive(&self, which: Which) -> Vec<usize> {
        let alive = |slot: &Slot| slot.which == which && slot.replica.as_ref().is_some_and(Replica::is_alive);
        (0..self.slots.len()).filter(|place| alive(&self.slots[*place])).collect()
    }

    /// Buries the processes that died at a commit; answers their places.
    pub(crate) async fn bury(&mut self) -> anyhow::Result<Vec<usize>> {
        let mut buried = Vec::new();
        for place in 0..self.slots.len() {
            if self.slots[place].replica.as_ref().is_some_and(|replica| !replica.is_alive()) {
                self.crash(place).await?;
                buried.push(place);
            }
        }
        Ok(buried)
    }

    /// Kills the process of a slot where it stands, if it lives.
    pub(crate) async fn crash(&mut self, place: usize) -> anyhow::Result<()> {
        let slot = &mut self.slots[place];
        slot.skew = TimeDelta::zero();
        if slot.which == Which::Notification {
            self.post.note_disturbance();
        }
        match slot.replica.take() {
            Some(replica) => replica.crash().await,
            None => Ok(()),
        }
    }

    /// Has the process of a slot drain and stop.
    pub(crate) async fn stop(&mut self, place: usize) -> anyhow::Result<()> {
        let slot = &mut self.slots[place];
        slot.skew = TimeDelta::zero();
        if slot.which == Which::Notification {
            self.post.note_disturbance();
        }
        match slot.replica.take() {
            Some(replica) => replica.stop().await,
            None => Ok(()),
        }
    }

    /// Leads every link whose target is dead to a living process, `choose` among them.
    pub(crate) fn lead_links(&self, mut choose: impl FnMut(&[usize]) -> usize) {
        for slot in &self.slots {
            for (to, link) in &slot.links {
                let alive = self.alive(*to);
                if !alive.is_empty() {
                    link.lead_to(self.slots[choose(&alive)].address);
                }
            }
        }
    }

    /// Lets true time pass, and every process live through it.
    pub(crate) fn advance_to(&self, at: DateTime<Utc>) {
        let passed = at - self.truth.now();
        self.truth.advance_to(at);
        // key-service's processes come first: who is told the time meanwhile takes it for later than it is, not for earlier.
        for replica in self.slots.iter().filter_map(|slot| slot.replica.as_ref()) {
            replica.clock.advance(passed);
        }
    }

    /// Sets one clock so far from the true time.
    pub(crate) fn set_clock(&mut self, place: usize, skew: TimeDelta) {
        let now = self.truth.now();
        let slot = &mut self.slots[place];
        if let Some(replica) = &slot.replica {
            replica.clock.set_to(now + skew);
            // The databases keep the true time.
            replica.clock.set_database_lead(-skew);
            slot.skew = skew;
        }
    }

    /// Ends all faults but those of processes.
    pub(crate) fn heal(&mut self) {
        for place in 0..self.slots.len() {
            if self.slots[place].skew != TimeDelta::zero() {
                self.set_clock(place, TimeDelta::zero());
            }
            for (_, link) in &self.slots[place].links {
                link.set(Weather::Fair);
            }
        }
        self.post.set(keysweep_e2e::post::Mood::Good);
    }

    /// Awaits a step to its end; where it waits for a timer, time passes for all timers.
    #[track_caller]
    pub(crate) fn patiently<T>(&self, step: impl Future<Output = T>) -> impl Future<Output = T> {
        let asked_at = Location::caller();
        async move {
            let mut step = std::pin::pin!(step);
            if let Ok(done) = timeout(PATIENCE, &mut step).await {
                return done;
            }
            for _ in 0..MOST_PASSES {
                // A sender may give up on an answer that is under way.
                self.post.note_disturbance();
                self.pass(PASS).await;
                if let Ok(done) = timeout(POLL, &mut step).await {
                    return done;
                }
            }
            let lives: Vec<_> =
                self.slots.iter().map(|slot| slot.replica.as_ref().map(|one| one.fuse.clone())).collect();
            panic!("a step of {asked_at} does not end, whatever time passes, at {}: {lives:?}", self.truth.now());
        }
    }

    /// Lets events arrive, for so many moments at most; answers whether all have.
    pub(crate) async fn hear(&self, ledger: &Ledger, moments: u32) -> anyhow::Result<bool> {
        for moment in 0..moments {
            let (head, applied) = ledger.heads().await?;
            if applied >= head {
                return Ok(true);
            }
            self.moment(moment).await;
        }
        Ok(false)
    }

    /// Waits, for so many moments at most, until every living notification-service has heard the time.
    pub(crate) async fn know_the_time(&self, moments: u32) -> anyhow::Result<bool> {
        for place in self.alive(Which::Notification) {
            let Some(replica) = &self.slots[place].replica else { continue };
            let (mut knows, mut moment) = (replica.knows_the_time().await?, 0);
            while !knows && moment < moments {
                self.moment(moment).await;
                moment += 1;
                knows = replica.knows_the_time().await?;
            }
            if !knows {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A moment of real time, and now and then one of the simulated.
    async fn moment(&self, number: u32) {
        tokio::time::sleep(MOMENT).await;
        if number % 4 == 3 {
            self.pass(Duration::from_millis(500)).await;
        }
    }

    /// Lets time pass for all timers of all processes.
    pub(crate) async fn pass(&self, by: Duration) {
        for replica in self.slots.iter().filter_map(|slot| slot.replica.as_ref()) {
            replica.pass(by).await;
        }
    }
}
