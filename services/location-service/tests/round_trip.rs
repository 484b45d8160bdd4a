//! Every valid resource is read as it was written and as it was changed, whatever its texts, on both databases.

#![expect(deprecated, reason = "the legacy user API is deprecated, and tested all the same")]

mod support;

use keysweep_proto::location::{v1, v2};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use service_kit::both_databases;
use service_kit::entropy::{Entropy, OsEntropy};
use support::{World, mask, role};

const CASES: usize = 30;
const SEED_VARIABLE: &str = "KEYSWEEP_TEST_SEED";

/// Blanks, quotes and wildcards of SQL, ASCII, and all that a text may hold, each as often.
fn text(max: usize) -> impl Strategy<Value = String> {
    let odd = proptest::sample::select(vec![' ', '\'', '"', '%', '_', ';', '\\', '-']);
    let any = any::<char>().prop_filter("no deceptive characters", |one| !service_kit::violations::is_deceptive(*one));
    let one = prop_oneof![odd, proptest::char::range('!', '~'), any];
    proptest::collection::vec(one, 0..=max).prop_map(String::from_iter)
}

fn business() -> impl Strategy<Value = v2::Agency> {
    let place = (text(300), text(100), text(100), "[A-Z0-9 -]{0,20}", prop_oneof!["", "DE", "US", "JP"]);
    let contact = (
        prop_oneof!["", "[a-z]{1,20}\\+?[a-z0-9]{1,10}@[a-z]{1,20}\\.(com|io)"],
        prop_oneof!["", "\\+[1-9][0-9]{6,14}"],
    );
    let other = (
        prop_oneof!["UTC", "Europe/Zurich", "America/Argentina/Ushuaia"],
        prop_oneof!["", "https://[a-z]{1,20}\\.com/[a-z]{0,20}"],
    );
    (text(199), place, contact, other).prop_map(|(name, place, contact, other)| v2::Agency {
        name: format!("N{name}"),
        address: place.0,
        city: place.1,
        state: place.2,
        postal_code: place.3,
        country: place.4,
        email: contact.0,
        phone: contact.1,
        time_zone: other.0,
        website: other.1,
        ..v2::Agency::default()
    })
}

/// The location of the same business.
fn location_of(agency: &v2::Agency) -> v2::Location {
    v2::Location {
        name: agency.name.clone(),
        email: agency.email.clone(),
        phone: agency.phone.clone(),
        address: agency.address.clone(),
        city: agency.city.clone(),
        state: agency.state.clone(),
        postal_code: agency.postal_code.clone(),
        country: agency.country.clone(),
        time_zone: agency.time_zone.clone(),
        website: agency.website.clone(),
        ..v2::Location::default()
    }
}

/// A person's names, role and whether it is disabled; who works in locations works in the given one.
fn person(location_id: &str) -> impl Strategy<Value = v2::User> + use<> {
    let location_id = location_id.to_owned();
    let kind = prop_oneof![Just(v2::RoleType::Agency), Just(v2::RoleType::Location)];
    let level = prop_oneof![Just(v2::RoleLevel::Admin), Just(v2::RoleLevel::User)];
    (text(99), text(100), kind, level, any::<bool>()).prop_map(move |(first, last_name, kind, level, disabled)| {
        v2::User {
            first_name: format!("F{first}"),
            last_name,
            role: Some(role(kind, level)),
            location_ids: if kind == v2::RoleType::Location { vec![location_id.clone()] } else { Vec::new() },
            disabled,
            ..v2::User::default()
        }
    })
}

/// A source of cases that its printed seed makes again.
#[expect(clippy::print_stdout, reason = "a failed test is replayed by what it printed")]
fn runner() -> TestRunner {
    let seed = std::env::var(SEED_VARIABLE).ok().map_or_else(
        || {
            let mut bytes = [0; 8];
            OsEntropy.fill(&mut bytes);
            u64::from_le_bytes(bytes)
        },
        |text| text.parse().expect("the seed is a number"),
    );
    println!("to replay: {SEED_VARIABLE}={seed}");
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed.to_le_bytes().repeat(4));
    TestRunner::new_with_rng(Config::default(), rng)
}

async fn agency_survives(world: &World, wanted: &v2::Agency, other: v2::Agency) -> v2::Agency {
    let mut client = world.agencies();
    let request = v2::CreateAgencyRequest { agency: Some(wanted.clone()), request_id: String::new() };
    let made = client.create_agency(request).await.expect("created").into_inner();
    let get = v2::GetAgencyRequest { agency_id: made.agency_id.clone() };
    assert_eq!(client.get_agency(get.clone()).await.expect("read").into_inner(), made);
    assert_eq!(location_of(&made), location_of(wanted));
    let change = v2::Agency { agency_id: made.agency_id.clone(), ..other.clone() };
    let change = v2::UpdateAgencyRequest { agency: Some(change), update_mask: mask(&["*"]), ..Default::default() };
    let changed = client.update_agency(change).await.expect("changed").into_inner();
    assert_eq!(location_of(&changed), location_of(&other));
    assert_eq!(client.get_agency(get).await.expect("read").into_inner(), changed);
    changed
}

async fn location_survives(world: &World, agency_id: &str, wanted: v2::Location, other: v2::Location) -> String {
    let mut client = world.locations();
    let agency_id = agency_id.to_owned();
    let create = v2::CreateLocationRequest {
        agency_id: agency_id.clone(),
        location: Some(wanted.clone()),
        ..Default::default()
    };
    let made = client.create_location(create).await.expect("created").into_inner();
    let location_id = made.location_id.clone();
    let get = v2::GetLocationRequest { location_id: location_id.clone() };
    assert_eq!(client.get_location(get.clone()).await.expect("read").into_inner(), made);
    let set = |one: v2::Location, read: &v2::Location| v2::Location {
        location_id: location_id.clone(),
        agency_id: agency_id.clone(),
        create_time: made.create_time,
        update_time: read.update_time,
        etag: read.etag.clone(),
        ..one
    };
    assert_eq!(set(wanted, &made), made);
    let change = v2::Location { location_id: location_id.clone(), ..other.clone() };
    let change = v2::UpdateLocationRequest { location: Some(change), update_mask: mask(&["*"]), ..Default::default() };
    let changed = client.update_location(change).await.expect("changed").into_inner();
    assert_eq!(set(other, &changed), changed);
    assert_eq!(client.get_location(get).await.expect("read").into_inner(), changed);
    location_id
}

async fn user_survives(world: &World, agency_id: &str, wanted: v2::User, other: v2::User) {
    let (mut client, mut legacy) = (world.users(), world.legacy_users());
    let agency_id = agency_id.to_owned();
    let create =
        v2::CreateUserRequest { agency_id: agency_id.clone(), user: Some(wanted.clone()), ..Default::default() };
    let made = client.create_user(create).await.expect("created").into_inner();
    let user_id = made.user_id.clone();
    let get = v2::GetUserRequest { user_id: user_id.clone() };
    assert_eq!(client.get_user(get.clone()).await.expect("read").into_inner(), made);
    let set = |one: v2::User, read: &v2::User| v2::User {
        user_id: user_id.clone(),
        agency_id: agency_id.clone(),
        create_time: made.create_time,
        update_time: read.update_time,
        etag: read.etag.clone(),
        ..one
    };
    assert_eq!(set(wanted, &made), made);
    let change = v2::User { user_id: user_id.clone(), ..other.clone() };
    let change = v2::UpdateUserRequest { user: Some(change), update_mask: mask(&["*"]), ..Default::default() };
    let changed = client.update_user(change).await.expect("changed").into_inner();
    assert_eq!(set(other, &changed), changed);
    assert_eq!(client.get_user(get).await.expect("read").into_inner(), changed);
    // The legacy API shows the same person, but for what came later.
    let old = legacy.get_user(v1::GetUserRequest { user_id }).await.expect("read").into_inner();
    let role = changed.role.map(|role| v1::Role { r#type: role.r#type, level: role.level });
    let expected = v1::User {
        user_id: changed.user_id,
        agency_id: changed.agency_id,
        first_name: changed.first_name,
        last_name: changed.last_name,
        email: changed.email,
        role,
        location_ids: changed.location_ids,
        create_time: changed.create_time,
        update_time: changed.update_time,
    };
    assert_eq!(old, expected);
}

both_databases! {
    async fn every_valid_resource_survives(db: TestDatabase) {
        let world = World::start(db).await;
        let mut runner = runner();
        for case in 0..CASES {
            let mut some = || business().new_tree(&mut runner).expect("a value").current();
            let (one, two, three) = (some(), some(), some());
            let agency = agency_survives(&world, &one, two.clone()).await;
            let id = agency.agency_id.as_str();
            let location_id = location_survives(&world, id, location_of(&two), location_of(&three)).await;
            let mut some = |i| v2::User {
                email: format!("u{case}.{i}@example.com"),
                ..person(&location_id).new_tree(&mut runner).expect("a value").current()
            };
            user_survives(&world, id, some(0), some(1)).await;
        }
        world.stop().await;
    }
}
