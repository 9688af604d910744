//! Which settings exist and of which kind they are, for layers that come as text or as trees.

use serde_json::{Map, Value};

use super::{Config, ConfigError, Source};

/// The settings that exist, as the defaults written out; it tells known names from unknown ones.
pub(super) fn schema() -> Map<String, Value> {
    match serde_json::to_value(Config::default()) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

pub(super) fn check_keys(
    values: &Map<String, Value>,
    schema: &Map<String, Value>,
    prefix: &str,
    origin: Source,
) -> Result<(), ConfigError> {
    for (key, value) in values {
        match (schema.get(key), value) {
            (None, _) => {
                let suggestion = nearest(key, schema.keys().map(String::as_str)).map(|name| format!("{prefix}{name}"));
                return Err(ConfigError::UnknownKey { key: format!("{prefix}{key}"), suggestion, origin });
            }
            (Some(Value::Object(inner)), Value::Object(table)) => check_keys(table, inner, &format!("{prefix}{key}."), origin)?,
            _ => {}
        }
    }
    Ok(())
}

/// The candidate that is most like `name`, if any is like it at all.
pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(score, _)| *score > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// The dotted names of all settings.
pub(super) fn leaf_names(schema: &Map<String, Value>, prefix: &str, names: &mut Vec<String>) {
    for (key, value) in schema {
        match value {
            Value::Object(inner) => leaf_names(inner, &format!("{prefix}{key}."), names),
            _ => names.push(format!("{prefix}{key}")),
        }
    }
}

pub(super) fn lookup<'a>(schema: &'a Map<String, Value>, path: &[String]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    let value = schema.get(first)?;
    match (rest.is_empty(), value) {
        (true, Value::Object(_)) => None,
        (true, leaf) => Some(leaf),
        (false, Value::Object(inner)) => lookup(inner, rest),
        (false, _) => None,
    }
}

/// Reads a text as the kind of value that the template has; what does not fit stays text, so that
/// the error names it.
pub(super) fn parse_text(template: &Value, text: &str) -> Value {
    match template {
        Value::Number(_) => text.trim().parse::<u64>().map_or_else(|_| text.into(), Value::from),
        Value::Bool(_) => match text.trim().to_ascii_lowercase().as_str() {
            "1" | "true" | "on" | "yes" => true.into(),
            "0" | "false" | "off" | "no" | "" => false.into(),
            _ => text.into(),
        },
        Value::Array(_) => match serde_json::from_str::<Value>(text) {
            Ok(list @ Value::Array(_)) => list,
            _ => text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(Value::from).collect(),
        },
        _ => text.into(),
    }
}

pub(super) fn from_text(values: &mut Map<String, Value>, schema: &Map<String, Value>) {
    for (key, value) in values.iter_mut() {
        match (schema.get(key), &mut *value) {
            (Some(Value::Object(inner)), Value::Object(table)) => from_text(table, inner),
            (Some(template), Value::String(text)) => *value = parse_text(template, text),
            _ => {}
        }
    }
}
