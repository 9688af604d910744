//! `realtime config`: the values in effect and where each came from.

use realtime_core::{EffectiveConfig, Source};
use serde_json::{Value, json};

use crate::cli::ConfigArgs;
use crate::failure::Failure;
use crate::output;
use crate::settings::{self, leaves, source_name};

pub(crate) fn run(args: &ConfigArgs) -> Result<(), Failure> {
    let settings = settings::load(&args.settings)?;
    for warning in &settings.effective.warnings {
        eprintln!("realtime: {warning}");
    }
    if args.json {
        let all = leaves(&settings.effective).into_iter().map(|(key, value)| {
            let origin = origin(&settings.effective, &key);
            (key, json!({"value": value, "origin": origin}))
        });
        return output::line(&Value::Object(all.collect()).to_string());
    }
    let file = settings.file.map_or("no file".into(), |file| format!("file {}", file.display()));
    output::write(format!("# {file}\n{}", as_toml(&settings.effective)).as_bytes())
}

fn origin(effective: &EffectiveConfig, key: &str) -> String {
    source_name(effective.origins.get(key).copied().unwrap_or(Source::Default))
}

/// TOML with each value's origin behind it. What has no value stands there as a comment.
fn as_toml(effective: &EffectiveConfig) -> String {
    let mut text = String::new();
    let mut table = "";
    let all = leaves(effective);
    // Plain settings first: in TOML they would otherwise belong to the table above them.
    let (plain, mut nested): (Vec<_>, Vec<_>) = all.iter().partition(|(key, _)| !key.contains('.'));
    // A table is opened once: what stands in it directly comes before the tables inside it.
    nested.sort_by_key(|(key, _)| key.rsplit_once('.').map(|(table, _)| table));
    let is_table_list = |value: &Value| value.as_array().is_some_and(|items| items.iter().any(Value::is_object));
    for (key, value) in plain.iter().filter(|(_, value)| !is_table_list(value)).chain(&nested) {
        let (within, name) = key.rsplit_once('.').unwrap_or(("", key));
        if within != table {
            table = within;
            text.push_str(&format!("\n[{table}]\n"));
        }
        let origin = origin(effective, key);
        match value {
            Value::Null => text.push_str(&format!("# {name} =   # {origin}\n")),
            value => text.push_str(&format!("{name} = {value}   # {origin}\n")),
        }
    }
    for (key, value) in plain.iter().filter(|(_, value)| is_table_list(value)) {
        for item in value.as_array().into_iter().flatten() {
            text.push_str(&format!("\n[[{key}]]   # {}\n", origin(effective, key)));
            for (name, value) in item.as_object().into_iter().flatten() {
                text.push_str(&format!("{name} = {value}\n"));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use realtime_core::{Config, ConfigBuilder};

    #[test]
    fn what_is_printed_can_be_read_again() {
        let file = "listen = \"127.0.0.1:1\"\nallowed_origins = [\"https://a.test\"]\n[auth]\nmode = \"none\"\n[limits]\nmax_fragments = 3\n\
                    [[channels]]\nmatch = \"ä \\\"*\"\nclient_events = true\n[[channels]]\nmatch = \"b\"";
        let effective = ConfigBuilder::new().toml(file).and_then(ConfigBuilder::build).expect("valid");
        let printed = as_toml(&effective);
        assert!(printed.contains("max_fragments = 3   # file\n") && printed.contains("shards = 0   # default\n"), "{printed}");
        let again: Config = ConfigBuilder::new().toml(&printed).and_then(ConfigBuilder::build).expect("valid").config;
        assert_eq!(again, effective.config);
    }
}
