//! Where the hub is reached, by clients and over the bus, and what stands between.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use ipnet::IpNet;

use super::error::invalid;
use super::{Config, ConfigError, check_secret};
use crate::bus::address::BusAddress;

/// Longest `path`, in bytes.
const MAX_PATH_BYTES: usize = 200;

impl Config {
    /// The address from `listen`, resolved.
    pub fn listen_address(&self) -> Result<SocketAddr, ConfigError> {
        let invalid = |reason: String| ConfigError::InvalidValue { key: "listen".into(), reason };
        self.listen
            .to_socket_addrs()
            .map_err(|error| invalid(format!("`{}` is not an address and port: {error}", self.listen)))?
            .next()
            .ok_or_else(|| invalid(format!("`{}` names no address", self.listen)))
    }

    /// Where the bus is to be served: a Unix socket, an address over TCP or TLS, both or neither.
    pub(crate) fn bus_addresses(&self) -> Result<(Option<PathBuf>, Option<BusAddress>), ConfigError> {
        let (mut unix, mut tcp) = (None, None);
        let list = BusAddress::list(self.socket.as_deref().unwrap_or_default());
        for address in list.or_else(|error| invalid("socket", error.to_string()))? {
            let second = match address {
                BusAddress::Unix(path) => unix.replace(path).is_some(),
                address => tcp.replace(address).is_some(),
            };
            if second {
                return invalid("socket", "names two of a kind; a hub serves one path and one tcp:// or tls:// address at most");
            }
        }
        check_secret(&self.secret, tcp.is_some()).or_else(|reason| invalid("secret", reason))?;
        Ok((unix, tcp))
    }

    pub(crate) fn socket_mode(&self) -> Result<u32, ConfigError> {
        let mode = u32::from_str_radix(&self.socket_mode, 8).ok().filter(|mode| *mode <= 0o777);
        mode.map_or_else(|| invalid("socket_mode", format!("`{}` is not three octal digits", self.socket_mode)), Ok)
    }

    pub(super) fn validate_path(&self) -> Result<(), ConfigError> {
        check_path(&self.path).or_else(|reason| invalid("path", reason))
    }

    pub(super) fn validate_origins(&self) -> Result<(), ConfigError> {
        for origin in &self.allowed_origins {
            if !origin.is_ascii() {
                let reason = format!("`{origin}` is not how a browser writes it; international names are written `xn--…`");
                return invalid("allowed_origins", reason);
            }
        }
        Ok(())
    }

    /// `trusted_proxies` as networks.
    pub(crate) fn trusted_networks(&self) -> Result<Vec<IpNet>, ConfigError> {
        self.trusted_proxies
            .iter()
            .map(|text| text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)))
            .zip(&self.trusted_proxies)
            .map(|(network, text)| {
                network.map_err(|_| ConfigError::InvalidValue {
                    key: "trusted_proxies".into(),
                    reason: format!("`{text}` is neither an address nor a network such as 10.0.0.0/8"),
                })
            })
            .collect()
    }
}

/// Whether a text can stand before all paths: what no client and no proxy writes in two ways.
fn check_path(path: &str) -> Result<(), String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let Some(segments) = path.strip_prefix('/') else {
        return if path.is_empty() { Ok(()) } else { Err(format!("`{path}` does not begin with `/`")) };
    };
    if path.len() > MAX_PATH_BYTES {
        return Err(format!("has {} bytes, the limit is {MAX_PATH_BYTES}", path.len()));
    }
    for segment in segments.split('/') {
        if segment.is_empty() {
            return Err(format!("`{path}` has an empty part: write it without a `/` at its end, as in `/realtime`"));
        }
        if matches!(segment, "." | "..") || !segment.bytes().all(is_plain) {
            return Err(format!("`{segment}` may only have letters, digits, `-`, `.`, `_` and `~`, and not be a `.` or `..`"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{ConfigBuilder, Source};

    #[test]
    fn origins_and_proxies_are_written_as_they_are_met() {
        let build = |text: &str| ConfigBuilder::new().toml(text).and_then(ConfigBuilder::build);
        assert!(build("allowed_origins = [\"https://xn--bcher-kva.test\"]\ntrusted_proxies = [\"10.0.0.0/8\", \"::1\"]").is_ok());
        for (text, fault) in [
            ("allowed_origins = [\"https://bücher.test\"]", "xn--"),
            ("trusted_proxies = [\"the proxy\"]", "neither an address nor a network"),
        ] {
            let error = build(text).expect_err(text).to_string();
            assert!(error.contains(fault), "{text}: {error}");
        }
    }

    #[test]
    fn a_path_has_one_way_to_be_written() {
        let build = |path: &str| ConfigBuilder::new().text(Source::Code, "path", path).and_then(ConfigBuilder::build);
        for path in ["", "/realtime", "/a/b-c_d.e~f", "/1"] {
            assert!(build(path).is_ok(), "{path}");
        }
        for path in ["/", "realtime", "/a/", "//a", "/a//b", "/a b", "/a?b", "/a%20b", "/../a", "/é", "/a#b", "/a\n"] {
            let error = build(path).expect_err(path).to_string();
            assert!(error.starts_with("setting `path`: "), "{error}");
        }
        for (length, ok) in [(199, true), (200, true), (201, false)] {
            assert_eq!(build(&format!("/{}", "x".repeat(length - 1))).is_ok(), ok, "{length}");
        }
    }
}
