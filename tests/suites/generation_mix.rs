//! A random mix of everything that can be asked of location-service, by somebody who knows what each answer must be.

use std::collections::BTreeSet;
use std::fmt;

use keysweep_proto::location::v1;
use keysweep_proto::location::v1::user_service_client::UserServiceClient as LegacyUserClient;
use keysweep_proto::location::v2;
use keysweep_proto::location::v2::agency_service_client::AgencyServiceClient;
use keysweep_proto::location::v2::location_service_client::LocationServiceClient;
use keysweep_proto::location::v2::user_service_client::UserServiceClient;
use service_kit::entropy::{Entropy, SeededEntropy};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

/// What must have happened.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    /// Calls of location-service.
    pub(crate) calls: usize,
    /// Agency, location and request id of each explicit generation that names one.
    pub(crate) explicit: BTreeSet<(String, Option<String>, String)>,
    /// Explicit generations without a request id.
    pub(crate) unnamed: usize,
    /// Locations that an agency created while it was opted out.
    pub(crate) creations: BTreeSet<String>,
    /// Explicit generations repeated under their request id.
    pub(crate) replays: usize,
    /// Explicit generations that key-service refuses.
    pub(crate) passed_on: usize,
    /// Calls that are refused, whoever refuses.
    pub(crate) refused: usize,
}

impl Expected {
    pub(crate) fn merge(&mut self, other: Self) {
        self.calls += other.calls;
        self.explicit.extend(other.explicit);
        self.unnamed += other.unnamed;
        self.creations.extend(other.creations);
        self.replays += other.replays;
        self.passed_on += other.passed_on;
        self.refused += other.refused;
    }

    /// How many keys came into being.
    pub(crate) fn keys(&self) -> usize {
        self.explicit.len() + self.unnamed + self.creations.len()
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} calls: {} generations with a request id, {} without, {} opted-out creations, {} repetitions, {} refused by \
             key-service, {} by location-service",
            self.calls,
            self.explicit.len(),
            self.unnamed,
            self.creations.len(),
            self.replays,
            self.passed_on,
            self.refused - self.passed_on
        )
    }
}

struct Place {
    id: String,
    deleted: bool,
}

struct Agency {
    id: String,
    admin: String,
    opted_out: bool,
    places: Vec<Place>,
    users: Vec<String>,
    created: Vec<v2::CreateLocationRequest>,
    generated: Vec<(Option<String>, String)>,
}

/// One caller, with agencies of its own.
pub(crate) struct Lane {
    number: usize,
    entropy: SeededEntropy,
    counter: usize,
    agencies: AgencyServiceClient<Channel>,
    locations: LocationServiceClient<Channel>,
    users: UserServiceClient<Channel>,
    legacy: LegacyUserClient<Channel>,
    own: Vec<Agency>,
    expected: Expected,
}

impl Lane {
    pub(crate) fn new(number: usize, seed: u64, channel: Channel) -> Self {
        Self {
            number,
            entropy: SeededEntropy::new(seed.wrapping_add(number as u64)),
            counter: 0,
            agencies: AgencyServiceClient::new(channel.clone()),
            locations: LocationServiceClient::new(channel.clone()),
            users: UserServiceClient::new(channel.clone()),
            legacy: LegacyUserClient::new(channel),
            own: Vec::new(),
            expected: Expected::default(),
        }
    }

    pub(crate) async fn run(mut self, calls: usize) -> Expected {
        self.create_agency().await;
        while self.expected.calls < calls {
            match self.below(100) {
                0..1 => self.create_agency().await,
                1..10 => self.agency_call().await,
                10..16 => self.choose().await,
                16..30 => self.create_location().await,
                30..50 => self.location_call().await,
                50..65 => self.user_call().await,
                65..75 => self.legacy_call().await,
                75..90 => self.generate().await,
                _ => self.refused_generation().await,
            }
        }
        self.expected
    }

    fn below(&self, bound: usize) -> usize {
        let mut bytes = [0; 8];
        self.entropy.fill(&mut bytes);
        usize::try_from(u64::from_le_bytes(bytes) % bound as u64).expect("below a usize")
    }

    fn some<'a, T>(&self, items: &'a [T]) -> Option<&'a T> {
        if items.is_empty() { None } else { items.get(self.below(items.len())) }
    }

    fn fresh(&mut self) -> String {
        self.counter += 1;
        format!("lane{}-{}", self.number, self.counter)
    }

    /// Counts a call, which must be answered by a message or with the given refusal.
    fn answered<T: fmt::Debug>(&mut self, answer: Result<Response<T>, Status>, refusal: Option<Code>) -> Option<T> {
        self.expected.calls += 1;
        self.expected.refused += usize::from(refusal.is_some());
        match (answer, refusal) {
            (Ok(response), None) => Some(response.into_inner()),
            (Err(status), Some(code)) if status.code() == code => None,
            (answer, refusal) => panic!("answered {answer:?}, to be refused with {refusal:?}"),
        }
    }

    async fn create_agency(&mut self) {
        let agency = Some(v2::Agency { name: self.fresh(), ..Default::default() });
        let answer = self.agencies.create_agency(v2::CreateAgencyRequest { agency, ..Default::default() }).await;
        let id = self.answered(answer, None).expect("an agency").agency_id;
        let admin = self.new_user(v2::RoleLevel::Admin);
        let request = v2::CreateUserRequest { agency_id: id.clone(), user: Some(admin), ..Default::default() };
        let answer = self.users.create_user(request).await;
        let admin = format!("user/{}", self.answered(answer, None).expect("an admin").user_id);
        let (places, users, created, generated) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        self.own.push(Agency { id, admin, opted_out: false, places, users, created, generated });
    }

    fn new_user(&mut self, level: v2::RoleLevel) -> v2::User {
        let email = format!("{}@example.com", self.fresh());
        let role = Some(v2::Role { r#type: v2::RoleType::Agency.into(), level: level.into() });
        v2::User { first_name: "Ada".to_owned(), email, role, ..Default::default() }
    }

    async fn agency_call(&mut self) {
        let own = self.some(&self.own).expect("an agency");
        let (agency_id, admin) = (own.id.clone(), own.admin.clone());
        match self.below(5) {
            0 => {
                let answer = self.agencies.get_agency(by(&admin, v2::GetAgencyRequest { agency_id })).await;
                self.answered(answer, None);
            }
            1 => {
                let answer = self.agencies.list_agencies(v2::ListAgenciesRequest::default()).await;
                self.answered(answer, None);
            }
            2 => {
                let agency = Some(v2::Agency { agency_id, name: self.fresh(), ..Default::default() });
                let request = by(&admin, v2::UpdateAgencyRequest { agency, ..Default::default() });
                let answer = self.agencies.update_agency(request).await;
                self.answered(answer, None);
            }
            3 => {
                let request = by(&admin, v2::GetSecuritySettingsRequest { agency_id });
                let answer = self.agencies.get_security_settings(request).await;
                self.answered(answer, None);
            }
            _ => {
                let request = v2::ListNoticeRecipientsRequest { agency_id, location_ids: Vec::new() };
                let answer = self.users.list_notice_recipients(by("service/notification", request)).await;
                self.answered(answer, None);
            }
        }
    }

    async fn choose(&mut self) {
        let index = self.below(self.own.len());
        let own = &self.own[index];
        let (on, agency_id, admin) = (own.opted_out, own.id.clone(), own.admin.clone());
        let way = self.below(5);
        let request = v2::UpdateSecuritySettingsRequest {
            agency_id,
            enhanced_account_security: on,
            acknowledge_risk: way != 0,
            request_id: String::new(),
        };
        let (actor, refusal) = match way {
            0 if !on => (admin.as_str(), Some(Code::FailedPrecondition)),
            1 => ("api-key/key_1", Some(Code::PermissionDenied)),
            _ => (admin.as_str(), None),
        };
        let answer = self.agencies.update_security_settings(by(actor, request)).await;
        if self.answered(answer, refusal).is_some() {
            self.own[index].opted_out = !on;
        }
    }

    async fn create_location(&mut self) {
        let index = self.below(self.own.len());
        let own = &self.own[index];
        let (way, again) = (self.below(8), self.some(&own.created).cloned());
        let (agency_id, opted_out) = (own.id.clone(), own.opted_out);
        if let (0, Some(request)) = (way, again) {
            let answer = self.locations.create_location(request).await;
            self.answered(answer, None);
            return;
        }
        let name = if way == 1 { "\u{202e}".to_owned() } else { self.fresh() };
        let request_id = if way == 2 { String::new() } else { self.fresh() };
        let location = Some(v2::Location { name, ..Default::default() });
        let request = v2::CreateLocationRequest { agency_id, location, request_id };
        let answer = self.locations.create_location(request.clone()).await;
        let Some(made) = self.answered(answer, (way == 1).then_some(Code::InvalidArgument)) else { return };
        assert_eq!(made.api_key.is_empty(), !opted_out, "the key of a location is shown to opted-out agencies alone");
        if opted_out {
            self.expected.creations.insert(made.location_id.clone());
        }
        let own = &mut self.own[index];
        own.places.push(Place { id: made.location_id, deleted: false });
        if !request.request_id.is_empty() {
            own.created.push(request);
        }
    }

    async fn location_call(&mut self) {
        let index = self.below(self.own.len());
        let own = &self.own[index];
        let (agency_id, admin) = (own.id.clone(), own.admin.clone());
        if own.places.is_empty() {
            return;
        }
        let at = self.below(own.places.len());
        let (location_id, deleted) = (own.places[at].id.clone(), own.places[at].deleted);
        match self.below(8) {
            0..2 => {
                let answer = self.locations.get_location(by(&admin, v2::GetLocationRequest { location_id })).await;
                self.answered(answer, None);
            }
            2..4 => {
                let request = v2::ListLocationsRequest { agency_id, show_deleted: true, ..Default::default() };
                let answer = self.locations.list_locations(by(&admin, request)).await;
                self.answered(answer, None);
            }
            4..6 => {
                let location = Some(v2::Location { location_id, city: self.fresh(), ..Default::default() });
                let request = by(&admin, v2::UpdateLocationRequest { location, ..Default::default() });
                let answer = self.locations.update_location(request).await;
                self.answered(answer, deleted.then_some(Code::FailedPrecondition));
            }
            6 => {
                let request = by(&admin, v2::DeleteLocationRequest { location_id, ..Default::default() });
                let answer = self.locations.delete_location(request).await;
                self.answered(answer, None);
                self.own[index].places[at].deleted = true;
            }
            _ => {
                let request = by(&admin, v2::UndeleteLocationRequest { location_id, ..Default::default() });
                let answer = self.locations.undelete_location(request).await;
                self.answered(answer, None);
                self.own[index].places[at].deleted = false;
            }
        }
    }

    async fn user_call(&mut self) {
        let index = self.below(self.own.len());
        let own = &self.own[index];
        let (agency_id, admin, user_id) = (own.id.clone(), own.admin.clone(), self.some(&own.users).cloned());
        match (self.below(6), user_id) {
            (0, Some(user_id)) => {
                let answer = self.users.get_user(by(&admin, v2::GetUserRequest { user_id })).await;
                self.answered(answer, None);
            }
            (1, Some(user_id)) => {
                let user = Some(v2::User { user_id, last_name: self.fresh(), ..Default::default() });
                let request = by(&admin, v2::UpdateUserRequest { user, ..Default::default() });
                let answer = self.users.update_user(request).await;
                self.answered(answer, None);
            }
            (2, Some(user_id)) => {
                self.own[index].users.retain(|one| *one != user_id);
                let request = by(&admin, v2::DeleteUserRequest { user_id, ..Default::default() });
                let answer = self.users.delete_user(request).await;
                self.answered(answer, None);
            }
            (3, _) => {
                let request = by(&admin, v2::ListUsersRequest { agency_id, ..Default::default() });
                let answer = self.users.list_users(request).await;
                self.answered(answer, None);
            }
            _ => {
                let user = Some(self.new_user(v2::RoleLevel::User));
                let request = by(&admin, v2::CreateUserRequest { agency_id, user, ..Default::default() });
                let answer = self.users.create_user(request).await;
                let user = self.answered(answer, None).expect("a user");
                self.own[index].users.push(user.user_id);
            }
        }
    }

    async fn legacy_call(&mut self) {
        let index = self.below(self.own.len());
        let own = &self.own[index];
        let (agency_id, admin, user_id) = (own.id.clone(), own.admin.clone(), self.some(&own.users).cloned());
        let refusal = (!own.opted_out).then_some(Code::FailedPrecondition);
        match (self.below(5), user_id) {
            (0, Some(user_id)) => {
                let answer = self.legacy.get_user(by(&admin, v1::GetUserRequest { user_id })).await;
                self.answered(answer, None);
            }
            (1, Some(user_id)) => {
                let user = Some(v1::User { user_id, last_name: self.fresh(), ..Default::default() });
                let request = by(&admin, v1::UpdateUserRequest { user, ..Default::default() });
                let answer = self.legacy.update_user(request).await;
                self.answered(answer, refusal);
            }
            (2, Some(user_id)) => {
                let request = by(&admin, v1::DeleteUserRequest { user_id: user_id.clone(), ..Default::default() });
                let answer = self.legacy.delete_user(request).await;
                if self.answered(answer, refusal).is_some() {
                    self.own[index].users.retain(|one| *one != user_id);
                }
            }
            (3, _) => {
                let request = by(&admin, v1::ListUsersRequest { agency_id, ..Default::default() });
                let answer = self.legacy.list_users(request).await;
                self.answered(answer, None);
            }
            _ => {
                let email = format!("{}@example.com", self.fresh());
                let role = v1::Role { r#type: v1::RoleType::Agency.into(), level: v1::RoleLevel::User.into() };
                let user = v1::User { first_name: "Old".to_owned(), email, role: Some(role), ..Default::default() };
                let request = by(&admin, v1::CreateUserRequest { agency_id, user: Some(user), ..Default::default() });
                let answer = self.legacy.create_user(request).await;
                if let Some(user) = self.answered(answer, refusal) {
                    self.own[index].users.push(user.user_id);
                }
            }
        }
    }

    /// An explicit generation by an admin: new, repeated, without a request id, or with a scope that key-service refuses.
    async fn generate(&mut self) {
        let index = self.below(self.own.len());
        let own = &self.own[index];
        let (agency_id, admin) = (own.id.clone(), own.admin.clone());
        let place = self.some(&own.places).filter(|_| self.below(2) == 0);
        let deleted = place.is_some_and(|place| place.deleted);
        let place = place.map(|place| place.id.clone());
        match (self.below(8), self.some(&own.generated).cloned()) {
            (0, Some((place, request_id))) => {
                let deleted =
                    place.as_ref().is_some_and(|id| own.places.iter().any(|one| one.id == *id && one.deleted));
                let made =
                    self.order(&admin, agency_id, place, request_id, "", deleted.then_some(Code::FailedPrecondition));
                self.expected.replays += usize::from(made.await);
            }
            (1, _) if !deleted => {
                let request_id = self.fresh();
                self.order(&admin, agency_id, place, request_id, "no\nscope", Some(Code::InvalidArgument)).await;
                self.expected.passed_on += 1;
            }
            (2, _) => {
                let refusal = deleted.then_some(Code::FailedPrecondition);
                let made = self.order(&admin, agency_id, place, String::new(), "", refusal).await;
                self.expected.unnamed += usize::from(made);
            }
            _ => {
                let (request_id, refusal) = (self.fresh(), deleted.then_some(Code::FailedPrecondition));
                if self.order(&admin, agency_id.clone(), place.clone(), request_id.clone(), "", refusal).await {
                    self.own[index].generated.push((place.clone(), request_id.clone()));
                    self.expected.explicit.insert((agency_id, place, request_id));
                }
            }
        }
    }

    /// A generation by somebody who may not.
    async fn refused_generation(&mut self) {
        let own = self.some(&self.own).expect("an agency");
        let (agency_id, place) = (own.id.clone(), self.some(&own.places).map(|place| place.id.clone()));
        let worker = self.some(&own.users).map(|id| format!("user/{id}"));
        let (actor, code) = match (self.below(4), worker) {
            (0, Some(worker)) => (worker, Code::PermissionDenied),
            (1, _) => ("service/notification".to_owned(), Code::PermissionDenied),
            (2, _) => ("user/usr_00000000000000000000000000000000".to_owned(), Code::NotFound),
            _ => ("api-key/key_1".to_owned(), Code::PermissionDenied),
        };
        let request_id = self.fresh();
        self.order(&actor, agency_id, place, request_id, "", Some(code)).await;
    }

    /// Asks for a key; answers whether there is one.
    async fn order(
        &mut self,
        actor: &str,
        agency_id: String,
        place: Option<String>,
        request_id: String,
        scope: &str,
        refusal: Option<Code>,
    ) -> bool {
        let scopes = if scope.is_empty() { Vec::new() } else { vec![scope.to_owned()] };
        let secret = match place {
            None => {
                let request = v2::GenerateAgencyApiKeyRequest { agency_id, request_id, scopes, ..Default::default() };
                let answer = self.agencies.generate_agency_api_key(by(actor, request)).await;
                self.answered(answer, refusal).map(|made| made.secret)
            }
            Some(location_id) => {
                let request =
                    v2::GenerateLocationApiKeyRequest { location_id, request_id, scopes, ..Default::default() };
                let answer = self.locations.generate_location_api_key(by(actor, request)).await;
                self.answered(answer, refusal).map(|made| made.secret)
            }
        };
        secret.is_some_and(|secret| secret.starts_with("ksw_"))
    }
}

fn by<T>(actor: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-keysweep-actor", actor.parse().expect("visible ASCII"));
    request
}
