//! What the templates are given: words, not values.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use serde::Serialize;

use super::when;
use crate::app::letter::{LetterEntry, LetterFacts};
use crate::domain::ids::LocationId;
use crate::domain::text::{plain, shortened};

/// Up to this many keys are listed in the letter itself; more would not be read.
pub(super) const INLINE_KEYS: i64 = 200;
/// Locations whose totals stand in a letter that lists no keys.
const INLINE_LOCATIONS: usize = 50;
/// Names are cut to this length, so that one cannot push the rest out of sight.
const NAME_CHARS: usize = 100;

/// A letter.
#[derive(Debug, Serialize)]
pub(super) struct Context {
    pub(super) agency: String,
    greeting: String,
    key_count: i64,
    keys_phrase: String,
    whose: String,
    delete_date: String,
    delete_short: String,
    delete_utc: String,
    delete_local: Option<String>,
    idle_since: String,
    groups: Vec<Group>,
    totals: Vec<Total>,
    more_locations: usize,
    more_location_keys: i64,
    attachment: Option<String>,
}

/// The keys of one account.
#[derive(Debug, Serialize)]
struct Group {
    name: String,
    agency: bool,
    keys: Vec<Key>,
}

/// One key.
#[derive(Debug, Serialize)]
struct Key {
    name: String,
    named: bool,
    prefix: String,
    id: String,
    created: String,
    last_used: String,
    never_used: bool,
}

/// The number of keys of one account.
#[derive(Debug, Serialize)]
struct Total {
    name: String,
    agency: bool,
    count: i64,
}

/// Gathers what a letter says while its keys come in.
pub(super) struct Gathering {
    groups: Vec<Group>,
    inline: bool,
    agency_keys: i64,
    location_keys: i64,
    locations: usize,
    current: Option<(LocationId, String, i64)>,
    /// The locations with the most keys, the least of them on top; by name where they are even.
    largest: BinaryHeap<Reverse<(i64, Reverse<String>)>>,
}

impl Gathering {
    pub(super) fn new(key_count: i64) -> Self {
        Self {
            groups: Vec::new(),
            inline: key_count <= INLINE_KEYS,
            agency_keys: 0,
            location_keys: 0,
            locations: 0,
            current: None,
            largest: BinaryHeap::new(),
        }
    }

    /// Adds a key; those of one account follow each other, the agency's own first.
    pub(super) fn add(&mut self, entry: &LetterEntry, facts: &LetterFacts) {
        let begins = match (&entry.location_id, &mut self.current) {
            (None, _) => {
                self.agency_keys += 1;
                self.agency_keys == 1
            }
            (Some(id), Some((current, _, count))) if current == id => {
                *count += 1;
                self.location_keys += 1;
                false
            }
            (Some(id), _) => {
                self.end_location();
                self.locations += 1;
                self.location_keys += 1;
                self.current = Some((id.clone(), location_name(entry), 1));
                true
            }
        };
        if !self.inline {
            return;
        }
        if begins {
            let agency = entry.location_id.is_none();
            let name = if agency { name(&facts.agency_name) } else { location_name(entry) };
            self.groups.push(Group { name, agency, keys: Vec::new() });
        }
        if let Some(group) = self.groups.last_mut() {
            group.keys.push(key(entry));
        }
    }

    fn end_location(&mut self) {
        if let Some((_, name, count)) = self.current.take() {
            self.largest.push(Reverse((count, Reverse(name))));
            if self.largest.len() > INLINE_LOCATIONS {
                self.largest.pop();
            }
        }
    }

    pub(super) fn finish(mut self, facts: &LetterFacts, greeting: &str, attachment: Option<String>) -> Context {
        self.end_location();
        let key_count = self.agency_keys + self.location_keys;
        let agency = name(&facts.agency_name);
        let mut totals = Vec::new();
        let (mut more_locations, mut more_location_keys) = (0, 0);
        if !self.inline {
            if self.agency_keys > 0 {
                totals.push(Total { name: agency.clone(), agency: true, count: self.agency_keys });
            }
            more_locations = self.locations - self.largest.len();
            let shown: i64 = self.largest.iter().map(|Reverse((count, _))| count).sum();
            more_location_keys = self.location_keys - shown;
            // Ascending in the reversed order: the most keys first.
            totals.extend(self.largest.into_sorted_vec().into_iter().map(|Reverse((count, Reverse(name)))| Total {
                name,
                agency: false,
                count,
            }));
        }
        Context {
            greeting: shortened(&plain(greeting), NAME_CHARS),
            key_count,
            keys_phrase: counted(key_count, "unused API key", "unused API keys"),
            whose: whose(&agency, self.agency_keys, self.location_keys, self.locations),
            delete_date: when::date(facts.delete_at),
            delete_short: when::short_instant(facts.delete_at),
            delete_utc: when::instant(facts.delete_at),
            delete_local: when::local_instant(facts.delete_at, &facts.time_zone),
            idle_since: when::date(facts.idle_since_at),
            groups: self.groups,
            totals,
            more_locations,
            more_location_keys,
            attachment,
            agency,
        }
    }
}

fn name(text: &str) -> String {
    let shown = shortened(&plain(text), NAME_CHARS);
    if shown.is_empty() { "your agency".to_owned() } else { shown }
}

fn location_name(entry: &LetterEntry) -> String {
    let shown = shortened(&plain(&entry.location_name), NAME_CHARS);
    match &entry.location_id {
        Some(id) if shown.is_empty() => id.to_string(),
        _ => shown,
    }
}

fn key(entry: &LetterEntry) -> Key {
    let name = shortened(&plain(&entry.display_name), NAME_CHARS);
    Key {
        named: !name.is_empty(),
        name: if name.is_empty() { "Unnamed key".to_owned() } else { name },
        prefix: plain(&entry.display_prefix),
        id: entry.key_id.to_string(),
        created: when::short_date(entry.created_at),
        last_used: entry.last_used_at.map_or_else(|| "never".to_owned(), when::short_date),
        never_used: entry.last_used_at.is_none(),
    }
}

/// `1 key`, `12 keys`, `1,234 keys`.
fn counted(count: i64, one: &str, many: &str) -> String {
    format!("{} {}", thousands(count), if count == 1 { one } else { many })
}

/// A number with its thousands apart.
pub(super) fn thousands(count: i64) -> String {
    let digits = count.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

fn whose(agency: &str, own: i64, of_locations: i64, locations: usize) -> String {
    let places = counted(i64::try_from(locations).unwrap_or(i64::MAX), "location", "locations");
    match (own, of_locations) {
        (_, 0) => format!("{} of {agency} itself", thousands(own)),
        (0, _) => format!("{} in {places}", thousands(of_locations)),
        (_, _) => format!("{} of {agency} itself, {} in {places}", thousands(own), thousands(of_locations)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(thousands(number), text);
        }
    }

    #[test]
    fn it_says_whose_the_keys_are() {
        assert_eq!(whose("Acme", 2, 0, 0), "2 of Acme itself");
        assert_eq!(whose("Acme", 0, 1, 1), "1 in 1 location");
        assert_eq!(whose("Acme", 2, 1_010, 3), "2 of Acme itself, 1,010 in 3 locations");
    }
}
