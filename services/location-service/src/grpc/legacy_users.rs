//! `keysweep.location.v1.UserService`: the legacy names of version 2's use cases.

use keysweep_proto::location::v1;
use keysweep_proto::location::v1::user_service_server::UserService;
use service_kit::violations::Violations;
use tonic::{Request, Response, Status};

use super::{Handler, asked, convert, next_token, open, paths, status};
use crate::app::listing::CreatedRange;
use crate::app::{CreateUser, ListUsers, UpdateUser, UserApi};

#[tonic::async_trait]
impl UserService for Handler {
    async fn create_user(&self, request: Request<v1::CreateUserRequest>) -> Result<Response<v1::User>, Status> {
        let (call, message) = open(request);
        let details = convert::legacy_user_details(message.user.unwrap_or_default());
        let create = CreateUser { agency_id: message.agency_id, details, request_id: message.request_id };
        let user = self.app.create_user(&call, UserApi::Legacy, &create).await.map_err(status::of)?;
        Ok(Response::new(convert::legacy_user(user)))
    }

    async fn get_user(&self, request: Request<v1::GetUserRequest>) -> Result<Response<v1::User>, Status> {
        let (call, message) = open(request);
        let user = self.app.get_user(&call, &message.user_id).await.map_err(status::of)?;
        Ok(Response::new(convert::legacy_user(user)))
    }

    async fn list_users(
        &self,
        request: Request<v1::ListUsersRequest>,
    ) -> Result<Response<v1::ListUsersResponse>, Status> {
        let (call, message) = open(request);
        let list = ListUsers {
            agency_id: message.agency_id,
            location_id: message.location_id,
            email: String::new(),
            role_type: None,
            role_level: None,
            created: CreatedRange::default(),
            order_by: String::new(),
        };
        let filter = format!("v1.ListUsers {list:?}");
        let asked = asked(message.page_size, &message.page_token, &filter, Violations::default());
        let listed = self.app.list_users(&call, &list, asked).await.map_err(status::of)?;
        Ok(Response::new(v1::ListUsersResponse {
            users: listed.items.into_iter().map(convert::legacy_user).collect(),
            next_page_token: next_token(listed.next, &filter),
        }))
    }

    async fn update_user(&self, request: Request<v1::UpdateUserRequest>) -> Result<Response<v1::User>, Status> {
        let (call, message) = open(request);
        let user = message.user.unwrap_or_default();
        let change = UpdateUser {
            user_id: user.user_id.clone(),
            etag: String::new(),
            details: convert::legacy_user_details(user),
            mask: paths(message.update_mask),
            request_id: message.request_id,
        };
        let user = self.app.update_user(&call, UserApi::Legacy, &change).await.map_err(status::of)?;
        Ok(Response::new(convert::legacy_user(user)))
    }

    async fn delete_user(
        &self,
        request: Request<v1::DeleteUserRequest>,
    ) -> Result<Response<v1::DeleteUserResponse>, Status> {
        let (call, m) = open(request);
        self.app.delete_user(&call, UserApi::Legacy, &m.user_id, "", &m.request_id).await.map_err(status::of)?;
        Ok(Response::new(v1::DeleteUserResponse {}))
    }
}
