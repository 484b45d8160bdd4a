//! What is asked of other services.

mod key_service;

pub use key_service::KeyServiceClient;
