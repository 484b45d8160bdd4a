//! Whole messages, as they go to the mail server.

use chrono::{DateTime, TimeDelta, Utc};
use mailparse::MailHeaderMap;
use notification_service::app::letter::{LetterEntry, LetterFacts, LetterWriter};
use notification_service::app::ports::{ClaimedDelivery, StageId};
use notification_service::domain::stage::Stage;
use notification_service::email::Writer;

fn at(text: &str) -> DateTime<Utc> {
    text.parse().expect("an instant")
}

fn facts(agency: &str, time_zone: &str, key_count: usize) -> LetterFacts {
    LetterFacts {
        agency_name: agency.to_owned(),
        time_zone: time_zone.to_owned(),
        delete_at: at("2026-01-01T00:00:00Z"),
        idle_since_at: at("2025-10-03T00:00:00Z"),
        key_count: i64::try_from(key_count).expect("a count"),
        as_of_sequence: 9,
    }
}

fn to(name: &str, recipient: &str) -> ClaimedDelivery {
    ClaimedDelivery {
        id: "dlv_019b0000000070008000000000000001".into(),
        stage: StageId { plan_id: "plan_1".into(), agency_id: "agy_1".into(), stage: Stage::D15 },
        user_id: "usr_1".into(),
        recipient: recipient.to_owned(),
        name: name.to_owned(),
        message_id: "dlv_019b0000000070008000000000000001@keysweep.example".to_owned(),
        attempt: 1,
        deferred_since: None,
        wait: TimeDelta::zero(),
        lease_until: at("2025-12-16T12:10:00Z"),
        created_at: at("2025-12-16T18:00:03Z"),
    }
}

/// A key of the location, or of the agency where that is empty.
fn key(n: usize, location: &str, name: &str, prefix: &str, last_used: Option<&str>) -> LetterEntry {
    LetterEntry {
        key_id: format!("key_0190{n:028x}").as_str().into(),
        location_id: (!location.is_empty())
            .then(|| format!("loc_{}", location.to_lowercase().replace(' ', "_")).as_str().into()),
        location_name: location.to_owned(),
        display_name: name.to_owned(),
        display_prefix: prefix.to_owned(),
        created_at: at("2024-03-03T09:30:00Z") + TimeDelta::days(i64::try_from(n % 400).expect("days")),
        last_used_at: last_used.map(at),
    }
}

fn write(facts: &LetterFacts, to: &ClaimedDelivery, entries: &[LetterEntry]) -> String {
    let writer = Writer::new("keysweep <keysweep@keysweep.example>".parse().expect("a sender")).expect("templates");
    let mut draft = writer.begin(facts, to).expect("begun");
    // In two pages, as from a database.
    let (first, second) = entries.split_at(entries.len() / 2);
    draft.add(first).expect("added");
    draft.add(second).expect("added");
    String::from_utf8(draft.finish().expect("finished")).expect("mail is ASCII")
}

fn parts(mail: &str) -> Vec<(String, String)> {
    fn walk(part: &mailparse::ParsedMail<'_>, into: &mut Vec<(String, String)>) {
        if part.subparts.is_empty() {
            into.push((
                part.ctype.mimetype.clone(),
                String::from_utf8(part.get_body_raw().expect("a body")).expect("UTF-8"),
            ));
        }
        part.subparts.iter().for_each(|part| walk(part, into));
    }
    let mut found = Vec::new();
    walk(&mailparse::parse_mail(mail.as_bytes()).expect("parsed"), &mut found);
    found
}

fn header(mail: &str, name: &str) -> String {
    let parsed = mailparse::parse_mail(mail.as_bytes()).expect("parsed");
    parsed.headers.get_first_value(name).expect("the header")
}

/// Line ends are CRLF in the mail; a snapshot is compared without them.
fn readable(mail: &str) -> String {
    mail.replace("\r\n", "\n")
}

#[test]
fn one_key() {
    let entries = [key(1, "", "Billing export", "ksw_agy_Ab3x", Some("2025-09-12T08:00:00Z"))];
    let mail = write(&facts("Acme Ltd", "Europe/Berlin", 1), &to("Ada Lovelace", "ada@acme.example"), &entries);
    assert_eq!(header(&mail, "Subject"), "1 unused API key of Acme Ltd will be deleted on 1 January 2026");
    insta::assert_snapshot!(readable(&mail));
}

#[test]
fn several_locations() {
    let entries = [
        key(1, "", "Billing export", "ksw_agy_Ab3x", Some("2025-09-12T08:00:00Z")),
        key(2, "", "", "ksw_agy_Zz19", None),
        key(3, "Berlin Mitte", "Calendar sync", "ksw_loc_9fQ2", Some("2025-02-01T23:59:59Z")),
        key(
            4,
            "Berlin Mitte",
            "Old CRM import, kept for the yearly tax statement of the head office",
            "ksw_loc_11aa",
            None,
        ),
        key(5, "Hamburg Altona", "Website form", "", Some("2024-12-24T12:00:00Z")),
        key(6, "Zürich Hauptbahnhof", "", "", None),
    ];
    let mail = write(&facts("Acme Ltd", "America/New_York", 6), &to("Grace Hopper", "grace@acme.example"), &entries);
    let (text, html) = (&parts(&mail)[0].1, &parts(&mail)[1].1);
    for said in [
        "2 of Acme Ltd itself, 4 in 3 locations",
        "Thursday, 1 January 2026, 00:00 UTC",
        "Wednesday, 31 December 2025, 19:00 in New York (UTC−05:00)",
    ] {
        assert!(text.contains(said), "{said}");
        assert!(html.contains(said), "{said}");
    }
    insta::assert_snapshot!(readable(&mail));
}

#[test]
fn two_hundred_and_one_keys_come_as_a_table() {
    let mut entries = vec![key(0, "", "Billing export", "ksw_agy_Ab3x", None)];
    for location in 0..60 {
        let count = if location == 59 { 23 } else { 3 };
        entries.extend(
            (0..count)
                .map(|n| key(1 + location * 3 + n, &format!("Store {location:02}"), "Till", "ksw_loc_77Tt", None)),
        );
    }
    assert_eq!(entries.len(), 201);
    let mail = write(&facts("Acme Ltd", "UTC", 201), &to("", "ada@acme.example"), &entries);
    let parts = parts(&mail);
    let kinds: Vec<_> = parts.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["text/plain", "text/html", "text/csv"]);
    // The largest first, the agency's own before all; what does not fit is counted.
    let text = &parts[0].1;
    assert!(text.contains("Acme Ltd (the agency itself): 1\r\n  Store 59: 23\r\n  Store 00: 3"), "{text}");
    assert!(text.contains("and 10 more locations: 30"), "{text}");
    let table = parts[2].1.strip_prefix('\u{feff}').expect("a mark for spreadsheets");
    let rows: Vec<_> =
        csv::Reader::from_reader(table.as_bytes()).into_records().collect::<Result<_, _>>().expect("rows");
    assert_eq!(rows.len(), 201);
    assert_eq!(rows.iter().filter(|row| &row[1] == "Store 59").count(), 23);
    insta::assert_snapshot!(readable(&mail));
}

#[test]
fn hostile_names() {
    let entries = [
        key(1, "", "<script>alert(1)</script>", "ksw_agy_<b>", None),
        key(2, "=cmd|' /C calc'!A0", "{{ 7 * 7 }}", "\"><img", Some("2025-02-01T00:00:00Z")),
        key(3, "مقهى \u{202e}txt.exe", &"W".repeat(400), "ksw_loc_1\u{0}2", None),
    ];
    let agency = "Evil\r\nBcc: everybody@example.com\r\n\u{202e}Ltd <img src=x onerror=alert(1)>";
    let mail =
        write(&facts(agency, "Mars/Olympus", 3), &to("Bobby \"Tables\"\r\nX-Evil: 1", "bobby@evil.example"), &entries);
    let parsed = mailparse::parse_mail(mail.as_bytes()).expect("parsed");
    assert!(parsed.headers.get_first_value("Bcc").is_none());
    assert!(parsed.headers.get_first_value("X-Evil").is_none());
    let html = &parts(&mail)[1].1;
    for tag in ["<script", "<img", "onerror=alert(1)>", "\u{202e}"] {
        assert!(!html.contains(tag), "{tag}");
    }
    assert!(html.contains("{{ 7 * 7 }}"));
    insta::assert_snapshot!(readable(&mail));
}

#[test]
fn hostile_names_in_a_table() {
    let entries: Vec<_> = (0..201).map(|n| key(n, "@SUM(1)", "=HYPERLINK(\"http://evil\")", "+1", None)).collect();
    let mail = write(&facts("-Acme", "UTC", 201), &to("", "ada@acme.example"), &entries);
    let table = parts(&mail).remove(2).1;
    for row in csv::Reader::from_reader(table.trim_start_matches('\u{feff}').as_bytes()).into_records() {
        let row = row.expect("a row");
        assert!(row.iter().all(|cell| !cell.starts_with(['=', '+', '-', '@'])), "{row:?}");
    }
}

#[test]
fn a_table_too_large_for_mail_servers_is_compressed() {
    let count = 40_000;
    let entries: Vec<_> = (0..count).map(|n| key(n, "Store 1", "Till", "ksw_loc_77Tt", None)).collect();
    let mail = write(&facts("Acme Ltd", "UTC", count), &to("", "ada@acme.example"), &entries);
    assert!(mail.len() < 3_000_000, "{}", mail.len());
    let parsed = mailparse::parse_mail(mail.as_bytes()).expect("parsed");
    let attached = &parsed.subparts[1];
    assert_eq!(attached.get_content_disposition().params["filename"], "unused-api-keys-2026-01-01.csv.gz");
    let packed = attached.get_body_raw().expect("a body");
    let table = csv::Reader::from_reader(flate2::read::GzDecoder::new(packed.as_slice()));
    assert_eq!(table.into_records().count(), count);
}

#[test]
fn nothing_is_loaded_from_anywhere() {
    let entries = [key(1, "", "Billing export", "ksw_agy_Ab3x", None)];
    let mail = write(&facts("Acme Ltd", "UTC", 1), &to("", "ada@acme.example"), &entries);
    let html = &parts(&mail)[1].1;
    for remote in ["http:", "https:", "src=", "url(", "@import", "<link", "<a "] {
        assert!(!html.contains(remote), "{remote}");
    }
    assert_eq!(header(&mail, "Auto-Submitted"), "auto-generated");
    assert_eq!(header(&mail, "Message-ID"), "<dlv_019b0000000070008000000000000001@keysweep.example>");
    assert_eq!(header(&mail, "Date"), "Tue, 16 Dec 2025 18:00:03 +0000");
}

#[test]
fn the_same_letter_is_the_same_to_the_last_byte() {
    let entries = [key(1, "", "Billing export", "ksw_agy_Ab3x", None)];
    let mail = || write(&facts("Acme Ltd", "UTC", 1), &to("Ada", "ada@acme.example"), &entries);
    assert_eq!(mail(), mail());
}

#[test]
fn an_address_that_is_none_is_told_apart_from_a_fault() {
    use notification_service::app::letter::LetterError;
    let writer = Writer::new("keysweep@keysweep.example".parse().expect("a sender")).expect("templates");
    let refused = writer.begin(&facts("Acme", "UTC", 1), &to("", "no address\r\nat all"));
    assert!(matches!(refused, Err(LetterError::Address(_))));
}
