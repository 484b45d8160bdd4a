//! What a mail server's behaviour means, over real TCP.

mod support;

use std::time::Duration;

use notification_service::app::ports::{Mail, MailTransport};
use notification_service::domain::delivery::Outcome;
use notification_service::email::{SmtpOptions, SmtpTransport, Tls};
use support::smtp::{Act, Smtp};

fn transport(smtp: &Smtp) -> SmtpTransport {
    let options = SmtpOptions {
        host: smtp.address.ip().to_string(),
        port: smtp.address.port(),
        tls: Tls::None,
        credentials: None,
        from: "keysweep@keysweep.example".parse().expect("an address"),
        timeout: Duration::from_secs(20),
    };
    SmtpTransport::new(options).expect("a transport")
}

async fn send(transport: &SmtpTransport, content: &[u8]) -> Outcome {
    let mail = Mail {
        message_id: "dlv_1@keysweep.example".into(),
        recipient: "a@acme.example".into(),
        content: content.to_vec(),
    };
    transport.send(mail).await
}

fn kind(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Accepted(_) => "accepted",
        Outcome::Refused(_) => "refused",
        Outcome::Deferred(_) => "deferred",
        Outcome::Unavailable(_) => "unavailable",
        Outcome::InDoubt(_) => "in doubt",
        Outcome::Untried => "untried",
    }
}

#[tokio::test]
async fn each_answer_means_what_the_rfc_says_and_the_next_message_goes() {
    let table: [(Act, &str, &str); 12] = [
        (Act::Rcpt("450 4.2.1 mailbox busy"), "deferred", "450"),
        (Act::Rcpt("550 5.1.1 no such user"), "refused", "550"),
        (Act::Rcpt("552 5.2.2 mailbox full"), "refused", "552"),
        (Act::Rcpt("421 4.3.2 closing"), "unavailable", "421"),
        (Act::Rcpt("503 5.5.1 bad sequence"), "unavailable", "503"),
        (Act::Data("451 4.3.0 try again"), "deferred", "451"),
        (Act::Data("452 4.3.1 disk full"), "deferred", "452"),
        (Act::Data("554 5.7.1 spam"), "refused", "554"),
        (Act::Data("421 4.3.2 closing"), "unavailable", "421"),
        (Act::Vanish, "in doubt", ""),
        (Act::From("550 5.7.1 sender rejected"), "unavailable", "550"),
        (Act::From("451 4.3.0 later"), "unavailable", "451"),
    ];
    for (act, expected, code) in table {
        let smtp = Smtp::start().await;
        let transport = transport(&smtp);
        let recipient = if matches!(act, Act::From(_)) { "" } else { "a@acme.example" };
        smtp.script(recipient, &[act]);
        let outcome = send(&transport, b"Subject: one\r\n\r\nbody\r\n").await;
        assert_eq!(kind(&outcome), expected, "{act:?}: {outcome:?}");
        assert!(format!("{outcome:?}").contains(code), "{act:?}: {outcome:?}");
        let next = send(&transport, b"Subject: two\r\n\r\nbody\r\n").await;
        assert_eq!(kind(&next), "accepted", "after {act:?}: {next:?}");
    }
}

#[tokio::test]
async fn a_message_cut_off_before_its_end_is_not_in_doubt() {
    let smtp = Smtp::start().await;
    let transport = transport(&smtp);
    smtp.script("a@acme.example", &[Act::Cut]);
    // More than the connection's buffers take: the loss is noticed before the end is sent.
    let long = b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\r\n".repeat(500_000);
    let outcome = send(&transport, &long).await;
    assert_eq!(kind(&outcome), "unavailable", "{outcome:?}");
    assert!(smtp.taken("a@acme.example").is_empty());
}

#[tokio::test]
async fn a_connection_carries_one_message_after_the_other_and_dots_arrive_as_they_are() {
    let smtp = Smtp::start().await;
    let transport = transport(&smtp);
    // Dots at the beginning of lines, also where one piece ends and the next begins.
    let mut content = b"Subject: dots\r\n\r\n.\r\n..\r\n".to_vec();
    while content.len() < 64 * 1024 - 2 {
        content.push(b'x');
    }
    content.extend_from_slice(b"\r\n.after\r\nend");
    for _ in 0..5 {
        assert_eq!(kind(&send(&transport, &content).await), "accepted");
    }
    assert_eq!(smtp.connections(), 1);
    let taken = smtp.taken("a@acme.example");
    assert_eq!(taken.len(), 5);
    assert_eq!(taken[0].as_bytes(), [content.as_slice(), b"\r\n"].concat());
}

#[tokio::test]
async fn nobody_listening_says_nothing_of_the_recipient() {
    let mut smtp = Smtp::start().await;
    smtp.address.set_port(1);
    assert_eq!(kind(&send(&transport(&smtp), b"x\r\n").await), "unavailable");
}
