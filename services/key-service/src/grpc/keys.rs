//! `keysweep.key.v1.KeyService`.

use std::sync::Arc;

use keysweep_proto::key::v1 as proto;
use keysweep_proto::key::v1::key_service_server::{KeyService, KeyServiceServer};
use service_kit::context::{self, RequestContext};
use service_kit::page;
use service_kit::server::GrpcServer;
use service_kit::status::{invalid_fields, page_error};
use service_kit::violations::Violations;
use tonic::{Request, Response, Status, Streaming};

use super::convert::{event_to_proto, key_to_proto, verification_to_proto};
use super::requests::{self, BadRequest};
use super::status::{key_status, storage_status};
use crate::app::Caller;
use crate::app::audit::Audit;
use crate::app::keys::{Issued, Keys};
use crate::app::verify::Verifier;
use crate::domain::audit::Origin;

/// What one request may weigh. No valid one comes near it.
const MAX_REQUEST_BYTES: usize = 32 * 1024;
/// What one chunk of an import may weigh: a thousand rows with room to spare.
const MAX_CHUNK_BYTES: usize = 4 * 1024 * 1024;

/// The service over the use cases of keys and of the audit.
#[derive(Debug)]
pub struct KeyApi {
    keys: Arc<Keys>,
    verifier: Arc<Verifier>,
    audit: Arc<Audit>,
}

impl KeyApi {
    /// The service.
    pub fn new(keys: Arc<Keys>, verifier: Arc<Verifier>, audit: Arc<Audit>) -> Self {
        Self { keys, verifier, audit }
    }

    /// Adds it to a server.
    pub fn register(self, server: GrpcServer) -> GrpcServer {
        let api = Arc::new(self);
        let taking = |bytes| KeyServiceServer::from_arc(api.clone()).max_decoding_message_size(bytes);
        server.add_service(taking(MAX_REQUEST_BYTES)).add_method("ImportApiKeys", taking(MAX_CHUNK_BYTES))
    }

    fn key(&self, key: crate::domain::key::ApiKey) -> proto::ApiKey {
        key_to_proto(key, self.keys.as_of())
    }
}

fn caller<T>(request: &Request<T>) -> Caller {
    let RequestContext { actor, request_id, caller, peer, .. } = context::of(request);
    Caller { actor, call_id: request_id.to_string(), origin: Origin { caller, peer } }
}

pub(super) fn invalid(faults: Violations) -> Status {
    invalid_fields(&faults)
}

pub(super) fn bad(request: BadRequest) -> Status {
    match request {
        BadRequest::Fields(faults) => invalid_fields(&faults),
        BadRequest::Page(error) => page_error(error),
    }
}

fn key_id(key_id: String) -> Result<String, Status> {
    let mut faults = Violations::default();
    let key_id = requests::required_id(key_id, "key_id", &mut faults);
    faults.into_result().map_err(invalid)?;
    Ok(key_id)
}

/// Empty where the key has ended since the call was first made.
fn shown(issued: &Issued) -> String {
    issued.secret.as_ref().map(|secret| secret.expose().to_owned()).unwrap_or_default()
}

fn next_token(cursor: Option<String>, list: &str) -> String {
    cursor.map(|cursor| page::encode(&cursor, list)).unwrap_or_default()
}

#[tonic::async_trait]
impl KeyService for KeyApi {
    async fn generate_api_key(
        &self,
        request: Request<proto::GenerateApiKeyRequest>,
    ) -> Result<Response<proto::GenerateApiKeyResponse>, Status> {
        let caller = caller(&request);
        caller.person().map_err(key_status)?;
        let command = requests::generate(request.into_inner(), self.keys.as_of()).map_err(invalid)?;
        let issued = self.keys.generate(&caller, &command).await.map_err(key_status)?;
        let secret = shown(&issued);
        Ok(Response::new(proto::GenerateApiKeyResponse { api_key: Some(self.key(issued.key)), secret }))
    }

    async fn verify_key(
        &self,
        request: Request<proto::VerifyKeyRequest>,
    ) -> Result<Response<proto::VerifyKeyResponse>, Status> {
        let (secret, presented) = requests::verify(request.into_inner()).map_err(invalid)?;
        let verification = self.verifier.verify(&secret, &presented).await.map_err(key_status)?;
        Ok(Response::new(verification_to_proto(verification)))
    }

    async fn get_api_key(&self, request: Request<proto::GetApiKeyRequest>) -> Result<Response<proto::ApiKey>, Status> {
        let key_id = key_id(request.into_inner().key_id)?;
        let key = self.keys.get(&key_id).await.map_err(key_status)?;
        Ok(Response::new(self.key(key)))
    }

    async fn list_api_keys(
        &self,
        request: Request<proto::ListApiKeysRequest>,
    ) -> Result<Response<proto::ListApiKeysResponse>, Status> {
        let (filter, page, name) = requests::list_keys(request.get_ref()).map_err(bad)?;
        let (keys, next) = self.keys.list(&filter, &page).await.map_err(key_status)?;
        Ok(Response::new(proto::ListApiKeysResponse {
            api_keys: keys.into_iter().map(|key| self.key(key)).collect(),
            next_page_token: next_token(next, &name),
        }))
    }

    async fn update_api_key(
        &self,
        request: Request<proto::UpdateApiKeyRequest>,
    ) -> Result<Response<proto::ApiKey>, Status> {
        let caller = caller(&request);
        caller.person_or_service().map_err(key_status)?;
        let command = requests::update(request.into_inner(), self.keys.as_of()).map_err(invalid)?;
        let key = self.keys.update(&caller, &command).await.map_err(key_status)?;
        Ok(Response::new(self.key(key)))
    }

    async fn reveal_key(
        &self,
        request: Request<proto::RevealKeyRequest>,
    ) -> Result<Response<proto::RevealKeyResponse>, Status> {
        let caller = caller(&request);
        caller.person().map_err(key_status)?;
        let key_id = key_id(request.into_inner().key_id)?;
        let issued = self.keys.reveal(&caller, &key_id).await.map_err(key_status)?;
        let secret = shown(&issued);
        Ok(Response::new(proto::RevealKeyResponse { api_key: Some(self.key(issued.key)), secret }))
    }

    async fn rotate_api_key(
        &self,
        request: Request<proto::RotateApiKeyRequest>,
    ) -> Result<Response<proto::RotateApiKeyResponse>, Status> {
        let caller = caller(&request);
        caller.person().map_err(key_status)?;
        let command = requests::rotate(request.into_inner()).map_err(invalid)?;
        let rotated = self.keys.rotate(&caller, &command).await.map_err(key_status)?;
        let secret = shown(&rotated.successor);
        Ok(Response::new(proto::RotateApiKeyResponse {
            api_key: Some(self.key(rotated.successor.key)),
            secret,
            rotated_key: Some(self.key(rotated.retired)),
        }))
    }

    async fn revoke_api_key(
        &self,
        request: Request<proto::RevokeApiKeyRequest>,
    ) -> Result<Response<proto::ApiKey>, Status> {
        let caller = caller(&request);
        caller.person().map_err(key_status)?;
        let command = requests::revoke(request.into_inner()).map_err(invalid)?;
        let key = self.keys.revoke(&caller, &command).await.map_err(key_status)?;
        Ok(Response::new(self.key(key)))
    }

    async fn import_api_keys(
        &self,
        request: Request<Streaming<proto::ImportApiKeysRequest>>,
    ) -> Result<Response<proto::ImportApiKeysResponse>, Status> {
        let caller = caller(&request);
        super::import::import(&self.keys, &caller, request.into_inner()).await.map(Response::new)
    }

    async fn list_audit_events(
        &self,
        request: Request<proto::ListAuditEventsRequest>,
    ) -> Result<Response<proto::ListAuditEventsResponse>, Status> {
        let (filter, page, name) = requests::list_events(request.get_ref()).map_err(bad)?;
        let listed = self.audit.list(&filter, &page).await.map_err(|error| storage_status(&error))?;
        let (events, next) = listed.ok_or_else(|| page_error(page::PageError::ForeignToken))?;
        Ok(Response::new(proto::ListAuditEventsResponse {
            audit_events: events.into_iter().map(event_to_proto).collect(),
            next_page_token: next_token(next, &name),
        }))
    }

    async fn verify_audit_chain(
        &self,
        _: Request<proto::VerifyAuditChainRequest>,
    ) -> Result<Response<proto::VerifyAuditChainResponse>, Status> {
        let proof = self.audit.verify(None).await.map_err(|error| storage_status(&error))?;
        Ok(Response::new(proto::VerifyAuditChainResponse {
            intact: proof.first_broken.is_none(),
            checked_count: proof.checked,
            first_broken_sequence: proof.first_broken.unwrap_or(0),
            head_hash: if proof.head.sequence == 0 { vec![] } else { proof.head.hash.to_vec() },
        }))
    }
}
