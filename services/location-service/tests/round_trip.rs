//! Every valid resource is read as it was written, whatever its texts, on both databases.

mod support;

use keysweep_proto::location::v2;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use service_kit::both_databases;
use support::{World, role};

const CASES: usize = 40;

fn text(max: usize) -> impl Strategy<Value = String> {
    // Printable of every script, quotes and wildcards of SQL among them.
    let any = proptest::string::string_regex(&format!("[\\p{{L}}\\p{{N}}\\p{{S}} '\"%_;\\\\-]{{0,{max}}}"))
        .expect("a pattern");
    any.prop_filter("no direction marks", |text| !text.chars().any(service_kit::violations::is_deceptive))
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

both_databases! {
    async fn every_valid_resource_survives(db: TestDatabase) {
        let world = World::start(db).await;
        let (mut agencies, mut locations, mut users) = (world.agencies(), world.locations(), world.users());
        let mut runner = TestRunner::deterministic();
        for case in 0..CASES {
            let wanted = business().new_tree(&mut runner).expect("a value").current();
            let request = v2::CreateAgencyRequest { agency: Some(wanted.clone()), request_id: String::new() };
            let made = agencies.create_agency(request).await.expect("created").into_inner();
            let read = agencies.get_agency(v2::GetAgencyRequest { agency_id: made.agency_id.clone() }).await.expect("read").into_inner();
            assert_eq!(read, made);
            assert_eq!(location_of(&read), location_of(&wanted));

            let place = v2::CreateLocationRequest {
                agency_id: made.agency_id.clone(), location: Some(location_of(&wanted)), request_id: String::new(),
            };
            let place = locations.create_location(place).await.expect("created").into_inner();
            let get = v2::GetLocationRequest { location_id: place.location_id.clone() };
            assert_eq!(locations.get_location(get).await.expect("read").into_inner(), place);
            let expected = v2::Location {
                location_id: place.location_id.clone(),
                agency_id: made.agency_id.clone(),
                create_time: place.create_time,
                update_time: place.update_time,
                etag: place.etag.clone(),
                ..location_of(&wanted)
            };
            assert_eq!(place, expected);

            let names = (text(99), text(100)).new_tree(&mut runner).expect("a value").current();
            let person = v2::User {
                first_name: format!("F{}", names.0),
                last_name: names.1,
                email: format!("u{case}@example.com"),
                role: Some(role(v2::RoleType::Location, v2::RoleLevel::User)),
                location_ids: vec![place.location_id.clone()],
                disabled: case % 2 == 0,
                ..v2::User::default()
            };
            let request = v2::CreateUserRequest { agency_id: made.agency_id, user: Some(person.clone()), request_id: String::new() };
            let stored = users.create_user(request).await.expect("created").into_inner();
            let get = v2::GetUserRequest { user_id: stored.user_id.clone() };
            assert_eq!(users.get_user(get).await.expect("read").into_inner(), stored);
            let bare = v2::User {
                user_id: String::new(), agency_id: String::new(), create_time: None, update_time: None, etag: String::new(), ..stored
            };
            assert_eq!(bare, person);
        }
        world.stop().await;
    }
}
