//! What a page of `ListLocations` costs at the end of a long list, beside what it costs at its beginning.
//!
//! `cargo bench -p location-service --bench lists`
//!
//! Seeds 1,000,000 locations into one table, by SQL, of which every tenth belongs to the agency that is then listed. For each
//! order and filter it reads the first page of 50 and the last one in turn, as the use case reads them: statement, rows and
//! conversion, without gRPC. It prints the median of each, and the ratio of last to first; beside it, as a measure of the noise,
//! that of the first page to itself.
//!
//! It runs on SQLite in a temporary folder, then on PostgreSQL: on the empty database that `KEYSWEEP_BENCH_POSTGRES` names by
//! its URL, or else on a throwaway cluster where a server is installed. `KEYSWEEP_BENCH_LOCATIONS` changes the number.

#![expect(clippy::print_stdout, reason = "a benchmark speaks to whoever ran it")]

use std::time::{Duration, Instant};

use location_service::app::listing::{After, CreatedRange, Order, OrderField, Place, Window};
use location_service::app::ports::{LocationFilter, LocationStore, StoredLocation};
use location_service::domain::profile::name_key;
use location_service::storage::{DatabaseStore, Migrator};
use sea_orm::{ConnectionTrait, DatabaseConnection};
use secrecy::SecretString;
use service_kit::db::{self, DatabaseConfig};
use service_kit::testing::{Kind, TestDatabase};
use service_kit::time::from_micros;

const AGENCIES: u32 = 10;
const PAGE: u64 = 50;
const WARM_UP: usize = 20;
const ROUNDS: usize = 300;

/// A list to measure: its name, order, filters and beginning of names.
struct Case {
    name: &'static str,
    field: OrderField,
    descending: bool,
    country: &'static str,
    state: &'static str,
    name_prefix: &'static str,
    /// Whether only the middle half of the table's time of creation is asked for.
    ranged: bool,
}

const fn case(name: &'static str, field: OrderField, descending: bool) -> Case {
    Case { name, field, descending, country: "", state: "", name_prefix: "", ranged: false }
}

const CASES: [Case; 13] = [
    case("create_time", OrderField::CreateTime, false),
    case("create_time desc", OrderField::CreateTime, true),
    case("name", OrderField::Text, false),
    case("name desc", OrderField::Text, true),
    Case { country: "DE", ..case("country, create_time", OrderField::CreateTime, false) },
    Case { country: "DE", ..case("country, name desc", OrderField::Text, true) },
    Case { state: "CA", ..case("state, create_time", OrderField::CreateTime, false) },
    Case { state: "CA", ..case("state, name", OrderField::Text, false) },
    Case { name_prefix: "shop 7", ..case("name_prefix, name", OrderField::Text, false) },
    Case { name_prefix: "shop 7", ..case("name_prefix, name desc", OrderField::Text, true) },
    Case { ranged: true, ..case("time, create_time", OrderField::CreateTime, false) },
    Case { ranged: true, ..case("time, create_time desc", OrderField::CreateTime, true) },
    Case { ranged: true, country: "DE", ..case("time, country", OrderField::CreateTime, false) },
];

impl Case {
    fn window(&self, locations: u32, descending: bool, after: Option<After>, limit: u64) -> Window {
        let order = Order { field: self.field, descending };
        // One was created each microsecond.
        let quarters = |n: i64| self.ranged.then(|| from_micros(i64::from(locations) / 4 * n));
        let created = CreatedRange { from: quarters(1), before: quarters(3) };
        Window { order, text_prefix: self.name_prefix.to_owned(), created, after, limit }
    }

    async fn read(&self, store: &DatabaseStore, window: &Window) -> anyhow::Result<Vec<StoredLocation>> {
        let agency_id = agency(0);
        let filter =
            LocationFilter { agency_id: &agency_id, show_deleted: false, country: self.country, state: self.state };
        Ok(store.locations(filter, window).await?)
    }

    async fn measure(&self, store: &DatabaseStore, locations: u32) -> anyhow::Result<()> {
        // The list backwards leads to where its last page begins.
        let end = self.read(store, &self.window(locations, !self.descending, None, PAGE + 1)).await?;
        let last = end.last().map(|row| &row.location);
        let after = last.map(|one| After {
            id: one.id.clone(),
            place: match self.field {
                OrderField::CreateTime => Place::Created(one.created_at),
                OrderField::Text => Place::Text(name_key(&one.profile.name)),
            },
        });
        let first = self.window(locations, self.descending, None, PAGE + 1);
        let last = self.window(locations, self.descending, after, PAGE + 1);
        let (full, rest) = (self.read(store, &first).await?.len(), self.read(store, &last).await?.len());
        anyhow::ensure!(full == 51 && rest == 50, "{}: pages of {full} and {rest} rows", self.name);

        let mut times: [Vec<Duration>; 3] = Default::default();
        for round in 0..WARM_UP + ROUNDS {
            for (window, times) in [&first, &last, &first].into_iter().zip(&mut times) {
                let begun = Instant::now();
                self.read(store, window).await?;
                if round >= WARM_UP {
                    times.push(begun.elapsed());
                }
            }
        }
        let [first, last, again] = times.map(median);
        println!(
            "| {:<22} | {:>8.0} | {:>8.0} | {:>5.2} | {:>5.2} |",
            self.name,
            first * 1e6,
            last * 1e6,
            last / first,
            again / first
        );
        Ok(())
    }
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64()
}

fn agency(number: u32) -> String {
    format!("agy_{number:032x}")
}

/// Names in no order of their ids, three countries, seven states, ten agencies that take turns.
async fn seed(db: &DatabaseConnection, kind: Kind, locations: u32) -> anyhow::Result<()> {
    let (numbers, id, agency_id, hash) = match kind {
        Kind::Sqlite => (
            format!("WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {locations} - 1)"),
            "printf('loc_%032x', i)",
            "printf('agy_%032x', i % 10)",
            "printf('%08x', (i * 2654435761) % 4294967296)",
        ),
        Kind::Postgres => (
            format!("WITH n(i) AS (SELECT generate_series(0::bigint, {locations} - 1))"),
            "'loc_' || lpad(to_hex(i), 32, '0')",
            "'agy_' || lpad(to_hex(i % 10), 32, '0')",
            "lpad(to_hex((i * 2654435761) % 4294967296), 8, '0')",
        ),
    };
    let profile = "email, phone, address, city, state, postal_code, country, time_zone, website";
    for number in 0..AGENCIES {
        db.execute_unprepared(&format!(
            "INSERT INTO agencies (id, name, name_key, {profile}, created_at, updated_at, revision)
             VALUES ('{}', 'Agency', 'agency', '', '', '', '', '', '', '', 'UTC', '', 0, 0, 1)",
            agency(number)
        ))
        .await?;
    }
    db.execute_unprepared(&format!(
        "INSERT INTO locations (id, agency_id, name, name_key, {profile}, created_at, updated_at, revision)
         {numbers} SELECT {id}, {agency_id}, 'Shop ' || {hash}, 'shop ' || {hash},
             'mail@example.com', '+49 30 1234567', 'Street 1', 'City',
             CASE (i / 10) % 7 WHEN 0 THEN 'CA' WHEN 1 THEN 'BE' ELSE 'S' || (i / 10) % 7 END, '10115',
             CASE (i / 10) % 3 WHEN 0 THEN 'DE' WHEN 1 THEN 'US' ELSE 'CH' END, 'Europe/Berlin', '', i, i, 1
         FROM n"
    ))
    .await?;
    if kind == Kind::Postgres {
        // As autovacuum does within a minute.
        db.execute_unprepared("VACUUM ANALYZE locations").await?;
    }
    Ok(())
}

async fn run(kind: Kind, config: &DatabaseConfig, locations: u32) -> anyhow::Result<()> {
    let db = db::connect(config).await?;
    db::migrate::<Migrator>(&db).await?;
    let begun = Instant::now();
    seed(&db, kind, locations).await?;
    println!(
        "\n{kind:?}: {locations} locations, {} in the agency, seeded in {:.0} s; median of {ROUNDS} rounds, µs\n",
        locations / AGENCIES,
        begun.elapsed().as_secs_f64()
    );
    println!("| {:<22} | {:>8} | {:>8} | {:>5} | {:>5} |", "order", "first", "last", "ratio", "noise");
    println!("| --- | ---: | ---: | ---: | ---: |");
    let store = DatabaseStore::new(db.clone());
    for case in &CASES {
        case.measure(&store, locations).await?;
    }
    Ok(db.close().await?)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let locations = match std::env::var("KEYSWEEP_BENCH_LOCATIONS") {
        Ok(text) => text.parse()?,
        Err(_) => 1_000_000,
    };
    let sqlite = TestDatabase::new(Kind::Sqlite);
    run(Kind::Sqlite, &sqlite.config(), locations).await?;
    if let Ok(url) = std::env::var("KEYSWEEP_BENCH_POSTGRES") {
        let config = DatabaseConfig { url: SecretString::from(url), ..sqlite.config() };
        return run(Kind::Postgres, &config, locations).await;
    }
    if cfg!(keysweep_no_postgres) {
        println!("\nPostgreSQL: left out, no server is installed and KEYSWEEP_BENCH_POSTGRES is not set");
        return Ok(());
    }
    run(Kind::Postgres, &TestDatabase::new(Kind::Postgres).config(), locations).await
}
