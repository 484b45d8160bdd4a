//! A whole quarter, in one process with a moved clock, on both databases; every promise must be kept.

use keysweep::quarter::{self, Options, Outcome};
use keysweep_e2e::smtp::Aiosmtpd;
use service_kit::both_databases;
use service_kit::testing::{Kind, TestDatabase};

fn options(database: &TestDatabase) -> Options {
    Options {
        agencies: 3,
        locations: 9,
        keys: 60,
        seed: 7,
        sweep: Some("2027-01-01T00:00:00Z".parse().expect("an instant")),
        database_url: (database.kind == Kind::Postgres).then(|| database.url.clone()),
        smtp: None,
        import: None,
        outage: false,
        keep: None,
        log: String::new(),
    }
}

fn assert_kept(outcome: &Outcome) {
    assert_eq!(outcome.faults(), Vec::<String>::new());
    assert_eq!(outcome.promises.len(), 13);
}

fn happened<'a>(outcome: &'a Outcome, promise: &str) -> &'a str {
    let found = outcome.promises.iter().find(|one| one.promise.contains(promise));
    &found.expect("the promise is listed").happened
}

both_databases! {
    async fn every_promise_of_a_quarter_is_kept(database: TestDatabase) {
        let outcome = quarter::play(&options(&database), false).await.expect("the quarter is played");
        assert_kept(&outcome);
        assert!(happened(&outcome, "three notices in time").contains("shortest notice 15"));
    }

    async fn a_notification_service_that_was_away_moves_the_deletion_and_breaks_no_promise(database: TestDatabase) {
        let options = Options { outage: true, ..options(&database) };
        let outcome = quarter::play(&options, false).await.expect("the quarter is played");
        assert_kept(&outcome);
        // The notices went out 10 days before the sweep: each lot moved, and 15 days still lie in between.
        assert!(!happened(&outcome, "never moves earlier").starts_with('0'));
        assert!(happened(&outcome, "three notices in time").contains("shortest notice 15.0 days"));
        assert!(!happened(&outcome, "still idle keys are gone").starts_with('0'));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(keysweep_no_aiosmtpd, ignore = "left out: aiosmtpd is not installed (pip install aiosmtpd)")]
async fn a_mail_server_written_by_others_receives_every_summary() {
    let server = Aiosmtpd::start().await;
    let database = TestDatabase::new(Kind::Sqlite);
    let options = Options { smtp: Some(("127.0.0.1".to_owned(), server.port)), ..options(&database) };
    let outcome = quarter::play(&options, false).await.expect("the quarter is played");
    assert_kept(&outcome);
    let messages = server.messages();
    assert_eq!(happened(&outcome, "complete summary by email"), format!("{} accepted", messages.len()));
    assert!(!messages.is_empty());
    for message in &messages {
        assert!(message.contains("multipart/"), "{message}");
        assert!(message.contains("Message-ID: <"), "{message}");
    }
}
