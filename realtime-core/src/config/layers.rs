//! Layers of settings on top of each other, and where each value came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde_json::{Map, Value};

use super::schema::{check_keys, from_text, leaf_names, lookup, nearest, parse_text, schema};
use super::{Config, ConfigError};
use crate::bus::socket::default_path;

/// `REALTIME_*` variables that are the Laravel package's own, and no settings of a hub.
pub const LARAVEL_VARIABLES: [&str; 7] = [
    "REALTIME_APP_ID",
    "REALTIME_APP_KEY",
    "REALTIME_APP_SECRET",
    "REALTIME_API_URL",
    "REALTIME_ENCRYPTION_MASTER_KEY",
    "REALTIME_QUEUE",
    "REALTIME_TRANSPORT",
];

/// Where a value came from, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// The value built in.
    Default,
    /// The TOML file.
    File,
    /// A `.env` file of an application (`realtime serve --env-file`).
    EnvFile,
    /// A `realtime.*` INI setting.
    Ini,
    /// A `REALTIME_*` variable.
    Environment,
    /// An array or struct that the program gave.
    Code,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Default => "default",
            Source::File => "file",
            Source::EnvFile => "env file",
            Source::Ini => "php.ini",
            Source::Environment => "environment",
            Source::Code => "code",
        })
    }
}

/// A configuration with the origin of each value that was set.
#[derive(Debug, Clone)]
pub struct EffectiveConfig {
    /// The values.
    pub config: Config,
    /// Dotted key to the layer that set it; what is absent is a default.
    pub origins: BTreeMap<String, Source>,
    /// What was ignored, for the log.
    pub warnings: Vec<String>,
}

/// Puts layers on top of each other. Within one builder the stronger [`Source`] wins, whatever the
/// order of the calls.
#[derive(Debug, Clone, Default)]
pub struct ConfigBuilder {
    layers: BTreeMap<Source, Map<String, Value>>,
    warnings: Vec<String>,
    /// Whether the environment has the app's key under the Laravel package's name.
    laravel_app: bool,
}

impl ConfigBuilder {
    /// Defaults only.
    pub fn new() -> Self {
        ConfigBuilder::default()
    }

    /// Reads a TOML file.
    pub fn file(self, path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::File { path: path.into(), source })?;
        self.toml(&text)
    }

    /// Reads TOML text as the file's layer.
    pub fn toml(self, text: &str) -> Result<Self, ConfigError> {
        let value: Value = toml::from_str(text).map_err(|error| ConfigError::Syntax { reason: error.to_string() })?;
        self.layer(Source::File, value)
    }

    /// Takes `REALTIME_*` variables: `REALTIME_LISTEN`, `REALTIME_LIMITS__OUTBOX_BYTES`. One that
    /// names no setting becomes a warning, because orchestrators inject some of their own; those of
    /// the Laravel package ([`LARAVEL_VARIABLES`]) are passed over.
    pub fn environment(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let schema = schema();
        for (name, text) in variables {
            let Some(rest) = name.strip_prefix("REALTIME_") else { continue };
            let path: Vec<String> = rest.to_ascii_lowercase().split("__").map(str::to_owned).collect();
            if LARAVEL_VARIABLES.contains(&name.as_str()) {
                self.laravel_app |= rest == "APP_KEY" && !text.is_empty();
                continue;
            }
            let Some(template) = lookup(&schema, &path) else {
                self.warnings.push(format!("ignored {name}: no such setting"));
                continue;
            };
            let value = parse_text(template, &text);
            insert(self.layers.entry(Source::Environment).or_default(), &path, value);
        }
        self
    }

    /// Takes one setting by its dotted name (`limits.outbox_bytes`), with its value as text, as a
    /// command line has it.
    pub fn text(mut self, source: Source, key: &str, text: &str) -> Result<Self, ConfigError> {
        let schema = schema();
        let path: Vec<String> = key.split('.').map(str::to_owned).collect();
        let Some(template) = lookup(&schema, &path) else {
            let mut names = Vec::new();
            leaf_names(&schema, "", &mut names);
            let suggestion = nearest(key, names.iter().map(String::as_str)).map(str::to_owned);
            return Err(ConfigError::UnknownKey { key: key.into(), suggestion, origin: source });
        };
        let value = parse_text(template, text);
        insert(self.layers.entry(source).or_default(), &path, value);
        Ok(self)
    }

    /// Takes a tree of settings, named as in the file. Strings are accepted where a number or a
    /// truth value is meant, because INI values are strings.
    pub fn layer(mut self, source: Source, values: Value) -> Result<Self, ConfigError> {
        let Value::Object(mut values) = values else {
            return Err(ConfigError::InvalidValue { key: String::new(), reason: "expected a table of settings".into() });
        };
        check_keys(&values, &schema(), "", source)?;
        if source == Source::Ini {
            from_text(&mut values, &schema());
        }
        merge(self.layers.entry(source).or_default(), values);
        Ok(self)
    }

    /// What the strongest layer that has it says of one setting, by its dotted name. For programs
    /// that need a setting and not a hub: nothing else is validated.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.layers.values().rev().find_map(|layer| {
            let (first, rest) = key.split_once('.').map_or((key, None), |(first, rest)| (first, Some(rest)));
            let value = layer.get(first)?;
            rest.map_or(Some(value), |rest| rest.split('.').try_fold(value, |value, key| value.get(key)))
        })
    }

    /// Merges the layers and validates the result. A hub that is told nothing of a bus socket
    /// serves the usual one ([`default_path`]).
    pub fn build(self) -> Result<EffectiveConfig, ConfigError> {
        let mut merged = Map::new();
        let mut origins = BTreeMap::new();
        for (source, layer) in self.layers {
            record_origins(&layer, "", source, &mut origins);
            merge(&mut merged, layer);
        }
        let mut config = parse(merged)?;
        config.socket.get_or_insert_with(|| default_path().to_string_lossy().into_owned());
        config.validate()?;
        let mut warnings = self.warnings;
        // Whoever starts the program with the package's variables means this; the package itself gives `apps`.
        if self.laravel_app && config.apps.iter().all(|app| app.key.is_empty()) {
            warnings.push("ignored REALTIME_APP_KEY: no app has it; apps are REALTIME_APPS, or a .env file's with --env-file".into());
        }
        Ok(EffectiveConfig { config, origins, warnings })
    }
}

fn parse(merged: Map<String, Value>) -> Result<Config, ConfigError> {
    // Top-level keys one by one, so that an error can name its setting.
    for (key, value) in &merged {
        let mut single = Map::new();
        single.insert(key.clone(), value.clone());
        if let Err(error) = serde_json::from_value::<Config>(Value::Object(single)) {
            if let Value::Object(table) = value {
                for (inner, inner_value) in table {
                    let nested = Value::Object(Map::from_iter([(
                        key.clone(),
                        Value::Object(Map::from_iter([(inner.clone(), inner_value.clone())])),
                    )]));
                    if let Err(error) = serde_json::from_value::<Config>(nested) {
                        return Err(ConfigError::InvalidValue { key: format!("{key}.{inner}"), reason: error.to_string() });
                    }
                }
            }
            return Err(ConfigError::InvalidValue { key: key.clone(), reason: error.to_string() });
        }
    }
    serde_json::from_value(Value::Object(merged))
        .map_err(|error| ConfigError::InvalidValue { key: String::new(), reason: error.to_string() })
}

fn insert(map: &mut Map<String, Value>, path: &[String], value: Value) {
    match path {
        [] => {}
        [leaf] => {
            map.insert(leaf.clone(), value);
        }
        [table, rest @ ..] => {
            if let Value::Object(inner) = map.entry(table.clone()).or_insert_with(|| Value::Object(Map::new())) {
                insert(inner, rest, value);
            }
        }
    }
}

fn merge(into: &mut Map<String, Value>, from: Map<String, Value>) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Object(existing)), Value::Object(table)) => merge(existing, table),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

fn record_origins(layer: &Map<String, Value>, prefix: &str, source: Source, origins: &mut BTreeMap<String, Source>) {
    for (key, value) in layer {
        let path = format!("{prefix}{key}");
        match value {
            Value::Object(table) => record_origins(table, &format!("{path}."), source, origins),
            _ => {
                origins.insert(path, source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{AuthMode, AuthModes, LogLevel};
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    #[test]
    fn the_stronger_layer_wins_whatever_the_order_of_calls() {
        let effective = ConfigBuilder::new()
            .layer(Source::Code, json!({"shards": 4}))
            .and_then(|b| b.toml("shards = 1\nlisten = \"127.0.0.1:1\"\n[limits]\nmax_fragments = 3"))
            .map(|b| b.environment(env(&[("REALTIME_LISTEN", "127.0.0.1:2"), ("REALTIME_LIMITS__OUTBOX_BYTES", "2097152")])))
            .and_then(ConfigBuilder::build)
            .expect("valid");
        assert_eq!((effective.config.shards, effective.config.listen.as_str()), (4, "127.0.0.1:2"));
        assert_eq!(effective.config.limits.max_fragments, 3);
        assert_eq!(effective.config.limits.outbox_bytes, 2 << 20);
        assert_eq!(effective.origins["shards"], Source::Code);
        assert_eq!(effective.origins["limits.outbox_bytes"], Source::Environment);
        assert_eq!(effective.origins.get("socket"), None);
    }

    #[test]
    fn an_unknown_key_is_an_error_that_suggests_the_nearest() {
        let error = ConfigBuilder::new().toml("lissten = \"x\"").expect_err("unknown");
        assert_eq!(error.to_string(), "file: unknown setting `lissten`, did you mean `listen`?");
        let error = ConfigBuilder::new().layer(Source::Code, json!({"limits": {"outbox_byte": 1}})).expect_err("unknown");
        assert_eq!(error.to_string(), "code: unknown setting `limits.outbox_byte`, did you mean `limits.outbox_bytes`?");
        let error = ConfigBuilder::new()
            .toml("[[channels]]\nmatch = \"a\"\nclient_event = true")
            .and_then(ConfigBuilder::build)
            .expect_err("unknown");
        assert!(error.to_string().contains("client_event"), "{error}");
    }

    #[test]
    fn an_unknown_variable_is_a_warning() {
        let effective = ConfigBuilder::new().environment(env(&[("REALTIME_PORT", "tcp://1"), ("HOME", "/")])).build().expect("valid");
        assert_eq!(effective.warnings, ["ignored REALTIME_PORT: no such setting"]);
    }

    #[test]
    fn the_laravel_packages_variables_are_passed_over_unless_its_app_is_missed() {
        let variables = env(&LARAVEL_VARIABLES.map(|name| (name, "x")));
        let effective = ConfigBuilder::new().environment(variables.clone()).build().expect("valid");
        assert_eq!(effective.warnings.len(), 1, "{:?}", effective.warnings);
        assert!(effective.warnings[0].contains("REALTIME_APP_KEY"), "{:?}", effective.warnings);
        let app = json!({"apps": [{"name": "default", "id": "1", "key": "x", "secret": "y"}]});
        let builder = ConfigBuilder::new().environment(variables).layer(Source::Code, app).expect("known");
        assert_eq!(builder.build().expect("valid").warnings, [""; 0]);
    }

    #[test]
    fn a_setting_can_be_given_by_its_dotted_name() {
        let set = |key: &str, value: &str| ConfigBuilder::new().text(Source::Code, key, value);
        let effective = set("limits.max_fragments", "3")
            .and_then(|b| b.text(Source::Code, "auth.mode", "none"))
            .and_then(|b| b.text(Source::Code, "log_level", "debug"))
            .and_then(ConfigBuilder::build)
            .expect("valid");
        assert_eq!((effective.config.limits.max_fragments, effective.config.log_level), (3, LogLevel::Debug));
        assert_eq!(effective.config.auth.mode, Some(AuthModes::One(AuthMode::None)));
        assert_eq!(effective.origins["limits.max_fragments"], Source::Code);
        let error = set("limits.max_fragment", "3").expect_err("unknown");
        assert_eq!(error.to_string(), "code: unknown setting `limits.max_fragment`, did you mean `limits.max_fragments`?");
        assert!(set("limits", "3").is_err(), "a table is not a setting");
    }

    #[test]
    fn a_wrong_type_names_its_setting() {
        let error = ConfigBuilder::new().toml("[limits]\nmax_fragments = \"many\"").and_then(ConfigBuilder::build).expect_err("wrong type");
        assert!(error.to_string().starts_with("setting `limits.max_fragments`:"), "{error}");
        assert!(matches!(ConfigBuilder::new().toml("listen ="), Err(ConfigError::Syntax { .. })));
    }

    #[test]
    fn ini_strings_become_numbers() {
        let effective = ConfigBuilder::new()
            .layer(Source::Ini, json!({"shards": "3", "allowed_origins": "https://a.test, https://b.test"}))
            .and_then(ConfigBuilder::build)
            .expect("valid");
        assert_eq!(effective.config.shards, 3);
        assert_eq!(effective.config.allowed_origins, ["https://a.test", "https://b.test"]);
    }
}
