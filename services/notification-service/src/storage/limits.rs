//! The book that the send limits are counted in: one row for all replicas.

use sea_orm::prelude::*;
use sea_orm::{ActiveValue::Set, ConnectionTrait, DatabaseTransaction, QuerySelect};
use service_kit::time::{from_micros, to_micros};

use super::corrupt;
use super::entities::send_books;
use crate::app::ports::StorageError;
use crate::domain::limits::SendBook;

/// The book's only row.
const BOOK: i16 = 1;

fn book_of(row: &send_books::Model) -> SendBook {
    SendBook { day: row.day, day_count: row.day_count, next_slot_at: from_micros(row.next_slot_at) }
}

/// The book as it stands.
pub(super) async fn read(db: &impl ConnectionTrait) -> Result<SendBook, StorageError> {
    let row = send_books::Entity::find_by_id(BOOK).one(db).await?.ok_or_else(|| corrupt("send book"))?;
    Ok(book_of(&row))
}

/// The book, locked for this transaction.
pub(super) async fn lock(tx: &DatabaseTransaction) -> Result<SendBook, StorageError> {
    let row = send_books::Entity::find_by_id(BOOK).lock_exclusive().one(tx).await?;
    Ok(book_of(&row.ok_or_else(|| corrupt("send book"))?))
}

pub(super) async fn write(tx: &DatabaseTransaction, book: &SendBook) -> Result<(), StorageError> {
    let row = send_books::ActiveModel {
        id: Set(BOOK),
        day: Set(book.day),
        day_count: Set(book.day_count),
        next_slot_at: Set(to_micros(book.next_slot_at)),
    };
    row.update(tx).await?;
    Ok(())
}
