//! Why a configuration cannot be used.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::Source;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// No setting has this name.
    #[error("{origin}: unknown setting `{key}`{}", suggestion.as_ref().map(|s| format!(", did you mean `{s}`?")).unwrap_or_default())]
    UnknownKey {
        /// The name as it was written, with its tables.
        key: String,
        /// The nearest name that exists.
        suggestion: Option<String>,
        /// The layer that held it.
        origin: Source,
    },
    /// The value has the wrong type or is out of range.
    #[error("setting `{key}`: {reason}")]
    InvalidValue {
        /// Which setting.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Others could reach the address and nothing says that they may.
    #[error("listening on {address} would let in anybody who can reach it: set `auth.mode` (\"none\" says that this is meant)")]
    UnsafeListen {
        /// The address from `listen`.
        address: SocketAddr,
    },
    /// The file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("not valid TOML: {reason}")]
    Syntax {
        /// The parser's message, with line and column.
        reason: String,
    },
}

/// What a check says of a setting that it refuses.
pub(super) fn invalid<T>(key: impl Into<String>, reason: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError::InvalidValue { key: key.into(), reason: reason.into() })
}
