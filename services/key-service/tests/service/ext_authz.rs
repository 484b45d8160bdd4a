//! External authorization answers as `VerifyKey` does, code by code.

use std::collections::BTreeSet;
use std::sync::Arc;

use chrono::TimeDelta;
use key_service::app::audit::Audit;
use key_service::app::keys::Revoke;
use key_service::domain::key::{Networks, Owner};
use key_service::grpc::{ExtAuthz, KeyApi};
use keysweep_proto::envoy::config::core::v3::{Address, SocketAddress, address};
use keysweep_proto::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer, Request as HttpPart};
use keysweep_proto::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use keysweep_proto::envoy::service::auth::v3::authorization_server::AuthorizationServer;
use keysweep_proto::envoy::service::auth::v3::check_response::HttpResponse;
use keysweep_proto::envoy::service::auth::v3::{AttributeContext, CheckRequest, CheckResponse};
use keysweep_proto::key::v1 as proto;
use keysweep_proto::key::v1::key_service_client::KeyServiceClient;
use keysweep_proto::key::v1::key_service_server::KeyServiceServer;
use service_kit::both_databases;
use service_kit::time::to_micros;
use service_kit::violations::Violations;
use tonic::Code;
use tonic_types::StatusExt;

use crate::support::{GUESSES, World, admin, order, start, text};

/// Both services over the same use cases.
struct Doors {
    keys: KeyServiceClient<KeyServiceServer<KeyApi>>,
    gateway: AuthorizationClient<AuthorizationServer<ExtAuthz>>,
}

/// What both are asked about one secret.
#[derive(Default)]
struct Case {
    secret: String,
    required_scopes: &'static [&'static str],
    source_ip: &'static str,
}

impl Doors {
    fn of(world: &World) -> Self {
        let audit = Arc::new(Audit::new(world.store.clone()));
        Self {
            keys: KeyServiceClient::new(KeyServiceServer::new(KeyApi::new(
                world.keys.clone(),
                world.verifier.clone(),
                audit,
            ))),
            gateway: AuthorizationClient::new(ExtAuthz::server(world.verifier.clone())),
        }
    }

    async fn verify(&mut self, case: &Case) -> Result<proto::VerifyKeyResponse, tonic::Status> {
        let request = proto::VerifyKeyRequest {
            secret: case.secret.clone(),
            required_scopes: case.required_scopes.iter().map(|scope| (*scope).to_owned()).collect(),
            source_ip: case.source_ip.into(),
        };
        self.keys.verify_key(request).await.map(tonic::Response::into_inner)
    }

    async fn check(&mut self, case: &Case) -> CheckResponse {
        let socket = SocketAddress { address: case.source_ip.into(), ..Default::default() };
        let peer =
            (!case.source_ip.is_empty()).then_some(Address { address: Some(address::Address::SocketAddress(socket)) });
        let headers = [("authorization".to_owned(), format!("Bearer {}", case.secret))].into();
        let http = HttpRequest { headers, ..Default::default() };
        let attributes = AttributeContext {
            source: Some(Peer { address: peer, ..Default::default() }),
            request: Some(HttpPart { time: None, http: Some(http) }),
            context_extensions: [("required_scopes".to_owned(), case.required_scopes.join(" "))].into(),
            ..Default::default()
        };
        self.gateway.check(CheckRequest { attributes: Some(attributes) }).await.unwrap().into_inner()
    }

    /// Asks both, holds one answer against the other, and tells the code.
    async fn agree(&mut self, case: Case) -> proto::VerifyCode {
        let verified = self.verify(&case).await.unwrap();
        let checked = self.check(&case).await;
        let status = Code::from_i32(checked.status.unwrap().code);
        let name = verified.code().as_str_name().trim_start_matches("VERIFY_CODE_");
        match checked.http_response.unwrap() {
            HttpResponse::OkResponse(ok) => {
                assert_eq!((verified.valid, status), (true, Code::Ok), "{name}");
                let told = |name: &str| {
                    let mut all = ok.headers.iter().filter_map(|option| option.header.as_ref());
                    all.find(|header| header.key == name).map(|header| header.value.clone()).unwrap_or_default()
                };
                let (agency_id, location_id) = match verified.owner.clone().unwrap().account.unwrap() {
                    proto::owner::Account::AgencyId(agency_id) => (agency_id, String::new()),
                    proto::owner::Account::Location(location) => (location.agency_id, location.location_id),
                };
                assert_eq!(told("x-keysweep-actor"), format!("api-key/{}", verified.key_id));
                assert_eq!(told("x-keysweep-key-id"), verified.key_id);
                assert_eq!((told("x-keysweep-agency-id"), told("x-keysweep-location-id")), (agency_id, location_id));
                assert_eq!(told("x-keysweep-scopes"), verified.scopes.join(" "));
            }
            HttpResponse::DeniedResponse(denied) => {
                let body: serde_json::Value = serde_json::from_str(&denied.body).unwrap();
                assert_eq!((verified.valid, body["code"].as_str()), (false, Some(name)));
                assert!(!body["message"].as_str().unwrap().is_empty());
                assert_eq!(body["delete_time"].is_string(), verified.delete_time.is_some());
                let challenged = denied.headers.iter().any(|h| h.header.as_ref().unwrap().key == "www-authenticate");
                let expected = match verified.code() {
                    proto::VerifyCode::IpNotAllowed => (Code::PermissionDenied, 403, false),
                    proto::VerifyCode::InsufficientScope => (Code::PermissionDenied, 403, true),
                    _ => (Code::Unauthenticated, 401, true),
                };
                assert_eq!((status, denied.status.unwrap().code, challenged), expected, "{name}");
            }
            HttpResponse::ErrorResponse(_) => panic!("an error may admit"),
        }
        verified.code()
    }
}

both_databases! {
    async fn every_code_is_answered_alike(db: TestDatabase) {
        let world = World::new(&db).await;
        let mut doors = Doors::of(&world);
        let mut restricted = order("");
        restricted.spec.networks = Networks::parse(&["192.0.2.0/24".into()], "n", &mut Violations::default());
        let restricted = text(&world.keys.generate(&admin(), &restricted).await.unwrap());
        let mut agency = order("");
        agency.spec.owner = Owner { agency_id: "agy_1".into(), location_id: None };
        agency.spec.scopes = Default::default();
        let agency = text(&world.keys.generate(&admin(), &agency).await.unwrap());
        let mut expired = order("");
        expired.spec.expires_at = Some(start() + TimeDelta::hours(1));
        let expired = text(&world.keys.generate(&admin(), &expired).await.unwrap());
        let (revoked, swept) = (world.generate("").await, world.generate("").await);
        let revoke = Revoke { key_id: revoked.key.key_id.clone(), reason: String::new(), request_id: String::new() };
        world.keys.revoke(&admin(), &revoke).await.unwrap();
        world.execute(&format!(
            "UPDATE api_keys SET state = 3, deleted_at = {}, secret_hash = NULL, sealed_secret = NULL WHERE id = '{}'",
            to_micros(start()), swept.key.key_id
        )).await;
        world.clock.advance(TimeDelta::hours(1));

        let with = |secret: &str, required_scopes, source_ip| Case { secret: secret.to_owned(), required_scopes, source_ip };
        let mut seen = BTreeSet::new();
        for (case, expected) in [
            (with(&agency, &[], ""), proto::VerifyCode::Valid),
            (with(&agency, &[], "2001:db8::7"), proto::VerifyCode::Valid),
            (with(&agency, &["read"], ""), proto::VerifyCode::InsufficientScope),
            (with(&restricted, &["write", "read"], "192.0.2.9"), proto::VerifyCode::Valid),
            (with(&restricted, &[], "::ffff:192.0.2.9"), proto::VerifyCode::Valid),
            (with(&restricted, &["pay"], "192.0.2.9"), proto::VerifyCode::InsufficientScope),
            (with(&restricted, &[], "198.51.100.9"), proto::VerifyCode::IpNotAllowed),
            (with(&restricted, &["pay"], ""), proto::VerifyCode::IpNotAllowed),
            (with(&expired, &[], ""), proto::VerifyCode::Expired),
            (with(&text(&revoked), &[], ""), proto::VerifyCode::Revoked),
            (with(&text(&swept), &[], ""), proto::VerifyCode::DeletedBySweep),
            (with("sk_live_nobody_has_this", &[], ""), proto::VerifyCode::NotFound),
            (with("ksw_agy_with_a_typo", &[], ""), proto::VerifyCode::Malformed),
        ] {
            assert_eq!(doors.agree(case).await, expected);
            seen.insert(i32::from(expected));
        }
        let every: BTreeSet<i32> = (1..).take_while(|number| proto::VerifyCode::try_from(*number).is_ok()).collect();
        assert_eq!(seen, every, "a code is not tried");
    }

    async fn a_use_through_a_gateway_is_a_use(db: TestDatabase) {
        let world = World::new(&db).await;
        let issued = world.generate("").await;
        let case = Case { secret: text(&issued), ..Case::default() };
        let checked = Doors::of(&world).check(&case).await;
        assert_eq!(checked.status.unwrap().code, 0);
        assert_eq!(world.row(&issued.key.key_id).await.last_used_at, Some(to_micros(start())));
    }

    async fn without_the_database_nobody_is_admitted(db: TestDatabase) {
        let world = World::new(&db).await;
        let case = Case { secret: text(&world.generate("").await), ..Case::default() };
        let mut doors = Doors::of(&world);
        world.db.close_by_ref().await.unwrap();
        let refused = doors.verify(&case).await.unwrap_err();
        let reason = refused.get_error_details().error_info().unwrap().reason.clone();
        let checked = doors.check(&case).await;
        assert_eq!(Code::from_i32(checked.status.unwrap().code), refused.code());
        let Some(HttpResponse::DeniedResponse(denied)) = checked.http_response else { panic!("it admits") };
        let body: serde_json::Value = serde_json::from_str(&denied.body).unwrap();
        assert_eq!((denied.status.unwrap().code, body["code"].as_str()), (503, Some(reason.as_str())));
        assert!(denied.headers.iter().any(|h| h.header.as_ref().unwrap().key == "retry-after"));
    }

    async fn who_guesses_is_slowed_alike(db: TestDatabase) {
        let world = World::new(&db).await;
        let good = text(&world.generate("").await);
        let mut doors = Doors::of(&world);
        let guess = |number: u32| Case { secret: format!("sk_live_guess_{number}"), source_ip: "192.0.2.1", ..Case::default() };
        for number in 0..GUESSES {
            doors.check(&guess(number)).await;
        }
        let refused = doors.verify(&guess(98)).await.unwrap_err();
        let details = refused.get_error_details();
        let checked = doors.check(&guess(99)).await;
        let Some(HttpResponse::DeniedResponse(denied)) = checked.http_response else { panic!("it admits") };
        let body: serde_json::Value = serde_json::from_str(&denied.body).unwrap();
        assert_eq!(body["code"].as_str(), details.error_info().map(|info| info.reason.as_str()));
        assert_eq!(denied.status.unwrap().code, 429);
        let mut headers = denied.headers.iter().filter_map(|option| option.header.as_ref());
        let retry_after = headers.find(|header| header.key == "retry-after").unwrap().value.parse::<u64>().unwrap();
        assert!((1..=60).contains(&retry_after), "{retry_after}");
        let good = Case { secret: good, source_ip: "192.0.2.1", ..Case::default() };
        assert_eq!(doors.agree(good).await, proto::VerifyCode::Valid);
    }
}
