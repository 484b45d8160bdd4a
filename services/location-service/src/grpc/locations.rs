//! `keysweep.location.v2.LocationService`.

use keysweep_proto::location::v2;
use keysweep_proto::location::v2::location_service_server::LocationService;
use service_kit::violations::Violations;
use tonic::{Request, Response, Status};

use super::{Handler, asked, convert, next_token, open, paths, status};
use crate::app::{CreateLocation, ListLocations, UpdateLocation};

#[tonic::async_trait]
impl LocationService for Handler {
    async fn create_location(
        &self,
        request: Request<v2::CreateLocationRequest>,
    ) -> Result<Response<v2::Location>, Status> {
        let (call, message) = open(request);
        let profile = convert::location_profile(message.location.unwrap_or_default());
        let create = CreateLocation { agency_id: message.agency_id, profile, request_id: message.request_id };
        let view = self.app.create_location(&call, &create).await.map_err(status::of)?;
        Ok(Response::new(convert::location(view)))
    }

    async fn get_location(&self, request: Request<v2::GetLocationRequest>) -> Result<Response<v2::Location>, Status> {
        let (call, message) = open(request);
        let view = self.app.get_location(&call, &message.location_id).await.map_err(status::of)?;
        Ok(Response::new(convert::location(view)))
    }

    async fn list_locations(
        &self,
        request: Request<v2::ListLocationsRequest>,
    ) -> Result<Response<v2::ListLocationsResponse>, Status> {
        let (call, message) = open(request);
        let mut faults = Violations::default();
        let created = convert::created_range(message.start_create_time, message.end_create_time, &mut faults);
        let list = ListLocations {
            agency_id: message.agency_id,
            show_deleted: message.show_deleted,
            name_prefix: message.name_prefix,
            country: message.country,
            state: message.state,
            created,
            order_by: message.order_by,
        };
        let filter = format!("ListLocations {list:?}");
        let asked = asked(message.page_size, &message.page_token, &filter, faults);
        let listed = self.app.list_locations(&call, &list, asked).await.map_err(status::of)?;
        Ok(Response::new(v2::ListLocationsResponse {
            locations: listed.items.into_iter().map(convert::location).collect(),
            next_page_token: next_token(listed.next, &filter),
        }))
    }

    async fn update_location(
        &self,
        request: Request<v2::UpdateLocationRequest>,
    ) -> Result<Response<v2::Location>, Status> {
        let (call, message) = open(request);
        let location = message.location.unwrap_or_default();
        let change = UpdateLocation {
            location_id: location.location_id.clone(),
            etag: location.etag.clone(),
            profile: convert::location_profile(location),
            mask: paths(message.update_mask),
            request_id: message.request_id,
        };
        let view = self.app.update_location(&call, &change).await.map_err(status::of)?;
        Ok(Response::new(convert::location(view)))
    }

    async fn delete_location(
        &self,
        request: Request<v2::DeleteLocationRequest>,
    ) -> Result<Response<v2::Location>, Status> {
        let (call, m) = open(request);
        let view = self.app.delete_location(&call, &m.location_id, &m.etag, &m.request_id).await.map_err(status::of)?;
        Ok(Response::new(convert::location(view)))
    }

    async fn undelete_location(
        &self,
        request: Request<v2::UndeleteLocationRequest>,
    ) -> Result<Response<v2::Location>, Status> {
        let (call, m) = open(request);
        let undeleted = self.app.undelete_location(&call, &m.location_id, &m.etag, &m.request_id).await;
        Ok(Response::new(convert::location(undeleted.map_err(status::of)?)))
    }

    async fn generate_location_api_key(
        &self,
        request: Request<v2::GenerateLocationApiKeyRequest>,
    ) -> Result<Response<v2::GenerateLocationApiKeyResponse>, Status> {
        let (call, m) = open(request);
        let (wish, faults) = convert::wish(m.display_name, m.scopes, m.expire_time, m.allowed_cidrs, m.request_id);
        let key = self.app.generate_location_key(&call, &m.location_id, wish, faults).await.map_err(status::of)?;
        let (api_key, secret) = convert::generated(key);
        Ok(Response::new(v2::GenerateLocationApiKeyResponse { api_key: Some(api_key), secret }))
    }
}
