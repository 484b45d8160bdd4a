//! Rows handed to a statement as one relation, so that it has the same text for any number of them: arrays that PostgreSQL
//! unnests, or one JSON list that SQLite takes apart.

use sea_orm::sea_query::ArrayType;
use sea_orm::{DbBackend, Value};

/// Stands for NULL in an array, whose elements are never NULL here. No instant and no count is as low.
const NULL: i64 = i64::MIN;

/// The values of one column, in the order of the rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Column {
    /// Texts.
    Text(Vec<String>),
    /// Numbers of up to 64 bits.
    BigInt(Vec<i64>),
    /// Numbers of up to 64 bits, or NULL.
    MaybeBigInt(Vec<Option<i64>>),
    /// Numbers of up to 16 bits.
    SmallInt(Vec<i16>),
    /// Bytes.
    Bytes(Vec<Vec<u8>>),
    /// One text in all rows.
    SameText(String),
    /// One number in all rows.
    SameBigInt(i64),
}

impl Column {
    /// The type's name in PostgreSQL.
    fn type_name(&self) -> &'static str {
        match self {
            Self::Text(_) | Self::SameText(_) => "text",
            Self::BigInt(_) | Self::MaybeBigInt(_) | Self::SameBigInt(_) => "bigint",
            Self::SmallInt(_) => "smallint",
            Self::Bytes(_) => "bytea",
        }
    }

    /// Texts; as one if they are all the same.
    #[must_use]
    pub fn text(values: Vec<String>) -> Self {
        match values.split_first() {
            Some((first, rest)) if rest.iter().all(|value| value == first) => Self::SameText(first.clone()),
            _ => Self::Text(values),
        }
    }

    /// Numbers; as one if they are all the same.
    #[must_use]
    pub fn big_int(values: Vec<i64>) -> Self {
        match values.split_first() {
            Some((first, rest)) if rest.iter().all(|value| value == first) => Self::SameBigInt(*first),
            _ => Self::BigInt(values),
        }
    }

    fn is_same(&self) -> bool {
        matches!(self, Self::SameText(_) | Self::SameBigInt(_))
    }

    /// The column as PostgreSQL selects it from the array, or from the parameter at this place.
    fn selected(&self, name: &str, place: usize) -> String {
        match self {
            Self::MaybeBigInt(_) => format!("NULLIF({name}, '{NULL}') AS {name}"),
            Self::SameText(_) | Self::SameBigInt(_) => format!("${place}::{} AS {name}", self.type_name()),
            Self::Text(_) | Self::BigInt(_) | Self::SmallInt(_) | Self::Bytes(_) => name.to_owned(),
        }
    }

    /// The parameter of PostgreSQL.
    fn into_parameter(self) -> Value {
        fn array<T: Into<Value>>(kind: ArrayType, values: Vec<T>) -> Value {
            Value::Array(kind, Some(Box::new(values.into_iter().map(Into::into).collect())))
        }
        match self {
            Self::Text(values) => array(ArrayType::String, values),
            Self::BigInt(values) => array(ArrayType::BigInt, values),
            Self::MaybeBigInt(values) => {
                array(ArrayType::BigInt, values.into_iter().map(|value| value.unwrap_or(NULL)).collect())
            }
            Self::SmallInt(values) => array(ArrayType::SmallInt, values),
            Self::Bytes(values) => array(ArrayType::Bytes, values),
            Self::SameText(value) => value.into(),
            Self::SameBigInt(value) => value.into(),
        }
    }

    /// Each value as JSON; bytes in hexadecimal.
    fn into_json(self) -> Vec<serde_json::Value> {
        fn json<T: Into<serde_json::Value>>(values: Vec<T>) -> Vec<serde_json::Value> {
            values.into_iter().map(Into::into).collect()
        }
        match self {
            Self::Text(values) => json(values),
            Self::BigInt(values) => json(values),
            Self::MaybeBigInt(values) => json(values),
            Self::SmallInt(values) => json(values),
            Self::Bytes(values) => json(values.into_iter().map(hex::encode).collect()),
            Self::SameText(_) | Self::SameBigInt(_) => Vec::new(),
        }
    }
}

/// Rows, column by column.
#[derive(Clone, Debug)]
pub struct Rows {
    alias: &'static str,
    columns: Vec<(&'static str, Column)>,
}

impl Rows {
    /// No columns yet; the statement knows the relation by `alias`.
    #[must_use]
    pub fn new(alias: &'static str) -> Self {
        Self { alias, columns: Vec::new() }
    }

    /// With one more column, which has as many values as the others; at least one has a value for each row.
    #[must_use]
    pub fn column(mut self, name: &'static str, values: Column) -> Self {
        self.columns.push((name, values));
        self
    }

    /// The relation as it stands in a FROM, and its parameters, whose numbers begin with `first`. Its rows come in their order.
    #[must_use]
    pub fn relation(self, backend: DbBackend, first: usize) -> (String, Vec<Value>) {
        let alias = self.alias;
        if backend == DbBackend::Postgres {
            let places = || (first..).zip(&self.columns);
            let own = || places().filter(|(_, (_, column))| !column.is_same());
            let arrays: Vec<_> = own().map(|(place, (_, of))| format!("${place}::{}[]", of.type_name())).collect();
            let names: Vec<_> = own().map(|(_, (name, _))| *name).collect();
            let selected: Vec<_> = places().map(|(place, (name, column))| column.selected(name, place)).collect();
            let sql = format!(
                "(SELECT {} FROM unnest({}) AS given({})) AS {alias}",
                selected.join(", "),
                arrays.join(", "),
                names.join(", ")
            );
            return (sql, self.columns.into_iter().map(|(_, column)| column.into_parameter()).collect());
        }
        let mut selected = Vec::with_capacity(self.columns.len());
        let mut rows: Vec<Vec<serde_json::Value>> = Vec::new();
        let mut same = Vec::new();
        let mut place = 0;
        for (name, column) in self.columns {
            if column.is_same() {
                same.push(column.into_parameter());
                selected.push(format!("${} AS {name}", first + same.len()));
                continue;
            }
            selected.push(match column {
                Column::Bytes(_) => format!("unhex(value ->> {place}) AS {name}"),
                _ => format!("value ->> {place} AS {name}"),
            });
            let values = column.into_json();
            rows.resize_with(values.len().max(rows.len()), Vec::new);
            rows.iter_mut().zip(values).for_each(|(row, value)| row.push(value));
            place += 1;
        }
        let sql = format!("(SELECT {} FROM json_each(${first})) AS {alias}", selected.join(", "));
        same.insert(0, serde_json::Value::from(rows).to_string().into());
        (sql, same)
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use sea_orm::{ConnectionTrait, Statement};

    use super::*;
    use crate::both_databases;
    use crate::db::connect;

    both_databases! {
        async fn rows_come_as_they_were_given_in_their_order(db: TestDatabase) {
            let db = connect(&db.config()).await.expect("connects");
            let texts = ["", "it's \"quoted\"", "Zoë \u{1F511}\n\\"].map(str::to_owned).to_vec();
            let bytes = vec![vec![], vec![0, 255], vec![7; 40]];
            let rows = Rows::new("t")
                .column("text", Column::Text(texts.clone()))
                .column("number", Column::BigInt(vec![i64::MAX, -1, 0]))
                .column("maybe", Column::MaybeBigInt(vec![None, Some(i64::MAX), Some(0)]))
                .column("code", Column::SmallInt(vec![1, -2, 3]))
                .column("same_text", Column::text(vec!["it's\"".to_owned(); 3]))
                .column("bytes", Column::Bytes(bytes.clone()))
                .column("same_number", Column::big_int(vec![i64::MIN + 1; 3]));
            let (relation, values) = rows.relation(db.get_database_backend(), 2);
            let sql = format!("SELECT t.* FROM {relation} WHERE t.number <= $1");
            let values = [vec![i64::MAX.into()], values].concat();
            let found = db.query_all_raw(Statement::from_sql_and_values(db.get_database_backend(), sql, values)).await.expect("rows");
            let of = |row: &sea_orm::QueryResult| {
                (
                    row.try_get::<String>("", "text").expect("text"),
                    row.try_get::<i64>("", "number").expect("number"),
                    row.try_get::<Option<i64>>("", "maybe").expect("maybe"),
                    row.try_get::<i16>("", "code").expect("code"),
                    row.try_get::<Vec<u8>>("", "bytes").expect("bytes"),
                )
            };
            let expected = [
                (texts[0].clone(), i64::MAX, None, 1, bytes[0].clone()),
                (texts[1].clone(), -1, Some(i64::MAX), -2, bytes[1].clone()),
                (texts[2].clone(), 0, Some(0), 3, bytes[2].clone()),
            ];
            assert_eq!(found.iter().map(of).collect::<Vec<_>>(), expected);
            for row in &found {
                assert_eq!(row.try_get::<String>("", "same_text").expect("text"), "it's\"");
                assert_eq!(row.try_get::<i64>("", "same_number").expect("number"), i64::MIN + 1);
            }
        }

        async fn no_rows_are_none(db: TestDatabase) {
            let db = connect(&db.config()).await.expect("connects");
            let (relation, values) = Rows::new("t").column("text", Column::Text(Vec::new())).relation(db.get_database_backend(), 1);
            let sql = format!("SELECT t.* FROM {relation}");
            let found = db.query_all_raw(Statement::from_sql_and_values(db.get_database_backend(), sql, values)).await.expect("rows");
            assert!(found.is_empty());
        }
    }
}
