//! From a letter's words to a MIME message.

use lettre::Address;
use lettre::message::header::{ContentType, HeaderName, HeaderValue};
use lettre::message::{Attachment, Mailbox, Message, MultiPart, MultiPartKind, SinglePart};
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value};

use super::context::{Gathering, INLINE_KEYS, thousands};
use super::csv::Table;
use crate::app::letter::{LetterDraft, LetterEntry, LetterError, LetterFacts, LetterWriter};
use crate::app::ports::ClaimedDelivery;
use crate::domain::text::{plain, shortened};

const SUBJECT: &str = "deletion_notice.subject.txt";
const TEXT: &str = "deletion_notice.txt";
const HTML: &str = "deletion_notice.html";

/// The templates travel in the binary: no working directory, no missing file.
const TEMPLATES: [(&str, &str); 3] = [
    (SUBJECT, include_str!("../../templates/deletion_notice.subject.txt")),
    (TEXT, include_str!("../../templates/deletion_notice.txt")),
    (HTML, include_str!("../../templates/deletion_notice.html")),
];

/// Longer subjects are cut off by the programs that show them.
const SUBJECT_CHARS: usize = 160;

/// Writes letters from the built-in templates.
#[derive(Debug)]
pub struct Writer {
    from: Mailbox,
    templates: std::sync::Arc<Environment<'static>>,
}

impl Writer {
    /// A writer of letters that come from `from`.
    ///
    /// # Errors
    /// When a built-in template is broken, which its tests rule out.
    pub fn new(from: Mailbox) -> Result<Self, LetterError> {
        let mut templates = Environment::new();
        templates.set_undefined_behavior(UndefinedBehavior::Strict);
        templates
            .set_auto_escape_callback(|name| if name.ends_with(".html") { AutoEscape::Html } else { AutoEscape::None });
        let syntax = templates.syntax().to_builder().trim_blocks(true).lstrip_blocks(true).build().map_err(broken)?;
        templates.set_syntax(syntax);
        templates.add_filter("thousands", thousands);
        for (name, source) in TEMPLATES {
            templates.add_template(name, source).map_err(broken)?;
        }
        Ok(Self { from, templates: std::sync::Arc::new(templates) })
    }
}

impl LetterWriter for Writer {
    fn begin(&self, facts: &LetterFacts, to: &ClaimedDelivery) -> Result<Box<dyn LetterDraft>, LetterError> {
        let address: Address = to.recipient.parse().map_err(|e| LetterError::Address(format!("{e}")))?;
        let name = Some(shortened(&plain(&to.name), 100)).filter(|name| !name.is_empty());
        let table =
            if facts.key_count > INLINE_KEYS { Some(Table::new(&facts.agency_name, facts.delete_at)?) } else { None };
        Ok(Box::new(Draft {
            from: self.from.clone(),
            to: Mailbox::new(name, address),
            templates: self.templates.clone(),
            gathering: Gathering::new(facts.key_count),
            table,
            facts: facts.clone(),
            delivery: to.clone(),
        }))
    }
}

fn broken(error: minijinja::Error) -> LetterError {
    LetterError::Fault(format!("{error:#}"))
}

/// Name, type and content of the attached table.
fn attachment(table: Table, facts: &LetterFacts) -> Result<(String, ContentType, Vec<u8>), LetterError> {
    let fault = |error: &dyn std::fmt::Display| LetterError::Fault(error.to_string());
    let name = format!("unused-api-keys-{}.csv", facts.delete_at.format("%Y-%m-%d"));
    let kind = |text: &str| ContentType::parse(text).map_err(|e| fault(&e));
    let table = table.finish()?;
    Ok(match table.packed {
        false => (name, kind("text/csv; charset=utf-8")?, table.content),
        true => (format!("{name}.gz"), kind("application/gzip")?, table.content),
    })
}

struct Draft {
    from: Mailbox,
    to: Mailbox,
    templates: std::sync::Arc<Environment<'static>>,
    gathering: Gathering,
    table: Option<Table>,
    facts: LetterFacts,
    delivery: ClaimedDelivery,
}

impl LetterDraft for Draft {
    fn add(&mut self, entries: &[LetterEntry]) -> Result<(), LetterError> {
        for entry in entries {
            self.gathering.add(entry, &self.facts);
            if let Some(table) = &mut self.table {
                table.add(entry)?;
            }
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Vec<u8>, LetterError> {
        let Self { from, to, templates, gathering, table, facts, delivery } = *self;
        let attached = table.map(|table| attachment(table, &facts)).transpose()?;
        let file = attached.as_ref().map(|(file, ..)| file.clone());
        let words = Value::from(Serde(gathering.finish(&facts, &delivery.name, file)));
        let render = |name: &str| templates.get_template(name).and_then(|t| t.render(words.clone())).map_err(broken);
        // The same delivery always makes the same message, to the last byte.
        let boundary = |part: &str| format!("=_{}_{part}", delivery.id);
        let mut alternative = MultiPart::builder().kind(MultiPartKind::Alternative).boundary(boundary("text")).build();
        alternative = alternative.singlepart(SinglePart::plain(render(TEXT)?));
        alternative = alternative.singlepart(SinglePart::html(render(HTML)?));
        let body = match attached {
            Some((file, kind, content)) => MultiPart::builder()
                .kind(MultiPartKind::Mixed)
                .boundary(boundary("mixed"))
                .build()
                .multipart(alternative)
                .singlepart(Attachment::new(file).body(content, kind)),
            None => alternative,
        };
        let subject = shortened(&plain(&render(SUBJECT)?), SUBJECT_CHARS);
        let message = Message::builder()
            .from(from)
            .to(to)
            .subject(subject)
            .date(delivery.created_at.into())
            .message_id(Some(format!("<{}>", delivery.message_id)))
            // No out-of-office reply to a machine.
            .raw_header(HeaderValue::new(HeaderName::new_from_ascii_str("Auto-Submitted"), "auto-generated".to_owned()))
            .multipart(body)
            .map_err(|e| LetterError::Fault(e.to_string()))?;
        Ok(message.formatted())
    }
}
