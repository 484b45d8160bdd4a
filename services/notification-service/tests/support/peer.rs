//! key-service and location-service as one recording server: it says what the test tells it, over real gRPC.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use chrono::{DateTime, TimeDelta, Utc};
use keysweep_proto::key::v1::sweep_event::Payload;
use keysweep_proto::key::v1::sweep_service_server::{SweepService, SweepServiceServer};
use keysweep_proto::key::v1::*;
use keysweep_proto::location::v2 as location;
use keysweep_proto::location::v2::user_service_server::{UserService, UserServiceServer};
use service_kit::clock::SharedClock;
use service_kit::status::StatusBuilder;
use service_kit::time::{duration_to_proto, from_proto, to_proto};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

struct Said {
    /// The time that it tells.
    clock: SharedClock,
    events: Vec<SweepEvent>,
    /// When each lot will be deleted.
    lots: BTreeMap<(String, String), DateTime<Utc>>,
    notices: Vec<StageNotice>,
    sent_at: Vec<Option<DateTime<Utc>>>,
    refuse: Option<String>,
    people: BTreeMap<String, Vec<location::NoticeRecipient>>,
    asked: Vec<usize>,
    /// Events before this one are gone.
    first: usize,
    /// Wakes the streams.
    grown: watch::Sender<()>,
}

/// The peers.
#[derive(Clone)]
pub struct Peer(Arc<Mutex<Said>>);

impl Peer {
    /// Peers that have said nothing yet and live in this time.
    pub fn new(clock: SharedClock) -> Self {
        Self(Arc::new(Mutex::new(Said {
            clock,
            events: Vec::new(),
            lots: BTreeMap::new(),
            notices: Vec::new(),
            sent_at: Vec::new(),
            refuse: None,
            people: BTreeMap::new(),
            asked: Vec::new(),
            first: 0,
            grown: watch::Sender::new(()),
        })))
    }
}

/// Leads of the stages in days.
fn lead(stage: NoticeStage) -> TimeDelta {
    TimeDelta::days(match stage {
        NoticeStage::Unspecified => 0,
        NoticeStage::D15 => 15,
        NoticeStage::D7 => 7,
        NoticeStage::D1 => 1,
    })
}

impl Peer {
    /// Serves on a free port, or on the one given.
    pub async fn serve(&self, at: Option<SocketAddr>, end: CancellationToken) -> SocketAddr {
        let listener =
            TcpListener::bind(at.unwrap_or_else(|| "127.0.0.1:0".parse().expect("an address"))).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = tonic::transport::Server::builder()
            .add_service(SweepServiceServer::new(self.clone()))
            .add_service(UserServiceServer::new(self.clone()));
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        tokio::spawn(async move {
            tokio::select! {
                served = server.serve_with_incoming(incoming) => served.expect("served"),
                () = end.cancelled() => {}
            }
        });
        address
    }

    fn said<T>(&self, read: impl FnOnce(&mut Said) -> T) -> T {
        read(&mut self.0.lock().expect("not poisoned"))
    }

    /// Something happens.
    pub fn event(&self, plan: &str, at: DateTime<Utc>, payload: Payload) {
        self.said(|said| push(said, plan, at, payload));
    }

    /// A plan is published and sealed, with these keys: (agency, location or empty, key).
    pub fn plan(&self, plan: &str, now: DateTime<Utc>, delete_at: DateTime<Utc>, keys: &[(&str, &str, &str)]) {
        self.event(plan, now, published(delete_at));
        for chunk in keys.chunks(1_000) {
            let entries = chunk.iter().map(|(agency, location, key)| entry(agency, location, key)).collect();
            self.event(plan, now, Payload::PlanEntries(PlanEntries { entries }));
        }
        let agencies: std::collections::BTreeSet<_> = keys.iter().map(|(agency, ..)| (*agency).to_owned()).collect();
        self.event(
            plan,
            now,
            Payload::PlanSealed(PlanSealed { entry_count: keys.len() as i64, lot_count: agencies.len() as i64 }),
        );
        self.said(|said| said.lots.extend(agencies.into_iter().map(|agency| ((plan.to_owned(), agency), delete_at))));
    }

    pub fn rescue(&self, plan: &str, at: DateTime<Utc>, agency: &str, key: &str) {
        let rescued = EntryRescued {
            agency_id: agency.into(),
            key_id: key.into(),
            cause: RescueCause::Used.into(),
            rescue_time: Some(to_proto(at)),
        };
        self.event(plan, at, Payload::EntryRescued(rescued));
    }

    /// Who works for an agency: agency admins.
    pub fn admin(&self, agency: &str, user: &str, email: &str) {
        let person = location::NoticeRecipient {
            user_id: user.into(),
            email: email.into(),
            first_name: "Ada".into(),
            last_name: user.into(),
            agency_admin: true,
            location_ids: Vec::new(),
        };
        self.said(|said| said.people.entry(agency.into()).or_default().push(person));
    }

    /// Who works for an agency: admins of its locations.
    pub fn location_admin(&self, agency: &str, user: &str, locations: &[&str]) {
        let person = location::NoticeRecipient {
            user_id: user.into(),
            email: format!("{user}@locations.example"),
            first_name: "Lo".into(),
            last_name: user.into(),
            agency_admin: false,
            location_ids: locations.iter().map(|&l| l.to_owned()).collect(),
        };
        self.said(|said| said.people.entry(agency.into()).or_default().push(person));
    }

    pub fn forget_people(&self, agency: &str) {
        self.said(|said| said.people.remove(agency));
    }

    /// From now on receipts are refused for this reason.
    pub fn refuse(&self, detail: &str) {
        self.said(|said| said.refuse = Some(detail.to_owned()));
    }

    /// Another history takes the place of this one; answers the old one.
    pub fn replace_history(&self, events: Vec<SweepEvent>) -> Vec<SweepEvent> {
        self.said(|said| {
            said.grown.send_replace(());
            std::mem::replace(&mut said.events, events)
        })
    }

    /// The first events are no longer kept.
    pub fn forget_events(&self, count: usize) {
        self.said(|said| said.first = count);
    }

    pub fn head(&self) -> i64 {
        self.said(|said| said.events.len() as i64)
    }

    pub fn notices(&self) -> Vec<StageNotice> {
        self.said(|said| said.notices.clone())
    }

    /// When each batch of receipts was sent.
    pub fn sent_at(&self) -> Vec<Option<DateTime<Utc>>> {
        self.said(|said| said.sent_at.clone())
    }

    /// How many locations each call for people asked about.
    pub fn asked(&self) -> Vec<usize> {
        self.said(|said| said.asked.clone())
    }

    pub fn delete_at(&self, plan: &str, agency: &str) -> DateTime<Utc> {
        self.said(|said| said.lots[&(plan.to_owned(), agency.to_owned())])
    }
}

fn push(said: &mut Said, plan: &str, at: DateTime<Utc>, payload: Payload) {
    let sequence = said.events.len() as i64 + 1;
    said.events.push(SweepEvent {
        sequence,
        event_time: Some(to_proto(at)),
        plan_id: plan.into(),
        payload: Some(payload),
    });
    said.grown.send_replace(());
}

pub fn published(delete_at: DateTime<Utc>) -> Payload {
    Payload::PlanPublished(PlanPublished {
        delete_time: Some(to_proto(delete_at)),
        idle_since_time: Some(to_proto(delete_at - TimeDelta::days(90))),
        last_delete_time: Some(to_proto(delete_at + TimeDelta::days(14))),
        stage_window: Some(duration_to_proto(TimeDelta::hours(6))),
    })
}

pub fn entry(agency: &str, location: &str, key: &str) -> Entry {
    let account = if location.is_empty() {
        owner::Account::AgencyId(agency.into())
    } else {
        owner::Account::Location(LocationRef { agency_id: agency.into(), location_id: location.into() })
    };
    Entry {
        key_id: key.into(),
        owner: Some(Owner { account: Some(account) }),
        display_name: format!("name of {key}"),
        display_prefix: "ksw_agy_Ab3x".into(),
        create_time: Some(to_proto("2024-03-03T09:30:00Z".parse::<DateTime<Utc>>().expect("an instant"))),
        idle_days: 120,
        state: EntryState::Planned.into(),
        ..Entry::default()
    }
}

#[tonic::async_trait]
impl SweepService for Peer {
    type SubscribeSweepPlansStream = ReceiverStream<Result<SubscribeSweepPlansResponse, Status>>;

    async fn subscribe_sweep_plans(
        &self,
        request: Request<SubscribeSweepPlansRequest>,
    ) -> Result<Response<Self::SubscribeSweepPlansStream>, Status> {
        assert_eq!(
            request.metadata().get("x-keysweep-actor").map(|v| v.as_bytes()),
            Some("service/notification-service".as_bytes())
        );
        let asked = request.into_inner();
        assert_eq!(asked.subscriber, "notification-service");
        let (head, first) = (self.head(), self.said(|said| said.first));
        if asked.after_sequence > head {
            return Err(StatusBuilder::new(Code::OutOfRange, "CURSOR_AHEAD", "the cursor is ahead").build());
        }
        let mut after = first.max(asked.after_sequence as usize);
        let (sender, receiver) = tokio::sync::mpsc::channel(16);
        let peer = self.clone();
        tokio::spawn(async move {
            let server_time = Some(to_proto(peer.said(|said| said.clock.now())));
            let heartbeat =
                SubscribeSweepPlansResponse { head_sequence: peer.head(), server_time, ..Default::default() };
            if sender.send(Ok(heartbeat)).await.is_err() {
                return;
            }
            let mut grown = peer.said(|said| said.grown.subscribe());
            loop {
                grown.mark_unchanged();
                let next = peer.said(|said| said.events.get(after).cloned());
                match next {
                    Some(event) => {
                        after += 1;
                        let message = SubscribeSweepPlansResponse {
                            event: Some(event),
                            head_sequence: peer.head(),
                            ..Default::default()
                        };
                        if sender.send(Ok(message)).await.is_err() {
                            return;
                        }
                    }
                    None => tokio::select! {
                        () = sender.closed() => return,
                        Ok(()) = grown.changed() => {}
                        else => return,
                    },
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    /// As key-service does it: a late receipt moves its lot, to the full hour.
    async fn acknowledge_notices(
        &self,
        request: Request<AcknowledgeNoticesRequest>,
    ) -> Result<Response<AcknowledgeNoticesResponse>, Status> {
        let AcknowledgeNoticesRequest { notices, send_time } = request.into_inner();
        let answer = self.said(|said| {
            said.sent_at.push(send_time.as_ref().and_then(from_proto));
            let mut results = Vec::new();
            for notice in notices {
                said.notices.push(notice.clone());
                let lot = (notice.plan_id.clone(), notice.agency_id.clone());
                let known = said.lots.get(&lot).copied();
                let (Some(delete_at), None) = (known, said.refuse.clone()) else {
                    let detail = said.refuse.clone().unwrap_or_else(|| "unknown lot".to_owned());
                    results.push(NoticeResult {
                        outcome: NoticeOutcome::Refused.into(),
                        detail,
                        ..NoticeResult::default()
                    });
                    continue;
                };
                let mut delete_at = delete_at;
                if let Some(delivered) = notice.deliver_time.as_ref().and_then(from_proto) {
                    let earliest = delivered + lead(notice.stage());
                    if earliest > delete_at {
                        let hour = 3_600;
                        let full = (earliest.timestamp() + hour - 1).div_euclid(hour) * hour;
                        let later = DateTime::from_timestamp(full, 0).expect("an instant");
                        let moved = LotRescheduled {
                            agency_id: notice.agency_id.clone(),
                            previous_delete_time: Some(to_proto(delete_at)),
                            delete_time: Some(to_proto(later)),
                            cause: notice.stage,
                        };
                        push(said, &notice.plan_id, delivered, Payload::LotRescheduled(moved));
                        delete_at = later;
                        said.lots.insert(lot, later);
                    }
                } else {
                    let at = to_proto(DateTime::UNIX_EPOCH);
                    let held = LotHeld {
                        agency_id: notice.agency_id.clone(),
                        hold_reason: notice.undeliverable,
                        reason: "nobody".into(),
                    };
                    push(said, &notice.plan_id, from_proto(&at).expect("an instant"), Payload::LotHeld(held));
                }
                results.push(NoticeResult {
                    outcome: NoticeOutcome::Recorded.into(),
                    delete_time: Some(to_proto(delete_at)),
                    ..NoticeResult::default()
                });
            }
            AcknowledgeNoticesResponse { results, head_sequence: said.events.len() as i64 }
        });
        Ok(Response::new(answer))
    }

    async fn get_sweep_plan(&self, _: Request<GetSweepPlanRequest>) -> Result<Response<SweepPlan>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list_sweep_plans(
        &self,
        _: Request<ListSweepPlansRequest>,
    ) -> Result<Response<ListSweepPlansResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list_lots(&self, _: Request<ListLotsRequest>) -> Result<Response<ListLotsResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list_entries(&self, _: Request<ListEntriesRequest>) -> Result<Response<ListEntriesResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn preview_sweep(&self, _: Request<PreviewSweepRequest>) -> Result<Response<PreviewSweepResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn confirm_plan(&self, _: Request<ConfirmPlanRequest>) -> Result<Response<SweepPlan>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn cancel_plan(&self, _: Request<CancelPlanRequest>) -> Result<Response<SweepPlan>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn hold_lot(&self, _: Request<HoldLotRequest>) -> Result<Response<Lot>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn release_lot(&self, _: Request<ReleaseLotRequest>) -> Result<Response<Lot>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl UserService for Peer {
    type ListNoticeRecipientsStream =
        tokio_stream::Iter<std::vec::IntoIter<Result<location::ListNoticeRecipientsResponse, Status>>>;

    async fn list_notice_recipients(
        &self,
        request: Request<location::ListNoticeRecipientsRequest>,
    ) -> Result<Response<Self::ListNoticeRecipientsStream>, Status> {
        let asked = request.into_inner();
        assert!(asked.location_ids.len() <= 10_000);
        let people = self.said(|said| {
            said.asked.push(asked.location_ids.len());
            said.people.get(&asked.agency_id).cloned()
        });
        let mut people = people.ok_or_else(|| Status::not_found("no such agency"))?;
        for person in &mut people {
            person.location_ids.retain(|l| asked.location_ids.binary_search(l).is_ok());
        }
        people.retain(|person| person.agency_admin || !person.location_ids.is_empty());
        let named: Vec<_> = asked
            .location_ids
            .iter()
            .map(|l| location::LocationName { location_id: l.clone(), name: format!("name of {l}") })
            .collect();
        let mut parts = vec![location::ListNoticeRecipientsResponse {
            agency_name: format!("name of {}", asked.agency_id),
            agency_time_zone: "Europe/Berlin".into(),
            ..Default::default()
        }];
        parts.extend(
            people
                .chunks(500)
                .map(|some| location::ListNoticeRecipientsResponse { recipients: some.to_vec(), ..Default::default() }),
        );
        parts.extend(named.chunks(500).map(|some| location::ListNoticeRecipientsResponse {
            location_names: some.to_vec(),
            ..Default::default()
        }));
        Ok(Response::new(tokio_stream::iter(parts.into_iter().map(Ok).collect::<Vec<_>>())))
    }

    async fn create_user(&self, _: Request<location::CreateUserRequest>) -> Result<Response<location::User>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn get_user(&self, _: Request<location::GetUserRequest>) -> Result<Response<location::User>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list_users(
        &self,
        _: Request<location::ListUsersRequest>,
    ) -> Result<Response<location::ListUsersResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn update_user(&self, _: Request<location::UpdateUserRequest>) -> Result<Response<location::User>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn delete_user(
        &self,
        _: Request<location::DeleteUserRequest>,
    ) -> Result<Response<location::DeleteUserResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}
