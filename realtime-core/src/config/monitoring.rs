//! Where the hub is watched, and by whom.

use std::net::{SocketAddr, ToSocketAddrs};

use serde::{Deserialize, Serialize};

use super::error::invalid;
use super::{ConfigError, Secret};

/// A token of so many bytes is not guessed.
const MIN_TOKEN_BYTES: usize = 16;

/// Where the hub is watched.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MonitoringConfig {
    /// Address and port at which `/health`, `/ready` and `/metrics` answer to anybody who can reach it. Default empty: the first two
    /// are where clients connect, and so is `/metrics` if there is a `token`.
    pub listen: String,
    /// What `/metrics` has to be asked with (`Authorization: Bearer …`), wherever it is; at least 16 bytes. Default none: it is
    /// at `listen` only.
    pub token: Secret,
}

impl MonitoringConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        self.address()?;
        if let length @ 1..MIN_TOKEN_BYTES = self.token.expose().len() {
            return invalid(
                "monitoring.token",
                format!("{length} bytes can be guessed, it needs {MIN_TOKEN_BYTES}; `openssl rand -hex 16` makes one"),
            );
        }
        if !self.token.expose().bytes().all(|byte| byte.is_ascii_graphic()) {
            return invalid("monitoring.token", "a header carries letters, digits and signs, no blanks: nobody could present it");
        }
        Ok(())
    }

    /// The address from `listen`, resolved; `None`: there is no listener for it.
    pub(crate) fn address(&self) -> Result<Option<SocketAddr>, ConfigError> {
        let listen = &self.listen;
        if listen.is_empty() {
            return Ok(None);
        }
        let invalid = |reason: String| ConfigError::InvalidValue { key: "monitoring.listen".into(), reason };
        let mut found = listen.to_socket_addrs().map_err(|error| invalid(format!("`{listen}` is not an address and port: {error}")))?;
        found.next().map(Some).ok_or_else(|| invalid(format!("`{listen}` names no address")))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ConfigBuilder, Source};

    #[test]
    fn a_token_is_long_enough_and_fits_into_a_header() {
        for (length, ok) in [(0, true), (1, false), (15, false), (16, true), (17, true)] {
            let token = ConfigBuilder::new().text(Source::Code, "monitoring.token", &"x".repeat(length)).and_then(ConfigBuilder::build);
            assert_eq!(token.is_ok(), ok, "{length}");
        }
        for token in [" 0123456789abcdef", "0123456789abcdef\t", "0123456789 abcdef", "0123456789abcdé"] {
            let built = ConfigBuilder::new().text(Source::Code, "monitoring.token", token).and_then(ConfigBuilder::build);
            assert!(built.is_err_and(|error| error.to_string().starts_with("setting `monitoring.token`: ")), "{token}");
        }
    }

    #[test]
    fn it_is_watched_at_an_address_or_nowhere() {
        let monitor = |listen: &str| ConfigBuilder::new().text(Source::Code, "monitoring.listen", listen).and_then(ConfigBuilder::build);
        assert!(monitor("").is_ok() && monitor("127.0.0.1:0").is_ok() && monitor("0.0.0.0:9100").is_ok() && monitor("nonsense").is_err());
    }
}
