//! What `deploy/` holds, and what the documents say of it.

mod configuration;
mod monitoring;
mod network;
mod pods;
mod rendered;
mod settings;
