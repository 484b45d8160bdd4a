//! `keysweep.location.v2.AgencyService`.

use keysweep_proto::location::v2;
use keysweep_proto::location::v2::agency_service_server::AgencyService;
use service_kit::violations::Violations;
use tonic::{Request, Response, Status};

use super::{Handler, asked, convert, next_token, open, paths, status};
use crate::app::{ChooseSecurity, ListAgencies, UpdateAgency};

#[tonic::async_trait]
impl AgencyService for Handler {
    async fn create_agency(&self, request: Request<v2::CreateAgencyRequest>) -> Result<Response<v2::Agency>, Status> {
        let (call, message) = open(request);
        let profile = convert::agency_profile(message.agency.unwrap_or_default());
        let agency = self.app.create_agency(&call, profile, &message.request_id).await.map_err(status::of)?;
        Ok(Response::new(convert::agency(agency)))
    }

    async fn get_agency(&self, request: Request<v2::GetAgencyRequest>) -> Result<Response<v2::Agency>, Status> {
        let (call, message) = open(request);
        let agency = self.app.get_agency(&call, &message.agency_id).await.map_err(status::of)?;
        Ok(Response::new(convert::agency(agency)))
    }

    async fn list_agencies(
        &self,
        request: Request<v2::ListAgenciesRequest>,
    ) -> Result<Response<v2::ListAgenciesResponse>, Status> {
        let (call, message) = open(request);
        let mut faults = Violations::default();
        let created = convert::created_range(message.start_create_time, message.end_create_time, &mut faults);
        let list = ListAgencies { name_prefix: message.name_prefix, created, order_by: message.order_by };
        let filter = format!("ListAgencies {list:?}");
        let asked = asked(message.page_size, &message.page_token, &filter, faults);
        let listed = self.app.list_agencies(&call, &list, asked).await.map_err(status::of)?;
        Ok(Response::new(v2::ListAgenciesResponse {
            agencies: listed.items.into_iter().map(convert::agency).collect(),
            next_page_token: next_token(listed.next, &filter),
        }))
    }

    async fn update_agency(&self, request: Request<v2::UpdateAgencyRequest>) -> Result<Response<v2::Agency>, Status> {
        let (call, message) = open(request);
        let agency = message.agency.unwrap_or_default();
        let change = UpdateAgency {
            agency_id: agency.agency_id.clone(),
            etag: agency.etag.clone(),
            profile: convert::agency_profile(agency),
            mask: paths(message.update_mask),
            request_id: message.request_id,
        };
        let agency = self.app.update_agency(&call, &change).await.map_err(status::of)?;
        Ok(Response::new(convert::agency(agency)))
    }

    async fn generate_agency_api_key(
        &self,
        request: Request<v2::GenerateAgencyApiKeyRequest>,
    ) -> Result<Response<v2::GenerateAgencyApiKeyResponse>, Status> {
        let (call, m) = open(request);
        let (wish, faults) = convert::wish(m.display_name, m.scopes, m.expire_time, m.allowed_cidrs, m.request_id);
        let key = self.app.generate_agency_key(&call, &m.agency_id, wish, faults).await.map_err(status::of)?;
        let (api_key, secret) = convert::generated(key);
        Ok(Response::new(v2::GenerateAgencyApiKeyResponse { api_key: Some(api_key), secret }))
    }

    async fn get_security_settings(
        &self,
        request: Request<v2::GetSecuritySettingsRequest>,
    ) -> Result<Response<v2::SecuritySettings>, Status> {
        let (call, message) = open(request);
        let setting = self.app.security_setting(&call, &message.agency_id).await.map_err(status::of)?;
        Ok(Response::new(convert::setting(message.agency_id, setting)))
    }

    async fn update_security_settings(
        &self,
        request: Request<v2::UpdateSecuritySettingsRequest>,
    ) -> Result<Response<v2::SecuritySettings>, Status> {
        let (call, message) = open(request);
        let choose = ChooseSecurity {
            agency_id: message.agency_id,
            enabled: message.enhanced_account_security,
            acknowledge_risk: message.acknowledge_risk,
            request_id: message.request_id,
        };
        let setting = self.app.choose_security(&call, &choose).await.map_err(status::of)?;
        Ok(Response::new(convert::setting(choose.agency_id, setting)))
    }
}
