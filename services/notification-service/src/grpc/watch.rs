//! The streams: the state first, then its changes, until the client goes or the server drains.

use std::collections::BTreeMap;
use std::time::Duration;

use keysweep_proto::notification::v1::{WatchBannersResponse, WatchNotificationsResponse};
use service_kit::clock::Clock;
use service_kit::status::draining;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::convert;
use super::service::NotificationApi;
use crate::app::error::CallError;
use crate::domain::banner::Banner;
use crate::domain::ids::{AgencyId, LocationId, UserId};
use crate::domain::plan::Owner;

/// What another replica wrote is found within this time.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Messages that a slow client is ahead of; more waits in the database.
const BUFFER: usize = 16;
/// Notifications read at once.
const PAGE: u32 = 50;

/// Why a stream ends.
enum End {
    /// The client has gone.
    Gone,
    /// With an error for the client.
    Error(Status),
}

impl From<CallError> for End {
    fn from(error: CallError) -> Self {
        Self::Error(error.into())
    }
}

struct Outlet<T>(mpsc::Sender<Result<T, Status>>);

impl<T> Outlet<T> {
    async fn send(&self, message: T) -> Result<(), End> {
        self.0.send(Ok(message)).await.map_err(|_| End::Gone)
    }

    async fn end(self, end: End) {
        if let End::Error(status) = end {
            // The client may have gone meanwhile.
            let _ = self.0.send(Err(status)).await;
        }
    }
}

/// Waits until there may be something new.
async fn wait<T>(
    api: &NotificationApi,
    changes: &mut watch::Receiver<u64>,
    outlet: &Outlet<T>,
    until: Option<chrono::DateTime<chrono::Utc>>,
) -> Result<(), End> {
    let boundary = async {
        match until {
            Some(at) => api.clock.sleep_until(at).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = api.streams.cancelled() => Err(End::Error(draining())),
        () = outlet.0.closed() => Err(End::Gone),
        _ = changes.changed() => Ok(()),
        () = boundary => Ok(()),
        () = tokio::time::sleep(LOOK_AGAIN) => Ok(()),
    }
}

/// Follows a user's inbox after a position.
pub(super) fn inbox(
    api: NotificationApi,
    user: UserId,
    after: i64,
) -> ReceiverStream<Result<WatchNotificationsResponse, Status>> {
    let (sender, receiver) = mpsc::channel(BUFFER);
    tokio::spawn(async move {
        let outlet = Outlet(sender);
        let Err(end) = follow_inbox(&api, &user, after, &outlet).await;
        outlet.end(end).await;
    });
    ReceiverStream::new(receiver)
}

async fn follow_inbox(
    api: &NotificationApi,
    user: &UserId,
    mut after: i64,
    outlet: &Outlet<WatchNotificationsResponse>,
) -> Result<std::convert::Infallible, End> {
    let mut changes = api.signals.inbox();
    let mut told = None;
    loop {
        changes.mark_unchanged();
        let page = api.inbox.follow(user, after, PAGE).await.map_err(CallError::from)?;
        let (more, unread_count) = (page.more, page.unread);
        if told.is_none() {
            outlet.send(WatchNotificationsResponse { notification: None, unread_count }).await?;
            told = Some(unread_count);
        }
        for one in page.notifications {
            after = one.sequence;
            let notification = Some(convert::notification(one, api.clock.now()));
            outlet.send(WatchNotificationsResponse { notification, unread_count }).await?;
            told = Some(unread_count);
        }
        if told != Some(unread_count) {
            outlet.send(WatchNotificationsResponse { notification: None, unread_count }).await?;
            told = Some(unread_count);
        }
        if !more {
            wait(api, &mut changes, outlet, None).await?;
        }
    }
}

/// Follows the banners of an agency and some of its locations.
pub(super) fn banners(
    api: NotificationApi,
    agency: AgencyId,
    locations: Vec<LocationId>,
) -> ReceiverStream<Result<WatchBannersResponse, Status>> {
    let (sender, receiver) = mpsc::channel(BUFFER);
    tokio::spawn(async move {
        let outlet = Outlet(sender);
        let Err(end) = follow_banners(&api, &agency, &locations, &outlet).await;
        outlet.end(end).await;
    });
    ReceiverStream::new(receiver)
}

async fn follow_banners(
    api: &NotificationApi,
    agency: &AgencyId,
    locations: &[LocationId],
    outlet: &Outlet<WatchBannersResponse>,
) -> Result<std::convert::Infallible, End> {
    let mut changes = api.signals.projection();
    let accounts: Vec<Owner> = std::iter::once(None)
        .chain(locations.iter().cloned().map(Some))
        .map(|location_id| Owner { agency_id: agency.clone(), location_id })
        .collect();
    let mut told: BTreeMap<Owner, Vec<Banner>> = BTreeMap::new();
    loop {
        changes.mark_unchanged();
        let now = api.clock.now();
        let next = api.banners.next_change(agency, now).await.map_err(CallError::from)?;
        let mut standing: BTreeMap<Owner, Vec<Banner>> = BTreeMap::new();
        for banner in api.banners.banners(agency, locations, now).await.map_err(CallError::from)? {
            standing.entry(banner.account.clone()).or_default().push(banner);
        }
        for account in &accounts {
            let banners = standing.remove(account).unwrap_or_default();
            if told.get(account) != Some(&banners) {
                let shown = banners.iter().cloned().map(convert::banner).collect();
                outlet
                    .send(WatchBannersResponse { account: Some(convert::owner(account.clone())), banners: shown })
                    .await?;
                told.insert(account.clone(), banners);
            }
        }
        wait(api, &mut changes, outlet, next).await?;
    }
}
