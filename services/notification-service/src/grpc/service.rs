//! `keysweep.notification.v1.NotificationService`.

use std::sync::Arc;

use keysweep_proto::notification::v1::notification_service_server::NotificationService;
use keysweep_proto::notification::v1::*;
use service_kit::actor::actor_of;
use service_kit::clock::{Clock, FollowingClock};
use service_kit::page;
use service_kit::violations::Violations;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::convert;
use super::guard::{ids, no_api_key, optional_id, own_inbox, required_id};
use super::watch;
use crate::app::error::CallError;
use crate::app::ports::{
    BannerStore, DeliveryFilter, DeliveryStore, InboxStore, ProjectionStore, ReceiptStore, Selection,
};
use crate::app::signals::Signals;
use crate::app::subscribe::SharedStatus;
use crate::domain::delivery::DeliveryState;
use crate::domain::ids::{AgencyId, DeliveryId, LocationId, UserId};

/// An inbox page carries up to 100 keys a notification.
const MAX_NOTIFICATIONS: u32 = 100;
/// Ids and locations in one call.
const MAX_IDS: usize = 1_000;
/// Characters of an operator's reason.
const MAX_REASON: usize = 500;

/// The service over its ports.
#[derive(Clone)]
pub struct NotificationApi {
    /// The inboxes.
    pub inbox: Arc<dyn InboxStore>,
    /// The banners.
    pub banners: Arc<dyn BannerStore>,
    /// The emails.
    pub deliveries: Arc<dyn DeliveryStore>,
    /// The receipts.
    pub receipts: Arc<dyn ReceiptStore>,
    /// The cursor.
    pub projection: Arc<dyn ProjectionStore>,
    /// The subscription.
    pub status: SharedStatus,
    /// What streams are woken by.
    pub signals: Arc<Signals>,
    /// The time.
    pub clock: Arc<FollowingClock>,
    /// Ends the streams.
    pub streams: CancellationToken,
}

impl std::fmt::Debug for NotificationApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NotificationApi").finish_non_exhaustive()
    }
}

#[tonic::async_trait]
impl NotificationService for NotificationApi {
    async fn list_notifications(
        &self,
        request: Request<ListNotificationsRequest>,
    ) -> Result<Response<ListNotificationsResponse>, Status> {
        let actor = actor_of(&request);
        let asked = request.into_inner();
        let mut faults = Violations::default();
        required_id(&mut faults, "user_id", &asked.user_id);
        faults.into_result().map_err(CallError::from)?;
        own_inbox(actor.as_ref(), &asked.user_id)?;
        let filter = format!("ListNotifications {} {}", asked.user_id, asked.unread_only);
        let page = page::decode(asked.page_size, &asked.page_token, &filter).map_err(CallError::from)?;
        // A cursor is a position of ours; a token with another one was not issued here.
        let before = page
            .cursor
            .map(|cursor| cursor.parse::<i64>())
            .transpose()
            .map_err(|_| CallError::Page(page::PageError::ForeignToken))?;
        let user = UserId::from(asked.user_id);
        let found = self
            .inbox
            .list(&user, asked.unread_only, before, page.size.min(MAX_NOTIFICATIONS))
            .await
            .map_err(CallError::from)?;
        let last = found.notifications.last().filter(|_| found.more);
        let next_page_token = last.map_or(String::new(), |last| page::encode(&last.sequence.to_string(), &filter));
        let now = self.clock.now();
        Ok(Response::new(ListNotificationsResponse {
            notifications: found.notifications.into_iter().map(|one| convert::notification(one, now)).collect(),
            unread_count: found.unread,
            next_page_token,
        }))
    }

    type WatchNotificationsStream = ReceiverStream<Result<WatchNotificationsResponse, Status>>;

    async fn watch_notifications(
        &self,
        request: Request<WatchNotificationsRequest>,
    ) -> Result<Response<Self::WatchNotificationsStream>, Status> {
        let actor = actor_of(&request);
        let asked = request.into_inner();
        let mut faults = Violations::default();
        required_id(&mut faults, "user_id", &asked.user_id);
        optional_id(&mut faults, "after_notification_id", &asked.after_notification_id);
        faults.into_result().map_err(CallError::from)?;
        own_inbox(actor.as_ref(), &asked.user_id)?;
        let user = UserId::from(asked.user_id);
        let after = if asked.after_notification_id.is_empty() {
            self.inbox.head().await.map_err(CallError::from)?
        } else {
            let id = asked.after_notification_id.as_str().into();
            let position = self.inbox.position(&user, &id).await.map_err(CallError::from)?;
            position.ok_or(CallError::NotificationNotFound(id))?
        };
        Ok(Response::new(watch::inbox(self.clone(), user, after)))
    }

    async fn mark_notifications_read(
        &self,
        request: Request<MarkNotificationsReadRequest>,
    ) -> Result<Response<MarkNotificationsReadResponse>, Status> {
        let actor = actor_of(&request);
        let asked = request.into_inner();
        let mut faults = Violations::default();
        required_id(&mut faults, "user_id", &asked.user_id);
        ids(&mut faults, "notification_ids", &asked.notification_ids, MAX_IDS);
        if asked.all != asked.notification_ids.is_empty() {
            faults.push("notification_ids", "must be given, or all be set, but not both");
        }
        faults.check_request_id("request_id", &asked.request_id);
        faults.into_result().map_err(CallError::from)?;
        own_inbox(actor.as_ref(), &asked.user_id)?;
        let selection = if asked.all {
            Selection::All
        } else {
            Selection::Ids(asked.notification_ids.into_iter().map(Into::into).collect())
        };
        let user = UserId::from(asked.user_id);
        let marked = self
            .inbox
            .mark_read(&user, &selection, &asked.request_id, self.clock.now())
            .await
            .map_err(CallError::from)?;
        self.signals.inbox_changed();
        Ok(Response::new(MarkNotificationsReadResponse { marked_count: marked.marked, unread_count: marked.unread }))
    }

    async fn list_banners(
        &self,
        request: Request<ListBannersRequest>,
    ) -> Result<Response<ListBannersResponse>, Status> {
        no_api_key(actor_of(&request).as_ref())?;
        let asked = request.into_inner();
        let (agency, locations) = accounts(asked.agency_id, asked.location_ids)?;
        let found = self.banners.banners(&agency, &locations, self.clock.now()).await.map_err(CallError::from)?;
        Ok(Response::new(ListBannersResponse { banners: found.into_iter().map(convert::banner).collect() }))
    }

    type WatchBannersStream = ReceiverStream<Result<WatchBannersResponse, Status>>;

    async fn watch_banners(
        &self,
        request: Request<WatchBannersRequest>,
    ) -> Result<Response<Self::WatchBannersStream>, Status> {
        no_api_key(actor_of(&request).as_ref())?;
        let asked = request.into_inner();
        let (agency, locations) = accounts(asked.agency_id, asked.location_ids)?;
        Ok(Response::new(watch::banners(self.clone(), agency, locations)))
    }

    async fn list_deliveries(
        &self,
        request: Request<ListDeliveriesRequest>,
    ) -> Result<Response<ListDeliveriesResponse>, Status> {
        no_api_key(actor_of(&request).as_ref())?;
        let asked = request.into_inner();
        let mut faults = Violations::default();
        optional_id(&mut faults, "plan_id", &asked.plan_id);
        optional_id(&mut faults, "agency_id", &asked.agency_id);
        let state: Option<DeliveryState> = convert::state_filter(asked.state).unwrap_or_else(|()| {
            faults.push("state", "is not a state of deliveries");
            None
        });
        faults.into_result().map_err(CallError::from)?;
        let names = format!("ListDeliveries {} {} {}", asked.plan_id, asked.agency_id, asked.state);
        let page = page::decode(asked.page_size, &asked.page_token, &names).map_err(CallError::from)?;
        let filter = DeliveryFilter {
            plan_id: Some(asked.plan_id).filter(|id| !id.is_empty()).map(Into::into),
            agency_id: Some(asked.agency_id).filter(|id| !id.is_empty()).map(Into::into),
            state,
        };
        let (found, more) = self
            .deliveries
            .list(&filter, page.cursor.as_deref(), page.size, self.clock.now())
            .await
            .map_err(CallError::from)?;
        let last = found.last().filter(|_| more);
        let next_page_token = last.map_or(String::new(), |last| page::encode(last.id.as_str(), &names));
        Ok(Response::new(ListDeliveriesResponse {
            deliveries: found.into_iter().map(convert::delivery).collect(),
            next_page_token,
        }))
    }

    async fn retry_delivery(&self, request: Request<RetryDeliveryRequest>) -> Result<Response<Delivery>, Status> {
        let actor = actor_of(&request);
        no_api_key(actor.as_ref())?;
        let asked = request.into_inner();
        let mut faults = Violations::default();
        required_id(&mut faults, "delivery_id", &asked.delivery_id);
        faults.check_text("reason", &asked.reason, MAX_REASON);
        faults.check_request_id("request_id", &asked.request_id);
        faults.into_result().map_err(CallError::from)?;
        let id = DeliveryId::from(asked.delivery_id);
        let retried = self.deliveries.retry(&id, &asked.request_id, self.clock.now()).await;
        let retried = retried.map_err(|error| CallError::of_retry(error, id.clone()))?;
        let actor = actor.map_or_else(String::new, |actor| actor.to_string());
        tracing::info!(delivery_id = %id, actor, reason = asked.reason, "delivery retried by an operator");
        Ok(Response::new(convert::delivery(retried)))
    }

    async fn get_subscription(&self, _: Request<GetSubscriptionRequest>) -> Result<Response<Subscription>, Status> {
        let owed = self.receipts.count().await.map_err(CallError::from)?;
        let applied = self.projection.cursor().await.map_err(CallError::from)?.sequence;
        let time = self.clock.follows().then(|| self.clock.now());
        Ok(Response::new(convert::subscription(self.status.get(), applied, owed, time)))
    }
}

fn accounts(agency_id: String, location_ids: Vec<String>) -> Result<(AgencyId, Vec<LocationId>), CallError> {
    let mut faults = Violations::default();
    required_id(&mut faults, "agency_id", &agency_id);
    ids(&mut faults, "location_ids", &location_ids, MAX_IDS);
    faults.into_result()?;
    let mut locations: Vec<LocationId> = location_ids.into_iter().map(Into::into).collect();
    locations.sort();
    locations.dedup();
    Ok((agency_id.into(), locations))
}
