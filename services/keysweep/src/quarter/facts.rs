//! What happened, asked of the services over the public API.

use std::collections::{BTreeMap, HashMap};

use anyhow::Context;
use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt, stream};
use keysweep_proto::key::v1 as key;
use keysweep_proto::key::v1::sweep_event::Payload;
use keysweep_proto::notification::v1 as notification;
use service_kit::time::from_proto;

use crate::clients::{Clients, made_for};
use crate::quarter::world::{CONCURRENCY, World};

const PAGE: i32 = 1_000;

/// A notice of a lot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Stage {
    D15,
    D7,
    D1,
}

impl Stage {
    pub(crate) const ALL: [Self; 3] = [Self::D15, Self::D7, Self::D1];

    pub(crate) fn from_proto(stage: key::NoticeStage) -> Option<Self> {
        match stage {
            key::NoticeStage::Unspecified => None,
            key::NoticeStage::D15 => Some(Self::D15),
            key::NoticeStage::D7 => Some(Self::D7),
            key::NoticeStage::D1 => Some(Self::D1),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::D15 => "D15",
            Self::D7 => "D7",
            Self::D1 => "D1",
        }
    }
}

/// A lot, as `ListLots` shows it.
#[derive(Clone, Debug)]
pub(crate) struct Lot {
    pub(crate) agency_id: String,
    pub(crate) state: key::LotState,
    pub(crate) delete_at: DateTime<Utc>,
    pub(crate) deleted: i64,
    pub(crate) planned: i64,
    pub(crate) receipts: BTreeMap<Stage, Receipt>,
    pub(crate) state_reason: String,
}

/// The receipt of a stage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Receipt {
    pub(crate) delivered_at: DateTime<Utc>,
    pub(crate) in_app: i64,
    pub(crate) emails: i64,
}

/// One notification of a deletion.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) agency_id: String,
    pub(crate) plan_id: String,
    pub(crate) kind: notification::NotificationKind,
    pub(crate) stage: Option<Stage>,
    pub(crate) at: DateTime<Utc>,
    pub(crate) key_count: i64,
}

/// A required instant of a message.
pub(crate) fn instant(stamp: Option<prost_types::Timestamp>) -> anyhow::Result<DateTime<Utc>> {
    stamp.as_ref().and_then(from_proto).context("an answer lacks an instant")
}

/// The plan for the sweep, if there is one.
pub(crate) async fn plan_of(clients: &Clients, sweep: DateTime<Utc>) -> anyhow::Result<Option<key::SweepPlan>> {
    let request = key::ListSweepPlansRequest { page_size: PAGE, ..Default::default() };
    let plans = clients.sweeps.clone().list_sweep_plans(request).await?.into_inner().sweep_plans;
    Ok(plans.into_iter().find(|plan| plan.delete_time.as_ref().and_then(from_proto) == Some(sweep)))
}

/// The lots of a plan.
pub(crate) async fn lots(clients: &Clients, plan_id: &str) -> anyhow::Result<Vec<Lot>> {
    let (mut lots, mut page_token) = (Vec::new(), String::new());
    loop {
        let request =
            key::ListLotsRequest { plan_id: plan_id.to_owned(), page_size: PAGE, page_token, ..Default::default() };
        let page = clients.sweeps.clone().list_lots(request).await?.into_inner();
        for lot in page.lots {
            lots.push(read_lot(lot)?);
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(lots);
        }
    }
}

fn read_lot(lot: key::Lot) -> anyhow::Result<Lot> {
    let mut receipts = BTreeMap::new();
    for receipt in &lot.receipts {
        let stage = Stage::from_proto(receipt.stage()).context("a receipt lacks its stage")?;
        let delivered_at = instant(receipt.deliver_time)?;
        receipts.insert(stage, Receipt { delivered_at, in_app: receipt.in_app_count, emails: receipt.emails_accepted });
    }
    Ok(Lot {
        state: lot.state(),
        delete_at: instant(lot.delete_time)?,
        deleted: lot.deleted_count,
        planned: lot.planned_count,
        receipts,
        agency_id: lot.agency_id,
        state_reason: lot.state_reason,
    })
}

/// The ids of the keys that the plan listed when it was made.
pub(crate) async fn announced(clients: &Clients, plan_id: &str) -> anyhow::Result<Vec<String>> {
    let (mut ids, mut page_token) = (Vec::new(), String::new());
    loop {
        let request =
            key::ListEntriesRequest { plan_id: plan_id.to_owned(), page_size: PAGE, page_token, ..Default::default() };
        let page = clients.sweeps.clone().list_entries(request).await?.into_inner();
        ids.extend(page.entries.into_iter().map(|entry| entry.key_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(ids);
        }
    }
}

/// State and end of every key there is.
pub(crate) async fn keys(
    clients: &Clients,
) -> anyhow::Result<HashMap<String, (key::ApiKeyState, Option<DateTime<Utc>>)>> {
    let (mut keys, mut page_token) = (HashMap::new(), String::new());
    loop {
        let request = key::ListApiKeysRequest { page_size: PAGE, page_token, ..Default::default() };
        let page = clients.keys.clone().list_api_keys(request).await?.into_inner();
        for one in page.api_keys {
            let (state, deleted_at) = (one.state(), one.delete_time.as_ref().and_then(from_proto));
            keys.insert(one.key_id, (state, deleted_at));
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(keys);
        }
    }
}

/// The inbox of each user.
pub(crate) async fn inboxes(clients: &Clients, users: Vec<String>) -> anyhow::Result<HashMap<String, Vec<Told>>> {
    stream::iter(users)
        .map(|user| async move { Ok((user.clone(), inbox(clients, &user).await?)) })
        .buffer_unordered(CONCURRENCY)
        .try_collect()
        .await
}

async fn inbox(clients: &Clients, user: &str) -> anyhow::Result<Vec<Told>> {
    let (mut told, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = notification::ListNotificationsRequest {
            user_id: user.to_owned(),
            page_size: 100,
            page_token,
            ..Default::default()
        };
        let request = made_for(&format!("user/{user}"), request)?;
        let page = clients.notifications.clone().list_notifications(request).await?.into_inner();
        for one in page.notifications {
            told.push(Told {
                kind: one.kind(),
                stage: Stage::from_proto(one.stage()),
                at: instant(one.create_time)?,
                key_count: one.key_count,
                agency_id: one.agency_id,
                plan_id: one.plan_id,
            });
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(told);
        }
    }
}

/// Every email there is.
pub(crate) async fn deliveries(clients: &Clients) -> anyhow::Result<Vec<notification::Delivery>> {
    let (mut all, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = notification::ListDeliveriesRequest { page_size: PAGE, page_token, ..Default::default() };
        let page = clients.notifications.clone().list_deliveries(request).await?.into_inner();
        all.extend(page.deliveries);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(all);
        }
    }
}

/// The accounts that show a banner now, with how many keys it counts.
pub(crate) async fn banners(clients: &Clients, world: &World) -> anyhow::Result<BTreeMap<String, i64>> {
    let mut wishes: Vec<(String, Vec<String>)> =
        world.agencies.iter().map(|agency| (agency.id.clone(), Vec::new())).collect();
    for location in &world.locations {
        wishes[location.agency].1.push(location.id.clone());
    }
    let requests = wishes.into_iter().flat_map(|(agency, locations)| {
        let mut chunks: Vec<Vec<String>> = locations.chunks(1_000).map(<[String]>::to_vec).collect();
        if chunks.is_empty() {
            chunks.push(Vec::new());
        }
        chunks
            .into_iter()
            .map(move |location_ids| notification::ListBannersRequest { agency_id: agency.clone(), location_ids })
    });
    let answers: Vec<_> = stream::iter(requests)
        .map(|request| async move { clients.notifications.clone().list_banners(request).await })
        .buffer_unordered(CONCURRENCY)
        .try_collect()
        .await?;
    let mut shown = BTreeMap::new();
    for banner in answers.into_iter().flat_map(|answer| answer.into_inner().banners) {
        let id = match banner.account.and_then(|owner| owner.account).context("a banner lacks its account")? {
            key::owner::Account::AgencyId(id) => id,
            key::owner::Account::Location(location) => location.location_id,
        };
        shown.insert(id, banner.key_count);
    }
    Ok(shown)
}

/// What the event stream tells from its first event to its head.
#[derive(Debug, Default)]
pub(crate) struct History {
    pub(crate) events: i64,
    /// Sequences that did not follow from the one before.
    pub(crate) gaps: i64,
    pub(crate) announced: Vec<String>,
    /// Reschedulings that moved a deletion earlier.
    pub(crate) moved_earlier: i64,
    pub(crate) rescheduled: i64,
}

/// Reads the whole stream, as a subscriber that was never there before.
pub(crate) async fn history(clients: &Clients) -> anyhow::Result<History> {
    let request = key::SubscribeSweepPlansRequest { subscriber: "quarter-auditor".to_owned(), ..Default::default() };
    let mut events = clients.sweeps.clone().subscribe_sweep_plans(request).await?.into_inner();
    let mut history = History::default();
    let mut last = 0;
    while let Some(message) = events.message().await? {
        if let Some(event) = message.event {
            history.gaps += i64::from(event.sequence != last + 1);
            last = event.sequence;
            history.events += 1;
            match event.payload {
                Some(Payload::PlanEntries(chunk)) => {
                    history.announced.extend(chunk.entries.into_iter().map(|entry| entry.key_id))
                }
                Some(Payload::LotRescheduled(moved)) => {
                    history.rescheduled += 1;
                    history.moved_earlier +=
                        i64::from(instant(moved.delete_time)? < instant(moved.previous_delete_time)?);
                }
                _ => {}
            }
        }
        if last >= message.head_sequence {
            break;
        }
    }
    Ok(history)
}
