//! `keysweep.key.v1.SweepService`: parse, call the use case, convert.

mod convert;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod parse;
mod status;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use keysweep_proto::key::v1::sweep_service_server::{SweepService as Contract, SweepServiceServer};
use keysweep_proto::key::v1::{
    AcknowledgeNoticesRequest, AcknowledgeNoticesResponse, CancelPlanRequest, ConfirmPlanRequest, GetSweepPlanRequest,
    HoldLotRequest, ListEntriesRequest, ListEntriesResponse, ListLotsRequest, ListLotsResponse, ListSweepPlansRequest,
    ListSweepPlansResponse, Lot, PreviewSweepRequest, PreviewSweepResponse, ReleaseLotRequest,
    SubscribeSweepPlansRequest, SweepPlan,
};
use service_kit::page;
use service_kit::server::GrpcServer;
use service_kit::time::to_proto;
use service_kit::violations::Violations;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::keys::{bad, invalid};
use super::requests::{self, required_id};
use crate::app::sweep::{EntryFilter, LotFilter, OperatorCall, PlanFilter, SweepError, SweepService};
use crate::domain::audit::Origin;
use crate::domain::sweep::schedule::idle_since;

/// What one request may weigh. No valid one comes near it.
const MAX_REQUEST_BYTES: usize = 32 * 1024;
/// What a request with the notices of a thousand lots may weigh.
const MAX_NOTICES_BYTES: usize = 512 * 1024;

/// SweepService over the use cases.
#[derive(Debug, Clone)]
pub struct SweepGrpc {
    sweep: SweepService,
    streams: CancellationToken,
}

impl SweepGrpc {
    /// The service; its streams end, each with a resume point, when `streams` is cancelled.
    #[must_use]
    pub fn new(sweep: SweepService, streams: CancellationToken) -> Self {
        Self { sweep, streams }
    }

    /// Adds it to a server.
    pub fn register(self, server: GrpcServer) -> GrpcServer {
        let api = Arc::new(self);
        let taking = |bytes| SweepServiceServer::from_arc(api.clone()).max_decoding_message_size(bytes);
        server.add_service(taking(MAX_REQUEST_BYTES)).add_method("AcknowledgeNotices", taking(MAX_NOTICES_BYTES))
    }
}

fn fail(error: SweepError) -> Status {
    status::of(&error)
}

/// The page asked for, if nothing else is at fault.
fn page_of(size: i32, token: &str, filter: &str, faults: Violations) -> Result<page::Page, Status> {
    requests::page(size, token, filter, faults).map_err(bad)
}

fn next_token(cursor: Option<String>, filter: &str) -> String {
    cursor.map(|cursor| page::encode(&cursor, filter)).unwrap_or_default()
}

/// An operator's call, with who makes it.
fn operator<T>(request: &Request<T>, reason: &str, request_id: &str) -> OperatorCall {
    let context = service_kit::context::of(request);
    OperatorCall {
        actor: context.actor,
        reason: reason.to_owned(),
        request_id: request_id.to_owned(),
        call_id: context.request_id.to_string(),
        origin: Origin { caller: context.caller, peer: context.peer },
    }
}

#[tonic::async_trait]
impl Contract for SweepGrpc {
    type SubscribeSweepPlansStream = stream::EventStream;

    async fn subscribe_sweep_plans(
        &self,
        request: Request<SubscribeSweepPlansRequest>,
    ) -> Result<Response<Self::SubscribeSweepPlansStream>, Status> {
        let request = request.into_inner();
        parse::subscription(&request).map_err(fail)?;
        let wake = self.sweep.signal().listen();
        let SubscribeSweepPlansRequest { subscriber, after_sequence, history_id } = request;
        let place = self.sweep.subscribe(&subscriber, after_sequence, &history_id).await.map_err(fail)?;
        tracing::info!(subscriber, after = place.after, head = place.head, "sweep plans subscribed");
        let events = stream::events(self.sweep.clone(), self.streams.clone(), wake, place, stream::HEARTBEAT);
        Ok(Response::new(events))
    }

    async fn acknowledge_notices(
        &self,
        request: Request<AcknowledgeNoticesRequest>,
    ) -> Result<Response<AcknowledgeNoticesResponse>, Status> {
        let (notices, sent_at) = parse::notices(request.into_inner()).map_err(fail)?;
        let (results, head_sequence) = self.sweep.acknowledge(&notices, sent_at).await.map_err(fail)?;
        let results = results.into_iter().map(convert::notice_result).collect();
        Ok(Response::new(AcknowledgeNoticesResponse { results, head_sequence }))
    }

    async fn get_sweep_plan(&self, request: Request<GetSweepPlanRequest>) -> Result<Response<SweepPlan>, Status> {
        let plan_id = request.into_inner().plan_id;
        let mut faults = Violations::default();
        let plan_id = required_id(plan_id, "plan_id", &mut faults);
        faults.into_result().map_err(invalid)?;
        let plan = self.sweep.plan(&plan_id).await.map_err(fail)?;
        Ok(Response::new(convert::plan(plan)))
    }

    async fn list_sweep_plans(
        &self,
        request: Request<ListSweepPlansRequest>,
    ) -> Result<Response<ListSweepPlansResponse>, Status> {
        let request = request.into_inner();
        let mut faults = Violations::default();
        let state = parse::plan_state(request.state, &mut faults);
        let tag = format!("sweep_plans|{}", request.state);
        let page = page_of(request.page_size, &request.page_token, &tag, faults)?;
        let (plans, next) = self.sweep.plans(PlanFilter { state }, &page).await.map_err(fail)?;
        Ok(Response::new(ListSweepPlansResponse {
            sweep_plans: plans.into_iter().map(convert::plan).collect(),
            next_page_token: next_token(next, &tag),
        }))
    }

    async fn list_lots(&self, request: Request<ListLotsRequest>) -> Result<Response<ListLotsResponse>, Status> {
        let request = request.into_inner();
        let mut faults = Violations::default();
        let plan_id = required_id(request.plan_id, "plan_id", &mut faults);
        let state = parse::lot_state(request.state, &mut faults);
        let tag = format!("lots|{}|{plan_id}", request.state);
        let page = page_of(request.page_size, &request.page_token, &tag, faults)?;
        let filter = LotFilter { plan_id, state };
        let (lots, next) = self.sweep.lots(&filter, &page).await.map_err(fail)?;
        Ok(Response::new(ListLotsResponse {
            lots: lots.into_iter().map(convert::lot).collect(),
            next_page_token: next_token(next, &tag),
        }))
    }

    async fn list_entries(
        &self,
        request: Request<ListEntriesRequest>,
    ) -> Result<Response<ListEntriesResponse>, Status> {
        let request = request.into_inner();
        let mut faults = Violations::default();
        let plan_id = required_id(request.plan_id, "plan_id", &mut faults);
        let state = parse::entry_state(request.state, &mut faults);
        let tag = format!("entries|{}|{plan_id}|{}", request.state, request.agency_id);
        let page = page_of(request.page_size, &request.page_token, &tag, faults)?;
        let agency_id = Some(request.agency_id).filter(|id| !id.is_empty());
        let filter = EntryFilter { plan_id, agency_id, state };
        let (delete_at, (entries, next)) = self.sweep.entries(&filter, &page).await.map_err(fail)?;
        Ok(Response::new(ListEntriesResponse {
            entries: entries.into_iter().map(|entry| convert::entry(entry, delete_at)).collect(),
            next_page_token: next_token(next, &tag),
        }))
    }

    async fn preview_sweep(
        &self,
        request: Request<PreviewSweepRequest>,
    ) -> Result<Response<PreviewSweepResponse>, Status> {
        let request = request.into_inner();
        let mut faults = Violations::default();
        let as_of = parse::as_of(request.as_of_time.as_ref(), &mut faults).unwrap_or_else(|| self.sweep.next_sweep());
        let tag = format!("preview|{}|{}", as_of.timestamp_micros(), request.agency_id);
        let page = page_of(request.page_size, &request.page_token, &tag, faults)?;
        let agency_id = Some(request.agency_id).filter(|id| !id.is_empty());
        let (totals, (entries, next)) = self.sweep.preview(as_of, agency_id, &page).await.map_err(fail)?;
        let (totals, above_breaker) = totals.unwrap_or_default();
        Ok(Response::new(PreviewSweepResponse {
            as_of_time: Some(to_proto(as_of)),
            idle_since_time: Some(to_proto(idle_since(as_of))),
            total_key_count: totals.listed,
            active_key_count: totals.active,
            above_breaker,
            agency_totals: totals.agencies.into_iter().map(convert::agency_total).collect(),
            entries: entries.into_iter().map(|entry| convert::entry(entry, as_of)).collect(),
            next_page_token: next_token(next, &tag),
            last_plan: totals.last_plan.map(convert::comparison),
        }))
    }

    async fn confirm_plan(&self, request: Request<ConfirmPlanRequest>) -> Result<Response<SweepPlan>, Status> {
        let call = operator(&request, &request.get_ref().reason, &request.get_ref().request_id);
        let plan_id = request.into_inner().plan_id;
        let plan = self.sweep.confirm_plan(&plan_id, call).await.map_err(fail)?;
        Ok(Response::new(convert::plan(plan)))
    }

    async fn cancel_plan(&self, request: Request<CancelPlanRequest>) -> Result<Response<SweepPlan>, Status> {
        let call = operator(&request, &request.get_ref().reason, &request.get_ref().request_id);
        let plan_id = request.into_inner().plan_id;
        let plan = self.sweep.cancel_plan(&plan_id, call).await.map_err(fail)?;
        Ok(Response::new(convert::plan(plan)))
    }

    async fn hold_lot(&self, request: Request<HoldLotRequest>) -> Result<Response<Lot>, Status> {
        let call = operator(&request, &request.get_ref().reason, &request.get_ref().request_id);
        let HoldLotRequest { plan_id, agency_id, .. } = request.into_inner();
        let lot = self.sweep.hold_lot(&plan_id, &agency_id, call).await.map_err(fail)?;
        Ok(Response::new(convert::lot(lot)))
    }

    async fn release_lot(&self, request: Request<ReleaseLotRequest>) -> Result<Response<Lot>, Status> {
        let call = operator(&request, &request.get_ref().reason, &request.get_ref().request_id);
        let ReleaseLotRequest { plan_id, agency_id, .. } = request.into_inner();
        let lot = self.sweep.release_lot(&plan_id, &agency_id, call).await.map_err(fail)?;
        Ok(Response::new(convert::lot(lot)))
    }
}
