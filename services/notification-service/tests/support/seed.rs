//! Events and people put straight into a store.

use chrono::{DateTime, TimeDelta, Utc};
use notification_service::app::ports::{DispatchStore, Published, StageId};
use notification_service::domain::event::{Payload, SweepEvent};
use notification_service::domain::plan::{Entry, Owner};
use notification_service::domain::recipient::{AgencyFacts, Reach, Recipient, RecipientChunk};
use notification_service::domain::stage::Stage;
use notification_service::storage::Store;

use super::deletion;

/// The history of a plan that lists one key of each of these agencies.
pub fn published<'a>(agencies: impl IntoIterator<Item = &'a str>) -> Vec<SweepEvent> {
    let entries: Vec<_> = agencies
        .into_iter()
        .map(|agency| Entry {
            key_id: format!("key_of_{agency}").into(),
            owner: Owner { agency_id: agency.into(), location_id: None },
            display_name: String::new(),
            display_prefix: "ksw_agy_Ab3x".into(),
            created_at: deletion() - TimeDelta::days(400),
            last_used_at: None,
            idle_days: 400,
        })
        .collect();
    let count = entries.len() as i64;
    let payloads = [
        Payload::PlanPublished {
            delete_at: deletion(),
            idle_since_at: deletion() - TimeDelta::days(90),
            last_delete_at: deletion() + TimeDelta::days(14),
            stage_window: TimeDelta::hours(6),
        },
        Payload::PlanEntries(entries),
        Payload::PlanSealed { entry_count: count, lot_count: count },
    ];
    let happened_at = deletion() - TimeDelta::days(16);
    let numbered = payloads.into_iter().zip(1..);
    numbered
        .map(|(payload, sequence)| SweepEvent { sequence, happened_at, plan_id: "plan_1".into(), payload })
        .collect()
}

/// Dispatches the first notice of an agency of `plan_1` with so many admins.
pub async fn tell(store: &Store, agency: &str, admins: usize, now: DateTime<Utc>) {
    tell_of(store, "plan_1", agency, admins, now).await;
}

/// Dispatches the first notice of an agency with so many admins.
pub async fn tell_of(store: &Store, plan: &str, agency: &str, admins: usize, now: DateTime<Utc>) {
    let id = StageId { plan_id: plan.into(), agency_id: agency.into(), stage: Stage::D15 };
    let owner = format!("teller of {agency}");
    let claimed = store.claim_due(&owner, now, now + TimeDelta::minutes(1), 1_000).await.expect("claimed");
    for other in claimed.iter().filter(|other| **other != id) {
        store.release(other, &owner).await.expect("released");
    }
    assert!(claimed.contains(&id));
    let recipients = (0..admins).map(|n| Recipient {
        user_id: format!("usr_{agency}_{n:05}").into(),
        email: format!("admin{n}@{agency}.example"),
        first_name: "Ada".into(),
        last_name: String::new(),
        reach: Reach::WholeLot,
    });
    let agency = AgencyFacts { name: format!("name of {agency}"), time_zone: "UTC".into() };
    let chunk = RecipientChunk { agency: Some(agency), recipients: recipients.collect(), locations: Vec::new() };
    assert_eq!(store.collect(&owner, vec![(id.clone(), chunk)]).await.expect("collected").len(), 1);
    let published = store.publish(std::slice::from_ref(&id), &owner, now).await.expect("published").remove(0);
    assert!(matches!(published, Published::Dispatched { emails, .. } if emails == admins as u64), "{published:?}");
}
