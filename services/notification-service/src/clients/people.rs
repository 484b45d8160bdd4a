//! location-service: who is to be told.

use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, stream};
use keysweep_proto::location::v2::ListNoticeRecipientsRequest;
use keysweep_proto::location::v2::user_service_client::UserServiceClient;
use service_kit::client::{Peer, retrying};

use super::{convert, request};
use crate::app::ports::{PeerError, RecipientSource, RecipientStream};
use crate::domain::ids::{AgencyId, LocationId};

/// 500 people, each with up to 1,000 locations, stay below this.
const MAX_MESSAGE_BYTES: usize = 32 * 1024 * 1024;

/// location-service.
#[derive(Clone, Debug)]
pub struct People {
    client: UserServiceClient<Peer>,
    timeout: Duration,
}

impl People {
    /// location-service and its replicas. `timeout` bounds the wait for each message.
    pub fn new(peer: Peer, timeout: Duration) -> Self {
        Self { client: UserServiceClient::new(peer).max_decoding_message_size(MAX_MESSAGE_BYTES), timeout }
    }
}

#[async_trait]
impl RecipientSource for People {
    async fn recipients(&self, agency: &AgencyId, locations: Vec<LocationId>) -> Result<RecipientStream, PeerError> {
        let asked = ListNoticeRecipientsRequest {
            agency_id: agency.as_str().to_owned(),
            location_ids: locations.into_iter().map(String::from).collect(),
        };
        let timeout = self.timeout;
        let attempt = |_| {
            let (mut client, asked) = (self.client.clone(), request(asked.clone()));
            async move { client.list_notice_recipients(asked).await }
        };
        let method = "keysweep.location.v2.UserService/ListNoticeRecipients";
        let answer = retrying(method, timeout, attempt).await?.into_inner();
        let parts = stream::unfold(Some(answer), move |answer| async move {
            let mut answer = answer?;
            match tokio::time::timeout(timeout, answer.message()).await {
                Ok(Ok(Some(part))) => Some((convert::chunk(part), Some(answer))),
                Ok(Ok(None)) => None,
                Ok(Err(status)) => Some((Err(status.into()), None)),
                Err(_) => Some((Err(PeerError::Unavailable("no answer in time".to_owned())), None)),
            }
        });
        Ok(parts.boxed())
    }
}
