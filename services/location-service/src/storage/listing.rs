//! Pages in an order, by keyset: each begins in the index where the one before ended.

use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{ColumnTrait, EntityTrait, Order as Direction, QueryFilter, QueryOrder, QuerySelect, Select};

use crate::app::listing::{OrderField, Window};

/// The rows of one page, of what `query` selects.
pub(super) fn windowed<E: EntityTrait>(
    mut query: Select<E>,
    id: E::Column,
    name_key: E::Column,
    window: &Window,
) -> Select<E> {
    let direction = if window.order.descending { Direction::Desc } else { Direction::Asc };
    if !window.name_prefix.is_empty() {
        query = query.filter(name_key.gte(window.name_prefix.as_str()));
        if let Some(beyond) = beyond(&window.name_prefix) {
            query = query.filter(name_key.lt(beyond));
        }
    }
    if window.order.field == OrderField::Name {
        query = query.order_by(name_key, direction.clone());
    }
    query = query.order_by(id, direction).limit(window.limit);
    let Some(after) = &window.after else { return query };
    let (place, values) = match window.order.field {
        OrderField::CreateTime => (Expr::col(id), Expr::value(after.id.as_str())),
        OrderField::Name => (
            Expr::tuple([Expr::col(name_key), Expr::col(id)]),
            Expr::tuple([Expr::value(after.name_key.as_str()), Expr::value(after.id.as_str())]),
        ),
    };
    query.filter(if window.order.descending { place.lt(values) } else { place.gt(values) })
}

/// The first text after all that begin with `prefix`. `None`: there is none.
fn beyond(prefix: &str) -> Option<String> {
    let mut rest = prefix.to_owned();
    while let Some(last) = rest.pop() {
        // Ranges of characters leave out what is none.
        if let Some(next) = (last..=char::MAX).nth(1) {
            rest.push(next);
            return Some(rest);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_text() {
        for (prefix, expected) in [
            ("a", Some("b")),
            ("az", Some("a{")),
            ("\u{d7ff}", Some("\u{e000}")),
            ("a\u{10ffff}", Some("b")),
            ("\u{10ffff}", None),
        ] {
            assert_eq!(beyond(prefix).as_deref(), expected, "{prefix:?}");
        }
    }
}
