//! Who may connect, and who decides it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::invalid;
use super::{Config, ConfigError, Secret};
use crate::outbound::{Address, check_header};

/// Who may connect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthConfig {
    /// How connections are authenticated. Absent: not at all, and only on loopback. Of several, an
    /// absent credential goes to the next, and one that is refused ends it.
    pub mode: Option<AuthModes>,
    /// How long a connection has that authenticates by the action `auth`. Default 10,000.
    pub timeout_ms: u64,
    /// Connections that have yet to authenticate. Default 4,096; past it new ones are told to come
    /// back later.
    pub max_pending: usize,
    /// The same for one client's address (IPv6: one /64). Default 0: no limit, because an office or
    /// a proxy that is not in `trusted_proxies` is one address.
    pub max_pending_per_address: usize,
    /// The application's own endpoint.
    pub callback: CallbackConfig,
    /// Signed tokens.
    pub jwt: JwtConfig,
}

impl Default for AuthConfig {
    fn default() -> Self {
        AuthConfig {
            mode: None,
            timeout_ms: 10_000,
            max_pending: 4_096,
            max_pending_per_address: 0,
            callback: CallbackConfig::default(),
            jwt: JwtConfig::default(),
        }
    }
}

/// One mode or a list of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AuthModes {
    /// A single mode.
    One(AuthMode),
    /// Tried in order.
    Many(Vec<AuthMode>),
}

/// A way to authenticate connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum AuthMode {
    /// Everybody may connect.
    None,
    /// The application is asked, with the request's cookies.
    Callback,
    /// The client shows a token that the application has signed.
    Jwt,
}

/// The application's endpoint that says whose a request is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CallbackConfig {
    /// An `http://` or `https://` URL.
    pub url: String,
    /// Where to ask for channels with `access = "callback"`. Default: `url`.
    pub subscribe_url: String,
    /// A PHP-FPM pool, in place of `url`.
    pub fastcgi: FastCgiConfig,
    /// Certificates in PEM to trust in place of the system's.
    pub ca_file: String,
    /// Headers of the client's request that are passed on. Default `authorization`, `cookie`,
    /// `host`, `origin`, `user-agent`.
    pub headers: Vec<String>,
    /// Cookies that are passed on, by name. Default empty: all.
    pub cookies: Vec<String>,
    /// Parameters of the client's query that are passed on, by name. Default none.
    pub query: Vec<String>,
    /// How long a client waits for the answer, the queue included. Default 2,000; past it the
    /// client is told to come back later.
    pub timeout_ms: u64,
    /// Requests under way at once. Default 4; with FastCGI keep it below the pool's
    /// `pm.max_children`, or a crowd of clients leaves no worker for the site.
    pub max_in_flight: usize,
    /// Requests that wait for their turn. Default 1,000; past it clients are told to come back later.
    pub max_queue: usize,
}

impl Default for CallbackConfig {
    fn default() -> Self {
        CallbackConfig {
            url: String::new(),
            subscribe_url: String::new(),
            fastcgi: FastCgiConfig::default(),
            ca_file: String::new(),
            headers: ["authorization", "cookie", "host", "origin", "user-agent"].map(str::to_owned).into(),
            cookies: Vec::new(),
            query: Vec::new(),
            timeout_ms: 2_000,
            max_in_flight: 4,
            max_queue: 1_000,
        }
    }
}

/// A script in a PHP-FPM pool.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FastCgiConfig {
    /// Path of the pool's socket, or `host:port`.
    pub socket: String,
    /// Path of the script, as PHP-FPM sees it.
    pub script: String,
    /// What the script sees as its URI. Default `/` and the script's file name.
    pub uri: String,
    /// The URI when it is asked for a channel. Default: `uri`.
    pub subscribe_uri: String,
}

/// Tokens that the application signs (RFC 7519).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JwtConfig {
    /// A secret for HS256, of 32 bytes at least: the short form of one key without `kid`.
    pub secret: Secret,
    /// Keys, when there are several or the application signs with a private one.
    pub keys: Vec<JwtKeyConfig>,
    /// What `iss` has to be. Default empty: anything.
    pub issuer: String,
    /// What `aud` has to be or contain. Default empty: anything.
    pub audience: String,
    /// How far the signer's clock may be off. Default 0, at most 30,000. A token is good, and its
    /// connection lives, this much longer than `exp`.
    pub leeway_ms: u64,
}

/// A key that tokens are checked with.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtKeyConfig {
    /// Tokens with this `kid` are checked with it. Default empty: tokens without one.
    #[serde(default)]
    pub kid: String,
    /// The only algorithms that are accepted with it.
    pub algorithms: Vec<JwtAlgorithm>,
    /// For HS256, HS384, HS512: at least 32, 48, 64 bytes.
    #[serde(default)]
    pub secret: Secret,
    /// For RS256, ES256, EdDSA: the public key in PEM (`BEGIN PUBLIC KEY`).
    #[serde(default)]
    pub public_key: String,
    /// A file with that.
    #[serde(default)]
    pub public_key_file: String,
    /// The app whose connections it is good for. Default: the default one.
    #[serde(default)]
    pub app: String,
}

/// How a token is signed (RFC 7518, RFC 8037).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum JwtAlgorithm {
    /// HMAC with SHA-256.
    HS256,
    /// HMAC with SHA-384.
    HS384,
    /// HMAC with SHA-512.
    HS512,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    RS256,
    /// ECDSA with P-256 and SHA-256.
    ES256,
    /// Ed25519.
    EdDSA,
}

/// Longest leeway.
const MAX_LEEWAY_MS: u64 = 30_000;

impl AuthConfig {
    /// The modes in their order.
    pub(crate) fn modes(&self) -> &[AuthMode] {
        match &self.mode {
            None => &[],
            Some(AuthModes::One(mode)) => std::slice::from_ref(mode),
            Some(AuthModes::Many(modes)) => modes,
        }
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let modes = self.modes();
        if self.mode.is_some() && modes.is_empty() {
            return invalid("auth.mode", "the list is empty; write \"none\" to let everybody in");
        }
        if modes.contains(&AuthMode::None) && modes.len() > 1 {
            return invalid("auth.mode", "\"none\" lets everybody in, and stands alone");
        }
        if (1..modes.len()).any(|at| modes[..at].contains(&modes[at])) {
            return invalid("auth.mode", "a mode is named twice");
        }
        for (key, value) in [("auth.timeout_ms", self.timeout_ms), ("auth.callback.timeout_ms", self.callback.timeout_ms)] {
            if !(1..=600_000).contains(&value) {
                return invalid(key, format!("{value} is not within 1–600000"));
            }
        }
        if self.max_pending == 0 {
            return invalid("auth.max_pending", "must be at least 1");
        }
        if self.callback.max_in_flight == 0 {
            return invalid("auth.callback.max_in_flight", "must be at least 1");
        }
        if modes.contains(&AuthMode::Callback) && !self.callback.is_set() {
            return invalid("auth.callback", "the mode `callback` needs `url` or `fastcgi`");
        }
        if self.callback.is_set() {
            self.callback.validate()?;
        }
        if modes.contains(&AuthMode::Jwt) && self.jwt.secret.is_empty() && self.jwt.keys.is_empty() {
            return invalid("auth.jwt", "the mode `jwt` needs `secret` or `keys`");
        }
        if self.jwt.leeway_ms > MAX_LEEWAY_MS {
            return invalid("auth.jwt.leeway_ms", format!("{} is more than {MAX_LEEWAY_MS}", self.jwt.leeway_ms));
        }
        Ok(())
    }
}

impl CallbackConfig {
    /// Whether there is somebody to ask.
    pub(crate) fn is_set(&self) -> bool {
        !self.url.is_empty() || self.fastcgi != FastCgiConfig::default()
    }

    fn validate(&self) -> Result<(), ConfigError> {
        if self.fastcgi != FastCgiConfig::default() && (!self.url.is_empty() || !self.subscribe_url.is_empty()) {
            return invalid("auth.callback", "give either `url` or `fastcgi`, not both");
        }
        for header in &self.headers {
            if let Err(reason) = check_header(header) {
                return invalid("auth.callback.headers", format!("`{header}` {reason}"));
            }
        }
        self.addresses().map(drop)
    }

    /// Where to ask about a connection, and where about a channel.
    pub(crate) fn addresses(&self) -> Result<[Address; 2], ConfigError> {
        let or = |text: &str, other: &str| if text.is_empty() { other.to_owned() } else { text.to_owned() };
        if self.url.is_empty() {
            let fastcgi = &self.fastcgi;
            let make = |uri: &str| {
                fastcgi.address(uri).map_err(|reason| ConfigError::InvalidValue { key: "auth.callback.fastcgi".into(), reason })
            };
            return Ok([make(&fastcgi.uri)?, make(&or(&fastcgi.subscribe_uri, &fastcgi.uri))?]);
        }
        let make = |key: &str, url: &str| {
            Address::http(url).map_err(|reason| ConfigError::InvalidValue { key: format!("auth.callback.{key}"), reason })
        };
        Ok([make("url", &self.url)?, make("subscribe_url", &or(&self.subscribe_url, &self.url))?])
    }
}

impl FastCgiConfig {
    /// Where the script is; without a URI, its own name is one.
    pub(super) fn address(&self, uri: &str) -> Result<Address, String> {
        if self.socket.is_empty() {
            return Err("`socket` is missing".into());
        }
        let script = Path::new(&self.script);
        if !script.is_absolute() {
            return Err("`script` must be the absolute path of a PHP file".into());
        }
        let own = format!("/{}", script.file_name().unwrap_or_default().to_string_lossy());
        Address::fastcgi(&self.socket, &self.script, if uri.is_empty() { &own } else { uri })
    }
}

impl Config {
    /// Whether connections have to say whose they are.
    pub(crate) fn authenticates(&self) -> bool {
        self.auth.modes().iter().any(|mode| *mode != AuthMode::None)
    }
}

#[cfg(test)]
mod tests {
    use super::super::ConfigBuilder;

    #[test]
    fn authentication_is_written_out_and_complete_or_refused() {
        let build = |text: &str| ConfigBuilder::new().toml(text).and_then(ConfigBuilder::build);
        let fastcgi = |rest: &str| format!("[auth]\nmode = \"callback\"\n[auth.callback]\nfastcgi = {{ {rest} }}");
        for text in [
            "[auth]\nmode = \"jwt\"\n[auth.jwt]\nsecret = \"0123456789abcdef0123456789abcdef\"".to_owned(),
            "[auth]\nmode = [\"callback\"]\n[auth.callback]\nurl = \"https://app.test/auth\"".into(),
            fastcgi("socket = \"/run/php.sock\", script = \"/srv/auth.php\""),
            fastcgi("socket = \"php:9000\", script = \"/srv/auth.php\", uri = \"/realtime/auth\""),
        ] {
            assert!(build(&text).is_ok(), "{text}: {:?}", build(&text).err());
        }
        for (text, fault) in [
            ("[auth]\nmode = \"jwt\"".to_owned(), "needs `secret` or `keys`"),
            ("[auth]\nmode = \"callback\"".into(), "needs `url` or `fastcgi`"),
            ("[auth]\nmode = [\"jwt\", \"none\"]".into(), "stands alone"),
            ("[auth]\nmode = [\"jwt\", \"jwt\"]".into(), "named twice"),
            ("[auth]\nmode = \"jwt\"\n[auth.jwt]\nsecret = \"short\"".into(), "HS256 needs 32"),
            ("[auth.jwt]\nleeway_ms = 30001".into(), "more than 30000"),
            ("[auth.callback]\nurl = \"ftp://a.test/\"".into(), "does not begin with http"),
            ("[auth.callback]\nurl = \"http://a/\"\nheaders = [\"Proxy\"]".into(), "`Proxy` is not passed on"),
            (fastcgi("script = \"/srv/auth.php\""), "`socket` is missing"),
            (fastcgi("socket = \"/run/php.sock\", script = \"auth.php\""), "absolute path"),
            ("[[channels]]\nmatch = \"*\"\naccess = \"callback\"".into(), "needs `auth.callback`"),
        ] {
            // What only the hub reads when it starts is an error of the start.
            let error =
                build(&text).and_then(|built| crate::auth::Authenticator::new(&built.config).map(drop)).expect_err(&text).to_string();
            assert!(error.contains(fault), "{text}: {error}");
        }
        let shown = serde_json::to_string(&build("[auth.jwt]\nsecret = \"0123456789abcdef0123456789abcdef\"").expect("valid").config)
            .expect("JSON");
        assert!(!shown.contains("0123456789abcdef"), "{shown}");
    }
}
