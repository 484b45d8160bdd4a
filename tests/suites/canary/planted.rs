//! The search sees what it is to see: what is planted in a place of each kind, in each form, is found there.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use keysweep_e2e::installation::Installation;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use sea_orm::ConnectionTrait;
use service_kit::both_databases;
use service_kit::db;
use sha2::{Digest, Sha256};

use crate::places::Places;
use crate::search::Search;

const SECRET: &str = "canary-planted-Vb7nM2kQ9xTz4w";

fn attribute(key: &str, value: &str) -> KeyValue {
    let value = Some(AnyValue { value: Some(Value::StringValue(value.to_owned())) });
    KeyValue { key: key.to_owned(), value, ..Default::default() }
}

/// Sends a span that tells too much, as a service sends its spans.
async fn trace(places: &Places) {
    let span = Span { name: "call".into(), attributes: vec![attribute("secret", SECRET)], ..Default::default() };
    let resource = Resource { attributes: vec![attribute("service.name", "planted")], ..Default::default() };
    let scope_spans = vec![ScopeSpans { spans: vec![span], ..Default::default() }];
    let resource_spans = vec![ResourceSpans { resource: Some(resource), scope_spans, ..Default::default() }];
    let collector = TraceServiceClient::connect(places.collected_at.clone()).await;
    collector.expect("a collector").export(ExportTraceServiceRequest { resource_spans }).await.expect("it is taken");
}

both_databases! {
    async fn what_is_planted_is_found(database: TestDatabase) {
        let installation = Installation::new(database.kind);
        let emails = installation.folder().join("mail");
        let places = Places::of(&installation.databases, &emails).await;
        let mut search = Search::default();
        search.secret(SECRET);

        let planted = db::connect(&installation.databases[0].config()).await.expect("the database");
        planted.execute_unprepared("CREATE TABLE planted (what TEXT NOT NULL)").await.expect("a table");
        planted.execute_unprepared(&format!("INSERT INTO planted VALUES ('{SECRET}')")).await.expect("a row");
        let write = |path: std::path::PathBuf, bytes: &[u8]| {
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            std::fs::write(path, bytes).expect("a file");
        };
        write(places.logs.path().join("key-service.log"), format!("thread 'main' panicked: {SECRET}").as_bytes());
        write(places.cores.path().join("core"), &[&[0xff; 5_000], SECRET.as_bytes(), &[0; 5_000]].concat());
        write(emails.join("new/1"), BASE64_STANDARD.encode(format!("your key is {SECRET}")).as_bytes());
        trace(&places).await;
        search.bytes("metrics", format!("keysweep_keys{{secret=\"{}\"}} 1", hex::encode(SECRET)).as_bytes());
        search.bytes("refusal", hex::encode(Sha256::digest(SECRET)).as_bytes());
        search.bytes("nothing", b"canary-planted-");
        places.look_at_databases(&mut search, &installation.databases, "open").await;
        places.look(&mut search);

        let found = search.found();
        for (place, form) in [
            ("database, open: ", "as it is"),
            ("logs: key-service.log ", "as it is"),
            ("core files: core ", "as it is"),
            ("emails: 1 ", "in base64"),
            ("planted: traces ", "as it is"),
            ("metrics ", "in hexadecimal"),
            ("refusal ", "its SHA-256 in hexadecimal"),
        ] {
            let seen = found.iter().any(|line| line.starts_with(place) && line.ends_with(form));
            assert!(seen, "{place}: {form}: {found:#?}");
        }
        assert!(!found.iter().any(|line| line.starts_with("nothing")), "{found:#?}");
    }
}
