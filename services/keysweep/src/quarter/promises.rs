//! What was promised, beside what happened: every promise is checked against the world's own notes, not the services' word.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use chrono::{DateTime, TimeDelta, Utc};
use futures::{StreamExt, TryStreamExt, stream};
use keysweep_proto::key::v1 as key;
use keysweep_proto::location::v2::ListLocationsRequest;
use keysweep_proto::notification::v1 as notification;
use service_kit::time::from_proto;

use crate::quarter::calendar::{IDLE, TICK, lead};
use crate::quarter::facts::{self, Lot, Stage, Told};
use crate::quarter::play::{Play, verify};
use crate::quarter::world::{Account, CONCURRENCY, Key};

/// One promise, and what came of it.
#[derive(Clone, Debug)]
pub struct Promise {
    /// What is promised.
    pub promise: &'static str,
    /// How much was owed.
    pub expected: String,
    /// How much was seen.
    pub happened: String,
    /// Every deviation; empty where the promise was kept.
    pub faults: Vec<String>,
}

impl Promise {
    /// Whether the promise was kept.
    pub fn is_kept(&self) -> bool {
        self.faults.is_empty()
    }
}

/// Everything that the services say at the end.
struct Evidence {
    lots: HashMap<String, Lot>,
    keys: HashMap<String, (key::ApiKeyState, Option<DateTime<Utc>>)>,
    inboxes: HashMap<String, Vec<Told>>,
    deliveries: Vec<notification::Delivery>,
    history: facts::History,
}

/// Keys presented again at the end, at most: more would only take longer.
const PRESENTED: usize = 2_000;

/// Checks every promise. With `files`, databases and emails are files of `folder`, and searched.
pub(crate) async fn check(play: &Play, folder: &Path, files: bool) -> anyhow::Result<Vec<Promise>> {
    let plan_id = play.notes.plan_id.clone().unwrap_or_default();
    let lots = if plan_id.is_empty() { Vec::new() } else { facts::lots(&play.clients, &plan_id).await? };
    let world = &play.world;
    let people = world
        .agencies
        .iter()
        .flat_map(|agency| &agency.admins)
        .chain(world.locations.iter().flat_map(|location| &location.admins));
    let evidence = Evidence {
        lots: lots.into_iter().map(|lot| (lot.agency_id.clone(), lot)).collect(),
        keys: facts::keys(&play.clients).await?,
        inboxes: facts::inboxes(&play.clients, people.chain(&world.bystanders).cloned().collect()).await?,
        deliveries: facts::deliveries(&play.clients).await?,
        history: facts::history(&play.clients).await?,
    };
    Ok(vec![
        explicit_generation(play, &evidence),
        live_keys_verify(play),
        announced_exactly(play, &evidence),
        told_in_app(play, &evidence),
        emailed(play, &evidence),
        banners(play),
        rescued_live(play, &evidence),
        deleted_exactly(play, &evidence),
        gate_held(&evidence),
        never_earlier(&evidence),
        presented_again(play, &evidence).await?,
        no_secret_leaks(play, folder, files).await?,
        audit_whole(play).await?,
    ])
}

fn promise(promise: &'static str, expected: impl ToString, happened: impl ToString, faults: Vec<String>) -> Promise {
    Promise { promise, expected: expected.to_string(), happened: happened.to_string(), faults }
}

fn explicit_generation(play: &Play, evidence: &Evidence) -> Promise {
    let expected = play.world.keys.len() + usize::try_from(play.notes.rotations).unwrap_or(usize::MAX);
    let there = evidence.keys.len();
    let faults = if there == expected { vec![] } else { vec![format!("{there} keys, {expected} asked for")] };
    promise(
        "a key exists only because somebody asked for it",
        format!("{expected} keys"),
        format!("{there} keys"),
        faults,
    )
}

fn live_keys_verify(play: &Play) -> Promise {
    let uses: usize = play.world.keys.iter().map(|key| key.uses.len()).sum();
    let refused = &play.notes.refused_uses;
    let total = uses + refused.len();
    promise("a live key verifies", format!("{total} uses"), format!("{uses} valid"), refused.clone())
}

/// The keys that the world knows to have been idle when the plan was made.
fn announced_exactly(play: &Play, evidence: &Evidence) -> Promise {
    let planned_at = play.notes.planned_at.unwrap_or(play.sweep);
    let due: HashSet<&str> = play
        .world
        .keys
        .iter()
        .filter(|key| key.ended_at.is_none_or(|at| at > planned_at) && key.last_use(planned_at) <= play.sweep - IDLE)
        .map(|key| key.id.as_str())
        .collect();
    let mut faults = Vec::new();
    if play.notes.plan_id.is_none() {
        faults.push("no plan was made".to_owned());
    }
    faults.extend(
        due.iter().filter(|id| !play.notes.announced.contains(**id)).map(|id| format!("{id} was not announced")),
    );
    faults.extend(
        play.notes
            .announced
            .iter()
            .filter(|id| !due.contains(id.as_str()))
            .map(|id| format!("{id} was announced wrongly")),
    );
    let streamed: HashSet<&String> = evidence.history.announced.iter().collect();
    if evidence.history.announced.len() != streamed.len() || streamed != play.notes.announced.iter().collect() {
        faults.push(format!("the stream announced {} keys", evidence.history.announced.len()));
    }
    if evidence.history.gaps > 0 {
        faults.push(format!("{} gaps in the stream", evidence.history.gaps));
    }
    let happened = format!("{} keys in {} events", play.notes.announced.len(), evidence.history.events);
    promise(
        "exactly the keys idle for 90 days at the sweep are announced",
        format!("{} keys", due.len()),
        happened,
        faults,
    )
}

/// How many of the announced keys each person must be told about at an instant, by agency.
fn owed(play: &Play, agency: &str, at: DateTime<Utc>) -> HashMap<String, i64> {
    let planned_at = play.notes.planned_at.unwrap_or(at);
    let mut owed: HashMap<String, i64> = HashMap::new();
    for key in &play.world.keys {
        let own = Account { location: None, ..key.account };
        if play.world.account_id(own) == agency
            && play.notes.announced.contains(&key.id)
            && !key.stirred(planned_at - TICK, at)
        {
            for admin in play.world.admins_of(key.account) {
                *owed.entry(admin.clone()).or_default() += 1;
            }
        }
    }
    owed
}

fn told_in_app(play: &Play, evidence: &Evidence) -> Promise {
    let mut faults = Vec::new();
    let (mut expected, mut seen) = (0, 0);
    let notices: Vec<(&String, &Told)> = evidence
        .inboxes
        .iter()
        .flat_map(|(user, told)| told.iter().map(move |one| (user, one)))
        .filter(|(_, told)| told.kind == notification::NotificationKind::DeletionNotice)
        .collect();
    seen += notices.len();
    let mut by_lot: HashMap<(&str, Stage), Vec<(&String, &Told)>> = HashMap::new();
    for (user, told) in notices {
        match told.stage {
            Some(stage) if Some(&told.plan_id) == play.notes.plan_id.as_ref() => {
                by_lot.entry((told.agency_id.as_str(), stage)).or_default().push((user, told));
            }
            _ => faults.push(format!("{user} was told of something else")),
        }
    }
    for lot in evidence.lots.values() {
        for (stage, receipt) in &lot.receipts {
            let owed = owed(play, &lot.agency_id, receipt.delivered_at);
            expected += owed.len();
            let told = by_lot.remove(&(lot.agency_id.as_str(), *stage)).unwrap_or_default();
            let people: BTreeSet<&String> = told.iter().map(|(user, _)| *user).collect();
            if people.len() != told.len() || people != owed.keys().collect() {
                faults.push(format!("{} {}: {} told, {} owed", lot.agency_id, stage.name(), told.len(), owed.len()));
            }
            for (user, one) in told {
                if Some(&one.key_count) != owed.get(user) {
                    faults.push(format!(
                        "{user} {}: told of {} keys, not of {:?}",
                        stage.name(),
                        one.key_count,
                        owed.get(user)
                    ));
                }
                if lot.deleted > 0 && one.at > lot.delete_at - lead(*stage) {
                    faults.push(format!("{user} {}: told at {}, for {}", stage.name(), one.at, lot.delete_at));
                }
            }
        }
    }
    faults.extend(by_lot.keys().map(|(agency, stage)| format!("{agency} {}: told without a receipt", stage.name())));
    promise(
        "each admin is told in-app 15, 7 and 1 day before, once",
        format!("{expected} notifications"),
        format!("{seen}"),
        faults,
    )
}

fn emailed(play: &Play, evidence: &Evidence) -> Promise {
    let mut faults = Vec::new();
    let mut expected = 0;
    for lot in evidence.lots.values().filter(|lot| lot.receipts.contains_key(&Stage::D15)) {
        let Some(agency) = play.world.agencies.iter().find(|agency| agency.id == lot.agency_id) else { continue };
        for admin in &agency.admins {
            expected += 1;
            let sent: Vec<_> =
                evidence.deliveries.iter().filter(|d| d.agency_id == lot.agency_id && &d.user_id == admin).collect();
            let [one] = sent.as_slice() else {
                faults.push(format!("{admin}: {} emails", sent.len()));
                continue;
            };
            let settled = one.settle_time.as_ref().and_then(from_proto);
            let accepted = one.state() == notification::DeliveryState::Accepted;
            if !accepted || settled.is_none_or(|at| lot.deleted > 0 && at > lot.delete_at - lead(Stage::D15)) {
                faults.push(format!("{admin}: {:?} at {settled:?}, {}", one.state(), one.last_reply));
            }
        }
    }
    let sent = evidence.deliveries.len();
    if sent != expected {
        faults.push(format!("{sent} emails, {expected} owed"));
    }
    promise(
        "each agency admin gets the complete summary by email 15 days before",
        format!("{expected} emails"),
        format!("{sent} accepted"),
        faults,
    )
}

fn banners(play: &Play) -> Promise {
    let notes = &play.notes;
    let happened = format!("{} accounts, in {} looks", notes.banners_seen.len(), notes.banner_looks);
    promise(
        "a banner stands for the last 24 hours, for impacted accounts alone",
        "no deviation",
        happened,
        notes.banner_faults.clone(),
    )
}

fn rescued_live(play: &Play, evidence: &Evidence) -> Promise {
    let mut faults = Vec::new();
    let rescued: Vec<_> = play.world.keys.iter().filter(|key| play.notes.rescues.contains(&key.id)).collect();
    for key in &rescued {
        if evidence.keys.get(&key.id).map(|(state, _)| *state) != Some(key::ApiKeyState::Active) {
            faults.push(format!("{} was used and does not live", key.id));
        }
    }
    for (user, told) in &evidence.inboxes {
        let heard = told.iter().filter(|one| one.kind == notification::NotificationKind::Rescued).count();
        let owed = rescued
            .iter()
            .filter(|key| was_told(play, evidence, key) && play.world.admins_of(key.account).any(|admin| admin == user))
            .count();
        if heard != owed {
            faults.push(format!("{user} heard of {heard} rescues, not of {owed}"));
        }
    }
    promise(
        "a planned key that is used stays, and its admins hear so",
        format!("{} keys", rescued.len()),
        format!("{} live", rescued.len()),
        faults,
    )
}

/// Whether the key's first notice was out when it was rescued: who was never told of a deletion is not told that it is off.
fn was_told(play: &Play, evidence: &Evidence, key: &Key) -> bool {
    let agency = play.world.account_id(Account { location: None, ..key.account });
    let told_at =
        evidence.lots.get(agency).and_then(|lot| lot.receipts.get(&Stage::D15)).map(|receipt| receipt.delivered_at);
    let rescued_at = key.uses.iter().copied().find(|at| play.notes.planned_at.is_some_and(|planned| *at > planned));
    matches!((told_at, rescued_at), (Some(told), Some(rescued)) if told < rescued)
}

fn deleted_exactly(play: &Play, evidence: &Evidence) -> Promise {
    let planned_at = play.notes.planned_at.unwrap_or(play.sweep);
    let mut faults = Vec::new();
    let (mut due, mut gone) = (0, 0);
    for key in &play.world.keys {
        let agency = play.world.account_id(Account { location: None, ..key.account });
        let lot = evidence.lots.get(agency).filter(|_| play.notes.announced.contains(&key.id));
        let executed =
            lot.filter(|lot| lot.state == key::LotState::Executed && !key.stirred(planned_at - TICK, lot.delete_at));
        let state = evidence.keys.get(&key.id).copied();
        match (executed, state) {
            (Some(lot), Some((key::ApiKeyState::Deleted, Some(at)))) => {
                due += 1;
                gone += 1;
                if at < lot.delete_at || at - key.last_use(at) < IDLE {
                    faults.push(format!("{} was deleted at {at}, its lot at {}", key.id, lot.delete_at));
                }
            }
            (Some(_), _) => {
                due += 1;
                faults.push(format!("{} is due and not gone: {state:?}", key.id));
            }
            (None, Some((key::ApiKeyState::Deleted, at))) => {
                gone += 1;
                faults.push(format!("{} is gone and was not due: {at:?}", key.id));
            }
            (None, Some((key::ApiKeyState::Active, _))) if key.ended_at.is_none() => {}
            (None, Some((key::ApiKeyState::Revoked, _))) if key.ended_at.is_some() => {}
            (None, _) => faults.push(format!("{} is {state:?}, ended {:?}", key.id, key.ended_at)),
        }
    }
    promise("exactly the announced and still idle keys are gone", format!("{due} keys"), format!("{gone} keys"), faults)
}

fn gate_held(evidence: &Evidence) -> Promise {
    let mut faults = Vec::new();
    let deleting: Vec<_> = evidence.lots.values().filter(|lot| lot.deleted > 0).collect();
    for lot in &deleting {
        for stage in Stage::ALL {
            match lot.receipts.get(&stage) {
                Some(receipt) if receipt.delivered_at <= lot.delete_at - lead(stage) => {}
                receipt => faults.push(format!(
                    "{} {}: {receipt:?}, deleted at {}",
                    lot.agency_id,
                    stage.name(),
                    lot.delete_at
                )),
            }
        }
    }
    let shortest = deleting
        .iter()
        .filter_map(|lot| Some(lot.delete_at - lot.receipts.get(&Stage::D15)?.delivered_at))
        .min()
        .unwrap_or(TimeDelta::zero());
    let happened =
        format!("{} lots, shortest notice {:.1} days", deleting.len(), shortest.num_minutes() as f64 / 1_440.0);
    promise("nothing is deleted without its three notices in time", "15, 7 and 1 day", happened, faults)
}

fn never_earlier(evidence: &Evidence) -> Promise {
    let history = &evidence.history;
    let faults =
        if history.moved_earlier == 0 { vec![] } else { vec![format!("{} lots moved earlier", history.moved_earlier)] };
    promise("a deletion never moves earlier", "0 lots", format!("{} moved, all later", history.rescheduled), faults)
}

/// Presents secrets once more: those of deleted keys must be answered with the deletion, those of living keys must verify.
async fn presented_again(play: &Play, evidence: &Evidence) -> anyhow::Result<Promise> {
    let keys: Vec<_> = play.world.keys.iter().filter(|key| !key.secret.is_empty()).take(PRESENTED).collect();
    let faults: Vec<Option<String>> = stream::iter(keys.iter())
        .map(|key| async move {
            let answer = verify(&play.clients, &key.secret).await?;
            let right = match evidence.keys.get(&key.id) {
                Some((key::ApiKeyState::Active, _)) => answer.valid,
                Some((key::ApiKeyState::Revoked, _)) => answer.code == key::VerifyCode::Revoked,
                Some((key::ApiKeyState::Deleted, at)) => {
                    answer.code == key::VerifyCode::DeletedBySweep && answer.deleted_at == *at
                }
                _ => false,
            };
            anyhow::Ok((!right).then(|| format!("{}: {answer:?}", key.id)))
        })
        .buffer_unordered(CONCURRENCY)
        .try_collect()
        .await?;
    let faults: Vec<String> = faults.into_iter().flatten().collect();
    let right = keys.len() - faults.len();
    Ok(promise(
        "a deleted key is answered DELETED_BY_SWEEP, a living one VALID",
        format!("{} keys", keys.len()),
        format!("{right} right"),
        faults,
    ))
}

/// Searches the answers of location-service, and every file written, for anything that has the shape of a secret.
async fn no_secret_leaks(play: &Play, folder: &Path, files: bool) -> anyhow::Result<Promise> {
    let mut faults = Vec::new();
    let mut answers = 0;
    for agency in &play.world.agencies {
        let mut page_token = String::new();
        loop {
            let request = ListLocationsRequest {
                agency_id: agency.id.clone(),
                page_size: 1_000,
                page_token,
                ..Default::default()
            };
            let page = play.clients.locations.clone().list_locations(request).await?.into_inner();
            answers += page.locations.len();
            faults.extend(
                page.locations
                    .iter()
                    .filter(|l| !l.api_key.is_empty())
                    .map(|l| format!("{} carries a key", l.location_id)),
            );
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
    }
    let mut searched = 0;
    if files {
        let secrets: HashSet<&[u8]> =
            play.world.keys.iter().filter(|key| !key.secret.is_empty()).map(|key| key.secret.as_bytes()).collect();
        searched = search_files(folder, &secrets, &mut faults)?;
    }
    let happened = format!("none in {answers} locations and {searched} files");
    Ok(promise("no secret stands in a response, a database or an email", "none", happened, faults))
}

fn search_files(folder: &Path, secrets: &HashSet<&[u8]>, faults: &mut Vec<String>) -> anyhow::Result<usize> {
    let (mut searched, mut folders) = (0, vec![folder.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                searched += 1;
                if holds_a_secret(&path, secrets)? {
                    faults.push(format!("{} holds a secret", path.display()));
                }
            }
        }
    }
    Ok(searched)
}

/// Searches a file window by window: a database may be larger than the memory that a quarter should take.
fn holds_a_secret(path: &Path, secrets: &HashSet<&[u8]>) -> anyhow::Result<bool> {
    const WINDOW: u64 = 1 << 20;
    const HEAD: usize = 8;
    let lengths: BTreeSet<usize> = secrets.iter().map(|secret| secret.len()).filter(|length| *length >= HEAD).collect();
    let heads: HashSet<&[u8]> = secrets.iter().filter_map(|secret| secret.get(..HEAD)).collect();
    let overlap = lengths.last().copied().unwrap_or(0);
    let mut file = File::open(path)?;
    let mut window: Vec<u8> = Vec::new();
    loop {
        // What may be the beginning of a secret is looked at again with what follows it.
        window.drain(..window.len().saturating_sub(overlap));
        if file.by_ref().take(WINDOW).read_to_end(&mut window)? == 0 {
            return Ok(false);
        }
        let found = window.windows(HEAD).enumerate().any(|(start, head)| {
            heads.contains(head)
                && lengths
                    .iter()
                    .any(|length| window.get(start..start + length).is_some_and(|text| secrets.contains(text)))
        });
        if found {
            return Ok(true);
        }
    }
}

async fn audit_whole(play: &Play) -> anyhow::Result<Promise> {
    let proof = play.clients.keys.clone().verify_audit_chain(key::VerifyAuditChainRequest {}).await?.into_inner();
    let faults = if proof.intact { vec![] } else { vec![format!("broken at {}", proof.first_broken_sequence)] };
    Ok(promise(
        "every step is in the audit, whose chain is whole",
        "intact",
        format!("{} events", proof.checked_count),
        faults,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_found_wherever_it_stands_in_a_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        let secret = b"ksw_loc_0123456789".as_slice();
        let secrets = HashSet::from([secret]);
        for before in [0, 100, (1 << 20) - 5, 3 << 20] {
            let mut bytes = vec![b'k'; before];
            bytes.extend_from_slice(secret);
            std::fs::write(&path, &bytes).expect("written");
            assert!(holds_a_secret(&path, &secrets).expect("read"), "after {before} bytes");
            bytes.pop();
            std::fs::write(&path, &bytes).expect("written");
            assert!(!holds_a_secret(&path, &secrets).expect("read"), "a part after {before} bytes");
        }
    }
}
