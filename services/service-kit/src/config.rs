//! Configuration in layers: built-in defaults, then a TOML file, then the environment; refused whole, with every fault.
//!
//! The setting `a.b` is the environment's `KEYSWEEP_A__B`, or a file named by `KEYSWEEP_A__B_FILE`, whose last line
//! break is cut off. The defaults must name every setting, so that they document all and give each its type.

use std::fmt;
use std::path::Path;

use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// Prefix of every environment variable that is a setting.
const PREFIX: &str = "KEYSWEEP_";
/// Names the configuration file itself; not a setting.
pub const CONFIG_FILE_VARIABLE: &str = "KEYSWEEP_CONFIG";

/// Settings that can be wrong in themselves or together.
pub trait Validate {
    /// Notes every fault.
    fn validate(&self, faults: &mut Faults);
}

/// Everything that is wrong with a configuration.
#[derive(Debug, Default)]
pub struct Faults(Vec<(String, String)>);

impl Faults {
    /// Notes one more fault of the setting `path`.
    pub fn push(&mut self, path: impl Into<String>, fault: impl Into<String>) {
        self.0.push((path.into(), fault.into()));
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the configuration has {} fault{}:", self.0.len(), if self.0.len() == 1 { "" } else { "s" })?;
        for (path, fault) in &self.0 {
            writeln!(f, "  {path}: {fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// One setting that somebody made, and where.
struct Override {
    path: Vec<String>,
    value: Value,
    source: String,
}

/// Loads and validates a configuration.
///
/// # Errors
/// Every fault at once: unknown settings, wrong types, unreadable files, and what [`Validate`] finds.
pub fn load<T: DeserializeOwned + Validate>(defaults: &str, file: Option<&Path>) -> Result<T, Faults> {
    load_from(
        defaults,
        file,
        std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))),
    )
}

/// As [`load`], with the environment given.
///
/// # Errors
/// As [`load`].
pub fn load_from<T: DeserializeOwned + Validate>(
    defaults: &str,
    file: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<T, Faults> {
    let mut faults = Faults::default();
    let base: Table = defaults.parse().map_err(|e: toml::de::Error| {
        faults.push("built-in defaults", e.message());
        std::mem::take(&mut faults)
    })?;
    let mut overrides = Vec::new();
    if let Some(path) = file {
        read_file(path, &mut overrides, &mut faults);
    }
    read_environment(&base, environment, &mut overrides, &mut faults);
    overrides.retain(|one| {
        let known = lookup(&base, &one.path).is_some();
        if !known {
            faults.push(one.path.join("."), format!("there is no such setting (set by {})", one.source));
        }
        known
    });
    let config = deserialize::<T>(&base, overrides, &mut faults);
    if let Some(config) = &config {
        config.validate(&mut faults);
    }
    match config {
        Some(config) if faults.is_empty() => Ok(config),
        _ => Err(faults),
    }
}

/// Deserialises, taking back each override that does not fit, so that the next fault is found too.
fn deserialize<T: DeserializeOwned>(base: &Table, mut overrides: Vec<Override>, faults: &mut Faults) -> Option<T> {
    loop {
        let mut table = base.clone();
        for one in &overrides {
            insert(&mut table, &one.path, one.value.clone());
        }
        match serde_path_to_error::deserialize::<_, T>(Value::Table(table)) {
            Ok(config) => return Some(config),
            Err(error) => {
                let path = error.path().to_string();
                let culprit = overrides.iter().position(|one| {
                    let own = one.path.join(".");
                    own == path || path.starts_with(&format!("{own}[")) || path.starts_with(&format!("{own}."))
                });
                let Some(index) = culprit else {
                    faults.push(path, error.inner().message());
                    return None;
                };
                let one = overrides.remove(index);
                faults.push(one.path.join("."), format!("{} (set by {})", error.inner().message(), one.source));
            }
        }
    }
}

fn read_file(path: &Path, overrides: &mut Vec<Override>, faults: &mut Faults) {
    let source = path.display().to_string();
    let table = match std::fs::read_to_string(path) {
        Ok(text) => match text.parse::<Table>() {
            Ok(table) => table,
            Err(error) => {
                let line = error.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
                return faults.push(source, format!("line {line} is no valid TOML: {}", error.message()));
            }
        },
        Err(error) => return faults.push(source, format!("cannot be read: {error}")),
    };
    flatten(&mut Vec::new(), Value::Table(table), &source, overrides);
}

fn flatten(path: &mut Vec<String>, value: Value, source: &str, overrides: &mut Vec<Override>) {
    match value {
        Value::Table(table) => {
            for (key, value) in table {
                path.push(key);
                flatten(path, value, source, overrides);
                path.pop();
            }
        }
        value => overrides.push(Override { path: path.clone(), value, source: source.to_owned() }),
    }
}

fn read_environment(
    base: &Table,
    environment: impl Iterator<Item = (String, String)>,
    overrides: &mut Vec<Override>,
    faults: &mut Faults,
) {
    let mut variables: Vec<_> =
        environment.filter(|(name, _)| name.starts_with(PREFIX) && name != CONFIG_FILE_VARIABLE).collect();
    variables.sort();
    for (name, text) in variables {
        let setting =
            |name: &str| name[PREFIX.len()..].to_lowercase().split("__").map(str::to_owned).collect::<Vec<_>>();
        // Other programs may have variables of this prefix; a setting always names its section.
        let mut path = setting(&name);
        if path.len() < 2 {
            continue;
        }
        let mut text = text;
        if lookup(base, &path).is_none()
            && let Some(plain) = name.strip_suffix("_FILE")
        {
            path = setting(plain);
            match std::fs::read_to_string(&text) {
                Ok(content) => {
                    text = content
                        .strip_suffix('\n')
                        .map_or(content.as_str(), |c| c.strip_suffix('\r').unwrap_or(c))
                        .to_owned()
                }
                Err(error) => {
                    faults.push(path.join("."), format!("the file {text} that {name} names cannot be read: {error}"));
                    continue;
                }
            }
        }
        let value = match lookup(base, &path) {
            // The default tells the type: what is text stays text, also where it looks like a number.
            Some(Value::String(_)) | None => Value::String(text),
            Some(_) => toml::from_str::<Table>(&format!("v = {text}"))
                .ok()
                .and_then(|mut t| t.remove("v"))
                .unwrap_or(Value::String(text)),
        };
        overrides.push(Override { path, value, source: name });
    }
}

fn lookup<'a>(table: &'a Table, path: &[String]) -> Option<&'a Value> {
    let (last, parents) = path.split_last()?;
    let parent = parents.iter().try_fold(table, |table, key| table.get(key)?.as_table())?;
    parent.get(last)
}

fn insert(table: &mut Table, path: &[String], value: Value) {
    let Some((last, parents)) = path.split_last() else {
        return;
    };
    let mut at = table;
    for key in parents {
        let Some(next) = at.get_mut(key).and_then(Value::as_table_mut) else {
            return;
        };
        at = next;
    }
    at.insert(last.clone(), value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::{ExposeSecret, SecretString};
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        server: Server,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Server {
        port: u16,
        name: String,
        password: SecretString,
        tags: Vec<String>,
    }

    impl Validate for Config {
        fn validate(&self, faults: &mut Faults) {
            if self.server.name.is_empty() {
                faults.push("server.name", "must not be empty");
            }
        }
    }

    const DEFAULTS: &str = "[server]\nport = 1\nname = \"\"\npassword = \"\"\ntags = []\n";

    fn env(pairs: &[(&str, &str)]) -> std::vec::IntoIter<(String, String)> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Vec<_>>().into_iter()
    }

    #[test]
    fn later_layers_win_and_text_stays_text() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("c.toml");
        let secret = folder.path().join("secret");
        std::fs::write(&file, "[server]\nport = 2\nname = \"file\"\n").expect("write");
        std::fs::write(&secret, "hunter2\n").expect("write");
        let pairs = [
            ("KEYSWEEP_SERVER__NAME", "123"),
            ("KEYSWEEP_SERVER__TAGS", "[\"a\"]"),
            ("KEYSWEEP_SERVER__PASSWORD_FILE", secret.to_str().expect("utf-8")),
            ("KEYSWEEP_CONFIG", "ignored"),
        ];
        let config: Config = load_from(DEFAULTS, Some(&file), env(&pairs)).expect("loads");
        assert_eq!((config.server.port, config.server.name.as_str(), config.server.tags.len()), (2, "123", 1));
        assert_eq!(config.server.password.expose_secret(), "hunter2");
    }

    #[test]
    fn every_fault_is_listed_with_its_source() {
        let pairs = [
            ("KEYSWEEP_SERVER__PORT", "many"),
            ("KEYSWEEP_SERVER__TAGS", "7"),
            ("KEYSWEEP_SERVER__COLOUR", "red"),
            ("KEYSWEEP_SERVER__PASSWORD_FILE", "/nonexistent/secret"),
        ];
        let text = load_from::<Config>(DEFAULTS, None, env(&pairs)).expect_err("refused").to_string();
        for expected in [
            "5 faults",
            "server.port",
            "server.tags",
            "server.colour: there is no such setting",
            "server.password",
            "server.name: must not",
            "KEYSWEEP_SERVER__PORT",
        ] {
            assert!(text.contains(expected), "{expected} is not in: {text}");
        }
    }
}
