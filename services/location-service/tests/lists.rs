//! Lists in every order and under every filter, page by page, against a model; on both databases.

mod support;

use std::collections::BTreeSet;

use chrono::TimeDelta;
use keysweep_proto::location::v2;
use service_kit::both_databases;
use service_kit::clock::Clock;
use service_kit::time::to_proto;
use support::{World, fields, mask, new_user, refused, role};
use tonic::Code;

/// Cases, accents, a final sigma, letters beyond the first plane, what sorts differently in a dictionary, and doubles.
const NAMES: [&str; 16] = [
    "Zebra",
    "apple",
    "Apple",
    "apple pie",
    "APPLE PIE",
    "\u{c4}pfel",
    "\u{e4}pfel",
    "\u{39f}\u{394}\u{39f}\u{3a3}",
    "\u{39f}\u{394}\u{39f}\u{3a3}\u{391}",
    "\u{10400}",
    "_under",
    "10",
    "9",
    "a-b",
    "apple",
    "%apple_",
];
const COUNTRIES: [&str; 3] = ["", "DE", "US"];
const STATES: [&str; 3] = ["", "BE", "CA"];

/// What a name is compared as, in the words of the contract.
fn small(name: &str) -> String {
    name.chars().flat_map(char::to_lowercase).collect()
}

async fn walk(world: &World, list: &v2::ListLocationsRequest) -> Vec<v2::Location> {
    let (mut read, mut list) = (Vec::new(), list.clone());
    loop {
        let page = world.locations().list_locations(list.clone()).await.expect("a page").into_inner();
        assert!(page.locations.len() <= usize::try_from(list.page_size).expect("positive"));
        read.extend(page.locations);
        if page.next_page_token.is_empty() {
            return read;
        }
        list.page_token = page.next_page_token;
    }
}

fn created(stamp: Option<prost_types::Timestamp>) -> (i64, i32) {
    stamp.map(|it| (it.seconds, it.nanos)).expect("an instant")
}

fn in_order(mut items: Vec<v2::Location>, order_by: &str) -> Vec<v2::Location> {
    let by_name = order_by.starts_with("name");
    items.sort_by_cached_key(|one| {
        let place = if by_name { (small(&one.name), (0, 0)) } else { (String::new(), created(one.create_time)) };
        (place, one.location_id.clone())
    });
    if order_by.ends_with("desc") {
        items.reverse();
    }
    items
}

both_databases! {
    async fn locations_come_in_every_order_under_every_filter(db: TestDatabase) {
        let world = World::start(db).await;
        let (agency, other) = (world.agency("Agency").await.agency_id, world.agency("Other").await.agency_id);
        let mut made = Vec::new();
        for (i, name) in NAMES.into_iter().enumerate() {
            world.clock.advance(chrono::TimeDelta::milliseconds(1));
            let location = v2::Location {
                name: name.to_owned(), country: COUNTRIES[i % 3].to_owned(), state: STATES[(i / 2) % 3].to_owned(), ..Default::default()
            };
            for agency_id in [&agency, &other] {
                let request = v2::CreateLocationRequest { agency_id: agency_id.clone(), location: Some(location.clone()), request_id: String::new() };
                let created = world.locations().create_location(request).await.expect("created").into_inner();
                if *agency_id == agency {
                    made.push(created);
                }
            }
        }
        let gone = v2::DeleteLocationRequest { location_id: made.remove(2).location_id, ..Default::default() };
        world.locations().delete_location(gone).await.expect("deleted");
        // A changed name is found where it sorts now.
        let renamed = v2::UpdateLocationRequest {
            location: Some(v2::Location { location_id: made[0].location_id.clone(), name: "Bee".into(), ..Default::default() }),
            update_mask: mask(&["name"]), request_id: String::new(),
        };
        made[0] = world.locations().update_location(renamed).await.expect("renamed").into_inner();

        for order_by in ["", "create_time", "create_time desc", "name", "name asc", " name  desc"] {
            for prefix in ["", "a", "APPLE", "apple p", "\u{c4}", "\u{39f}\u{394}\u{39f}\u{3a3}", "%", "\u{10428}", "nothing"] {
                let order = match (order_by.trim(), prefix) {
                    ("", "") => "create_time",
                    ("", _) => "name",
                    (order, "") => order,
                    (order, _) if order.starts_with("name") => order,
                    _ => continue,
                };
                for (country, state) in [("", ""), ("DE", ""), ("", "CA"), ("US", "BE")] {
                    let expected = made.iter().filter(|one| {
                        small(&one.name).starts_with(&small(prefix)) && (country.is_empty() || one.country == country)
                            && (state.is_empty() || one.state == state)
                    });
                    let expected = in_order(expected.cloned().collect(), order);
                    for page_size in [1, 3, 100] {
                        let list = v2::ListLocationsRequest {
                            agency_id: agency.clone(), page_size, name_prefix: prefix.to_owned(), country: country.to_owned(),
                            state: state.to_owned(), order_by: order_by.to_owned(), ..Default::default()
                        };
                        assert_eq!(walk(&world, &list).await, expected, "{list:?}");
                    }
                }
            }
        }
        world.stop().await;
    }

    async fn lists_are_cut_by_time_of_creation(db: TestDatabase) {
        let world = World::start(db).await;
        let agency_id = world.agency("Agency").await.agency_id;
        let begun = world.clock.now();
        let (mut locations, mut users, mut agencies) = (Vec::new(), Vec::new(), Vec::new());
        // Many within a millisecond, in which ids have no order, and some at one instant.
        for i in 0..14 {
            world.clock.advance(TimeDelta::microseconds(if i % 4 == 0 { 0 } else { 170 }));
            let country = COUNTRIES[i % 3].to_owned();
            let location = v2::Location { name: format!("L{}", i % 5), country, ..Default::default() };
            let request = v2::CreateLocationRequest { agency_id: agency_id.clone(), location: Some(location), request_id: String::new() };
            locations.push(world.locations().create_location(request).await.expect("created").into_inner());
            let request = new_user(&agency_id, &format!("{}@example.com", (b'z' - i as u8) as char), role(v2::RoleType::Agency, v2::RoleLevel::User), &[], "");
            users.push(world.users().create_user(request).await.expect("created").into_inner());
            agencies.push(world.agency(&format!("A{i}")).await);
        }
        let instant = |micros: i64| Some(to_proto(begun + TimeDelta::microseconds(micros)));
        // Half a microsecond on the way to the next instant.
        let finer = |stamp: Option<prost_types::Timestamp>| stamp.map(|it| prost_types::Timestamp { nanos: it.nanos - 500, ..it });
        let ranges = [
            (None, None), (instant(0), instant(1)), (instant(170), instant(510)), (instant(169), instant(511)), (instant(171), None),
            (finer(instant(170)), finer(instant(510))), (None, instant(340)), (instant(100_000), None), (None, instant(-5)),
        ];
        for (start, end) in ranges {
            let there = |stamp: &Option<prost_types::Timestamp>| {
                let at = stamp.map(|it| (it.seconds, it.nanos));
                start.is_none_or(|it| at >= Some((it.seconds, it.nanos))) && end.is_none_or(|it| at < Some((it.seconds, it.nanos)))
            };
            for (order_by, page_size) in [("", 1), ("", 3), ("create_time desc", 2), ("name", 3), ("name desc", 100)] {
                for country in ["", "DE"] {
                    let list = v2::ListLocationsRequest {
                        agency_id: agency_id.clone(), page_size, order_by: order_by.into(), country: country.into(),
                        start_create_time: start, end_create_time: end, ..Default::default()
                    };
                    let fit = locations.iter().filter(|one| there(&one.create_time) && (country.is_empty() || one.country == country));
                    assert_eq!(walk(&world, &list).await, in_order(fit.cloned().collect(), order_by), "{list:?}");
                }
            }
            for (order_by, page_size) in [("", 3), ("create_time desc", 1), ("email", 2), ("email desc", 100)] {
                let mut list = v2::ListUsersRequest {
                    agency_id: agency_id.clone(), page_size, order_by: order_by.into(), start_create_time: start, end_create_time: end,
                    ..Default::default()
                };
                let mut expected: Vec<_> = users.iter().filter(|one| there(&one.create_time)).cloned().collect();
                expected.sort_by_cached_key(|one| (order_by.starts_with("email").then(|| one.email.clone()), created(one.create_time), one.user_id.clone()));
                if order_by.ends_with("desc") {
                    expected.reverse();
                }
                let mut read = Vec::new();
                loop {
                    let page = world.users().list_users(list.clone()).await.expect("a page").into_inner();
                    read.extend(page.users);
                    if page.next_page_token.is_empty() {
                        break;
                    }
                    list.page_token = page.next_page_token;
                }
                assert_eq!(read, expected, "{list:?}");
            }
            let list = v2::ListAgenciesRequest { start_create_time: start, end_create_time: end, name_prefix: "a".into(), ..Default::default() };
            let read: BTreeSet<_> = world.agencies().list_agencies(list).await.expect("a list").into_inner().agencies.into_iter().map(|one| one.agency_id).collect();
            let own = agencies.iter().filter(|one| there(&one.create_time)).map(|one| one.agency_id.clone());
            let first = (start.is_none() || start == instant(0)) && end != instant(-5);
            assert_eq!(read, own.chain(first.then(|| agency_id.clone())).collect());
        }
        world.stop().await;
    }

    async fn a_list_names_its_faults_and_binds_its_pages(db: TestDatabase) {
        let world = World::start(db).await;
        let agency_id = world.agency("Agency").await.agency_id;
        let admin = world.agency_admin(&agency_id, "a@example.com").await;
        for name in ["A", "B", "C"] {
            world.location(&agency_id, name).await;
        }
        let list = v2::ListLocationsRequest { agency_id: agency_id.clone(), page_size: 1, ..Default::default() };
        let mut client = world.locations();
        for order_by in ["email", "name up", "name, create_time", "id", "name desc desc", "name; DROP TABLE locations"] {
            let request = v2::ListLocationsRequest { order_by: order_by.to_owned(), ..list.clone() };
            assert_eq!(fields(&refused(client.list_locations(request).await, Code::InvalidArgument, "INVALID_FIELDS")), ["order_by"]);
            let request = v2::ListAgenciesRequest { order_by: order_by.to_owned(), ..Default::default() };
            let status = refused(world.agencies().list_agencies(request).await, Code::InvalidArgument, "INVALID_FIELDS");
            assert_eq!(fields(&status), ["order_by"]);
        }
        let instant = |seconds: i64| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let all = v2::ListLocationsRequest {
            agency_id: String::new(), name_prefix: "\u{202e}".into(), country: "XX".into(), state: "\u{0}".into(), order_by: "size".into(),
            start_create_time: instant(i64::MAX), end_create_time: instant(i64::MIN), page_size: -1, ..Default::default()
        };
        let status = refused(client.list_locations(all.clone()).await, Code::InvalidArgument, "INVALID_FIELDS");
        let faults = ["start_create_time", "end_create_time", "name_prefix", "order_by", "country", "state", "agency_id"];
        assert_eq!(fields(&status), faults);
        let all = v2::ListLocationsRequest { agency_id: agency_id.clone(), ..all };
        let status = refused(client.list_locations(all).await, Code::InvalidArgument, "INVALID_FIELDS");
        assert_eq!(fields(&status), [&faults[..6], ["page_size"].as_slice()].concat());
        let empty = v2::ListLocationsRequest { start_create_time: instant(7), end_create_time: instant(7), page_token: "mine".into(), ..list.clone() };
        let status = refused(client.list_locations(empty).await, Code::InvalidArgument, "INVALID_FIELDS");
        assert_eq!(fields(&status), ["end_create_time", "page_token"]);
        let all = v2::ListAgenciesRequest {
            name_prefix: "\0".into(), order_by: "size".into(), start_create_time: instant(i64::MAX), page_size: -1, ..Default::default()
        };
        for request in [tonic::Request::new(all.clone()), support::by(&admin, all)] {
            let status = refused(world.agencies().list_agencies(request).await, Code::InvalidArgument, "INVALID_FIELDS");
            assert_eq!(fields(&status), ["start_create_time", "name_prefix", "order_by", "page_size"]);
        }

        let token = client.list_locations(list.clone()).await.expect("a page").into_inner().next_page_token;
        let with = v2::ListLocationsRequest { page_token: token, ..list };
        let changed = [
            v2::ListLocationsRequest { order_by: "name".into(), ..with.clone() },
            v2::ListLocationsRequest { order_by: "create_time desc".into(), ..with.clone() },
            v2::ListLocationsRequest { name_prefix: "A".into(), ..with.clone() },
            v2::ListLocationsRequest { country: "DE".into(), ..with.clone() },
            v2::ListLocationsRequest { state: "BE".into(), ..with.clone() },
            v2::ListLocationsRequest { start_create_time: instant(7), ..with.clone() },
            v2::ListLocationsRequest { end_create_time: instant(7), ..with.clone() },
        ];
        for request in changed {
            refused(client.list_locations(request).await, Code::InvalidArgument, "PAGE_TOKEN_INVALID");
        }
        client.list_locations(with).await.expect("the next page");
        world.stop().await;
    }

    async fn agencies_come_by_name_and_by_age(db: TestDatabase) {
        let world = World::start(db).await;
        for name in NAMES {
            world.clock.advance(chrono::TimeDelta::milliseconds(1));
            world.agency(name).await;
        }
        for order_by in ["", "create_time desc", "name", "name desc"] {
            for prefix in ["", "Apple"] {
                if !prefix.is_empty() && order_by.starts_with("create_time") {
                    continue;
                }
                let mut list = v2::ListAgenciesRequest { page_size: 3, order_by: order_by.into(), name_prefix: prefix.into(), ..Default::default() };
                let mut read = Vec::new();
                loop {
                    let page = world.agencies().list_agencies(list.clone()).await.expect("a page").into_inner();
                    read.extend(page.agencies.into_iter().map(|one| one.name));
                    if page.next_page_token.is_empty() {
                        break;
                    }
                    list.page_token = page.next_page_token;
                }
                let mut expected: Vec<_> = NAMES.into_iter().filter(|name| small(name).starts_with(&small(prefix))).collect();
                if order_by.starts_with("name") || !prefix.is_empty() {
                    // Stable: names that are alike stay in the order of their making.
                    expected.sort_by_key(|name| small(name));
                }
                if order_by.ends_with("desc") {
                    expected.reverse();
                }
                assert_eq!(read, expected, "{order_by} {prefix}");
            }
        }
        world.stop().await;
    }

    async fn users_are_found_by_their_role(db: TestDatabase) {
        let world = World::start(db).await;
        let agency_id = world.agency("Agency").await.agency_id;
        let shop = world.location(&agency_id, "Shop").await.location_id;
        let (types, levels) = ([v2::RoleType::Agency, v2::RoleType::Location], [v2::RoleLevel::Admin, v2::RoleLevel::User]);
        let mut made = Vec::new();
        for (i, (kind, level)) in types.into_iter().flat_map(|kind| levels.map(|level| (kind, level))).enumerate() {
            let places: &[&str] = if kind == v2::RoleType::Location { &[shop.as_str()] } else { &[] };
            made.push(world.user(&agency_id, &format!("u{i}@example.com"), role(kind, level), places).await);
        }
        for kind in [v2::RoleType::Unspecified, v2::RoleType::Agency, v2::RoleType::Location] {
            for level in [v2::RoleLevel::Unspecified, v2::RoleLevel::Admin, v2::RoleLevel::User] {
                let list = v2::ListUsersRequest {
                    agency_id: agency_id.clone(), role_type: kind.into(), role_level: level.into(), ..Default::default()
                };
                let read: BTreeSet<_> = world.users().list_users(list).await.expect("a list").into_inner().users.into_iter().map(|one| one.user_id).collect();
                let fits = |one: &&v2::User| one.role.is_some_and(|role| {
                    [v2::RoleType::Unspecified, role.r#type()].contains(&kind) && [v2::RoleLevel::Unspecified, role.level()].contains(&level)
                });
                assert_eq!(read, made.iter().filter(fits).map(|one| one.user_id.clone()).collect(), "{kind:?} {level:?}");
            }
        }
        let strange = v2::ListUsersRequest {
            agency_id, role_type: 9, role_level: -1, location_id: "here".into(), email: "\n".into(), order_by: "name".into(), page_size: -1,
            ..Default::default()
        };
        let status = refused(world.users().list_users(strange).await, Code::InvalidArgument, "INVALID_FIELDS");
        assert_eq!(fields(&status), ["role_type", "role_level", "order_by", "location_id", "email", "page_size"]);
        world.stop().await;
    }
}
