//! A text that is never shown.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::bus::seal::MIN_SECRET_BYTES;

/// A text that is never shown: not in a log, not in what `realtime config` prints.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The text.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Secret(text.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "\"\"" } else { "\"***\"" })
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.is_empty() { "" } else { "***" })
    }
}

/// Whether a secret is good enough for a bus; it may be absent where none is `needed`.
pub fn check_secret(secret: &Secret, needed: bool) -> Result<(), String> {
    match secret.expose().len() {
        0 if needed => Err(format!("a bus over TCP needs a secret of at least {MIN_SECRET_BYTES} bytes; `openssl rand -hex 32` makes one")),
        0 | MIN_SECRET_BYTES.. => Ok(()),
        bytes => Err(format!("has {bytes} bytes, and must have at least {MIN_SECRET_BYTES}; `openssl rand -hex 32` makes one")),
    }
}
