//! key-service: the subscription to its plans, and its book of receipts.

use std::sync::OnceLock;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures::StreamExt;
use keysweep_proto::key::v1::sweep_service_client::SweepServiceClient;
use keysweep_proto::key::v1::{AcknowledgeNoticesRequest, SubscribeSweepPlansRequest};
use service_kit::client::{Peer, calling, retrying};
use service_kit::time::to_proto;
use tokio::time::Instant;

use super::{NAME, convert, request};
use crate::app::ports::{OwedReceipt, PeerError, PlanSource, PlanStream, ReceiptAnswer, ReceiptSink};

/// 1,000 entries a message, each with names of up to 100 characters, stay below this.
const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;

/// key-service.
#[derive(Clone, Debug)]
pub struct Plans {
    client: SweepServiceClient<Peer>,
    timeout: Duration,
}

impl Plans {
    /// key-service and its replicas. `timeout` bounds a unary call.
    pub fn new(peer: Peer, timeout: Duration) -> Self {
        Self { client: SweepServiceClient::new(peer).max_decoding_message_size(MAX_MESSAGE_BYTES), timeout }
    }
}

#[async_trait]
impl PlanSource for Plans {
    async fn subscribe(&self, after: i64) -> Result<PlanStream, PeerError> {
        let asked = SubscribeSweepPlansRequest {
            subscriber: NAME.to_owned(),
            after_sequence: after,
            // The service compares the event at its cursor itself, which also tells a restored copy.
            history_id: String::new(),
        };
        let mut client = self.client.clone();
        let method = "keysweep.key.v1.SweepService/SubscribeSweepPlans";
        let call = calling(method, || async move { client.subscribe_sweep_plans(request(asked)).await });
        let stream = call.await?.into_inner();
        Ok(stream.map(|message| message.map_err(PeerError::from).and_then(convert::message)).boxed())
    }
}

#[async_trait]
impl ReceiptSink for Plans {
    async fn acknowledge(
        &self,
        receipts: &[OwedReceipt],
        now: DateTime<Utc>,
    ) -> Result<(Vec<ReceiptAnswer>, i64), PeerError> {
        let notices: Vec<_> = receipts.iter().map(convert::notice).collect();
        let first_at = OnceLock::new();
        let attempt = |left| {
            let mut client = self.client.clone();
            // The clock that dates deliveries goes on by the time lived, and so does the time of another attempt.
            let later = first_at.get().map_or(Duration::ZERO, Instant::elapsed);
            first_at.get_or_init(Instant::now);
            let send_time = Some(to_proto(now + later));
            let mut asked = request(AcknowledgeNoticesRequest { notices: notices.clone(), send_time });
            asked.set_timeout(left);
            async move { client.acknowledge_notices(asked).await }
        };
        // A receipt that arrives twice is one.
        let method = "keysweep.key.v1.SweepService/AcknowledgeNotices";
        let answer = retrying(method, self.timeout, attempt).await?.into_inner();
        let results = answer.results.into_iter().map(convert::answer).collect::<Result<_, _>>()?;
        Ok((results, answer.head_sequence))
    }
}
