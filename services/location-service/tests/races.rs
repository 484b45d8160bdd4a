//! Callers who meet, calls that are repeated, and what lies between key-service's answer and the service's commit; on both
//! databases.

mod support;

use keysweep_proto::key::v1::owner;
use keysweep_proto::location::v2;
use service_kit::both_databases;
use support::{World, by, new_location, new_user, reason, refused, role};
use tonic::{Code, Response, Status};

/// Callers at once.
const CALLERS: usize = 6;

/// Runs the calls at once, and answers what each was answered.
async fn at_once<T, F>(call: impl Fn(usize) -> F) -> Vec<Result<T, Status>>
where
    T: Send + 'static,
    F: Future<Output = Result<Response<T>, Status>> + Send + 'static,
{
    let tasks: Vec<_> = (0..CALLERS).map(|i| tokio::spawn(call(i))).collect();
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.expect("no panic").map(Response::into_inner));
    }
    answers
}

/// Asserts that one caller won, and that each other heard that its reading is old.
#[track_caller]
fn one_wins<T: std::fmt::Debug + Clone>(answers: &[Result<T, Status>]) -> T {
    let won: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().ok()).collect();
    assert_eq!(won.len(), 1, "{answers:?}");
    for status in answers.iter().filter_map(|answer| answer.as_ref().err()) {
        assert_eq!((status.code(), reason(status).as_str()), (Code::Aborted, "ETAG_MISMATCH"), "{status:?}");
    }
    won[0].clone()
}

#[track_caller]
fn all_the_same<T: std::fmt::Debug + PartialEq>(answers: Vec<Result<T, Status>>) -> T {
    let mut answers: Vec<_> = answers.into_iter().map(|answer| answer.expect("answered")).collect();
    let first = answers.remove(0);
    assert!(answers.iter().all(|one| *one == first), "{first:?} {answers:?}");
    first
}

fn rename_location(location: &v2::Location, name: String, request_id: &str) -> v2::UpdateLocationRequest {
    let (location_id, etag) = (location.location_id.clone(), location.etag.clone());
    let location = Some(v2::Location { location_id, name, etag, ..Default::default() });
    v2::UpdateLocationRequest { location, update_mask: None, request_id: request_id.to_owned() }
}

both_databases! {
    async fn of_those_who_read_one_etag_one_changes(db: TestDatabase) {
        let world = World::start(db).await;
        let agency = world.agency("Agency").await;
        let location = world.location(&agency.agency_id, "Shop").await;
        let user = world.agency_admin(&agency.agency_id, "a@example.com").await;
        let won = one_wins(&at_once(|i| {
            let (mut client, agency_id, etag) = (world.agencies(), agency.agency_id.clone(), agency.etag.clone());
            let agency = Some(v2::Agency { agency_id, etag, name: format!("Name {i}"), ..Default::default() });
            async move { client.update_agency(v2::UpdateAgencyRequest { agency, ..Default::default() }).await }
        }).await);
        let get = v2::GetAgencyRequest { agency_id: agency.agency_id.clone() };
        assert_eq!(world.agencies().get_agency(get).await.expect("read").into_inner(), won);
        let won = one_wins(&at_once(|i| {
            let (mut client, request) = (world.locations(), rename_location(&location, format!("Name {i}"), ""));
            async move { client.update_location(request).await }
        }).await);
        let get = v2::GetLocationRequest { location_id: location.location_id.clone() };
        assert_eq!(world.locations().get_location(get).await.expect("read").into_inner(), won);
        let won = one_wins(&at_once(|i| {
            let (mut client, user_id, etag) = (world.users(), user.user_id.clone(), user.etag.clone());
            let user = Some(v2::User { user_id, etag, first_name: format!("Name {i}"), ..Default::default() });
            async move { client.update_user(v2::UpdateUserRequest { user, ..Default::default() }).await }
        }).await);
        let get = v2::GetUserRequest { user_id: user.user_id.clone() };
        assert_eq!(world.users().get_user(get).await.expect("read").into_inner(), won);

        // A deletion and a change of one reading: one of them is too late.
        let current = v2::Location { etag: "r2".into(), ..location.clone() };
        let (mut one, mut two) = (world.locations(), world.locations());
        let delete = v2::DeleteLocationRequest { location_id: location.location_id.clone(), etag: "r2".into(), request_id: String::new() };
        let (deleted, renamed) = tokio::join!(one.delete_location(delete), two.update_location(rename_location(&current, "Late".into(), "")));
        assert_ne!(deleted.is_ok(), renamed.is_ok(), "{deleted:?} {renamed:?}");
        world.stop().await;
    }

    async fn a_request_made_by_many_at_once_happens_once(db: TestDatabase) {
        let world = World::start(db).await;
        let agency = world.agency("Agency").await;
        let admin = world.agency_admin(&agency.agency_id, "a@example.com").await;
        world.choose(&admin, false).await;
        let create = new_location(&agency.agency_id, "Shop", "l");
        let location = all_the_same(at_once(|_| {
            let (mut client, request) = (world.locations(), create.clone());
            async move { client.create_location(request).await }
        }).await);
        assert_eq!(world.keys.secrets(), std::slice::from_ref(&location.api_key));
        let list = v2::ListLocationsRequest { agency_id: agency.agency_id.clone(), ..Default::default() };
        assert_eq!(world.locations().list_locations(list).await.expect("a list").into_inner().locations, std::slice::from_ref(&location));
        let person = new_user(&agency.agency_id, "b@example.com", role(v2::RoleType::Agency, v2::RoleLevel::User), &[], "u");
        all_the_same(at_once(|_| {
            let (mut client, request) = (world.users(), person.clone());
            async move { client.create_user(request).await }
        }).await);
        let rename = rename_location(&location, "New".into(), "n");
        let renamed = all_the_same(at_once(|_| {
            let (mut client, request) = (world.locations(), rename.clone());
            async move { client.update_location(request).await }
        }).await);
        assert_eq!(renamed.etag, "r2");
        let location_id = location.location_id.clone();
        let deleted = all_the_same(at_once(|_| {
            let request = v2::DeleteLocationRequest { location_id: location_id.clone(), etag: "r2".into(), request_id: "d".into() };
            let mut client = world.locations();
            async move { client.delete_location(request).await }
        }).await);
        let back = all_the_same(at_once(|_| {
            let request = v2::UndeleteLocationRequest { location_id: location_id.clone(), etag: "r3".into(), request_id: "b".into() };
            let mut client = world.locations();
            async move { client.undelete_location(request).await }
        }).await);
        assert_eq!((deleted.etag.as_str(), back.etag.as_str(), back.delete_time), ("r3", "r4", None));
        world.stop().await;
    }

    async fn a_change_of_nothing_changes_nothing(db: TestDatabase) {
        let world = World::start(db).await;
        let agency = world.agency("Agency").await;
        let location = world.location(&agency.agency_id, "Shop").await;
        let user = world.agency_admin(&agency.agency_id, "a@example.com").await;
        world.clock.advance(chrono::TimeDelta::seconds(1));
        let (mut agencies, mut locations, mut users) = (world.agencies(), world.locations(), world.users());
        let same = v2::UpdateAgencyRequest { agency: Some(agency.clone()), update_mask: None, request_id: "r".into() };
        assert_eq!(agencies.update_agency(same.clone()).await.expect("the same").into_inner(), agency);
        // The mask names everything, and the zone falls back to what it is.
        let named = v2::Agency { agency_id: agency.agency_id.clone(), name: agency.name.clone(), ..Default::default() };
        let all = v2::UpdateAgencyRequest { agency: Some(named), update_mask: support::mask(&["*"]), request_id: String::new() };
        assert_eq!(agencies.update_agency(all).await.expect("the same").into_inner(), agency);
        let keep = rename_location(&location, location.name.clone(), "r");
        assert_eq!(locations.update_location(keep.clone()).await.expect("the same").into_inner(), location);
        let keep_user = v2::UpdateUserRequest { user: Some(user.clone()), update_mask: None, request_id: "r".into() };
        assert_eq!(users.update_user(keep_user).await.expect("the same").into_inner(), user);
        let stale = v2::Agency { etag: "r9".into(), ..agency.clone() };
        let stale = v2::UpdateAgencyRequest { agency: Some(stale), ..Default::default() };
        refused(agencies.update_agency(stale).await, Code::Aborted, "ETAG_MISMATCH");

        // Repeated after somebody else's change, it undoes nothing.
        let rename = v2::Agency { agency_id: agency.agency_id.clone(), name: "New".into(), ..Default::default() };
        let rename = v2::UpdateAgencyRequest { agency: Some(rename), ..Default::default() };
        let renamed = agencies.update_agency(rename).await.expect("renamed").into_inner();
        assert_ne!((&renamed.etag, renamed.update_time), (&agency.etag, agency.update_time));
        assert_eq!(agencies.update_agency(same).await.expect("the same call").into_inner(), renamed);
        let undelete = v2::UndeleteLocationRequest { location_id: location.location_id.clone(), etag: String::new(), request_id: "b".into() };
        assert_eq!(locations.undelete_location(undelete.clone()).await.expect("it is there").into_inner(), location);
        let delete = v2::DeleteLocationRequest { location_id: location.location_id.clone(), etag: String::new(), request_id: "d".into() };
        let deleted = locations.delete_location(delete.clone()).await.expect("deleted").into_inner();
        assert_eq!(locations.undelete_location(undelete).await.expect("the same call").into_inner(), deleted);
        let gone = v2::DeleteLocationRequest { request_id: "e".into(), ..delete };
        locations.delete_location(gone.clone()).await.expect("it is gone");
        let back = v2::UndeleteLocationRequest { location_id: location.location_id, etag: String::new(), request_id: "c".into() };
        let back = locations.undelete_location(back).await.expect("undeleted").into_inner();
        assert_eq!(locations.delete_location(gone).await.expect("the same call").into_inner(), back);
        let other = v2::UpdateAgencyRequest { agency: Some(v2::Agency { city: "Bern".into(), ..agency }), update_mask: None, request_id: "r".into() };
        refused(agencies.update_agency(other).await, Code::AlreadyExists, "REQUEST_ID_REUSED");
        world.stop().await;
    }

    async fn a_key_whose_creation_was_cut_off_keeps_its_location_after_an_opt_in(db: TestDatabase) {
        let mut world = World::start(db).await;
        let agency = world.agency("Agency").await;
        let admin = world.agency_admin(&agency.agency_id, "a@example.com").await;
        world.choose(&admin, false).await;
        world.keys.hang(true);
        let create = new_location(&agency.agency_id, "Shop", "c1");
        let (mut client, request) = (world.locations(), create.clone());
        let cut_off = tokio::spawn(async move { client.create_location(request).await });
        while world.keys.generated() < 1 {
            tokio::task::yield_now().await;
        }
        world.crash_and_restart().await;
        cut_off.abort();
        world.choose(&admin, true).await;
        let made = world.locations().create_location(by(&admin, create.clone())).await.expect("created").into_inner();
        let owner = world.keys.seen()[0].request.owner.clone().and_then(|owner| owner.account);
        let Some(owner::Account::Location(owner)) = owner else { panic!("{owner:?} owns the key") };
        assert_eq!((owner.location_id.as_str(), made.api_key.as_str()), (made.location_id.as_str(), ""));
        assert_eq!((world.keys.generated(), world.keys.seen().len()), (1, 1), "no other key is asked for");
        assert_eq!(world.locations().create_location(create).await.expect("the same").into_inner(), made);
        world.stop().await;
    }
}
