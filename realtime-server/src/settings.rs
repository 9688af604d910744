//! The configuration from file, environment and command line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use realtime_core::{ConfigBuilder, ConfigError, EffectiveConfig, Source};
use serde_json::Value;

use crate::cli::SettingsArgs;
use crate::env_file;

/// Read when it exists and no other file is named.
pub(crate) const DEFAULT_FILE: &str = "/etc/realtime/realtime.toml";
/// Names the file.
const FILE_VARIABLE: &str = "REALTIME_CONFIG";
/// Settings of the PHP extension, which may stand in the same environment.
const NOT_OURS: [&str; 6] =
    ["REALTIME_MODE", "REALTIME_ON_ERROR", "REALTIME_APP", "REALTIME_GLOBAL_FUNCTIONS", "REALTIME_AUTOSPAWN", "REALTIME_BINARY"];

/// A configuration and the file it was read from.
pub(crate) struct Settings {
    pub(crate) effective: EffectiveConfig,
    pub(crate) file: Option<PathBuf>,
}

impl Settings {
    /// The bus socket, if anybody has set one. Otherwise a hub serves the usual one, and who looks for a hub tries several.
    pub(crate) fn named_socket(&self) -> Option<&str> {
        self.effective.config.socket.as_deref().filter(|_| self.effective.origins.contains_key("socket"))
    }
}

/// Reads all layers.
pub(crate) fn load(args: &SettingsArgs) -> Result<Settings, ConfigError> {
    let variables: Vec<(String, String)> =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))).collect();
    let file = file(args.config.as_deref(), &variables);
    let mut builder = ConfigBuilder::new();
    if let Some(file) = &file {
        builder = builder.file(file).map_err(|error| match error {
            ConfigError::Syntax { reason } => ConfigError::Syntax { reason: format!("{}: {reason}", file.display()) },
            error => error,
        })?;
    }
    let mut warnings = Vec::new();
    if let Some(file) = &args.env_file {
        let text = std::fs::read_to_string(file).map_err(|source| ConfigError::File { path: file.clone(), source })?;
        let in_file = |error: ConfigError| match error {
            ConfigError::Syntax { reason } => ConfigError::Syntax { reason: format!("{}: {reason}", file.display()) },
            error => error,
        };
        let listed = builder.value("allowed_origins").is_some();
        let application = env_file::parse(&text).and_then(|variables| env_file::read(&variables, listed)).map_err(in_file)?;
        builder = builder.layer(Source::EnvFile, application.settings)?;
        for (name, value) in application.own.iter().filter(|(name, _)| name != FILE_VARIABLE && !NOT_OURS.contains(&name.as_str())) {
            let key = name.trim_start_matches("REALTIME_").to_ascii_lowercase().replace("__", ".");
            builder = builder.text(Source::EnvFile, &key, value)?;
        }
        warnings = application.warnings;
    }
    builder = builder.environment(variables.into_iter().filter(|(name, _)| name != FILE_VARIABLE && !NOT_OURS.contains(&name.as_str())));
    for (key, value) in args.given() {
        builder = builder.text(Source::Code, &key, &value)?;
    }
    let mut effective = builder.build()?;
    effective.warnings.extend(warnings);
    Ok(Settings { effective, file })
}

fn file(named: Option<&Path>, variables: &[(String, String)]) -> Option<PathBuf> {
    let variable = || variables.iter().find(|(name, value)| name == FILE_VARIABLE && !value.is_empty()).map(|(_, value)| value.into());
    named.map(Path::to_owned).or_else(variable).or_else(|| Some(PathBuf::from(DEFAULT_FILE)).filter(|file| file.exists()))
}

/// What a source is called on a command line.
pub(crate) fn source_name(source: Source) -> String {
    match source {
        Source::Code => "command line".into(),
        source => source.to_string(),
    }
}

/// Every setting by its dotted name.
pub(crate) fn leaves(effective: &EffectiveConfig) -> BTreeMap<String, Value> {
    let mut leaves = BTreeMap::new();
    collect("", serde_json::to_value(&effective.config).unwrap_or_default(), &mut leaves);
    leaves
}

fn collect(name: &str, value: Value, leaves: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(table) => {
            for (key, value) in table {
                collect(&if name.is_empty() { key } else { format!("{name}.{key}") }, value, leaves);
            }
        }
        value => {
            leaves.insert(name.to_owned(), value);
        }
    }
}
