//! Rows handed to a statement as one relation, so that it has the same text for any number of them: arrays that PostgreSQL
//! unnests, or one JSON list that SQLite takes apart.

use sea_orm::sea_query::ArrayType;
use sea_orm::{DbBackend, Value};

/// The values of one column, in the order of the rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Column {
    /// Texts.
    Text(Vec<String>),
    /// Texts, or NULL.
    MaybeText(Vec<Option<String>>),
    /// Numbers of up to 64 bits.
    BigInt(Vec<i64>),
    /// Numbers of up to 64 bits, or NULL.
    MaybeBigInt(Vec<Option<i64>>),
    /// Numbers of up to 16 bits.
    SmallInt(Vec<i16>),
    /// Bytes.
    Bytes(Vec<Vec<u8>>),
}

impl Column {
    /// The type's name in PostgreSQL.
    fn type_name(&self) -> &'static str {
        match self {
            Self::Text(_) | Self::MaybeText(_) => "text",
            Self::BigInt(_) | Self::MaybeBigInt(_) => "bigint",
            Self::SmallInt(_) => "smallint",
            Self::Bytes(_) => "bytea",
        }
    }

    fn into_array(self) -> Value {
        fn array<T: Into<Value>>(kind: ArrayType, values: Vec<T>) -> Value {
            Value::Array(kind, Some(Box::new(values.into_iter().map(Into::into).collect())))
        }
        match self {
            Self::Text(values) => array(ArrayType::String, values),
            Self::MaybeText(values) => array(ArrayType::String, values),
            Self::BigInt(values) => array(ArrayType::BigInt, values),
            Self::MaybeBigInt(values) => array(ArrayType::BigInt, values),
            Self::SmallInt(values) => array(ArrayType::SmallInt, values),
            Self::Bytes(values) => array(ArrayType::Bytes, values),
        }
    }

    /// Each value as JSON; bytes in hexadecimal.
    fn into_json(self) -> Vec<serde_json::Value> {
        fn json<T: Into<serde_json::Value>>(values: Vec<T>) -> Vec<serde_json::Value> {
            values.into_iter().map(Into::into).collect()
        }
        match self {
            Self::Text(values) => json(values),
            Self::MaybeText(values) => json(values),
            Self::BigInt(values) => json(values),
            Self::MaybeBigInt(values) => json(values),
            Self::SmallInt(values) => json(values),
            Self::Bytes(values) => json(values.into_iter().map(hex::encode).collect()),
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

    /// With one more column, which has as many values as the others.
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
            let places = (first..).zip(&self.columns);
            let arrays: Vec<_> =
                places.map(|(place, (_, column))| format!("${place}::{}[]", column.type_name())).collect();
            let names: Vec<_> = self.columns.iter().map(|(name, _)| *name).collect();
            let sql = format!("unnest({}) AS {alias}({})", arrays.join(", "), names.join(", "));
            return (sql, self.columns.into_iter().map(|(_, column)| column.into_array()).collect());
        }
        let mut selected = Vec::with_capacity(self.columns.len());
        let mut rows: Vec<Vec<serde_json::Value>> = Vec::new();
        for (place, (name, column)) in self.columns.into_iter().enumerate() {
            selected.push(match column {
                Column::Bytes(_) => format!("unhex(value ->> {place}) AS {name}"),
                _ => format!("value ->> {place} AS {name}"),
            });
            let values = column.into_json();
            rows.resize_with(values.len().max(rows.len()), Vec::new);
            rows.iter_mut().zip(values).for_each(|(row, value)| row.push(value));
        }
        let sql = format!("(SELECT {} FROM json_each(${first})) AS {alias}", selected.join(", "));
        (sql, vec![serde_json::Value::from(rows).to_string().into()])
    }
}
