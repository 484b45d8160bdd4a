//! A database that was filled before its later migrations is listed as one that was filled after them.

use chrono::{DateTime, Utc};
use location_service::Migrator;
use location_service::app::listing::{CreatedRange, Order, OrderField, Window};
use location_service::app::ports::{AgencyStore, LocationFilter, LocationStore, UserFilter, UserStore};
use location_service::domain::profile::name_key;
use location_service::storage::DatabaseStore;
use sea_orm::{ConnectionTrait, DatabaseConnection};
use sea_orm_migration::MigratorTrait;
use service_kit::{both_databases, db};

/// More than two of the pages in which names are filled in.
const LOCATIONS: u32 = 2_345;
const NAMES: [&str; 8] = [
    "Zebra",
    "apple",
    "APPLE pie",
    "\u{c4}pfel",
    "\u{39f}\u{394}\u{39f}\u{3a3}",
    "\u{10400}",
    "It's 100% \"_\"",
    "\u{130}x",
];
const PROFILE: &str = "email, phone, address, city, state, postal_code, country, time_zone, website";

fn id(prefix: &str, number: u32) -> String {
    format!("{prefix}{number:032x}")
}

fn name(number: u32) -> String {
    format!("{} {}", NAMES[number as usize / 2 % NAMES.len()], number % 7)
}

/// Created in another order than that of the ids.
fn created(number: u32) -> u32 {
    (number * 7_919) % LOCATIONS
}

/// As the first version of the service wrote it.
async fn fill(db: &DatabaseConnection) {
    let agencies: Vec<_> = (0..3).map(|n| row(&id("agy_", n), "", n)).collect();
    let locations: Vec<_> =
        (0..LOCATIONS).map(|n| row(&id("loc_", n), &format!("'{}', ", id("agy_", n % 2)), n)).collect();
    insert(db, "agencies", "", &agencies).await;
    insert(db, "locations", "agency_id, ", &locations).await;
    for n in 0..20 {
        let (user_id, agency_id, email) = (id("usr_", n), id("agy_", 0), format!("u{}_{n}@example.com", n % 3));
        let values = format!("'{user_id}', '{agency_id}', 'Ada', '', '{email}', '{email}', 1, 1, FALSE");
        db.execute_unprepared(&format!(
            "INSERT INTO users (id, agency_id, first_name, last_name, email, email_key, role_type, role_level, disabled,
                 created_at, updated_at, revision) VALUES ({values}, {}, 0, 1)",
            created(n)
        ))
        .await
        .expect("a user");
    }
}

fn row(id: &str, agency_id: &str, number: u32) -> String {
    let name = name(number).replace('\'', "''");
    let country = if number.is_multiple_of(3) { "DE" } else { "" };
    format!("('{id}', {agency_id}'{name}', '', '', '', '', '', '', '{country}', 'UTC', '', {}, 0, 1)", created(number))
}

async fn insert(db: &DatabaseConnection, table: &str, agency: &str, rows: &[String]) {
    for rows in rows.chunks(500) {
        let columns = format!("id, {agency}name, {PROFILE}, created_at, updated_at, revision");
        db.execute_unprepared(&format!("INSERT INTO {table} ({columns}) VALUES {}", rows.join(", ")))
            .await
            .expect("rows");
    }
}

fn window(field: OrderField, prefix: &str, created: CreatedRange) -> Window {
    let order = Order { field, descending: false };
    Window { order, text_prefix: name_key(prefix), created, after: None, limit: 10_000 }
}

/// The numbers of an agency's locations as a list in this order under these filters must have them.
fn expected(by_name: bool, prefix: &str, country: &str, below: u32) -> Vec<String> {
    let fits = |n: &u32| {
        n.is_multiple_of(2)
            && name_key(&name(*n)).starts_with(&name_key(prefix))
            && (country.is_empty() || n.is_multiple_of(3))
            && created(*n) < below
    };
    let mut numbers: Vec<_> = (0..LOCATIONS).filter(fits).collect();
    numbers.sort_by_key(|n| if by_name { (name_key(&name(*n)), *n) } else { (String::new(), created(*n)) });
    numbers.into_iter().map(|n| id("loc_", n)).collect()
}

async fn lists_are_right(db: &DatabaseConnection) {
    let store = DatabaseStore::new(db.clone());
    let agency_id = id("agy_", 0);
    let to = |micros: u32| DateTime::<Utc>::from_timestamp_micros(i64::from(micros));
    for (prefix, country, below) in [
        ("", "", LOCATIONS),
        ("APPLE", "", LOCATIONS),
        ("\u{e4}", "", 900),
        ("", "DE", 1_000),
        ("it's", "DE", LOCATIONS),
    ] {
        for by_name in [true, false] {
            if !by_name && !prefix.is_empty() {
                continue;
            }
            let filter = LocationFilter { agency_id: &agency_id, show_deleted: false, country, state: "" };
            let field = if by_name { OrderField::Text } else { OrderField::CreateTime };
            let window = window(field, prefix, CreatedRange { from: None, before: to(below) });
            let read = store.locations(filter, &window).await.expect("a list");
            let read: Vec<_> = read.into_iter().map(|one| one.location.id).collect();
            let expected = expected(by_name, prefix, country, below);
            assert!(!expected.is_empty());
            assert_eq!(read, expected, "{prefix} {country} {below} {by_name}");
        }
    }
    let all = window(OrderField::Text, "", CreatedRange::default());
    let agencies: Vec<_> =
        store.agencies(&all).await.expect("a list").into_iter().map(|one| one.profile.name).collect();
    assert_eq!(agencies, ["apple 2", "Zebra 0", "Zebra 1"]);
    let filter =
        UserFilter { agency_id: &agency_id, location_id: None, email: None, role_type: None, role_level: None };
    let users: Vec<_> =
        store.users(filter, &all).await.expect("a list").into_iter().map(|one| one.details.email).collect();
    assert_eq!(users.len(), 20);
    assert!(users.is_sorted(), "{users:?}");
}

both_databases! {
    async fn a_filled_database_is_brought_to_this_version_and_back(db: TestDatabase) {
        let db = db::connect(&db.config()).await.expect("connects");
        Migrator::up(&db, Some(1)).await.expect("the first migration");
        fill(&db).await;
        db::migrate::<Migrator>(&db).await.expect("migrates");
        lists_are_right(&db).await;
        // Back to the first version, and here again.
        let later = u32::try_from(Migrator::migrations().len() - 1).expect("few");
        Migrator::down(&db, Some(later)).await.expect("goes back");
        assert!(DatabaseStore::new(db.clone()).agency(&id("agy_", 0)).await.is_err(), "the first version has no name_key");
        db::migrate::<Migrator>(&db).await.expect("migrates again");
        lists_are_right(&db).await;
        db.close().await.expect("closes");
    }
}
