//! Pages in an order, by keyset: each begins in the index where the one before ended.

use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{ColumnTrait, EntityTrait, Order as Direction, QueryFilter, QueryOrder, QuerySelect, Select};
use service_kit::time::to_micros;

use crate::app::listing::{OrderField, Place, Window};

/// The columns by which a table is listed.
#[derive(Clone, Copy)]
pub(super) struct Columns<C> {
    pub(super) id: C,
    pub(super) created_at: C,
    /// The text in the form that texts are compared in.
    pub(super) text_key: C,
}

/// The rows of one page, of what `query` selects.
pub(super) fn windowed<E: EntityTrait>(query: Select<E>, columns: Columns<E::Column>, window: &Window) -> Select<E> {
    let direction = if window.order.descending { Direction::Desc } else { Direction::Asc };
    let first = match window.order.field {
        OrderField::CreateTime => columns.created_at,
        OrderField::Text => columns.text_key,
    };
    let query = ranged(query, columns, window)
        .order_by(first, direction.clone())
        .order_by(columns.id, direction)
        .limit(window.limit);
    let Some(after) = &window.after else { return query };
    let value = match &after.place {
        Place::Created(at) => Expr::value(to_micros(*at)),
        Place::Text(key) => Expr::value(key.as_str()),
    };
    let place = Expr::tuple([Expr::col(first), Expr::col(columns.id)]);
    let value = Expr::tuple([value, Expr::value(after.id.as_str())]);
    query.filter(if window.order.descending { place.lt(value) } else { place.gt(value) })
}

/// The rows within the window's bounds, but for a bound that the cursor makes good: of two on one side of an index SQLite
/// begins at the one, and passes over what lies between it and the other.
fn ranged<E: EntityTrait>(mut query: Select<E>, columns: Columns<E::Column>, window: &Window) -> Select<E> {
    let order = window.order;
    let kept =
        |field: OrderField, lower: bool| window.after.is_none() || order.field != field || order.descending == lower;
    if !window.text_prefix.is_empty() {
        let prefix = window.text_prefix.as_str();
        if kept(OrderField::Text, true) {
            query = query.filter(columns.text_key.gte(prefix));
        }
        if let Some(beyond) = beyond(prefix).filter(|_| kept(OrderField::Text, false)) {
            query = query.filter(columns.text_key.lt(beyond));
        }
    }
    if let Some(from) = window.created.from.filter(|_| kept(OrderField::CreateTime, true)) {
        query = query.filter(columns.created_at.gte(to_micros(from)));
    }
    if let Some(before) = window.created.before.filter(|_| kept(OrderField::CreateTime, false)) {
        query = query.filter(columns.created_at.lt(to_micros(before)));
    }
    query
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
