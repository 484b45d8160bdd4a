//! `envoy.service.auth.v3.Authorization`: the verification of keys for Envoy, Istio and every gateway that speaks
//! ext_authz. It answers as `VerifyKey` does, in words of HTTP.
//!
//! An empty `CheckResponse` admits. So every answer comes from [`answer`], which admits in one place alone, and only with
//! the key that was verified. What fails is a denial too, not an error of the call: a gateway that was told to admit
//! when its authorization fails admits nothing that was decided here. What the server ends for want of time or places is
//! an error of the call.

mod answer;
mod credential;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;
mod question;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use keysweep_proto::envoy::service::auth::v3::authorization_server::{Authorization, AuthorizationServer};
use keysweep_proto::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use tonic::{Request, Response, Status};

use self::answer::Denial;
use self::question::Question;
use super::status::key_status;
use crate::app::verify::Verifier;

/// The headers of a request with room to spare, and not its body.
const MAX_REQUEST_BYTES: usize = 256 * 1024;

/// The service over the verification of keys.
#[derive(Debug)]
pub struct ExtAuthz {
    verifier: Arc<Verifier>,
}

impl ExtAuthz {
    /// The service, ready to be added to a server.
    pub fn server(verifier: Arc<Verifier>) -> AuthorizationServer<Self> {
        AuthorizationServer::new(Self { verifier }).max_decoding_message_size(MAX_REQUEST_BYTES)
    }

    async fn decide(&self, request: CheckRequest) -> Result<CheckResponse, Denial> {
        let Question { headers, presented } = Question::read(request)?;
        let secret = credential::take(&headers)?;
        let verification =
            self.verifier.verify(&secret, &presented).await.map_err(|error| Denial::failed(&key_status(error)))?;
        answer::verified(verification, &headers)
    }
}

#[tonic::async_trait]
impl Authorization for ExtAuthz {
    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        Ok(Response::new(self.decide(request.into_inner()).await.unwrap_or_else(Denial::into_response)))
    }
}
