//! `keysweep.location.v2.UserService`.

use keysweep_proto::location::v2;
use keysweep_proto::location::v2::user_service_server::UserService;
use service_kit::violations::Violations;
use tokio_stream::Iter;
use tonic::{Request, Response, Status};

use super::{Handler, asked, convert, next_token, open, paths, status};
use crate::app::ports::{Recipient, Recipients};
use crate::app::{CreateUser, ListUsers, UpdateUser, UserApi};

const RECIPIENTS_A_MESSAGE: usize = 500;
/// Ids of locations that one message's recipients may list together, unless one alone lists more: about 800 KiB.
const PLACES_A_MESSAGE: usize = 20_000;
const NAMES_A_MESSAGE: usize = 500;

type Parts = Iter<std::vec::IntoIter<Result<v2::ListNoticeRecipientsResponse, Status>>>;

#[tonic::async_trait]
impl UserService for Handler {
    async fn create_user(&self, request: Request<v2::CreateUserRequest>) -> Result<Response<v2::User>, Status> {
        let (call, message) = open(request);
        let details = convert::user_details(message.user.unwrap_or_default());
        let create = CreateUser { agency_id: message.agency_id, details, request_id: message.request_id };
        let user = self.app.create_user(&call, UserApi::Current, &create).await.map_err(status::of)?;
        Ok(Response::new(convert::user(user)))
    }

    async fn get_user(&self, request: Request<v2::GetUserRequest>) -> Result<Response<v2::User>, Status> {
        let (call, message) = open(request);
        let user = self.app.get_user(&call, &message.user_id).await.map_err(status::of)?;
        Ok(Response::new(convert::user(user)))
    }

    async fn list_users(
        &self,
        request: Request<v2::ListUsersRequest>,
    ) -> Result<Response<v2::ListUsersResponse>, Status> {
        let (call, message) = open(request);
        let mut faults = Violations::default();
        let (role_type, role_level) = convert::role_filter(message.role_type, message.role_level, &mut faults);
        let created = convert::created_range(message.start_create_time, message.end_create_time, &mut faults);
        let list = ListUsers {
            agency_id: message.agency_id,
            location_id: message.location_id,
            email: message.email,
            role_type,
            role_level,
            created,
            order_by: message.order_by,
        };
        let filter = format!("ListUsers {list:?}");
        let asked = asked(message.page_size, &message.page_token, &filter, faults);
        let listed = self.app.list_users(&call, &list, asked).await.map_err(status::of)?;
        Ok(Response::new(v2::ListUsersResponse {
            users: listed.items.into_iter().map(convert::user).collect(),
            next_page_token: next_token(listed.next, &filter),
        }))
    }

    async fn update_user(&self, request: Request<v2::UpdateUserRequest>) -> Result<Response<v2::User>, Status> {
        let (call, message) = open(request);
        let user = message.user.unwrap_or_default();
        let change = UpdateUser {
            user_id: user.user_id.clone(),
            etag: user.etag.clone(),
            details: convert::user_details(user),
            mask: paths(message.update_mask),
            request_id: message.request_id,
        };
        let user = self.app.update_user(&call, UserApi::Current, &change).await.map_err(status::of)?;
        Ok(Response::new(convert::user(user)))
    }

    async fn delete_user(
        &self,
        request: Request<v2::DeleteUserRequest>,
    ) -> Result<Response<v2::DeleteUserResponse>, Status> {
        let (call, m) = open(request);
        self.app.delete_user(&call, UserApi::Current, &m.user_id, &m.etag, &m.request_id).await.map_err(status::of)?;
        Ok(Response::new(v2::DeleteUserResponse {}))
    }

    type ListNoticeRecipientsStream = Parts;

    async fn list_notice_recipients(
        &self,
        request: Request<v2::ListNoticeRecipientsRequest>,
    ) -> Result<Response<Parts>, Status> {
        let (call, message) = open(request);
        let found =
            self.app.notice_recipients(&call, &message.agency_id, message.location_ids).await.map_err(status::of)?;
        let parts: Vec<_> = parts(found).into_iter().map(Ok).collect();
        Ok(Response::new(tokio_stream::iter(parts)))
    }
}

/// The answer in messages that a client takes: the agency first, people and names as they fit.
fn parts(found: Recipients) -> Vec<v2::ListNoticeRecipientsResponse> {
    let mut parts = vec![v2::ListNoticeRecipientsResponse {
        agency_name: found.agency_name,
        agency_time_zone: found.agency_time_zone,
        ..v2::ListNoticeRecipientsResponse::default()
    }];
    let mut names =
        found.location_names.into_iter().map(|(location_id, name)| v2::LocationName { location_id, name }).peekable();
    while names.peek().is_some() {
        let location_names = names.by_ref().take(NAMES_A_MESSAGE).collect();
        push(
            &mut parts,
            v2::ListNoticeRecipientsResponse { location_names, ..v2::ListNoticeRecipientsResponse::default() },
        );
    }
    for recipients in batches(found.recipients) {
        let recipients = recipients.into_iter().map(convert::recipient).collect();
        push(
            &mut parts,
            v2::ListNoticeRecipientsResponse { recipients, ..v2::ListNoticeRecipientsResponse::default() },
        );
    }
    parts
}

/// Adds a part, joined to the one before where that has room for its kind.
fn push(parts: &mut Vec<v2::ListNoticeRecipientsResponse>, part: v2::ListNoticeRecipientsResponse) {
    match parts.last_mut() {
        Some(last) if last.recipients.is_empty() && last.location_names.is_empty() => {
            last.recipients = part.recipients;
            last.location_names = part.location_names;
        }
        Some(last) if last.recipients.is_empty() && part.location_names.is_empty() => last.recipients = part.recipients,
        _ => parts.push(part),
    }
}

fn batches(recipients: Vec<Recipient>) -> Vec<Vec<Recipient>> {
    let (mut batches, mut batch, mut places) = (Vec::new(), Vec::new(), 0);
    for one in recipients {
        let full = batch.len() == RECIPIENTS_A_MESSAGE
            || (!batch.is_empty() && places + one.location_ids.len() > PLACES_A_MESSAGE);
        if full {
            batches.push(std::mem::take(&mut batch));
            places = 0;
        }
        places += one.location_ids.len();
        batch.push(one);
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(people: usize, places: usize, names: usize) -> Recipients {
        let recipient = |i: usize| Recipient {
            user_id: format!("usr_{i}"),
            email: String::new(),
            first_name: String::new(),
            last_name: String::new(),
            agency_admin: false,
            location_ids: vec!["loc_1".to_owned(); places],
        };
        Recipients {
            agency_name: "A".into(),
            agency_time_zone: "UTC".into(),
            recipients: (0..people).map(recipient).collect(),
            location_names: (0..names).map(|i| (format!("loc_{i}"), "L".to_owned())).collect(),
        }
    }

    #[test]
    fn every_recipient_and_name_is_in_exactly_one_message() {
        for (people, places, names) in
            [(0, 0, 0), (1, 1, 1), (500, 1, 500), (501, 1, 501), (1_200, 0, 0), (0, 0, 1_001), (50, 1_000, 10_000)]
        {
            let parts = parts(found(people, places, names));
            assert_eq!(parts[0].agency_name, "A");
            assert!(parts[1..].iter().all(|part| part.agency_name.is_empty() && part.agency_time_zone.is_empty()));
            let told: Vec<_> =
                parts.iter().flat_map(|part| part.recipients.iter().map(|one| one.user_id.clone())).collect();
            assert_eq!(told, (0..people).map(|i| format!("usr_{i}")).collect::<Vec<_>>());
            assert_eq!(parts.iter().map(|part| part.location_names.len()).sum::<usize>(), names);
            for part in &parts {
                assert!(part.recipients.len() <= 500 && part.location_names.len() <= 500);
                assert!(part.recipients.iter().map(|one| one.location_ids.len()).sum::<usize>() <= PLACES_A_MESSAGE);
            }
        }
    }
}
