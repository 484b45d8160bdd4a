//! How lists of accounts are filtered by name and ordered, and the cursors that follow from it.

use service_kit::ids;
use service_kit::page::{Page, PageError};
use service_kit::violations::Violations;

use super::error::AppError;
use crate::domain::profile::name_key;

const NAME_PREFIX_MAX: usize = 200;

/// What a list is ordered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderField {
    /// The id, which is that of creation.
    CreateTime,
    /// The name, whatever the case of its letters.
    Name,
}

/// The order of a list; what is equal in it follows by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// By what.
    pub field: OrderField,
    /// Whether the greatest comes first.
    pub descending: bool,
}

/// Where a page begins: after this item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct After {
    /// Its id.
    pub id: String,
    /// Its name in the form that names are compared in. Empty where the order is not by name.
    pub name_key: String,
}

/// One page's place in an ordered list.
#[derive(Clone, Debug)]
pub struct Window {
    /// The order.
    pub order: Order,
    /// Only names that begin with this, in the form that names are compared in. Empty: all.
    pub name_prefix: String,
    /// Where it begins. `None`: at the first item.
    pub after: Option<After>,
    /// At most as many items.
    pub limit: u64,
}

impl Window {
    /// Reads what a caller wants to see; faults go to `faults`.
    pub(super) fn parse(
        page: &Page,
        id_prefix: &str,
        name_prefix: &str,
        order_by: &str,
        faults: &mut Violations,
    ) -> Result<Self, AppError> {
        faults.check_text("name_prefix", name_prefix, NAME_PREFIX_MAX);
        let by_name = OrderField::Name;
        let order = match Order::parse(order_by) {
            None => {
                faults.push("order_by", "must be create_time or name, each alone or followed by desc");
                Order { field: by_name, descending: false }
            }
            Some(None) if name_prefix.is_empty() => Order { field: OrderField::CreateTime, descending: false },
            Some(None) => Order { field: by_name, descending: false },
            Some(Some(order)) => order,
        };
        if !name_prefix.is_empty() && order.field != by_name {
            faults.push("order_by", "must be empty or by name where name_prefix is set");
        }
        let after = page.cursor.as_deref().map(|cursor| order.after(cursor, id_prefix)).transpose()?;
        Ok(Self { order, name_prefix: name_key(name_prefix), after, limit: u64::from(page.size) + 1 })
    }
}

impl Order {
    /// `None`: not an order; `Some(None)`: no order is given.
    fn parse(text: &str) -> Option<Option<Self>> {
        let mut words = text.split_whitespace();
        let Some(field) = words.next() else { return Some(None) };
        let field = match field {
            "create_time" => OrderField::CreateTime,
            "name" => OrderField::Name,
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
    pub(super) fn cursor(self, id: &str, name: &str) -> String {
        match self.field {
            OrderField::CreateTime => id.to_owned(),
            // An id holds no space.
            OrderField::Name => format!("{id} {}", name_key(name)),
        }
    }

    fn after(self, cursor: &str, id_prefix: &str) -> Result<After, AppError> {
        let (id, name_key) = match self.field {
            OrderField::CreateTime => (cursor, ""),
            OrderField::Name => cursor.split_once(' ').ok_or(AppError::Page(PageError::ForeignToken))?,
        };
        if !ids::is_id(id_prefix, id) {
            return Err(AppError::Page(PageError::ForeignToken));
        }
        Ok(After { id: id.to_owned(), name_key: name_key.to_owned() })
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
            ("name", order(OrderField::Name, false)),
            (" name  desc ", order(OrderField::Name, true)),
            ("create_time asc", order(OrderField::CreateTime, false)),
            ("create_time desc", order(OrderField::CreateTime, true)),
            ("Name", None),
            ("name up", None),
            ("name desc, create_time", None),
            ("name;", None),
            ("email", None),
        ] {
            assert_eq!(Order::parse(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_cursor_leads_back_to_its_item() {
        let id = "loc_0000000000000000000000000000000a";
        for (field, name_key) in [(OrderField::CreateTime, ""), (OrderField::Name, "a b\u{df}")] {
            let order = Order { field, descending: false };
            let cursor = order.cursor(id, "A B\u{df}");
            assert_eq!(
                order.after(&cursor, "loc_").expect("ours"),
                After { id: id.to_owned(), name_key: name_key.to_owned() }
            );
            assert!(order.after(&cursor, "agy_").is_err());
        }
    }
}
