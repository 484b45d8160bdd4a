//! Requests to `SweepService` as bytes.

use keysweep_proto::key::v1 as proto;
use prost::Message;
use service_kit::violations::Violations;

use super::parse;
use crate::domain::sweep::{NoticeKind, Passage, Refusal};

/// A subscription, a filter or a batch of notices: the first byte says which, the others are its message.
pub fn sweep_request(data: &[u8]) {
    let Some((kind, message)) = data.split_first() else { return };
    match kind % 4 {
        0 => {
            let Ok(request) = proto::SubscribeSweepPlansRequest::decode(message) else { return };
            if parse::subscription(&request).is_ok() {
                assert!(request.after_sequence >= 0);
                assert!((1..=64).contains(&request.subscriber.len()) && request.subscriber.is_ascii());
            }
        }
        1 => {
            let Ok(request) = proto::PreviewSweepRequest::decode(message) else { return };
            let mut faults = Violations::default();
            let at = parse::as_of(request.as_of_time.as_ref(), &mut faults);
            // Ninety days before it there is still an instant.
            let _: Vec<_> = at.into_iter().map(crate::domain::sweep::schedule::idle_since).collect();
        }
        2 => {
            let Some(state) = message.first_chunk().map(|bytes| i32::from_le_bytes(*bytes)) else { return };
            let mut faults = Violations::default();
            let known = [
                parse::plan_state(state, &mut faults).is_some(),
                parse::lot_state(state, &mut faults).is_some(),
                parse::entry_state(state, &mut faults).is_some(),
            ];
            assert!(!known.contains(&true) || (1..=6).contains(&state));
        }
        _ => {
            let Ok(request) = proto::AcknowledgeNoticesRequest::decode(message) else { return };
            let Ok((notices, sent_at)) = parse::notices(request) else { return };
            assert!((1..=1_000).contains(&notices.len()));
            for notice in notices {
                assert!(!notice.plan_id.is_empty() && !notice.agency_id.is_empty());
                if let NoticeKind::Delivered { at, .. } = notice.kind {
                    // Its lead is reckoned from any instant that is let through.
                    let _: String = Refusal::TooEarly { opens_at: at + notice.stage.lead() }.to_string();
                    let _: (_, _) = Passage { sent_at, arrived_at: at }.span(at);
                }
            }
        }
    }
}
