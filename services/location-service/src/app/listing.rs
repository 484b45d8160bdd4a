//! How lists are filtered by text and time and ordered, and the cursors that follow from it.

use chrono::{DateTime, Utc};
use service_kit::ids;
use service_kit::page::{Page, PageError};
use service_kit::time::{from_micros, to_micros};
use service_kit::violations::Violations;

use super::error::AppError;
use crate::domain::contact::email_key;
use crate::domain::profile::name_key;
use crate::domain::{AGENCY_ID, LOCATION_ID, USER_ID};

const NAME_PREFIX_MAX: usize = 200;

/// A kind of list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    /// With what the ids of its items begin.
    id_prefix: &'static str,
    /// The text that it can be ordered by, as callers name it.
    text: &'static str,
    /// The form in which such texts are compared.
    key: fn(&str) -> String,
}

pub(super) const AGENCIES: Kind = Kind { id_prefix: AGENCY_ID, text: "name", key: name_key };
pub(super) const LOCATIONS: Kind = Kind { id_prefix: LOCATION_ID, text: "name", key: name_key };
pub(super) const USERS: Kind = Kind { id_prefix: USER_ID, text: "email", key: email_key };

/// What was read of a list's request before its use case: the page, and what is wrong so far.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The page, or why it cannot be had.
    pub page: Result<Page, PageError>,
    /// Faults of the request.
    pub faults: Violations,
}

impl Asked {
    /// The page, if nothing is at fault; else all faults at once. A foreign token that is the only one has its own error.
    pub(super) fn checked(self) -> Result<Page, AppError> {
        let mut faults = self.faults;
        match self.page {
            Err(PageError::ForeignToken) if faults.is_empty() => return Err(PageError::ForeignToken.into()),
            Err(error @ PageError::ForeignToken) => faults.push("page_token", error.to_string()),
            Err(error @ PageError::NegativeSize) => faults.push("page_size", error.to_string()),
            Ok(page) => return faults.into_result().map(|()| page).map_err(AppError::Invalid),
        }
        Err(faults.into())
    }
}

/// When listed items were created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CreatedRange {
    /// Then or later. `None`: from the first.
    pub from: Option<DateTime<Utc>>,
    /// Before then. `None`: to the last.
    pub before: Option<DateTime<Utc>>,
}

/// What a list is ordered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderField {
    /// The time of creation.
    CreateTime,
    /// The name of an agency or a location or the address of a user, whatever the case of its letters.
    Text,
}

/// The order of a list; what is equal in it follows by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// By what.
    pub field: OrderField,
    /// Whether the greatest comes first.
    pub descending: bool,
}

/// An item's place in the order of its list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Where the order is by time of creation: that.
    Created(DateTime<Utc>),
    /// Where it is by text: the text in the form that texts are compared in.
    Text(String),
}

/// Where a page begins: after this item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct After {
    /// Its id.
    pub id: String,
    /// Its place.
    pub place: Place,
}

/// One page's place in an ordered list.
#[derive(Clone, Debug)]
pub struct Window {
    /// The order.
    pub order: Order,
    /// Only texts that begin with this, in the form that texts are compared in. Empty: all.
    pub text_prefix: String,
    /// Only what was created then.
    pub created: CreatedRange,
    /// Where it begins, as the order has it. `None`: at the first item.
    pub after: Option<After>,
    /// At most as many items.
    pub limit: u64,
}

impl Window {
    /// Reads what a caller wants to see; faults go to `faults`. It stands at the first page, see [`Window::at`].
    pub(super) fn parse(
        kind: Kind,
        text_prefix: &str,
        order_by: &str,
        created: CreatedRange,
        faults: &mut Violations,
    ) -> Self {
        faults.check_text("name_prefix", text_prefix, NAME_PREFIX_MAX);
        let by_text = Order { field: OrderField::Text, descending: false };
        let order = match Order::parse(kind, order_by) {
            None => {
                let known = format!("must be create_time or {}, each alone or followed by desc", kind.text);
                faults.push("order_by", known);
                by_text
            }
            Some(None) if text_prefix.is_empty() => Order { field: OrderField::CreateTime, descending: false },
            Some(None) => by_text,
            Some(Some(order)) => order,
        };
        if !text_prefix.is_empty() && order.field != OrderField::Text {
            faults.push("order_by", "must be empty or by name where name_prefix is set");
        }
        if let CreatedRange { from: Some(from), before: Some(before) } = created
            && from >= before
        {
            faults.push("end_create_time", "must lie after start_create_time");
        }
        Self { order, text_prefix: (kind.key)(text_prefix), created, after: None, limit: 0 }
    }

    /// The window at the page.
    pub(super) fn at(self, kind: Kind, page: &Page) -> Result<Self, AppError> {
        let after = page.cursor.as_deref().map(|cursor| self.order.after(kind, cursor)).transpose()?;
        // One more than asked for tells whether there is a next page.
        Ok(Self { after, limit: u64::from(page.size) + 1, ..self })
    }
}

impl Order {
    /// `None`: not an order; `Some(None)`: no order is given.
    fn parse(kind: Kind, text: &str) -> Option<Option<Self>> {
        let mut words = text.split_whitespace();
        let Some(field) = words.next() else { return Some(None) };
        let field = match field {
            "create_time" => OrderField::CreateTime,
            other if other == kind.text => OrderField::Text,
            _ => return None,
        };
        let descending = match words.next() {
            None | Some("asc") => false,
            Some("desc") => true,
            Some(_) => return None,
        };
        words.next().is_none().then_some(Some(Self { field, descending }))
    }

    /// The cursor after an item.
    pub(super) fn cursor(self, kind: Kind, id: &str, created_at: DateTime<Utc>, text: &str) -> String {
        // An id holds no space.
        match self.field {
            OrderField::CreateTime => format!("{id} {}", to_micros(created_at)),
            OrderField::Text => format!("{id} {}", (kind.key)(text)),
        }
    }

    fn after(self, kind: Kind, cursor: &str) -> Result<After, AppError> {
        const FOREIGN: AppError = AppError::Page(PageError::ForeignToken);
        let (id, place) = cursor.split_once(' ').ok_or(FOREIGN)?;
        if !ids::is_id(kind.id_prefix, id) {
            return Err(FOREIGN);
        }
        let place = match self.field {
            OrderField::CreateTime => Place::Created(from_micros(place.parse().map_err(|_| FOREIGN)?)),
            OrderField::Text => Place::Text(place.to_owned()),
        };
        Ok(After { id: id.to_owned(), place })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_as_aip_132_writes_them() {
        let order = |field, descending| Some(Some(Order { field, descending }));
        for (text, expected) in [
            ("", Some(None)),
            ("  ", Some(None)),
            ("name", order(OrderField::Text, false)),
            (" name  desc ", order(OrderField::Text, true)),
            ("create_time asc", order(OrderField::CreateTime, false)),
            ("create_time desc", order(OrderField::CreateTime, true)),
            ("Name", None),
            ("name up", None),
            ("name desc, create_time", None),
            ("name;", None),
            ("email", None),
        ] {
            assert_eq!(Order::parse(LOCATIONS, text), expected, "{text:?}");
        }
        assert_eq!(Order::parse(USERS, "email desc"), order(OrderField::Text, true));
        assert_eq!(Order::parse(USERS, "name"), None);
    }

    #[test]
    fn a_cursor_leads_back_to_its_item() {
        let (id, at) = ("loc_0000000000000000000000000000000a", from_micros(-7));
        for (field, place) in
            [(OrderField::CreateTime, Place::Created(at)), (OrderField::Text, Place::Text("a b\u{df}".to_owned()))]
        {
            let order = Order { field, descending: false };
            let cursor = order.cursor(LOCATIONS, id, at, "A B\u{df}");
            assert_eq!(order.after(LOCATIONS, &cursor).expect("ours"), After { id: id.to_owned(), place });
            for strange in [cursor.replace("loc", "agy"), cursor.replace(' ', ""), String::new()] {
                assert!(order.after(LOCATIONS, &strange).is_err(), "{strange}");
            }
        }
        let by_time = Order { field: OrderField::CreateTime, descending: false };
        assert!(by_time.after(LOCATIONS, &format!("{id} soon")).is_err());
    }

    #[test]
    fn every_fault_of_a_list_is_told_at_once() {
        let at = from_micros(5);
        let (mut faults, same) = (Violations::default(), CreatedRange { from: Some(at), before: Some(at) });
        Window::parse(LOCATIONS, "\u{202e}", "size", same, &mut faults);
        let asked = Asked { page: Err(PageError::ForeignToken), faults };
        let Err(AppError::Invalid(faults)) = asked.checked() else { panic!("must be refused") };
        let fields: Vec<_> = faults.iter().map(|one| one.field.as_str()).collect();
        assert_eq!(fields, ["name_prefix", "order_by", "end_create_time", "page_token"]);
        let alone = Asked { page: Err(PageError::ForeignToken), faults: Violations::default() };
        assert!(matches!(alone.checked(), Err(AppError::Page(PageError::ForeignToken))));
        let negative = Asked { page: Err(PageError::NegativeSize), faults: Violations::default() };
        assert!(matches!(negative.checked(), Err(AppError::Invalid(_))));
    }
}
