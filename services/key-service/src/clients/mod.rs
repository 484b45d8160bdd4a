//! Calls to a running key-service: the import of a file.

pub mod import_command;
pub mod import_csv;
