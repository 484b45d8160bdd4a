//! Reading keys: metadata only.

use service_kit::page::Page;

use super::{KeyError, KeyFilter, Keys};
use crate::domain::key::ApiKey;

impl Keys {
    /// One key.
    pub async fn get(&self, key_id: &str) -> Result<ApiKey, KeyError> {
        self.existing(key_id).await
    }

    /// One page of keys in the order of their ids, and the cursor of the next page if there is one.
    pub async fn list(&self, filter: &KeyFilter, page: &Page) -> Result<(Vec<ApiKey>, Option<String>), KeyError> {
        // One more than asked for tells whether another page follows.
        let mut keys = self.parts.store.list(filter, page.cursor.as_deref(), page.size + 1, self.now()).await?;
        let more = keys.len() > page.size as usize;
        keys.truncate(page.size as usize);
        let next = more.then(|| keys.last().map(|key| key.key_id.clone())).flatten();
        Ok((keys, next))
    }

    /// The instant that answers about keys speak of.
    pub fn as_of(&self) -> chrono::DateTime<chrono::Utc> {
        self.now()
    }
}
